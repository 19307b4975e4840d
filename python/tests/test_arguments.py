"""What each argument does, and what a wrong one is answered with."""

import unittest

from machine import MachineTest, in_host_namespace

TABLE = r"""
import datetime, decimal, fractions
from autocvd import autocvd

class Index:
    def __index__(self):
        return 2

class Float:
    def __float__(self):
        return 0.01

UUID = "GPU-20000000-0000-0000-0000-000000000002"
RIGHT = [
    ({}, [3]),
    ({"num_gpus": 2}, [2, 3]),
    ({"num_gpus": 4}, [0, 1, 2, 3]),
    ({"num_gpus": Index()}, [2, 3]),
    ({"least_used": True}, None),
    ({"least_used": 1}, None),
    ({"timeout": 0}, [3]),
    ({"timeout": None}, [3]),
    ({"timeout": 1.5}, [3]),
    ({"timeout": "2m 30s"}, [3]),
    ({"timeout": "500ms"}, [3]),
    ({"timeout": Float()}, [3]),
    ({"timeout": decimal.Decimal("1.5")}, [3]),
    ({"timeout": fractions.Fraction(1, 2)}, [3]),
    ({"interval": 0.5}, [3]),
    ({"interval": "1m"}, [3]),
    ({"verbose": False}, [3]),
    ({"exclude": None}, [3]),
    ({"exclude": []}, [3]),
    ({"exclude": 3}, [2]),
    ({"exclude": "3"}, [2]),
    ({"exclude": "3,2"}, [1]),
    ({"exclude": " 3 , 2 "}, [1]),
    ({"exclude": [3, "2"]}, [1]),
    ({"exclude": ["3,2", 1]}, [0]),
    ({"exclude": (3,)}, [2]),
    ({"exclude": {3}}, [2]),
    ({"exclude": range(1, 4)}, [0]),
    ({"exclude": (i for i in [3, 2])}, [1]),
    ({"exclude": Index()}, [3]),
    ({"only": 0}, [0]),
    ({"only": UUID}, [2]),
    ({"only": "GPU-2"}, [2]),
    ({"only": "00000000:02:00.0"}, [1]),
    ({"only": ["0", 1], "num_gpus": 2}, [0, 1]),
    ({"only": [0, 1], "exclude": 1}, [0]),
    ({"min_free_memory": 10 << 30}, [3]),
    ({"min_free_memory": "10GiB"}, [3]),
    ({"min_free_memory": 10e9}, [3]),
    ({"min_free_memory": fractions.Fraction(10**10)}, [3]),
    ({"timeout": datetime.timedelta(seconds=2)}, [3]),
    ({"interval": datetime.timedelta(minutes=2)}, [3]),
    ({"inherit": False}, [3]),
    ({"progress": print}, [3]),
    ({"progress": True}, [3]),
    ({"progress": False}, [3]),
]
WRONG = [
    ({"num_gpus": 0}, "num_gpus=0:"),
    ({"num_gpus": -1}, "num_gpus=-1:"),
    ({"num_gpus": "2"}, "num_gpus='2':"),
    ({"num_gpus": 1.0}, "num_gpus=1.0:"),
    ({"num_gpus": True}, "num_gpus=True:"),
    ({"num_gpus": None}, "num_gpus=None:"),
    ({"num_gpus": 5}, "num_gpus=5:"),
    ({"num_gpus": 5}, "has 4"),
    ({"num_gpus": 10**30}, "has 4"),
    ({"num_gpus": 4, "exclude": 0}, "at most 3"),
    ({"num_gpus": 4, "exclude": 0}, "num_gpus=4, exclude=['0']:"),
    ({"num_gpus": 3, "only": [0, 1]}, "at most 2"),
    ({"exclude": range(4)}, "exclude"),
    ({"least_used": "yes"}, "least_used='yes':"),
    ({"least_used": None}, "least_used=None:"),
    ({"least_used": 2}, "least_used=2:"),
    ({"set_env": []}, "set_env=[]:"),
    ({"verbose": "no"}, "verbose='no':"),
    ({"inherit": "no"}, "inherit='no':"),
    ({"claim": "no"}, "claim='no':"),
    ({"timeout": -1}, "timeout=-1:"),
    ({"timeout": -0.5}, "timeout=-0.5:"),
    ({"timeout": float("nan")}, "timeout=nan:"),
    ({"timeout": float("inf")}, "None waits for ever"),
    ({"timeout": 1e300}, "timeout=1e+300:"),
    ({"timeout": 10**400}, "timeout=1000"),
    ({"timeout": True}, "timeout=True:"),
    ({"timeout": "soon"}, "timeout='soon':"),
    ({"timeout": "-1"}, "timeout='-1':"),
    ({"timeout": "nan"}, "timeout='nan':"),
    ({"timeout": ""}, "timeout='':"),
    ({"timeout": b"1"}, "timeout=b'1':"),
    ({"timeout": [1]}, "timeout=[1]:"),
    ({"timeout": 1j}, "timeout=1j:"),
    ({"interval": 0}, "interval=0:"),
    ({"interval": "0s"}, "interval='0s':"),
    ({"interval": None}, "interval=None:"),
    ({"interval": float("nan")}, "interval=nan:"),
    ({"exclude": True}, "exclude=True:"),
    ({"exclude": -1}, "exclude=-1:"),
    ({"exclude": 1.5}, "exclude=1.5:"),
    ({"exclude": ""}, "exclude='':"),
    ({"exclude": "0,,1"}, "exclude='0,,1':"),
    ({"exclude": b"0"}, "exclude=b'0':"),
    ({"exclude": [None]}, "exclude=[None]:"),
    ({"exclude": [[0]]}, "exclude=[[0]]:"),
    ({"exclude": 9}, "exclude: '9' names no GPU"),
    ({"exclude": "GPU-9"}, "exclude: 'GPU-9' names no GPU"),
    ({"only": []}, "only=[]:"),
    ({"only": 4}, "only: '4' names no GPU"),
    ({"only": "nonsense"}, "only: 'nonsense' names no GPU"),
    ({"min_free_memory": "lots"}, "min_free_memory='lots':"),
    ({"min_free_memory": -1}, "min_free_memory=-1:"),
    ({"min_free_memory": True}, "min_free_memory=True:"),
    ({"min_free_memory": 1.5}, "min_free_memory=1.5:"),
    ({"min_free_memory": float("inf")}, "min_free_memory=inf:"),
    ({"min_free_memory": float("nan")}, "min_free_memory=nan:"),
    ({"min_free_memory": [1]}, "min_free_memory=[1]:"),
    ({"timeout": datetime.timedelta(seconds=-1)}, "timeout="),
    ({"interval": datetime.timedelta()}, "interval="),
    ({"min_free_memory": "1TiB"}, "80"),
    ({"min_free_memory": "1TiB"}, "min_free_memory="),
    ({"min_free_memory": 10**30}, "80"),
    ({"progress": 3}, "progress=3:"),
    ({"progress": "bar"}, "progress='bar':"),
]
try:
    import numpy
except ImportError:
    pass
else:
    RIGHT += [
        ({"num_gpus": numpy.int64(2)}, [2, 3]),
        ({"timeout": numpy.float32(1)}, [3]),
        ({"timeout": numpy.array(1.5)}, [3]),
        ({"min_free_memory": numpy.float64(1e9)}, [3]),
        ({"min_free_memory": numpy.uint64(10**9)}, [3]),
        ({"exclude": numpy.array([3, 2])}, [1]),
        ({"exclude": numpy.array(3)}, [2]),
        ({"least_used": numpy.bool_(False)}, [3]),
    ]
    WRONG += [
        ({"num_gpus": numpy.array([1, 2])}, "num_gpus="),
        ({"num_gpus": numpy.float64(1)}, "num_gpus="),
        ({"timeout": numpy.array([1, 2])}, "timeout="),
        ({"timeout": numpy.bool_(True)}, "timeout="),
        ({"min_free_memory": numpy.float64("nan")}, "min_free_memory="),
        ({"exclude": numpy.array([1.5])}, "exclude="),
    ]

os.environ["CUDA_VISIBLE_DEVICES"] = before = "0,1,2,3"
for arguments, expected in RIGHT:
    got = autocvd(**{"claim": False, "set_env": False, **arguments})
    good = isinstance(got, list) and all(type(index) is int for index in got)
    if not good or (expected is not None and got != expected):
        say(f"{arguments} gave {got!r}")
for arguments, expected in WRONG:
    try:
        got = autocvd(**{"claim": False, "set_env": False, **arguments})
        say(f"{arguments} gave {got!r}")
    except ValueError as error:
        text = str(error)
        if type(error) is not ValueError or expected not in text or "--" in text or "\n" in text:
            say(f"{arguments}: {text}")
    except BaseException as error:
        say(f"{arguments}: {error!r}")
if os.environ["CUDA_VISIBLE_DEVICES"] != before:
    say("the environment has changed")
say(len(RIGHT) > 40 and len(WRONG) > 50)
"""


class Arguments(MachineTest):
    GPUS = 4

    def test_the_table(self):
        self.assertEqual(self.run_script(TABLE), ["True"])

    def test_the_signature(self):
        script = """
            import inspect, autocvd
            plain = lambda f: [(p.name, p.default, p.kind.name[0]) for p in inspect.signature(f).parameters.values()]
            say(plain(autocvd.autocvd))
            say(plain(autocvd.gpus) == plain(autocvd.autocvd))
            say(inspect.signature(autocvd.autocvd).return_annotation)
        """
        either = [("num_gpus", 1), ("least_used", False), ("timeout", None)]
        either += [("interval", 30), ("set_env", True), ("verbose", True)]
        named = [("exclude", None), ("only", None), ("min_free_memory", None)]
        named += [("share", False), ("inherit", False), ("claim", True), ("progress", None)]
        expected = [(*one, "P") for one in either] + [(*one, "K") for one in named]
        self.assertEqual(self.run_script(script), [str(expected), "True", "Allocation"])

    def test_arguments_go_by_position_as_far_as_verbose(self):
        script = """
            from autocvd import autocvd
            say(autocvd(2, False, 0, 30, False, False))
            try:
                autocvd(2, False, 0, 30, False, False, 0)
            except TypeError:
                say("too many")
        """
        self.assertEqual(self.run_script(script), ["[2, 3]", "too many"])

    def test_help_tells_what_there_is(self):
        script = """
            import pydoc, autocvd
            say(pydoc.plain(pydoc.render_doc(autocvd)))
        """
        text = "\n".join(self.run_script(script))
        for part in (
            "autocvd(num_gpus",
            "gpus(",
            "release()",
            "status()",
            "Raises:",
            "TimeoutError",
            "min_free_memory",
        ):
            self.assertIn(part, text)
        for private in ("_take", "_autocvd.", "TYPE_CHECKING"):
            self.assertNotIn(private, text.replace("autocvd._autocvd", ""))

    @in_host_namespace
    def test_busy_gpus_are_a_timeout(self):
        jobs = [self.job(gpu) for gpu in range(4)]
        script = """
            from autocvd import autocvd
            for arguments in ({"timeout": 0}, {"timeout": 0.2}, {"timeout": "200ms", "interval": 0.05}):
                start = time.monotonic()
                try:
                    autocvd(verbose=False, **arguments)
                except TimeoutError as error:
                    took = time.monotonic() - start
                    text = str(error)
                    say(type(error).__name__, 0 <= took < 30, "--" in text, "sleep 600" in text)
            say("CUDA_VISIBLE_DEVICES" in os.environ)
            say(autocvd(least_used=True) != [])
        """
        timeout = "GpuTimeoutError True False True"
        self.assertEqual(self.run_script(script), [timeout, timeout, timeout, "False", "True"])
        for job in jobs:
            self.assertIsNone(job.poll())

    def test_no_gpu_is_an_oserror(self):
        script = """
            import autocvd
            for function in (autocvd.autocvd, autocvd.status):
                try:
                    function()
                except OSError as error:
                    say(type(error).__name__, type(error).__module__, len(str(error)) > 20)
        """
        none = {"AUTOCVD_NVML_LIB": "/nonexistent/libnvidia-ml.so.1", "PATH": "/nonexistent"}
        self.assertEqual(self.run_script(script, none), ["NoGpuError autocvd True"] * 2)

    def test_the_version_is_the_programs(self):
        version = self.run_script("import autocvd; say(autocvd.__version__)")
        self.assertEqual(self.program("--version").stdout.split(), ["autocvd", *version])


if __name__ == "__main__":
    unittest.main()
