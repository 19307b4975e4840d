"""Recipes of docs/python.md, with the tools that they are for: what is not installed is skipped.

python/check_recipes.sh installs them all and runs this.
"""

import importlib.util
import json
import os
import subprocess
import sys
import unittest

from machine import PATIENCE, MachineTest


def needs(*modules):
    def is_installed(name):
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            # The package that it is part of.
            return False

    missing = [name for name in modules if not is_installed(name)]
    return unittest.skipIf(missing, f"needs {', '.join(missing)}")


class Recipes(MachineTest):
    def write(self, name, text):
        path = os.path.join(self.path, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def python(self, *arguments, environment={}):
        return subprocess.run(
            [sys.executable, *arguments],
            env={**self.environment, **environment},
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
        )


@needs("jupyter_client", "ipykernel")
class Notebooks(Recipes):
    GPUS = 2

    def setUp(self):
        super().setUp()
        self.environment["JUPYTER_DATA_DIR"] = os.path.join(self.path, "jupyter")
        self.environment["IPYTHONDIR"] = os.path.join(self.path, "ipython")
        self.environment["JUPYTER_RUNTIME_DIR"] = os.path.join(self.path, "runtime")

    def start_kernel(self, name=None):
        from jupyter_client import KernelManager
        from jupyter_client.kernelspec import KernelSpecManager

        specs = KernelSpecManager()
        specs.kernel_dirs = [os.path.join(self.path, "jupyter", "kernels")]
        manager = KernelManager(kernel_name=name or "python3", kernel_spec_manager=specs)
        manager.start_kernel(env=self.environment)
        self.addCleanup(manager.shutdown_kernel, now=True)
        self.manager = manager
        self.connect()

    def connect(self):
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.addCleanup(self.client.stop_channels)
        self.client.wait_for_ready(timeout=2 * PATIENCE)

    def cell(self, code, meanwhile=None):
        """Runs a cell; what it printed, or the name of its error."""
        request = self.client.execute(code, stop_on_error=False)
        printed = ""
        while True:
            message = self.client.get_iopub_msg(timeout=2 * PATIENCE)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream" and content["name"] == "stdout":
                printed += content["text"]
                if meanwhile:
                    meanwhile()
                    meanwhile = None
            elif kind == "error":
                printed = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return printed.strip()

    def install(self, *arguments):
        result = self.python("-m", "autocvd.kernelspec", "install", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.strip()

    def test_a_kernel_that_starts_through_autocvd_has_its_gpu(self):
        directory = self.install()
        self.assertEqual(directory, os.path.join(self.path, "jupyter", "kernels", "autocvd"))
        self.start_kernel("autocvd")
        show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
        self.assertEqual(self.cell(show), "1")
        self.assertEqual(self.free(), [0])
        # Interrupts reach it.
        sleep = "import time\nprint('go', flush=True)\ntime.sleep(3600)"
        self.assertEqual(
            self.cell(sleep, meanwhile=self.manager.interrupt_kernel), "KeyboardInterrupt"
        )
        # In it, autocvd() has what the kernel has.
        self.assertEqual(
            self.cell("from autocvd import autocvd; print(autocvd(), autocvd())"), "[1] [1]"
        )
        # After a restart it has one GPU, not two.
        self.manager.restart_kernel()
        self.client.stop_channels()
        self.connect()
        self.assertIn(self.cell(show), ["0", "1"])
        self.wait_until("one GPU is free", lambda: len(self.free()) == 1)
        self.manager.shutdown_kernel()
        self.wait_until("both are free", lambda: self.free() == [0, 1])

    def test_its_options_are_the_programs(self):
        directory = self.install(
            "--name", "two-gpus", "--display-name", "Two GPUs", "--", "-n", "2"
        )
        with open(os.path.join(directory, "kernel.json")) as file:
            specification = json.load(file)
        self.assertEqual(specification["argv"][1:5], ["-n", "2", "--", sys.executable])
        self.assertEqual(specification["display_name"], "Two GPUs")
        self.start_kernel("two-gpus")
        self.assertEqual(self.cell("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"), "0,1")

    def test_where_it_is_installed(self):
        self.assertEqual(
            self.install("--prefix", self.path),
            os.path.join(self.path, "share/jupyter/kernels/autocvd"),
        )
        result = self.python("-m", "autocvd.kernelspec", "install", "--name", "a/b")
        self.assertEqual(result.returncode, 2)
        del self.environment["JUPYTER_DATA_DIR"]
        self.assertEqual(
            self.install("--user"),
            os.path.join(self.path, "home/.local/share/jupyter/kernels/autocvd"),
        )

    def test_a_cell_that_is_run_again_in_a_plain_kernel_takes_no_more(self):
        self.plain()
        for _ in range(3):
            self.assertEqual(self.cell("from autocvd import autocvd; print(autocvd())"), "[1]")
        self.assertEqual(self.free(), [0])

    def test_an_interrupt_ends_a_cell_while_the_driver_is_asked(self):
        self.describe(gpus=[{}, {}], delays_ms={"nvmlInit_v2": 3600_000})
        self.plain()
        code = "from autocvd import autocvd\nprint('go', flush=True)\nautocvd()"
        self.assertEqual(
            self.cell(code, meanwhile=self.manager.interrupt_kernel), "KeyboardInterrupt"
        )
        self.assertEqual(self.cell("print('still there')"), "still there")

    def plain(self):
        """Starts a kernel that knows nothing of autocvd."""
        directory = os.path.join(self.path, "jupyter", "kernels", "plain")
        os.makedirs(directory)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        with open(os.path.join(directory, "kernel.json"), "w") as file:
            json.dump({"argv": argv, "display_name": "plain", "language": "python"}, file)
        self.start_kernel("plain")


@needs("pytest", "xdist")
class Pytest(Recipes):
    GPUS = 2

    TESTS = """
import os, subprocess, time, pytest

@pytest.mark.parametrize("number", range(8))
def test_one(gpu, number):
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu.visible_devices
    # A worker that had the same GPU would be in the way.
    mine = f"on-gpu-{gpu.visible_devices}"
    descriptor = os.open(mine, os.O_CREAT | os.O_EXCL)
    time.sleep(0.05)
    os.unlink(mine)
    with open("seen", "a") as file:
        file.write(f"{os.environ.get('PYTEST_XDIST_WORKER', 'alone')} {gpu.visible_devices}\\n")
"""

    def run_pytest(self, *arguments):
        self.write("test_gpu.py", self.TESTS)
        plugins = ["-p", "no:cacheprovider", "-p", "autocvd.pytest_plugin"]
        return self.python("-m", "pytest", "-q", "-rs", *plugins, *arguments)

    def seen(self):
        with open(os.path.join(self.path, "seen")) as file:
            return [line.split() for line in file]

    def test_a_session_has_one_gpu(self):
        result = self.run_pytest()
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertEqual(self.seen(), [["alone", "1"]] * 8)
        self.assertEqual(self.free(), [0, 1])

    def test_each_worker_has_its_own_and_waits_for_one(self):
        for workers in ("2", "4"):
            result = self.run_pytest("-n", workers)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        gpus = {}
        for worker, gpu in self.seen()[:8]:
            gpus.setdefault(worker, set()).add(gpu)
        self.assertTrue(all(len(each) == 1 for each in gpus.values()), gpus)
        self.assertEqual(len(self.seen()), 16)
        self.assertEqual(self.free(), [0, 1])

    def test_without_a_gpu_its_tests_are_skipped(self):
        self.environment["AUTOCVD_NVML_LIB"] = "/nonexistent/libnvidia-ml.so.1"
        self.environment["PATH"] = "/nonexistent"
        result = self.run_pytest()
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("8 skipped", result.stdout)
        self.assertIn("cannot load", result.stdout)


#: Where a job is: it fails if another one is on its GPU.
JOB = """
import os, sys, time
mine = "on-gpu-" + os.environ["CUDA_VISIBLE_DEVICES"]
os.close(os.open(mine, os.O_CREAT | os.O_EXCL))
time.sleep(0.02)
os.unlink(mine)
print(os.environ["CUDA_VISIBLE_DEVICES"])
"""


@needs("joblib")
class Joblib(Recipes):
    GPUS = 2

    def test_jobs_that_start_programs(self):
        self.write("job.py", JOB)
        script = """
import sys
from joblib import Parallel, delayed
import autocvd

def job(seed):
    with autocvd.gpus(set_env=False, verbose=False) as g:
        return g.run([sys.executable, "job.py"], check=True, capture_output=True, text=True).stdout.strip()

print(sorted(set(Parallel(n_jobs=4, backend="threading")(delayed(job)(seed) for seed in range(16)))))
print(sorted(set(Parallel(n_jobs=3)(delayed(job)(seed) for seed in range(8)))))
"""
        result = self.python(self.write("script.py", script))
        self.assertEqual(result.stdout, "['0', '1']\n" * 2, result.stderr)
        self.assertEqual(self.free(), [0, 1])


@needs("optuna")
class Optuna(Recipes):
    GPUS = 2

    def test_trials_in_threads(self):
        self.write("job.py", JOB)
        script = """
import sys
import autocvd, optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)

def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    with autocvd.gpus(set_env=False, verbose=False) as g:
        g.run([sys.executable, "job.py"], check=True, capture_output=True)
    return x * x

study = optuna.create_study()
study.optimize(objective, n_trials=12, n_jobs=4)
print(len(study.trials), {trial.state.name for trial in study.trials})
"""
        result = self.python(self.write("script.py", script))
        self.assertEqual(result.stdout, "12 {'COMPLETE'}\n", result.stderr)
        self.assertEqual(self.free(), [0, 1])


#: Takes a GPU in this process; it fails if another job is on it.
TAKE = """
import os, time
import autocvd

def take():
    g = autocvd.autocvd(timeout=60, verbose=False)
    mine = os.path.join(os.environ["HOME"], "on-gpu-" + g.visible_devices)
    os.close(os.open(mine, os.O_CREAT | os.O_EXCL))
    time.sleep(0.05)
    os.unlink(mine)
    return list(g)
"""


@needs("ray")
class Ray(Recipes):
    GPUS = 2

    def test_a_task_has_what_ray_gives_it(self):
        script = """
import os
import autocvd, ray

autocvd.autocvd(2)
ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)

@ray.remote(num_gpus=1)
def task():
    import autocvd
    given = os.environ["CUDA_VISIBLE_DEVICES"]
    g = autocvd.autocvd(timeout=60)
    return given == g.visible_devices

@ray.remote(num_gpus=1)
class Actor:
    def gpus(self):
        import autocvd
        return list(autocvd.autocvd(timeout=60))

print(ray.get([task.remote() for _ in range(6)]))
one, two = Actor.remote(), Actor.remote()
print(sorted(ray.get([one.gpus.remote(), two.gpus.remote()])))
"""
        environment = {"RAY_TMPDIR": self.path, "RAY_USAGE_STATS_ENABLED": "0"}
        result = self.python(self.write("script.py", script), environment=environment)
        self.assertEqual(result.stdout, f"{[True] * 6}\n[[0], [1]]\n", result.stderr)
        self.wait_until("both are free", lambda: self.free() == [0, 1])


@needs("distributed")
class Dask(Recipes):
    GPUS = 2

    def test_workers_with_threads(self):
        script = """
import os, time
import autocvd

def job(number):
    with autocvd.gpus(set_env=False, verbose=False) as g:
        mine = os.path.join(os.environ["HOME"], "on-gpu-" + g.visible_devices)
        os.close(os.open(mine, os.O_CREAT | os.O_EXCL))
        time.sleep(0.02)
        os.unlink(mine)
        return g.visible_devices

if __name__ == "__main__":
    from dask.distributed import Client, LocalCluster

    with LocalCluster(n_workers=3, threads_per_worker=2, dashboard_address=None) as cluster, Client(cluster) as client:
        print(sorted(set(client.gather(client.map(job, range(12))))))
"""
        result = self.python(self.write("script.py", script))
        self.assertEqual(result.stdout, "['0', '1']\n", result.stderr)


@needs("submitit")
class Submitit(Recipes):
    GPUS = 2

    def test_local_jobs_wait_for_each_other(self):
        self.write("take.py", TAKE)
        script = """
import submitit
from take import take

executor = submitit.AutoExecutor("logs", cluster="local")
executor.update_parameters(timeout_min=2)
jobs = [executor.submit(take) for _ in range(4)]
print([len(job.result()) for job in jobs])
"""
        environment = {"PYTHONPATH": self.environment["PYTHONPATH"] + ":" + self.path}
        result = self.python(self.write("script.py", script), environment=environment)
        self.assertEqual(result.stdout, "[1, 1, 1, 1]\n", result.stderr)


@needs("hydra", "hydra_plugins.hydra_submitit_launcher")
class Hydra(Recipes):
    GPUS = 2

    def test_each_job_of_a_multirun_has_its_gpu(self):
        self.write("take.py", TAKE)
        script = """
import hydra
from take import take

@hydra.main(version_base=None, config_path=None)
def main(config):
    with open(config.log, "a") as file:
        file.write(f"{config.seed} {len(take())}\\n")

if __name__ == "__main__":
    main()
"""
        log = os.path.join(self.path, "log")
        environment = {"PYTHONPATH": self.environment["PYTHONPATH"] + ":" + self.path}
        result = self.python(
            self.write("script.py", script),
            "-m",
            "+seed=1,2,3,4",
            f"+log={log}",
            "hydra/launcher=submitit_local",
            environment=environment,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(log) as file:
            self.assertEqual(sorted(file.read().splitlines()), ["1 1", "2 1", "3 1", "4 1"])


if __name__ == "__main__":
    unittest.main()
