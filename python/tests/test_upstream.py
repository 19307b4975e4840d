"""What the documentation of the Python autocvd 0.0.1 and 0.2.1 shows, argument by argument."""

import subprocess
import unittest

from machine import MachineTest

#: Arguments, and the indices on four GPUs of which the first is busy.
CALLS = [
    # Both versions.
    ({}, [3]),
    ({"num_gpus": 1}, [3]),
    ({"num_gpus": 2}, [2, 3]),
    ({"num_gpus": 3}, [1, 2, 3]),
    ({"least_used": False}, [3]),
    ({"least_used": True, "num_gpus": 4}, [0, 1, 2, 3]),
    ({"timeout": None}, [3]),
    ({"timeout": 60}, [3]),
    ({"interval": 30}, [3]),
    ({"interval": 1}, [3]),
    ({"set_env": True}, [3]),
    ({"set_env": False}, [3]),
    # 0.0.1.
    ({"verbose": True}, [3]),
    ({"verbose": False}, [3]),
    (
        {
            "num_gpus": 2,
            "least_used": False,
            "timeout": 5,
            "interval": 2,
            "set_env": False,
            "verbose": False,
        },
        [2, 3],
    ),
    # 0.2.1.
    ({"exclude": None}, [3]),
    ({"exclude": 3}, [2]),
    ({"exclude": [3, 2]}, [1]),
    ({"progress": True}, [3]),
    ({"progress": False}, [3]),
    (
        {
            "num_gpus": 2,
            "least_used": False,
            "exclude": [3],
            "timeout": 5,
            "interval": 2,
            "progress": False,
        },
        [1, 2],
    ),
]


class Upstream(MachineTest):
    GPUS = 4

    def test_each_documented_argument(self):
        self.job(0)
        script = f"""
            from autocvd import autocvd
            for arguments, expected in {CALLS!r}:
                for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
                    os.environ.pop(name, None)
                got = autocvd(**arguments)
                shown = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER")
                wanted = (",".join(map(str, expected)), "PCI_BUS_ID") if arguments.get("set_env", True) else (None, None)
                if not isinstance(got, list) or got != expected or shown != wanted:
                    say(arguments, got, shown)
                autocvd.release()
        """
        self.assertEqual(self.run_script(script), [])

    def test_its_errors(self):
        for gpu in range(4):
            self.job(gpu)
        script = """
            from autocvd import autocvd
            for arguments in ({"timeout": 1}, {"num_gpus": 9}, {"num_gpus": 0}, {"interval": -1}, {"timeout": -1}):
                try:
                    autocvd(**arguments)
                except (TimeoutError, ValueError) as error:
                    say("TimeoutError" if isinstance(error, TimeoutError) else "ValueError")
        """
        self.assertEqual(self.run_script(script), ["TimeoutError"] + ["ValueError"] * 4)

    def test_the_names_that_it_exports(self):
        for imports in ("from autocvd import autocvd", "import autocvd; autocvd = autocvd.autocvd"):
            self.assertEqual(self.run_script(f"{imports}; say(autocvd())"), ["[3]"])

    def test_each_documented_command_line(self):
        self.job(0)
        order = "CUDA_DEVICE_ORDER=PCI_BUS_ID "
        for line, expected in (
            ("eval $(autocvd) env", "3"),
            ("eval $(autocvd -n 2) env", "2,3"),
            ("eval $(autocvd -l) env", "3"),
            ("eval $(autocvd -x 0 2) env", "3"),
            ("eval $(autocvd -x 3 2) env", "1"),
            ("eval $(autocvd -t 60) env", "3"),
            ("eval $(autocvd -n 2 -l -t 60 -i 30) env", "2,3"),
            ("alias gpuenv='eval $(autocvd) env'\ngpuenv", "3"),
            (". <(autocvd -s); env", "3"),
            (". <(autocvd -e); env", "3"),
            ("source <(autocvd -e); env", "3"),
            ("CUDA_VISIBLE_DEVICES=$(autocvd -o -q) env", "3"),
        ):
            self.wait_until("the last shell's claim has ended", lambda: self.free() == [1, 2, 3])
            result = subprocess.run(
                ["bash", "-O", "expand_aliases", "-c", line],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
            variables = result.stdout.splitlines()
            self.assertIn(f"CUDA_VISIBLE_DEVICES={expected}", variables, (line, result.stderr))
            if "-o" not in line:
                self.assertIn(order.strip(), variables, line)


if __name__ == "__main__":
    unittest.main()
