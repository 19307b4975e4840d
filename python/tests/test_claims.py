"""To whom a claim belongs, and when it ends."""

import os
import signal
import unittest

from machine import MachineTest


class Claims(MachineTest):
    GPUS = 3

    def test_a_claim_lasts_until_the_process_ends_however_it_ends(self):
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            holder = self.start("from autocvd import autocvd; say(autocvd()); listen()")
            self.assertEqual(holder.hear(), "[2]")
            self.assertEqual(self.free(), [0, 1])
            if number:
                holder.signal(number)
            holder.end()
            self.assertEqual(self.free(), [0, 1, 2], number)

    def test_others_see_who_has_it(self):
        holder = self.start("from autocvd import autocvd; say(autocvd()); listen()")
        holder.hear()
        result = self.program("-t", "0", "--only", "2")
        self.assertEqual(result.returncode, 4)
        self.assertIn(str(holder.process.pid), result.stderr)

    def test_release_ends_what_its_thread_has(self):
        holder = self.start(
            """
            import autocvd
            say(autocvd.autocvd(3), os.environ["CUDA_VISIBLE_DEVICES"])
            listen()
            autocvd.release()
            autocvd.release()
            say("released", os.environ["CUDA_VISIBLE_DEVICES"])
            listen()
            """
        )
        self.assertEqual(holder.hear(), "[0, 1, 2] 0,1,2")
        self.assertEqual(self.free(), [])
        holder.tell()
        self.assertEqual(holder.hear(), "released 0,1,2")
        self.assertEqual(self.free(), [0, 1, 2])

    def test_release_wakes_those_who_wait(self):
        holder = self.start(
            "import autocvd; say(autocvd.autocvd(3)); listen(); autocvd.release(); say(0); listen()"
        )
        holder.hear()
        waiter = self.start(
            "from autocvd import autocvd; say('go'); say(autocvd(2, interval=3600))"
        )
        waiter.hear()
        self.wait_until("it waits", lambda: "waiting" in waiter.process.stderr.readline())
        holder.tell()
        self.assertEqual(waiter.hear(), "[1, 2]")

    def test_without_claim_none_is_made_or_heeded(self):
        script = """
            from autocvd import autocvd
            say(autocvd(claim=False), autocvd(claim=False), autocvd(), autocvd(claim=False))
        """
        self.assertEqual(self.run_script(script), ["[2] [2] [2] [2]"])

    def test_a_thread_does_not_wait_for_itself(self):
        script = """
            import autocvd
            with autocvd.gpus(2):
                for function in (autocvd.gpus(2, verbose=False).__enter__, lambda: autocvd.autocvd(3, verbose=False)):
                    try:
                        function()
                    except ValueError as error:
                        say(error)
                try:
                    autocvd.gpus(2, timeout=0.2, verbose=False).__enter__()
                except TimeoutError:
                    say("nor for longer than it may")
                say(autocvd.autocvd())
        """
        first, second, *others = self.run_script(script)
        for error, wanted in ((first, 2), (second, 3)):
            self.assertIn(f"num_gpus={wanted}: ", error)
            self.assertIn("this thread has already claimed GPU 1, GPU 2", error)
            self.assertIn("release", error)
        self.assertEqual(others, ["nor for longer than it may", "[0]"])

    def test_a_wait_for_others_besides_goes_on(self):
        job = self.job(0)
        waiter = self.start(
            """
            import autocvd
            say(autocvd.gpus().__enter__())
            say(autocvd.gpus(2).__enter__())
            """
        )
        self.assertEqual(waiter.hear(), "[2]")
        self.wait_until("it waits", lambda: "waiting" in waiter.process.stderr.readline())
        job.kill()
        job.wait()
        self.assertEqual(waiter.hear(), "[0, 1]")


class Repeated(MachineTest):
    """One thread's second call keeps what it has, or replaces it."""

    GPUS = 8

    def test_a_cell_that_is_run_again_takes_no_more(self):
        script = """
            import autocvd
            say(*[autocvd.autocvd() for _ in range(8)])
            say(*[autocvd.autocvd(min_free_memory="1GiB") for _ in range(8)])
            say(sum(gpu["state"] == "free" for gpu in autocvd.status()["gpus"]), os.environ["CUDA_VISIBLE_DEVICES"])
        """
        self.assertEqual(self.run_script(script), [" ".join(["[7]"] * 8)] * 2 + ["7 7"])

    def test_modules_that_call_it_at_import_share_what_it_gives(self):
        for number in range(10):
            with open(os.path.join(self.path, f"module{number}.py"), "w") as file:
                file.write(
                    f"from autocvd import autocvd\nids = autocvd(verbose={number % 2 == 0}, timeout=5)\n"
                )
        script = f"""
            sys.path.insert(0, {self.path!r})
            import importlib
            say(*[importlib.import_module(f"module{{number}}").ids for number in range(10)])
        """
        self.assertEqual(self.run_script(script), [" ".join(["[7]"] * 10)])

    def test_what_does_not_serve_is_replaced(self):
        script = """
            from autocvd import autocvd
            def free():
                return sum(gpu["state"] == "free" for gpu in autocvd.status()["gpus"])
            for arguments in (
                {}, {"exclude": 7}, {"only": [5, 6]}, {"only": 2}, {"num_gpus": 3}, {"num_gpus": 8},
                {"num_gpus": 2}, {"num_gpus": 2, "exclude": 0}, {"num_gpus": 2, "exclude": [7, 6]},
                {"least_used": True},
            ):
                say(autocvd(**arguments), os.environ["CUDA_VISIBLE_DEVICES"], free())
        """
        expected = [
            "[7] 7 7", "[6] 6 7", "[6] 6 7", "[2] 2 7", "[5, 6, 7] 5,6,7 5", "[0, 1, 2, 3, 4, 5, 6, 7] 0,1,2,3,4,5,6,7 0",
            "[6, 7] 6,7 6", "[6, 7] 6,7 6", "[4, 5] 4,5 6",
        ]  # fmt: skip
        *lines, last = self.run_script(script)
        self.assertEqual(lines, expected)
        self.assertTrue(last.endswith(" 7"), last)

    def test_what_can_never_be_met_replaces_nothing(self):
        script = """
            from autocvd import autocvd
            autocvd()
            for arguments in ({"num_gpus": 9}, {"only": 9}, {"only": 3, "exclude": 3}, {"min_free_memory": "1TiB"}):
                try:
                    autocvd(**arguments)
                except ValueError as error:
                    say([gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"])
        """
        self.assertEqual(self.run_script(script), ["[7]"] * 4)

    def test_what_could_not_be_replaced_is_kept(self):
        self.job(0)
        script = """
            from autocvd import autocvd
            first = autocvd()
            try:
                autocvd(8, timeout=0.2, verbose=False)
            except TimeoutError:
                say([gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"])
            say(autocvd() is first)
            first.release()
            say([gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"])
        """
        self.assertEqual(self.run_script(script), ["[7]", "True", "[]"])

    def test_the_processs_own_memory_does_not_count_against_it(self):
        gib = 1 << 30
        busy = {"memory": {"total": 80 * gib, "reserved": 0, "used": 60 * gib}}
        holder = self.start(
            """
            from autocvd import autocvd
            say(autocvd(min_free_memory="40GiB"))
            listen()
            say(autocvd(min_free_memory="30GiB"))
            listen()
            say(autocvd(min_free_memory="30GiB", exclude=0))
            """
        )
        self.assertEqual(holder.hear(), "[7]")
        own = {**busy, "processes": [{"pid": holder.process.pid, "memory": 60 * gib}]}
        self.describe(gpus=[{} for _ in range(7)] + [own])
        holder.tell()
        self.assertEqual(holder.hear(), "[7]")
        others = {**busy, "processes": [{"pid": 1, "memory": 60 * gib}]}
        self.describe(gpus=[{} for _ in range(7)] + [others])
        holder.tell()
        self.assertEqual(holder.hear(), "[6]")

    def test_a_gpu_that_was_lost_does_not_serve_another_request(self):
        holder = self.start(
            """
            from autocvd import autocvd
            say(autocvd())
            listen()
            say(autocvd(exclude=0))
            """
        )
        self.assertEqual(holder.hear(), "[7]")
        self.describe(gpus=[{} for _ in range(7)] + [{"errors": {"*": 15}}])
        holder.tell()
        self.assertEqual(holder.hear(), "[6]")

    def test_in_a_block_it_keeps_what_the_block_has(self):
        script = """
            import autocvd
            with autocvd.gpus() as block:
                say(autocvd.autocvd() is block, autocvd.autocvd(2) is block)
                autocvd.release()
                say([gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"])
            say([gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"])
        """
        self.assertEqual(self.run_script(script), ["True False", "[7]", "[]"])

    def test_gpus_is_for_more(self):
        script = """
            import autocvd
            with autocvd.gpus() as first, autocvd.gpus() as second:
                say(first, second)
            say(autocvd.autocvd(), autocvd.gpus(set_env=False).__enter__())
        """
        self.assertEqual(self.run_script(script), ["[7] [6]", "[7] [6]"])


class Threads(MachineTest):
    GPUS = 4

    def test_each_gets_its_own_gpus(self):
        script = """
            import threading
            from autocvd import autocvd
            got = []
            barrier = threading.Barrier(4)
            def work():
                barrier.wait()
                got.append(autocvd(set_env=False))
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            say(sorted(got))
            listen()
        """
        holder = self.start(script)
        self.assertEqual(holder.hear(), "[[0], [1], [2], [3]]")
        self.assertEqual(self.free(), [])

    def test_more_threads_than_gpus_take_turns(self):
        script = """
            import autocvd, threading
            busy, most, done, lock = set(), 0, 0, threading.Lock()
            def work():
                global most, done
                for _ in range(3):
                    with autocvd.gpus(set_env=False, verbose=False, interval=3600) as ids:
                        with lock:
                            assert not busy & set(ids), (busy, ids)
                            busy.update(ids)
                            most = max(most, len(busy))
                        time.sleep(0.02)
                        with lock:
                            busy.difference_update(ids)
                            done += 1
            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            say(done, most <= 4)
        """
        self.assertEqual(self.run_script(script), ["24 True"])
        self.assertEqual(self.free(), [0, 1, 2, 3])


class Children(MachineTest):
    GPUS = 3

    def test_a_forked_child_that_ends_ends_nothing(self):
        for end in (
            "os._exit(0)",
            "sys.exit()",
            "autocvd.release(); os._exit(0)",
            "os.kill(os.getpid(), 9)",
        ):
            script = f"""
                import autocvd
                say(autocvd.autocvd())
                child = os.fork()
                if child == 0:
                    {end}
                os.waitpid(child, 0)
                say("ended")
                listen()
            """
            holder = self.start(script)
            self.assertEqual(holder.hear(), "[2]")
            self.assertEqual(holder.hear(), "ended")
            self.assertEqual(self.free(), [0, 1], end)
            holder.tell()
            holder.end()

    def test_a_forked_child_that_lives_keeps_nothing(self):
        script = """
            import autocvd
            autocvd.autocvd()
            if os.fork() == 0:
                say("child")
                listen()
                os._exit(0)
            os.wait3(os.WNOHANG)
            time.sleep(0.2)
            os._exit(0)
        """
        parent = self.start(script)
        self.assertEqual(parent.hear(), "child")
        parent.process.wait()
        self.assertEqual(self.free(), [0, 1, 2])

    def test_workers_of_multiprocessing_neither_keep_nor_end_it(self):
        for method in ("fork", "spawn", "forkserver"):
            script = f"""
                import multiprocessing, autocvd
                from concurrent.futures import ProcessPoolExecutor
                say(autocvd.autocvd())
                context = multiprocessing.get_context("{method}")
                with ProcessPoolExecutor(2, mp_context=context) as pool:
                    say(list(pool.map(os.getenv, ["CUDA_VISIBLE_DEVICES"] * 4)))
                process = context.Process(target=autocvd.release)
                process.start()
                process.join()
                say("ended")
                listen()
            """
            holder = self.start(script)
            self.assertEqual(holder.hear(), "[2]", method)
            self.assertEqual(holder.hear(), "['2', '2', '2', '2']", method)
            self.assertEqual(holder.hear(), "ended", method)
            self.assertEqual(self.free(), [0, 1], method)
            holder.tell()
            holder.end()

    def test_a_child_forked_in_a_block_leaves_it_without_ending_the_claim(self):
        script = """
            import autocvd
            with autocvd.gpus() as ids:
                child = os.fork()
                if child:
                    os.waitpid(child, 0)
                    say(ids)
                    listen()
            if not child:
                os._exit(0)
        """
        holder = self.start(script)
        self.assertEqual(holder.hear(), "[2]")
        self.assertEqual(self.free(), [0, 1])

    def test_a_program_that_the_process_becomes_keeps_it(self):
        holder = self.start(
            "from autocvd import autocvd; say(autocvd()); os.execvp('cat', ['cat'])"
        )
        self.assertEqual(holder.hear(), "[2]")
        holder.tell("cat")
        self.assertEqual(holder.hear(), "cat")
        self.assertEqual(self.free(), [0, 1])
        holder.end()
        self.assertEqual(self.free(), [0, 1, 2])


if __name__ == "__main__":
    unittest.main()
