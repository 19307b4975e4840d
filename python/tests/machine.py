"""A machine of fake GPUs, and Python processes on it.

AUTOCVD_TEST_LIBRARY is the fake NVML, AUTOCVD_TEST_PROGRAM the native program, and the module is on
PYTHONPATH: `cargo test --test python` sets all three.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

LIBRARY = os.environ["AUTOCVD_TEST_LIBRARY"]
PROGRAM = os.environ["AUTOCVD_TEST_PROGRAM"]
PATIENCE = 180

# The kernel's fixed number of the host's PID namespace; in another one, a container's, a process
# list proves nothing and names nobody.
in_host_namespace = unittest.skipUnless(
    os.readlink("/proc/self/ns/pid") == "pid:[4026531836]", "needs the host's PID namespace"
)


class Running:
    """A Python process. Its script reports with `say(…)` and waits with `listen()`."""

    PRELUDE = textwrap.dedent(
        """
        import json, os, sys, time
        def say(*words):
            print(*words, flush=True)
        def listen():
            return sys.stdin.readline().strip()
        """
    )

    def __init__(self, machine, script, environment, **options):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PRELUDE + textwrap.dedent(script)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            start_new_session=True,
            **options,
        )

    def hear(self):
        """The next line that it says."""
        return self.process.stdout.readline().strip()

    def tell(self, word=""):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """Waits for its end; what it wrote since."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return out, err

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.communicate()


class MachineTest(unittest.TestCase):
    """Tests on a machine of their own, with as many GPUs as `GPUS`."""

    GPUS = 2

    def setUp(self):
        self.path = tempfile.mkdtemp(prefix="autocvd-python-")
        self.addCleanup(shutil.rmtree, self.path, ignore_errors=True)
        for name in ("procs", "bin", "home"):
            os.mkdir(os.path.join(self.path, name))
        os.symlink(PROGRAM, os.path.join(self.path, "bin", "autocvd"))
        self.describe(gpus=[{} for _ in range(self.GPUS)])
        self.claims = os.path.join(self.path, "claims")
        self.environment = {
            "PATH": os.path.join(self.path, "bin") + ":/usr/local/bin:/usr/bin:/bin",
            "HOME": os.path.join(self.path, "home"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.environ["PYTHONPATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "AUTOCVD_NVML_LIB": LIBRARY,
            "AUTOCVD_CLAIM_DIR": self.claims,
            "FAKE_NVML": self.path,
        }

    def describe(self, **machine):
        with open(os.path.join(self.path, "machine.json.new"), "w") as file:
            json.dump(machine, file)
        os.rename(file.name, os.path.join(self.path, "machine.json"))

    def job(self, device):
        """A process that computes on a device until it is killed."""
        process = subprocess.Popen(["sleep", "600"])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

        def is_it():
            with open(f"/proc/{process.pid}/cmdline", "rb") as file:
                return file.read().startswith(b"sleep\0")

        # Between two steps of its exec it has no command line.
        self.wait_until("it is sleep", is_it)
        directory = os.path.join(self.path, "procs", str(device))
        os.makedirs(directory, exist_ok=True)
        open(os.path.join(directory, str(process.pid)), "w").close()
        return process

    def start(self, script, environment={}, **options):
        running = Running(self, script, {**self.environment, **environment}, **options)
        self.addCleanup(running.kill)
        return running

    def run_script(self, script, environment={}):
        """Runs a script that must succeed; the lines it said."""
        running = self.start(script, environment)
        out, err = running.end()
        self.assertEqual(running.process.returncode, 0, out + err)
        self.stderr = err
        return out.splitlines()

    def program(self, *arguments, environment={}):
        return subprocess.run(
            [PROGRAM, *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def free(self):
        """The indices of the GPUs that another launch could have now."""
        status = json.loads(self.program("status", "--json").stdout)
        return [gpu["index"] for gpu in status["gpus"] if gpu["state"] == "free"]

    def wait_until(self, what, condition):
        end = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), end, f"waited {PATIENCE} s in vain until {what}")
            time.sleep(0.01)
