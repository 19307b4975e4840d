"""Children choose among what their parent holds: of whatever kind they are, also where there is nothing else."""

import sys
import unittest

from machine import PROGRAM, MachineTest

CHILD = "from autocvd import autocvd; print(autocvd(timeout=20), flush=True)"


class Children(MachineTest):
    GPUS = 1

    def test_a_forked_child(self):
        for set_env in (True, False):
            script = f"""
                from autocvd import autocvd
                say(autocvd(set_env={set_env}))
                if os.fork() == 0:
                    say(autocvd(timeout=20), os.environ["CUDA_VISIBLE_DEVICES"])
                    sys.stdout.flush()
                    os._exit(0)
                os.wait()
                say([gpu["state"] for gpu in autocvd.status()["gpus"]])
            """
            self.assertEqual(self.run_script(script), ["[0]", "[0] 0", "['claimed']"], set_env)

    def test_a_program(self):
        script = f"""
            import subprocess
            from autocvd import autocvd
            g = autocvd()
            say(subprocess.run([{sys.executable!r}, "-c", {CHILD!r}], stdout=-1, text=True).stdout.strip())
            shown = ["--", "printenv", "CUDA_VISIBLE_DEVICES"]
            say(subprocess.run([{PROGRAM!r}, "-t", "20", *shown], stdout=-1, text=True).stdout.strip())
            say(os.popen("{PROGRAM} -t 20 -- sh -c 'echo $CUDA_VISIBLE_DEVICES'").read().strip())
            say(g.run([{sys.executable!r}, "-c", {CHILD!r}], stdout=-1, text=True).stdout.strip())
        """
        self.assertEqual(self.run_script(script), ["[0]", "0", "0", "[0]"])

    def test_a_program_that_has_the_environment_of_an_allocation(self):
        script = f"""
            import subprocess
            from autocvd import autocvd
            g = autocvd(set_env=False)
            environment = {{**os.environ, **g.env}}
            say(sorted(g.env), "AUTOCVD_INSIDE" in environment)
            child = [{sys.executable!r}, "-c", {CHILD!r}]
            say(subprocess.run(child, env=environment, stdout=-1, text=True).stdout.strip())
            shown = [{PROGRAM!r}, "-t", "20", "--", "printenv", "CUDA_VISIBLE_DEVICES"]
            say(subprocess.run(shown, env=environment, stdout=-1, text=True).stdout.strip())
        """
        first = "['CUDA_DEVICE_ORDER', 'CUDA_VISIBLE_DEVICES'] False"
        self.assertEqual(self.run_script(script), [first, "[0]", "0"])

    def test_workers_of_multiprocessing_and_of_pools(self):
        for method in ("fork", "spawn", "forkserver"):
            script = f"""
                import multiprocessing
                from concurrent.futures import ProcessPoolExecutor
                from autocvd import autocvd
                say(autocvd())
                context = multiprocessing.get_context({method!r})
                with context.Pool(1) as pool:
                    say(pool.apply(autocvd, kwds={{"timeout": 20}}))
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    say(pool.submit(autocvd, timeout=20).result())
            """
            self.assertEqual(self.run_script(script), ["[0]"] * 3, method)

    def test_joblibs_workers(self):
        script = """
            try:
                import joblib
            except ImportError:
                say("skipped")
                sys.exit()
            from autocvd import autocvd
            autocvd()
            say(*joblib.Parallel(2)(joblib.delayed(autocvd)(timeout=20, claim=False) for _ in range(2)))
            say(*joblib.Parallel(1)(joblib.delayed(autocvd)(timeout=20) for _ in range(2)))
        """
        lines = self.run_script(script)
        if lines == ["skipped"]:
            self.skipTest("needs joblib")
        self.assertEqual(lines, ["[0] [0]"] * 2)


class Siblings(MachineTest):
    GPUS = 3

    def test_claims_of_siblings_are_apart_and_within_what_the_parent_holds(self):
        script = f"""
            import subprocess
            from autocvd import autocvd
            say(autocvd(2))
            start = [{sys.executable!r}, "-c", {CHILD!r} + "; input()"]
            children = [subprocess.Popen(start, stdin=-1, stdout=-1, text=True) for _ in range(2)]
            say(sorted(child.stdout.readline().strip() for child in children))
            say([gpu["state"] for gpu in autocvd.status()["gpus"]])
            third = subprocess.run([{PROGRAM!r}, "-o", "-t", "0"], capture_output=True)
            say(third.returncode)
            for child in children:
                child.communicate("")
            say(subprocess.run([{PROGRAM!r}, "-o", "-n", "2"], stdout=-1, text=True).stdout.strip())
            say(subprocess.run([{PROGRAM!r}, "-o", "-n", "3"], capture_output=True).returncode)
        """
        lines = ["[1, 2]", "['[1]', '[2]']", "['free', 'claimed', 'claimed']", "4", "1,2", "3"]
        self.assertEqual(self.run_script(script), lines)

    def test_a_child_of_one_of_several_allocations_chooses_among_that_one(self):
        script = f"""
            import subprocess, autocvd
            autocvd.autocvd()
            child = [{sys.executable!r}, "-c", {CHILD!r}]
            with autocvd.gpus(set_env=False) as one, autocvd.gpus(set_env=False) as two:
                for g in (one, two):
                    environment = {{**os.environ, **g.env}}
                    say(g, subprocess.run(child, env=environment, stdout=-1, text=True).stdout.strip())
                say(subprocess.run(child, stdout=-1, text=True).stdout.strip())
        """
        self.assertEqual(self.run_script(script), ["[1] [1]", "[0] [0]", "[2]"])

    def test_a_child_that_outlives_its_parent_is_inside_of_nothing(self):
        script = f"""
            import subprocess
            from autocvd import autocvd
            autocvd()
            wait = "import time, os\\nwhile os.getppid() == {{}}: time.sleep(0.01)\\n".format(os.getpid())
            subprocess.Popen([{sys.executable!r}, "-c", wait + "from autocvd import autocvd; print(autocvd(3))"])
        """
        self.assertEqual(self.run_script(script), ["[0, 1, 2]"])

    def test_a_child_has_no_part_in_the_parents_claim(self):
        script = """
            import autocvd
            with autocvd.gpus(set_env=False) as g:
                child = os.fork()
                if child == 0:
                    say(autocvd.autocvd(timeout=20), g.run(["true"]).returncode)
                    g.release()
                    autocvd.release()
                    sys.stdout.flush()
                    os._exit(0)
                os.waitpid(child, 0)
                say([gpu["state"] for gpu in autocvd.status()["gpus"]])
            say([gpu["state"] for gpu in autocvd.status()["gpus"]])
        """
        lines = ["[2] 0", "['free', 'free', 'claimed']", "['free', 'free', 'free']"]
        self.assertEqual(self.run_script(script), lines)


if __name__ == "__main__":
    unittest.main()
