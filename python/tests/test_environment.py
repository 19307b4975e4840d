"""What is set in the environment, and which of its variables count."""

import unittest

from machine import PROGRAM, MachineTest

SHOW = 'os.environ.get("CUDA_DEVICE_ORDER"), os.environ.get("CUDA_VISIBLE_DEVICES")'


class Setting(MachineTest):
    GPUS = 3

    def test_the_environment_is_set_for_this_process_and_for_c_and_children(self):
        script = f"""
            import subprocess
            from autocvd import autocvd
            say(autocvd(2))
            say({SHOW})
            os.system('echo "$CUDA_DEVICE_ORDER $CUDA_VISIBLE_DEVICES"')
            say(subprocess.check_output("echo $CUDA_VISIBLE_DEVICES", shell=True, text=True).strip())
        """
        lines = ["[1, 2]", "PCI_BUS_ID 1,2", "PCI_BUS_ID 1,2", "1,2"]
        self.assertEqual(self.run_script(script), lines)

    def test_without_set_env_it_is_not(self):
        script = f"""
            from autocvd import autocvd
            say(autocvd(set_env=False))
            say({SHOW})
        """
        self.assertEqual(self.run_script(script), ["[2]", "None None"])

    def test_a_failure_leaves_it_alone(self):
        self.job(0), self.job(1), self.job(2)
        script = f"""
            from autocvd import autocvd
            os.environ["CUDA_VISIBLE_DEVICES"] = "7"
            for arguments in ({{"num_gpus": 9}}, {{"timeout": 0}}):
                try:
                    autocvd(**arguments)
                except (ValueError, TimeoutError):
                    say({SHOW})
        """
        self.assertEqual(self.run_script(script), ["None 7"] * 2)

    def test_uuids_are_set_where_indices_cannot_be_trusted(self):
        self.describe(gpus=[{"errors": {"handle": 15}}, {}, {}])
        script = f"""
            from autocvd import autocvd
            say(autocvd())
            say({SHOW})
        """
        self.assertEqual(
            self.run_script(script), ["[2]", "PCI_BUS_ID GPU-20000000-0000-0000-0000-000000000002"]
        )

    def test_the_block_sets_it_and_restores_it(self):
        script = f"""
            import autocvd
            os.environ["CUDA_VISIBLE_DEVICES"] = "0"
            with autocvd.gpus(2) as ids:
                say(ids, {SHOW})
                with autocvd.gpus() as inner:
                    say(inner, {SHOW})
                say({SHOW})
            say({SHOW})
            try:
                with autocvd.gpus():
                    1 / 0
            except ZeroDivisionError:
                say({SHOW})
            say(autocvd.autocvd(3))
        """
        lines = [
            "[1, 2] PCI_BUS_ID 1,2",
            "[0] PCI_BUS_ID 0",
            "PCI_BUS_ID 1,2",
            "None 0",
            "None 0",
            "[0, 1, 2]",
        ]
        self.assertEqual(self.run_script(script), lines)

    def test_one_object_serves_blocks_inside_each_other(self):
        script = f"""
            from autocvd import autocvd
            one = autocvd.gpus(1)
            with one as outer:
                with one as inner:
                    say(outer, inner, {SHOW})
                say({SHOW})
            say({SHOW}, [gpu["state"] for gpu in autocvd.status()["gpus"]])
            autocvd()
            autocvd.release()
            say(*sorted(gpu["state"] for gpu in autocvd.status()["gpus"]))
        """
        lines = [
            "[2] [1] PCI_BUS_ID 1",
            "PCI_BUS_ID 2",
            "None None ['free', 'free', 'free']",
            "free free free",
        ]
        self.assertEqual(self.run_script(script), lines)


class Heeding(MachineTest):
    GPUS = 4

    def test_what_python_sets_before_the_call_counts(self):
        script = """
            from autocvd import autocvd
            os.environ["AUTOCVD_CLAIM_DIR"] += "-of-python"
            autocvd()
            say(os.path.isdir(os.environ["AUTOCVD_CLAIM_DIR"]))
        """
        self.assertEqual(self.run_script(script), ["True"])

    def test_the_programs_options_do_not(self):
        options = {"AUTOCVD_NUM_GPUS": "2", "AUTOCVD_EXCLUDE": "3", "AUTOCVD_TIMEOUT": "nonsense"}
        self.assertEqual(
            self.run_script("from autocvd import autocvd; say(autocvd())", options), ["[3]"]
        )

    def test_inherit_chooses_among_what_was_visible_at_first(self):
        script = """
            from autocvd import autocvd
            with autocvd.gpus(inherit=True) as first, autocvd.gpus(inherit=True) as second:
                with autocvd.gpus() as third:
                    say(first, second, third)
                try:
                    autocvd.gpus(inherit=True, timeout=0).__enter__()
                except TimeoutError:
                    say("no more")
        """
        self.assertEqual(
            self.run_script(script, {"CUDA_VISIBLE_DEVICES": "0,2"}), ["[2] [0] [3]", "no more"]
        )

    def test_a_batch_job_chooses_among_what_it_was_given(self):
        for system in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "RAY_RAYLET_PID"):
            self.check_job({system: "7", "CUDA_VISIBLE_DEVICES": "1,2"})

    def check_job(self, job):
        script = """
            import autocvd
            with autocvd.gpus() as first, autocvd.gpus() as second:
                say(first, second)
            say(autocvd.autocvd(2))
            autocvd.release()
            try:
                autocvd.autocvd(3)
            except ValueError:
                say("never")
        """
        self.assertEqual(self.run_script(script, job), ["[2] [1]", "[1, 2]", "never"])

    def test_inside_the_program_the_choice_is_among_its_gpus(self):
        import subprocess
        import sys

        script = """
from autocvd import autocvd
with autocvd.gpus() as first, autocvd.gpus() as second:
    print(first, second)
try:
    autocvd(3)
except ValueError:
    print("never")
"""
        result = subprocess.run(
            [PROGRAM, "-n", "2", "-x", "3", "--", sys.executable, "-c", script],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual((result.stdout, result.stderr), ("[2] [1]\nnever\n", ""))


if __name__ == "__main__":
    unittest.main()
