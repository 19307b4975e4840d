"""Waiting: signals, other threads, and what is told meanwhile."""

import os
import pty
import signal
import time
import unittest

from machine import MachineTest, in_host_namespace


class Waiting(MachineTest):
    GPUS = 1

    def setUp(self):
        super().setUp()
        self.occupant = self.job(0)

    def test_the_exit_of_a_process_ends_it_at_once(self):
        waiter = self.start(
            "from autocvd import autocvd; say('go'); say(autocvd(interval=3600), time.time())"
        )
        waiter.hear()
        time.sleep(0.5)
        freed = time.time()
        self.occupant.kill()
        self.occupant.wait()
        *ids, when = waiter.hear().split()
        self.assertEqual(ids, ["[0]"])
        self.assertLess(float(when) - freed, 20)

    def test_control_c_ends_it_within_a_moment(self):
        script = """
            from autocvd import autocvd
            try:
                say("go")
                autocvd(interval=3600)
            except KeyboardInterrupt:
                say(time.time(), "CUDA_VISIBLE_DEVICES" in os.environ)
        """
        waiter = self.start(script)
        waiter.hear()
        time.sleep(0.5)
        sent = time.time()
        waiter.signal(signal.SIGINT)
        when, is_set = waiter.hear().split()
        self.assertLess(float(when) - sent, 20)
        self.assertEqual(is_set, "False")

    def test_a_handler_runs_meanwhile_and_its_exception_ends_it(self):
        script = """
            import signal
            from autocvd import autocvd
            calls = []
            def handler(*_):
                calls.append(1)
                if len(calls) == 3:
                    raise RuntimeError("enough")
            signal.signal(signal.SIGALRM, handler)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
                autocvd(interval=3600)
            except RuntimeError as error:
                say(error)
        """
        self.assertEqual(self.run_script(script), ["enough"])

    def test_other_threads_run(self):
        script = """
            import threading
            from autocvd import autocvd
            count = 0
            def work():
                global count
                end = time.monotonic() + 1
                while time.monotonic() < end:
                    count += 1
            thread = threading.Thread(target=work)
            thread.start()
            start = time.monotonic()
            try:
                autocvd(timeout=0.5, verbose=False)
            except TimeoutError:
                say(0.4 < time.monotonic() - start < 30, count > 1000)
            thread.join()
        """
        self.assertEqual(self.run_script(script), ["True True"])

    def test_a_thread_waits_and_the_main_thread_is_interrupted(self):
        script = """
            import threading
            from autocvd import autocvd
            threading.Thread(target=autocvd, daemon=True).start()
            try:
                say("go")
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                say("interrupted")
        """
        waiter = self.start(script)
        waiter.hear()
        time.sleep(0.3)
        waiter.signal(signal.SIGINT)
        out, err = waiter.end()
        self.assertEqual((out, waiter.process.returncode), ("interrupted\n", 0), err)


class Telling(MachineTest):
    GPUS = 1

    def setUp(self):
        super().setUp()
        self.occupant = self.job(0)

    TIMEOUT = """
        from autocvd import autocvd
        try:
            autocvd(timeout={timeout}, **{arguments})
        except TimeoutError:
            pass
    """

    def told(self, timeout=0.3, **arguments):
        out = self.run_script(self.TIMEOUT.format(timeout=timeout, arguments=arguments))
        self.assertEqual(out, [])
        return self.stderr

    @in_host_namespace
    def test_elsewhere_than_on_a_terminal_a_line_tells_who_is_there(self):
        lines = self.told().splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertTrue(lines[0].startswith("autocvd: waiting for a GPU; 0 of 1 free"), lines)
        self.assertIn("sleep 600", lines[0])
        self.assertTrue(lines[0].endswith("gives up after 300 ms"), lines)

    def test_nothing_is_told_where_that_is_not_wanted(self):
        self.assertEqual(self.told(verbose=False), "")
        self.assertEqual(self.told(progress=False), "")
        self.assertEqual(self.told(timeout=0), "")

    def test_progress_true_tells_even_so(self):
        self.assertIn("waiting for a GPU", self.told(verbose=False, progress=True))

    def test_sys_stderr_may_be_another_one_or_none(self):
        script = """
            import io
            from autocvd import autocvd
            for sys.stderr in (io.StringIO(), None):
                try:
                    autocvd(timeout=0.1)
                except TimeoutError:
                    say(sys.stderr and sys.stderr.getvalue().strip())
        """
        first, second = self.run_script(script)
        self.assertTrue(first.startswith("autocvd: waiting"), first)
        self.assertEqual((second, self.stderr), ("None", ""))

    def test_a_terminal_has_one_line_in_place(self):
        master, slave = pty.openpty()
        waiter = self.start(self.TIMEOUT.format(timeout=1.5, arguments={}), stderr=slave)
        os.close(slave)
        waiter.end()
        seen = b""
        try:
            while True:
                part = os.read(master, 4096)
                if not part:
                    break
                seen += part
        except OSError:
            pass
        os.close(master)
        parts = seen.decode().split("\r\x1b[K")
        self.assertNotIn("\n", seen.decode())
        self.assertGreaterEqual(len(parts), 3)
        self.assertEqual((parts[0], parts[-1]), ("", ""))
        self.assertTrue(
            all(part.startswith("autocvd: waiting") and len(part) < 80 for part in parts[1:-1]),
            parts,
        )

    def test_a_function_gets_each_line(self):
        script = """
            from autocvd import autocvd
            lines = []
            try:
                autocvd(timeout=0.2, verbose=False, progress=lines.append)
            except TimeoutError:
                say(len(lines), *lines)
        """
        (line,) = self.run_script(script)
        self.assertTrue(line.startswith("1 autocvd: waiting for a GPU; 0 of 1 free"), line)
        self.assertEqual(self.stderr, "")

    def test_the_exception_of_a_function_ends_the_wait(self):
        script = """
            import threading
            from autocvd import autocvd
            def fail(line):
                raise LookupError("no more")
            def wait():
                try:
                    autocvd(interval=3600, progress=fail)
                except LookupError as error:
                    say(error)
            wait()
            thread = threading.Thread(target=wait)
            thread.start()
            thread.join()
        """
        self.assertEqual(self.run_script(script), ["no more"] * 2)

    def test_a_notebook_has_one_output_that_is_updated(self):
        script = """
            import types
            module = sys.modules["IPython"] = types.ModuleType("IPython")
            display = sys.modules["IPython.display"] = types.ModuleType("IPython.display")
            module.get_ipython = lambda: types.SimpleNamespace(kernel=object())
            class Handle:
                def update(self, data, raw):
                    say("update", data["text/plain"])
            def show(data, raw, display_id):
                say("display", display_id, data["text/plain"])
                return Handle()
            display.display = show
            from autocvd import autocvd
            say(autocvd(timeout=30))
        """
        waiter = self.start(script)
        first = waiter.hear()
        self.assertTrue(
            first.startswith("display True autocvd: waiting for a GPU; 0 of 1 free"), first
        )
        self.occupant.kill()
        self.occupant.wait()
        out, err = waiter.end()
        lines = out.splitlines()
        self.assertEqual(lines[-2:], ["update autocvd: GPU 0", "[0]"])
        self.assertTrue(
            all(line.startswith("update autocvd: waiting") for line in lines[:-2]), lines
        )
        self.assertEqual(err, "")

    def test_ipython_on_a_terminal_is_no_notebook_and_is_not_imported(self):
        script = """
            import types
            from autocvd import autocvd
            try:
                autocvd(timeout=0.1)
            except TimeoutError:
                say([name for name in sys.modules if "IPython" in name])
            sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace())
            try:
                autocvd(timeout=0.1)
            except TimeoutError:
                pass
        """
        self.assertEqual(self.run_script(script), ["[]"])
        self.assertEqual(self.stderr.count("waiting for a GPU"), 2)


class Warnings(MachineTest):
    GPUS = 1

    SCRIPT = """
        import types, warnings
        from autocvd import autocvd
        {before}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            say(autocvd({arguments}))
        for warning in caught:
            say(warning.category.__name__, os.path.basename(warning.filename), warning.message)
    """

    def warned(self, before="", arguments="", environment={}):
        ids, *warnings = self.run_script(
            self.SCRIPT.format(before=before, arguments=arguments), environment
        )
        self.assertEqual(ids, "[0]")
        return warnings

    TORCH = (
        'sys.modules["torch"] = types.SimpleNamespace('
        "cuda=types.SimpleNamespace(is_initialized=lambda: {is_initialized}))"
    )

    def test_cuda_that_is_initialized_is_warned_of(self):
        (warning,) = self.warned(self.TORCH.format(is_initialized=True))
        self.assertTrue(
            warning.startswith("RuntimeWarning <string> CUDA is already initialized"), warning
        )
        self.assertIn("(torch)", warning)

    def test_so_is_an_open_nvidia_uvm(self):
        before = "os.readlink = lambda path: '/dev/nvidia-uvm'"
        (warning,) = self.warned(before)
        self.assertIn("/dev/nvidia-uvm", warning)

    def test_what_is_not_initialized_is_not(self):
        self.assertEqual(self.warned(), [])
        self.assertEqual(self.warned(self.TORCH.format(is_initialized=False)), [])
        self.assertEqual(self.warned("sys.modules['torch'] = types.SimpleNamespace()"), [])
        self.assertEqual(self.warned(self.TORCH.format(is_initialized=True), "set_env=False"), [])
        bridge = "sys.modules['jax._src.xla_bridge'] = types.SimpleNamespace(_backends={'cpu': 1})"
        self.assertEqual(self.warned(bridge), [])

    def test_jax_counts_once_it_has_a_gpu(self):
        bridge = "sys.modules['jax._src.xla_bridge'] = types.SimpleNamespace(_backends={'cpu': 1, 'cuda': 2})"
        (warning,) = self.warned(bridge)
        self.assertIn("(jax)", warning)

    def test_a_directory_of_claims_that_cannot_be_used_is_warned_of(self):
        file = os.path.join(self.path, "file")
        open(file, "w").close()
        (warning,) = self.warned(environment={"AUTOCVD_CLAIM_DIR": file})
        self.assertTrue(warning.startswith("RuntimeWarning <string> "), warning)
        self.assertIn(f"'{file}' cannot be used for claims", warning)

    def test_a_warning_that_is_an_error_leaves_nothing_behind(self):
        file = os.path.join(self.path, "file")
        open(file, "w").close()
        script = """
            import warnings
            from autocvd import autocvd
            warnings.simplefilter("error")
            try:
                autocvd()
            except RuntimeWarning:
                say("CUDA_VISIBLE_DEVICES" in os.environ)
        """
        self.assertEqual(self.run_script(script, {"AUTOCVD_CLAIM_DIR": file}), ["False"])


class Importing(MachineTest):
    GPUS = 1

    def test_it_is_cheap(self):
        script = """
            before = set(sys.modules) | {"__future__"}
            from autocvd import autocvd
            say(sorted(set(sys.modules) - before))
            autocvd()
            say(sorted(set(sys.modules) - before))
        """
        importing, calling = self.run_script(script)
        self.assertEqual(importing, "['autocvd', 'autocvd._allocation', 'autocvd._autocvd']")
        for slow in ("asyncio", "logging", "subprocess", "threading", "typing"):
            self.assertNotIn(f"'{slow}'", calling)

    def test_it_reads_nothing_of_the_machine(self):
        self.run_script("import autocvd")
        self.assertFalse(os.path.exists(os.path.join(self.path, "calls")))


if __name__ == "__main__":
    unittest.main()
