"""Nothing holds Python up: not the driver, not a stderr that cannot be written to."""

import os
import pty
import signal
import subprocess
import unittest

from machine import PATIENCE, MachineTest

#: Longer than any test waits, in milliseconds.
NEVER = 3600_000


class SlowDriver(MachineTest):
    GPUS = 1

    def hang(self, function="nvmlInit_v2"):
        self.describe(gpus=[{}], delays_ms={function: NEVER})

    INTERRUPTED = """
        import autocvd
        try:
            say("go")
            {call}
        except KeyboardInterrupt:
            say("interrupted", "CUDA_VISIBLE_DEVICES" in os.environ)
    """

    def test_an_interrupt_ends_each_call_while_the_driver_is_asked(self):
        block = "autocvd.gpus().__enter__()"
        for call in (
            "autocvd.autocvd()",
            block,
            "autocvd.status()",
            "autocvd.autocvd(timeout=600, progress=False)",
        ):
            self.hang()
            caller = self.start(self.INTERRUPTED.format(call=call))
            self.assertEqual(caller.hear(), "go")
            self.wait_until_asleep(caller)
            caller.signal(signal.SIGINT)
            self.assertEqual(caller.hear(), "interrupted False", call)
            out, err = caller.end()
            self.assertEqual((out, caller.process.returncode), ("", 0), call + err)

    def test_what_was_left_behind_takes_nothing_and_is_in_nobodys_way(self):
        self.describe(gpus=[{}], init={"delay_ms": 1500})
        script = """
            import _thread, threading, autocvd
            threading.Timer(0.3, _thread.interrupt_main).start()
            try:
                autocvd.autocvd()
            except KeyboardInterrupt:
                say("interrupted")
            time.sleep(3)
            say([gpu["state"] for gpu in autocvd.status()["gpus"]], threading.active_count())
            say(autocvd.autocvd())
        """
        self.assertEqual(self.run_script(script), ["interrupted", "['free'] 1", "[0]"])

    def test_so_it_does_while_the_driver_is_asked_again_during_a_wait(self):
        job = self.job(0)
        waiter = self.start(
            """
            from autocvd import autocvd
            try:
                autocvd(interval=0.05)
            except KeyboardInterrupt:
                say("interrupted")
            """
        )
        self.wait_until("it waits", lambda: "waiting" in waiter.process.stderr.readline())
        self.hang("nvmlDeviceGetComputeRunningProcesses_v3")
        self.wait_until_asleep(waiter, seconds=1)
        waiter.signal(signal.SIGINT)
        self.assertEqual(waiter.hear(), "interrupted")
        waiter.end()
        self.assertIsNone(job.poll())

    def test_a_handler_runs_meanwhile(self):
        self.hang()
        script = """
            import signal
            from autocvd import autocvd
            def handler(*_):
                raise LookupError("handled")
            signal.signal(signal.SIGALRM, handler)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                autocvd()
            except LookupError as error:
                say(error)
        """
        self.assertEqual(self.run_script(script), ["handled"])

    def test_the_timeout_counts(self):
        self.hang()
        script = """
            from autocvd import GpuTimeoutError, autocvd
            try:
                autocvd(timeout=1.5)
            except GpuTimeoutError as error:
                say(error)
        """
        (line,) = self.run_script(script)
        self.assertIn("did not answer within 1.5s", line.replace(" s", "s"))

    def test_one_look_lets_a_slow_driver_answer(self):
        self.describe(gpus=[{}], init={"delay_ms": 1500})
        self.assertEqual(
            self.run_script("from autocvd import autocvd; say(autocvd(timeout=0))"), ["[0]"]
        )

    def test_after_5_s_a_line_says_what_is_waited_for(self):
        self.describe(gpus=[{}], init={"delay_ms": 6000})
        script = """
            import logging
            from autocvd import autocvd
            logging.basicConfig(level=logging.INFO, stream=sys.stdout)
            say(autocvd())
        """
        lines = self.run_script(script)
        self.assertIn("autocvd: the NVIDIA driver has not answered for 5 s", self.stderr)
        self.assertIn("INFO:autocvd:the NVIDIA driver has not answered for 5 s", lines[0])
        self.assertEqual(lines[-1], "[0]")

    def test_other_threads_run_and_the_process_can_end(self):
        self.hang()
        script = """
            import threading
            from autocvd import autocvd
            threading.Thread(target=autocvd, daemon=True).start()
            time.sleep(0.2)
            say("running")
        """
        self.assertEqual(self.run_script(script), ["running"])

    def wait_until_asleep(self, running, seconds=0.3):
        """Until it surely asks the driver; an earlier interrupt would have to end it as well."""
        try:
            running.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass


class AnyMoment(MachineTest):
    GPUS = 4

    def test_an_interrupt_at_any_moment_loses_no_claim(self):
        script = """
            import random, signal, autocvd
            from autocvd import _process
            class Stop(BaseException):
                pass
            def handler(*_):
                raise Stop
            signal.signal(signal.SIGALRM, handler)
            random.seed(7)
            def call():
                kind = random.randrange(4)
                if kind == 0:
                    autocvd.autocvd(verbose=False)
                elif kind == 1:
                    autocvd.autocvd(random.choice([1, 2]), exclude=random.choice([None, 0]), verbose=False)
                elif kind == 2:
                    autocvd.release()
                else:
                    with autocvd.gpus(verbose=False):
                        pass
            stopped = 0
            for _ in range(200):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.006))
                    try:
                        for _ in range(4):
                            call()
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Stop:
                    stopped += 1
                for allocation in _process.held():
                    allocation.release()
            # What was left behind gives back what it has found as soon as the driver answers.
            while any(gpu["state"] != "free" for gpu in autocvd.status()["gpus"]):
                time.sleep(0.01)
            say(stopped > 20, autocvd.autocvd(4, timeout=0))
        """
        self.assertEqual(self.run_script(script), ["True [0, 1, 2, 3]"])


class BrokenStderr(MachineTest):
    """A line that cannot be written is dropped, and the wait goes on."""

    GPUS = 1

    SCRIPT = """
        from autocvd import autocvd
        {before}
        say("go")
        say(autocvd(interval=0.05, timeout=150, {arguments}))
    """

    def waits_through(self, stderr, before="", arguments="", after=lambda: None):
        job = self.job(0)
        waiter = self.start(self.SCRIPT.format(before=before, arguments=arguments), stderr=stderr)
        after()
        self.assertEqual(waiter.hear(), "go")
        # Long enough for lines to be written in vain.
        try:
            waiter.process.wait(0.5)
        except subprocess.TimeoutExpired:
            pass
        job.kill()
        job.wait()
        self.assertEqual(waiter.hear(), "[0]")
        self.assertEqual(waiter.process.wait(PATIENCE), 0, before)

    def test_a_broken_pipe(self):
        reader, writer = os.pipe()

        def broken():
            os.close(reader)
            os.close(writer)

        self.waits_through(writer, after=broken)

    def test_a_terminal_that_is_gone(self):
        master, slave = pty.openpty()

        def gone():
            os.close(slave)
            os.close(master)

        self.waits_through(slave, after=gone)

    def test_a_full_disk(self):
        with open("/dev/full", "w") as full:
            self.waits_through(full)

    def test_a_closed_descriptor(self):
        for before in (
            "os.close(2)",
            "sys.stderr.close()",
            "sys.stderr = open('/dev/full', 'w', buffering=1)",
        ):
            self.waits_through(subprocess.PIPE, before)

    def test_a_front_end_that_is_gone(self):
        before = """
        import types
        module = sys.modules["IPython"] = types.ModuleType("IPython")
        display = sys.modules["IPython.display"] = types.ModuleType("IPython.display")
        module.get_ipython = lambda: types.SimpleNamespace(kernel=object())
        def show(*_, **__):
            raise RuntimeError("gone")
        display.display = show
        """
        self.waits_through(subprocess.PIPE, before)


if __name__ == "__main__":
    unittest.main()
