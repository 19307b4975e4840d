"""The modules of the package: their imports; `autocvd.auto`, `status()`, `python -m autocvd`."""

import ast
import glob
import graphlib
import json
import os
import re
import subprocess
import sys
import unittest

from machine import PATIENCE, MachineTest

GIB = 1 << 30


class Imports(unittest.TestCase):
    def test_no_module_imports_one_that_leads_back_to_it(self):
        package = os.path.join(os.path.dirname(__file__), os.pardir, "autocvd")
        modules = {
            os.path.basename(path)[: -len(".py")]: path for path in glob.glob(f"{package}/*.py")
        }
        imports = {name: set() for name in modules}
        for name, path in modules.items():
            with open(path) as file:
                nodes = ast.walk(ast.parse(file.read()))
            for node in nodes:
                if isinstance(node, ast.ImportFrom) and node.module and node.level:
                    imports[name].add(node.module)
                elif isinstance(node, ast.ImportFrom) and node.level:
                    # `from . import name`: a module, or a name of the package itself.
                    names = {alias.name for alias in node.names} - {"_autocvd"}
                    imports[name] |= {one if one in modules else "__init__" for one in names}
        self.assertIn("_allocation", imports["_process"])
        graphlib.TopologicalSorter(imports).prepare()


class Auto(MachineTest):
    GPUS = 3

    def test_it_takes_the_least_used_gpu_as_a_side_effect(self):
        memory = [{"total": 80 * GIB, "reserved": 0, "used": used * GIB} for used in (40, 1, 60)]
        self.describe(gpus=[{"memory": one, "processes": [{"pid": 1}]} for one in memory])
        script = """
            import autocvd.auto
            say(os.environ["CUDA_VISIBLE_DEVICES"], autocvd.auto.ids)
        """
        self.assertEqual(self.run_script(script), ["1 [1]"])

    def test_two_scripts_get_different_gpus(self):
        script = "import autocvd.auto; say(autocvd.auto.ids); listen()"
        scripts = [self.start(script) for _ in range(3)]
        self.assertEqual(sorted(one.hear() for one in scripts), ["[0]", "[1]", "[2]"])

    def test_workers_that_import_the_script_again_keep_its_gpu(self):
        path = os.path.join(self.path, "script.py")
        with open(path, "w") as file:
            file.write(
                "import autocvd.auto\n"
                "import multiprocessing, os\n"
                "if __name__ == '__main__':\n"
                "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
                "        print(autocvd.auto.ids, pool.map(os.getenv, ['CUDA_VISIBLE_DEVICES'] * 2))\n"
            )
        result = subprocess.run(
            [sys.executable, path],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        ids, _, values = result.stdout.strip().partition(" ")
        self.assertEqual(values, f"['{ids[1:-1]}', '{ids[1:-1]}']", result.stderr)


class Status(MachineTest):
    GPUS = 2

    def test_it_is_what_the_program_prints_as_data(self):
        self.job(1)
        script = """
            import autocvd
            say(autocvd.autocvd())
            say(json.dumps(autocvd.status()))
            listen()
        """
        holder = self.start(script)
        self.assertEqual(holder.hear(), "[0]")
        data = json.loads(holder.hear())
        printed = json.loads(self.program("status", "--json").stdout)
        # Each was read at its own time.
        self.assertGreaterEqual(printed.pop("time"), data.pop("time"))
        self.assertEqual(data, printed)
        self.assertEqual([gpu["state"] for gpu in data["gpus"]], ["claimed", "busy"])
        self.assertEqual(data["gpus"][0]["claims"][0]["pid"], holder.process.pid)
        self.assertEqual(data["schema"], 1)


class Main(MachineTest):
    GPUS = 2

    def module(self, *arguments, environment={}, flags=()):
        return subprocess.run(
            [sys.executable, *flags, "-m", "autocvd", *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def test_it_is_the_native_program(self):
        for arguments in (
            ["--version"],
            ["-o", "--no-claim"],
            ["--no-claim"],
            ["status", "--json"],
            ["-n", "9"],
            ["--nonsense"],
        ):
            ours, theirs = self.module(*arguments), self.program(*arguments)
            # Each was read at its own time.
            outputs = [re.sub(r'"time": \d+', '"time": …', each.stdout) for each in (ours, theirs)]
            self.assertEqual(
                (ours.returncode, outputs[0], ours.stderr),
                (theirs.returncode, outputs[1], theirs.stderr),
            )

    def test_the_process_becomes_the_program(self):
        result = self.module(
            "--", "sh", "-c", 'echo $CUDA_VISIBLE_DEVICES "$1"; exit 7', "sh", "a b"
        )
        self.assertEqual((result.returncode, result.stdout), (7, "1 a b\n"))

    def test_the_shell_that_evaluates_it_gets_the_lease(self):
        job = os.path.join(self.path, "job")
        with open(job, "w") as file:
            file.write("echo $CUDA_VISIBLE_DEVICES\nread word\n")
        shell = subprocess.Popen(
            ["bash", "-c", f'eval $("$PYTHON" -m autocvd) sh {job}'],
            env={**self.environment, "PYTHON": sys.executable},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(shell.communicate)
        self.assertEqual(shell.stdout.readline(), "1\n")
        self.assertEqual(self.free(), [0])

    def test_signals_that_python_ignores_are_not_ignored_by_the_command(self):
        command = ["--", "grep", "SigIgn", "/proc/self/status"]
        self.assertEqual(self.module(*command).stdout, self.program(*command).stdout)

    def test_without_the_program_nothing_is_run(self):
        without = {"PATH": "/usr/bin:/bin"}
        result = self.module(environment=without)
        self.assertEqual((result.returncode, result.stdout), (1, "sh -c 'exit 1' autocvd\n"))
        self.assertIn("'autocvd' is not installed", result.stderr)
        for arguments in (["-o"], ["--", "true"], ["status"]):
            result = self.module(*arguments, environment=without)
            self.assertEqual((result.returncode, result.stdout), (1, ""), arguments)

    def test_a_launcher_of_that_name_is_not_the_program(self):
        path = os.path.join(self.path, "bin", "autocvd")
        os.unlink(path)
        with open(path, "w") as file:
            file.write(f"#!{sys.executable}\nprint('a launcher')\n")
        os.chmod(path, 0o755)
        result = self.module("-o")
        self.assertEqual((result.returncode, result.stdout), (1, ""))


if __name__ == "__main__":
    unittest.main()
