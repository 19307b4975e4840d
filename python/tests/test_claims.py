"""To whom a claim belongs, and when it ends."""

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

    def test_a_second_call_gets_other_gpus_and_release_ends_all(self):
        holder = self.start(
            """
            import autocvd
            say(autocvd.autocvd(), autocvd.autocvd())
            listen()
            autocvd.release()
            say(autocvd.autocvd(3), os.environ["CUDA_VISIBLE_DEVICES"])
            listen()
            autocvd.release()
            autocvd.release()
            say("released", os.environ["CUDA_VISIBLE_DEVICES"])
            listen()
            """
        )
        self.assertEqual(holder.hear(), "[2] [1]")
        self.assertEqual(self.free(), [0])
        holder.tell()
        self.assertEqual(holder.hear(), "[0, 1, 2] 0,1,2")
        self.assertEqual(self.free(), [])
        holder.tell()
        self.assertEqual(holder.hear(), "released 0,1,2")
        self.assertEqual(self.free(), [0, 1, 2])

    def test_release_wakes_those_who_wait(self):
        holder = self.start("import autocvd; say(autocvd.autocvd(3)); listen(); autocvd.release(); say(0); listen()")
        holder.hear()
        waiter = self.start("from autocvd import autocvd; say('go'); say(autocvd(2, interval=3600))")
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
            autocvd.autocvd(2)
            try:
                autocvd.autocvd(2, verbose=False)
            except ValueError as error:
                say(error)
            with autocvd.gpus():
                try:
                    autocvd.autocvd(verbose=False)
                except ValueError:
                    say("nor in a block")
            try:
                autocvd.autocvd(2, timeout=0.2, verbose=False)
            except TimeoutError:
                say("nor for longer than it may")
            say(autocvd.autocvd())
            say(autocvd.autocvd(least_used=True) != [])
        """
        first, *others = self.run_script(script)
        self.assertIn("this thread has already claimed GPU 1, GPU 2", first)
        self.assertIn("autocvd.release()", first)
        self.assertEqual(others, ["nor in a block", "nor for longer than it may", "[0]", "True"])

    def test_a_wait_for_others_besides_goes_on(self):
        job = self.job(0)
        waiter = self.start(
            """
            import autocvd
            say(autocvd.autocvd())
            say(autocvd.autocvd(2))
            """
        )
        self.assertEqual(waiter.hear(), "[2]")
        self.wait_until("it waits", lambda: "waiting" in waiter.process.stderr.readline())
        job.kill()
        job.wait()
        self.assertEqual(waiter.hear(), "[0, 1]")


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
        for end in ("os._exit(0)", "sys.exit()", "autocvd.release(); os._exit(0)", "os.kill(os.getpid(), 9)"):
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

    def test_a_forked_child_gets_gpus_of_its_own(self):
        script = """
            import autocvd
            say(autocvd.autocvd())
            if os.fork() == 0:
                say(autocvd.autocvd(), os.environ["CUDA_VISIBLE_DEVICES"])
                listen()
                os._exit(0)
            os.wait()
            say("parent", os.environ["CUDA_VISIBLE_DEVICES"])
            listen()
        """
        parent = self.start(script)
        self.assertEqual([parent.hear(), parent.hear()], ["[2]", "[1] 1"])
        self.assertEqual(self.free(), [0])
        parent.tell()
        self.assertEqual(parent.hear(), "parent 2")
        self.assertEqual(self.free(), [0, 1])

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
        holder = self.start("from autocvd import autocvd; say(autocvd()); os.execvp('cat', ['cat'])")
        self.assertEqual(holder.hear(), "[2]")
        holder.tell("cat")
        self.assertEqual(holder.hear(), "cat")
        self.assertEqual(self.free(), [0, 1])


if __name__ == "__main__":
    unittest.main()
