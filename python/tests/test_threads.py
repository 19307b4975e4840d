"""Threads share one environment, and nothing else."""

import unittest

from machine import MachineTest


class Threads(MachineTest):
    GPUS = 4

    def test_a_second_block_that_sets_the_environment_is_refused_at_once(self):
        script = """
            import autocvd, threading
            inside, done = threading.Event(), threading.Event()
            def first():
                with autocvd.gpus():
                    inside.set()
                    done.wait()
            thread = threading.Thread(target=first)
            thread.start()
            inside.wait()
            before = os.environ["CUDA_VISIBLE_DEVICES"]
            for take in (autocvd.gpus().__enter__, autocvd.autocvd):
                try:
                    take()
                except RuntimeError as error:
                    say(type(error).__name__, "set_env=False" in str(error), "g.run(" in str(error))
            say(os.environ["CUDA_VISIBLE_DEVICES"] == before)
            with autocvd.gpus(set_env=False) as g:
                say(g, g.visible_devices)
            done.set()
            thread.join()
            with autocvd.gpus() as g:
                say(g, os.environ["CUDA_VISIBLE_DEVICES"])
            say("CUDA_VISIBLE_DEVICES" in os.environ)
        """
        refused = "RuntimeError True True"
        self.assertEqual(
            self.run_script(script), [refused, refused, "True", "[2] 2", "[3] 3", "False"]
        )

    def test_a_block_that_still_waits_counts_too(self):
        for gpu in range(4):
            self.job(gpu)
        script = """
            import autocvd, threading
            waits = threading.Event()
            def first():
                try:
                    with autocvd.gpus(progress=lambda line: waits.set(), timeout=600):
                        pass
                except BaseException as error:
                    say(error)
            threading.Thread(target=first, daemon=True).start()
            waits.wait()
            try:
                autocvd.gpus().__enter__()
            except RuntimeError as error:
                say("refused")
            sys.stdout.flush()
            os._exit(0)
        """
        self.assertEqual(self.run_script(script), ["refused"])

    def test_a_hundred_jobs_on_a_thread_pool_never_share_a_gpu(self):
        # Each job looks at what the kernel says of the others: a file is created, and must not be there yet.
        script = """
            import autocvd, subprocess
            from concurrent.futures import ThreadPoolExecutor
            job = 'set -C; : > "gpu$CUDA_VISIBLE_DEVICES" || exit 9; echo $CUDA_VISIBLE_DEVICES; rm "gpu$CUDA_VISIBLE_DEVICES"'
            os.chdir(os.environ["HOME"])
            def work(number):
                with autocvd.gpus(set_env=False, verbose=False) as g:
                    run = g.run(["sh", "-c", job], capture_output=True, text=True)
                    return run.returncode == 0 and run.stdout.strip() == str(g[0])
            with ThreadPoolExecutor(8) as pool:
                say(sum(pool.map(work, range(100))))
            def careless(number):
                try:
                    with autocvd.gpus(verbose=False) as g:
                        run = subprocess.run(["sh", "-c", job], capture_output=True, text=True)
                        return "right" if run.stdout.strip() == str(g[0]) and run.returncode == 0 else "wrong"
                except RuntimeError:
                    return "refused"
            with ThreadPoolExecutor(8) as pool:
                got = list(pool.map(careless, range(100)))
            say("right" in got, "wrong" in got, set(got) <= {"right", "refused"})
        """
        self.assertEqual(self.run_script(script), ["100", "True False True"])
        self.assertEqual(self.free(), [0, 1, 2, 3])

    def test_release_ends_what_the_thread_has_and_nothing_else(self):
        script = """
            import autocvd, threading
            taken, released = threading.Barrier(2), threading.Barrier(2)
            def work():
                g = autocvd.autocvd(set_env=False)
                taken.wait()
                released.wait()
                say(g, g.run(["true"]).returncode)
                autocvd.release()
                say([gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"])
            thread = threading.Thread(target=work)
            autocvd.autocvd(set_env=False)
            thread.start()
            taken.wait()
            autocvd.release()
            say([gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"])
            released.wait()
            thread.join()
        """
        self.assertEqual(self.run_script(script), ["[2]", "[2] 0", "[]"])

    def test_one_object_ends_for_each_thread_its_own_block(self):
        script = """
            import autocvd, threading
            one = autocvd.gpus(set_env=False, verbose=False)
            both, left = threading.Barrier(2), threading.Event()
            def first():
                with one as g:
                    got["first"] = list(g)
                    both.wait()
                left.set()
            got = {}
            thread = threading.Thread(target=first)
            thread.start()
            with one as g:
                both.wait()
                left.wait()
                claimed = [gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"]
                say(claimed == list(g), claimed != got["first"])
            thread.join()
            say([gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"])
        """
        self.assertEqual(self.run_script(script), ["True True", "[]"])

    def test_a_thread_that_takes_over_the_environment_is_told(self):
        script = """
            import autocvd, threading, warnings
            autocvd.autocvd()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                thread = threading.Thread(target=autocvd.autocvd)
                thread.start()
                thread.join()
            say(os.environ["CUDA_VISIBLE_DEVICES"], len(caught), "set_env=False" in str(caught[0].message))
        """
        self.assertEqual(self.run_script(script), ["2 1 True"])

    def test_blocks_of_one_thread_may_end_in_any_order(self):
        script = """
            import autocvd
            os.environ["CUDA_VISIBLE_DEVICES"] = "0"
            one, two = autocvd.gpus(), autocvd.gpus(2)
            one.__enter__()
            two.__enter__()
            one.__exit__(None, None, None)
            say(os.environ["CUDA_VISIBLE_DEVICES"])
            two.__exit__(None, None, None)
            say(os.environ["CUDA_VISIBLE_DEVICES"], [gpu["state"] for gpu in autocvd.status()["gpus"]].count("free"))
        """
        self.assertEqual(self.run_script(script), ["1,2", "0 4"])

    def test_a_generator_that_another_thread_closes_ends_its_block(self):
        script = """
            import autocvd, threading
            def work():
                with autocvd.gpus() as g:
                    yield g
            one = work()
            next(one)
            thread = threading.Thread(target=one.close)
            thread.start()
            thread.join()
            say("CUDA_VISIBLE_DEVICES" in os.environ, [gpu["state"] for gpu in autocvd.status()["gpus"]].count("free"))
        """
        self.assertEqual(self.run_script(script), ["False 4"])


if __name__ == "__main__":
    unittest.main()
