"""What autocvd() and gpus() return."""

import unittest

from machine import PROGRAM, MachineTest

GIB = 1 << 30


class Allocations(MachineTest):
    GPUS = 3

    def test_it_is_the_list_of_the_indices(self):
        script = """
            import copy, pickle
            from autocvd import Allocation, autocvd
            g = autocvd(2)
            say(isinstance(g, list), isinstance(g, Allocation), g == [1, 2], g, repr(g), str(g), len(g), g[0], 2 in g)
            say(json.dumps(g), ",".join(map(str, g)), sorted(g), g + [7], [*g], type(g[:1]).__name__)
            say(bool(g), max(g), {tuple(g): 1})
        """
        lines = [
            "True True True [1, 2] [1, 2] [1, 2] 2 1 True",
            "[1, 2] 1,2 [1, 2] [1, 2, 7] [1, 2] list",
            "True 2 {(1, 2): 1}",
        ]
        self.assertEqual(self.run_script(script), lines)

    def test_it_says_what_a_program_needs(self):
        script = """
            import subprocess
            from autocvd import autocvd
            g = autocvd(2, set_env=False)
            say(json.dumps(g.env), g.visible_devices, g.uuids)
            say("CUDA_VISIBLE_DEVICES" in os.environ)
            shown = "echo $CUDA_DEVICE_ORDER $CUDA_VISIBLE_DEVICES $EXTRA"
            for environment in ({**os.environ, **g.env}, g.env):
                say(subprocess.check_output(shown, shell=True, text=True, env=environment).strip())
            result = g.run(["sh", "-c", shown + "; exit 3"], capture_output=True, text=True)
            say(result.returncode, result.stdout.strip())
            say(g.run(shown, shell=True, env={"EXTRA": "x"}, capture_output=True, text=True).stdout.strip())
        """
        env = '{"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,2"}'
        uuids = [f"GPU-{index}0000000-0000-0000-0000-00000000000{index}" for index in (1, 2)]
        lines = [
            f"{env} 1,2 {uuids}",
            "False",
            "PCI_BUS_ID 1,2",
            "PCI_BUS_ID 1,2",
            "3 PCI_BUS_ID 1,2",
        ]
        self.assertEqual(self.run_script(script), [*lines, "PCI_BUS_ID 1,2 x"])

    def test_the_environment_is_right_where_an_index_would_not_be(self):
        mig = {
            "enabled": True,
            "devices": [{"gi": 1, "ci": 0, "memory": {"total": 20 * GIB, "used": 0}}],
        }
        for first, only in (({"errors": {"handle": 15}}, 2), ({"mig": mig}, 0)):
            self.describe(gpus=[first, {}, {}])
            script = f"""
                from autocvd import autocvd
                g = autocvd(set_env=False, only={only})
                say(g, g.visible_devices == g.env["CUDA_VISIBLE_DEVICES"] == g.uuids[0], g.uuids[0][:4])
            """
            kind = "MIG-" if "mig" in first else "GPU-"
            self.assertEqual(self.run_script(script), [f"[{only}] True {kind}"])

    def test_release_ends_it_and_it_alone(self):
        script = """
            import autocvd
            def claimed():
                return [gpu["index"] for gpu in autocvd.status()["gpus"] if gpu["state"] == "claimed"]
            one, two = autocvd.autocvd(), autocvd.gpus(set_env=False).__enter__()
            say(one, two, claimed())
            one.release()
            one.release()
            say(claimed(), os.environ["CUDA_VISIBLE_DEVICES"])
            try:
                one.run(["true"])
            except RuntimeError as error:
                say(error)
            two.release()
            say(claimed(), autocvd.autocvd(), claimed())
        """
        lines = ["[2] [1] [1, 2]", "[1] 2", "these GPUs were released; take new ones", "[] [2] [2]"]
        self.assertEqual(self.run_script(script), lines)

    def test_a_block_over_it_ends_it_and_puts_the_environment_back(self):
        script = """
            import autocvd
            os.environ["CUDA_VISIBLE_DEVICES"] = "0"
            with autocvd.autocvd(2) as g:
                say(g, os.environ["CUDA_VISIBLE_DEVICES"])
            say(os.environ["CUDA_VISIBLE_DEVICES"], [gpu["state"] for gpu in autocvd.status()["gpus"]])
            with autocvd.gpus(2) as g:
                say(type(g).__name__, g.visible_devices, g.run(["true"]).returncode)
        """
        lines = ["[1, 2] 1,2", "0 ['free', 'free', 'free']", "Allocation 1,2 0"]
        self.assertEqual(self.run_script(script), lines)

    def test_a_copy_tells_of_the_same_gpus_and_holds_nothing(self):
        script = """
            import copy, pickle
            from autocvd import autocvd
            g = autocvd(2)
            for other in (copy.copy(g), copy.deepcopy(g), pickle.loads(pickle.dumps(g))):
                say(other == g, other.env == g.env, other.uuids == g.uuids)
                other.release()
            say([gpu["state"] for gpu in autocvd.status()["gpus"]])
        """
        self.assertEqual(
            self.run_script(script), ["True True True"] * 3 + ["['free', 'claimed', 'claimed']"]
        )

    def test_one_that_is_forgotten_stays_claimed(self):
        script = """
            import gc, autocvd
            autocvd.autocvd(set_env=False)
            autocvd.gpus(set_env=False).__enter__()
            gc.collect()
            say([gpu["state"] for gpu in autocvd.status()["gpus"]])
        """
        self.assertEqual(self.run_script(script), ["['free', 'claimed', 'claimed']"])

    def test_what_it_runs_chooses_among_its_gpus(self):
        script = f"""
            import autocvd
            with autocvd.gpus(set_env=False) as one, autocvd.gpus(set_env=False) as two:
                for g in (one, two):
                    say(g.run([{PROGRAM!r}, "-o", "-t", "0"], capture_output=True, text=True).stdout.strip())
        """
        self.assertEqual(self.run_script(script), ["2", "1"])


if __name__ == "__main__":
    unittest.main()
