#!/usr/bin/env python3
"""Checks the release program on a machine with a real NVIDIA GPU, and measures there.

    python3 benches/gpu_check.py [--program target/release/autocvd] [--results DIRECTORY]

Needs nothing but the program, Python and NVIDIA's driver: real CUDA processes are made through
libcuda. Prints a table and writes it as JSON to benches/results/<gpu>-<driver>-<date>.json. Ends in
1 where a check failed, in 77 where there is no GPU. It expects that nobody else uses the GPUs
meanwhile.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
# What a process takes here: more than any context alone.
MEMORY = 2048 * MIB

# A process that computes: a context, memory, and a word once it has both. It ends when its stdin
# does.
JOB = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def do(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        sys.exit(f"{name} answered {code}")
context, memory = ctypes.c_void_p(), ctypes.c_uint64()
do("cuInit", 0)
do("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
do("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(int(sys.argv[1])))
print("ready", flush=True)
while len(sys.argv) > 2:
    do("cuMemsetD8_v2", memory, 1, ctypes.c_size_t(int(sys.argv[1])))
    do("cuCtxSynchronize")
sys.stdin.read()
"""


class Field(ctypes.Structure):
    """nvmlFieldValue_t."""

    _fields_ = [
        ("id", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency", ctypes.c_longlong),
        ("type", ctypes.c_uint),
        ("code", ctypes.c_uint),
        ("number", ctypes.c_uint),
        ("rest", ctypes.c_uint),
    ]


class Nvml:
    """The calls whose latencies are measured, and the list of processes."""

    ROOM = 256
    PROCESS = 24

    def __init__(self):
        path = os.environ.get("AUTOCVD_NVML_LIB", "libnvidia-ml.so.1")
        self.nvml = ctypes.CDLL(path)
        start = time.perf_counter()
        code = self.nvml.nvmlInit_v2()
        self.init_seconds = time.perf_counter() - start
        if code:
            raise OSError(f"nvmlInit_v2 answered {code}")
        count = ctypes.c_uint()
        self.nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        self.count = count.value

    def handle(self, index):
        handle = ctypes.c_void_p()
        self.nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        return handle

    def text(self, function, *handle):
        buffer = ctypes.create_string_buffer(96)
        code = getattr(self.nvml, function)(*handle, buffer, len(buffer))
        return buffer.value.decode() if code == 0 else None

    def number(self, function, handle):
        """What a call answers that gives one number; its code where it fails."""
        value = ctypes.c_uint()
        code = getattr(self.nvml, function)(handle, ctypes.byref(value))
        return value.value if code == 0 else f"code {code}"

    def addressing_mode(self, handle):
        """0 none, 1 HMM, 2 ATS."""
        mode = (ctypes.c_uint * 2)(8 | 1 << 24)  # nvmlDeviceAddressingMode_v1
        code = self.nvml.nvmlDeviceGetAddressingMode(handle, mode)
        return mode[1] if code == 0 else f"code {code}"

    def fields(self, handle, *ids):
        """NVML's field values, each an unsigned int or a code."""
        values = (Field * len(ids))(*[Field(id=id) for id in ids])
        code = self.nvml.nvmlDeviceGetFieldValues(handle, len(ids), values)
        if code:
            return [f"code {code}"] * len(ids)
        return [value.number if value.code == 0 else f"code {value.code}" for value in values]

    def utilization(self, handle):
        rates = (ctypes.c_uint * 2)()
        code = self.nvml.nvmlDeviceGetUtilizationRates(handle, rates)
        return rates[0] if code == 0 else f"code {code}"

    def computing(self, handle):
        """The pids on a GPU."""
        count = ctypes.c_uint(self.ROOM)
        buffer = (ctypes.c_char * (self.ROOM * self.PROCESS))()
        if self.nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), buffer):
            return None
        at = range(0, count.value * self.PROCESS, self.PROCESS)
        return [int.from_bytes(buffer[place : place + 4], sys.byteorder) for place in at]

    def latencies(self, handle):
        """The median time of each call, in microseconds."""
        number, other = ctypes.c_uint(), ctypes.c_uint()
        memory = (ctypes.c_uint64 * 5)()
        memory[0] = 40 | 2 << 24  # The version stands in the first word: nvmlMemory_v2.
        buffer = ctypes.create_string_buffer(512)
        refs = [ctypes.byref(number), ctypes.byref(other)]
        calls = {
            "nvmlDeviceGetHandleByIndex_v2": (0, ctypes.byref(ctypes.c_void_p())),
            "nvmlDeviceGetUUID": (handle, buffer, 96),
            "nvmlDeviceGetPciInfo_v3": (handle, buffer),
            "nvmlDeviceGetMigMode": (handle, *refs),
            "nvmlDeviceGetMemoryInfo_v2": (handle, memory),
            "nvmlDeviceGetComputeMode": (handle, refs[0]),
            "nvmlDeviceGetUtilizationRates": (handle, memory),
            "nvmlSystemGetDriverVersion": (buffer, 96),
        }
        times = {}
        for name, arguments in calls.items():
            function = getattr(self.nvml, name)
            times[name] = microseconds(lambda: function(*arguments), 50)
        times["nvmlDeviceGetComputeRunningProcesses_v3"] = microseconds(
            lambda: self.computing(handle), 50
        )
        return {"nvmlInit_v2": self.init_seconds * 1e6, **times}


def microseconds(work, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


class Check:
    def __init__(self, program, nvml):
        self.program = str(program)
        self.nvml = nvml
        self.directory = Path(tempfile.mkdtemp(prefix="autocvd-gpu-check-"))
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name != "CUDA_VISIBLE_DEVICES"
            and (not name.startswith("AUTOCVD_") or name == "AUTOCVD_NVML_LIB")
        }
        self.environment["AUTOCVD_CLAIM_DIR"] = str(self.directory / "claims")
        self.environment["PATH"] = f"{Path(program).parent}:{os.environ['PATH']}"
        self.checks = {}
        self.times = {}
        self.machine = {}

    # Means

    def run(self, *arguments, **options):
        command = [self.program, *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, **options
        )

    def shell(self, script):
        return subprocess.run(
            ["bash", "-c", script],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self, *arguments, **options):
        command = [self.program, *map(str, arguments)]
        options = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        }
        return subprocess.Popen(command, env=self.environment, text=True, **options)

    def gpu(self, index):
        """What `status` says of a GPU."""
        return json.loads(self.run("status", "--json").stdout)["gpus"][index]

    @contextlib.contextmanager
    def job(self, index, memory=MEMORY, *more):
        """A real process on a GPU, ended with SIGKILL."""
        environment = {
            **self.environment,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": str(index),
        }
        command = [sys.executable, "-c", JOB, str(memory), *more]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        job = subprocess.Popen(command, env=environment, text=True, **options)
        try:
            if job.stdout.readline() != "ready\n":
                raise RuntimeError(f"no CUDA process can be made: {job.stderr.read().strip()}")
            yield job
        finally:
            job.kill()
            job.wait()

    @contextlib.contextmanager
    def all_but(self, index):
        """Claims every GPU but one, so that one machine serves all checks."""
        others = self.nvml.count - 1
        holder = None
        if others:
            holder = self.start("-q", "-t", "10", "-n", others, "-x", index, "--", "sleep", "600")
            until(
                lambda: all(
                    self.gpu(other)["state"] == "claimed"
                    for other in range(self.nvml.count)
                    if other != index
                )
            )
        try:
            yield
        finally:
            if holder:
                holder.kill()
                holder.wait()

    def check(self, name, passed, seen=""):
        self.checks[name] = bool(passed)
        print(
            f"  {'ok    ' if passed else 'FAILED'}  {name}" + ("" if passed else f": {seen}"),
            flush=True,
        )

    def told(self, name, value):
        """A fact about this machine that is neither right nor wrong."""
        self.machine[name] = value
        print(f"          {name}: {value}", flush=True)

    def measured(self, name, value):
        self.times[name] = round(value, 1)
        print(f"  {name:<66} {value:>12.1f} µs", flush=True)

    # Checks

    def state(self):
        before = self.gpu(0)
        self.check("an idle GPU is free", before["state"] == "free", before)
        free = before["memory"]["free"]
        with self.job(0) as job:
            busy = self.gpu(0)
            self.check("a GPU with a CUDA process is busy", busy["state"] == "busy", busy)
            pids = [process["pid"] for process in busy["processes"] or []]
            self.check(
                "its process is listed, or none can be told here", pids in ([job.pid], []), pids
            )
            taken = free - busy["memory"]["free"]
            self.check("its memory is missing from what is free", taken >= MEMORY, taken)
            refused = self.run("-t", "0", "--only", 0)
            self.check("it is not given away: exit 4", refused.returncode == 4, refused)
            self.check("the reason is one line", refused.stderr.count("\n") == 1, refused.stderr)
            least = self.run("-l", "-o", "--no-claim")
            other = self.nvml.count > 1
            self.check("-l takes the GPU with most memory", (least.stdout != "0\n") == other, least)
            large = self.run("-l", "--only", 0, "--no-claim", "-m", f"{free // MIB}MiB")
            self.check("-m heeds its memory", large.returncode != 0, large)
        until(lambda: self.gpu(0)["state"] == "free")
        after = self.gpu(0)
        self.check("after its end it is free again", after["state"] == "free", after)
        gone = abs(after["memory"]["free"] - free)
        self.check("and so is its memory", gone < 256 * MIB, gone)
        with self.job(0, MEMORY, "compute"):
            until(lambda: (self.gpu(0)["utilization"]["gpu"] or 0) > 50, 5)
            seen = self.gpu(0)["utilization"]
            self.check("work is seen as utilization", (seen["gpu"] or 0) > 50, seen)
        # The driver's figure is an average over up to a second.
        until(lambda: self.gpu(0)["state"] == "free" and not self.gpu(0)["utilization"]["gpu"])

    def claims(self):
        with self.all_but(0):
            holder = self.start("--", "sleep", "600")
            until(lambda: self.gpu(0)["state"] == "claimed")
            seen = self.gpu(0)
            self.check("a GPU with a COMMAND is claimed", seen["state"] == "claimed", seen)
            self.check(
                "status names the claim's process",
                [claim["pid"] for claim in seen["claims"]] == [holder.pid],
                seen,
            )
            refused = self.run("-t", "0")
            self.check("a claimed GPU is not given away", refused.returncode == 4, refused)
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            self.check(
                "the claim ends with a killed COMMAND",
                self.run("-t", "5", "--", "true").returncode == 0,
            )
            script = "eval $(autocvd -t 5) sleep 3 & sleep 1; autocvd -t 0; echo $?; wait"
            self.check(
                "an eval's claim is heeded while its program runs",
                "4\n" in self.shell(script).stdout,
            )
            evaluated = self.shell(
                "eval $(autocvd -t 5) printenv CUDA_DEVICE_ORDER CUDA_VISIBLE_DEVICES"
            )
            self.check(
                "eval runs the program with the GPU",
                evaluated.stdout == "PCI_BUS_ID\n0\n",
                evaluated,
            )
            failed = self.shell("eval $(autocvd -n 999) echo ran")
            self.check(
                "eval runs nothing on failure",
                (failed.stdout, failed.returncode) == ("", 3),
                failed,
            )
            both = [self.start("-t", "0", "--", "sleep", "2") for _ in range(2)]
            codes = sorted(launch.wait() for launch in both)
            self.check("of two launches at once, one gets the only GPU", codes == [0, 4], codes)
            command = ["-t", "10", "--", sys.executable, "-c", JOB, str(MEMORY)]
            launch = self.start(*command)
            ready = launch.stdout.readline()
            seen = self.gpu(0)
            self.check(
                "a CUDA program runs under a claim",
                ready == "ready\n" and seen["state"] in ("claimed", "busy"),
                seen,
            )
            launch.kill()
            launch.wait()

    def agreement(self):
        if not shutil.which("nvidia-smi"):
            return print("  skipped: there is no nvidia-smi")
        with self.job(0):
            told = {}
            for probe in ("nvml", "nvidia-smi"):
                status = json.loads(self.run("status", "--json", "--probe", probe).stdout)
                told[probe] = [
                    (
                        gpu["uuid"],
                        gpu["name"],
                        gpu["state"],
                        gpu["compute_mode"],
                        gpu["memory"]["total"] // MIB // 64,
                    )
                    for gpu in status["gpus"]
                ]
            self.check(
                "nvidia-smi and NVML tell the same", told["nvml"] == told["nvidia-smi"], told
            )
            recorded = self.directory / "recorded.json"
            recorded.write_text(self.run("status", "--json").stdout)
            again = json.loads(self.run("status", "--json", "--from", recorded).stdout)["gpus"]
            self.check(
                "--from reads back what status prints",
                again[0]["uuid"] == self.gpu(0)["uuid"],
                again,
            )
        choice = json.loads(self.run("-t", "5", "--json", "--no-claim").stdout)
        last = self.nvml.count - 1
        self.check(
            "of free GPUs the highest goes first",
            choice["env"]["CUDA_VISIBLE_DEVICES"] == str(last),
            choice,
        )

    def facts(self):
        """What machines answer differently, and whether the program says the same as this one."""
        status = json.loads(self.run("status", "--json").stdout)
        for index in range(self.nvml.count):
            handle = self.nvml.handle(index)
            bus_id = status["gpus"][index]["pci_bus_id"].lower()
            place = bus_id[4:] if bus_id.startswith("0000") else bus_id
            action, remap = self.nvml.fields(handle, 230, 145)
            for name, value in {
                "recovery action (field 230)": action,
                "a row remap failed (field 145)": remap,
                "addressing mode (2 is ATS)": self.nvml.addressing_mode(handle),
                "NUMA node of its memory": self.nvml.number("nvmlDeviceGetNumaNodeId", handle),
                "persistence mode": self.nvml.number("nvmlDeviceGetPersistenceMode", handle),
                "utilization, four readings": [self.nvml.utilization(handle) for _ in range(4)],
                "interrupts while NVML has it": Path(
                    f"/sys/bus/pci/devices/{place}/msi_irqs"
                ).is_dir(),
                "listed in /proc/driver/nvidia/gpus": Path(
                    f"/proc/driver/nvidia/gpus/{place}/information"
                ).exists(),
            }.items():
                self.told(f"GPU {index}: {name}", value)
            health = status["gpus"][index]["health"] or {}
            known = isinstance(action, int)
            self.check(
                f"GPU {index}: status tells its health",
                known == bool(health.get("recovery_action")),
                health,
            )
            information = Path(f"/proc/driver/nvidia/gpus/{place}/information")
            if information.exists():
                uuid = status["gpus"][index]["uuid"]
                self.check(
                    f"GPU {index}: the kernel lists it by the same UUID",
                    uuid in information.read_text(),
                    uuid,
                )
        nodes = {
            path.parent.name: path.read_text().strip()
            for path in Path("/sys/devices/system/node").glob("node*/cpulist")
        }
        self.told("CPUs of each NUMA node", nodes)
        only = self.run("-o", "--only", 0, "--no-claim", "-t", "5").stdout.strip()
        self.told("what --only 0 prints: an index where all GPUs are initialized", only)

    def reset(self):
        """Whether a waiter would keep a GPU from being reset: whether it has the device open."""
        with self.job(0):
            waiter = self.start("-o", "--no-claim", "--only", 0)
            while "waiting" not in (line := waiter.stderr.readline()):
                if not line:
                    raise RuntimeError("the waiter does not wait")
            links = [os.readlink(path) for path in Path(f"/proc/{waiter.pid}/fd").iterdir()]
            devices = sorted({link for link in links if link.startswith("/dev/nvidia")})
            self.told(
                "devices that a waiter has open ('nvidia-smi --gpu-reset' refuses while one has)",
                devices,
            )
            waiter.kill()
            waiter.wait()

    def teardown(self):
        """How long the driver lists a process after its exit, by the memory that it held."""
        handle = self.nvml.handle(0)
        total = self.gpu(0)["memory"]["free"] or 0
        for share in (0.05, 0.5, 0.9):
            delays = []
            for _ in range(3):
                with self.job(0, int(total * share)) as job:
                    job.kill()
                    job.wait()
                    exit_time = time.perf_counter()
                    while self.nvml.computing(handle) and time.perf_counter() < exit_time + 30:
                        time.sleep(0.0002)
                    delays.append(time.perf_counter() - exit_time)
            self.measured(
                f"from an exit to the list without it, {share:.0%} of the memory held",
                max(delays) * 1e6,
            )

    # Measurements

    def calls(self):
        handle = self.nvml.handle(0)
        for name, value in self.nvml.latencies(handle).items():
            self.measured(name, value)

    def launches(self):
        subjects = {"autocvd --no-claim": ([self.program, "--no-claim"], 41)}
        subjects["autocvd"] = ([self.program], 41)
        subjects["autocvd -- true"] = ([self.program, "--", "true"], 41)
        if shutil.which("cc"):
            build = subprocess.run(
                [HERE / "native/build.sh", self.directory], capture_output=True, text=True
            )
            if build.returncode == 0:
                library = os.environ.get("AUTOCVD_NVML_LIB")
                subjects["floor"] = (
                    [str(self.directory / "floor"), *([library] if library else [])],
                    41,
                )
        if shutil.which("nvidia-smi"):
            subjects["nvidia-smi -q -x"] = (["nvidia-smi", "-q", "-x"], 7)
            subjects["autocvd --probe nvidia-smi"] = (
                [self.program, "--probe", "nvidia-smi", "--no-claim"],
                7,
            )
        times = {name: [] for name in subjects}
        quiet = {
            "env": self.environment,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        for turn in range(41):
            for name, (command, rounds) in subjects.items():
                if turn < rounds:
                    start = time.perf_counter()
                    code = subprocess.run(command, **quiet).returncode
                    times[name].append(time.perf_counter() - start)
                    if code:
                        raise RuntimeError(f"{name} ended in {code}")
        for name, values in times.items():
            self.measured(name, statistics.median(values) * 1e6)

    def wakes(self):
        """From a process's exit to NVML's list without it, and to a waiter's answer."""
        handle = self.nvml.handle(0)
        listed, answered = [], []
        for _ in range(7):
            with self.all_but(0):
                with self.job(0) as job:
                    waiter = self.start("-o", "--no-claim", "--only", 0)
                    while "waiting" not in (line := waiter.stderr.readline()):
                        if not line:
                            raise RuntimeError("the waiter does not wait")
                    time.sleep(0.05)
                    job.kill()
                    job.wait()
                    exit_time = time.perf_counter()
                    waiter.stdout.readline()
                    answered.append(time.perf_counter() - exit_time)
                    waiter.wait()
                with self.job(0) as job:
                    job.kill()
                    job.wait()
                    exit_time = time.perf_counter()
                    while self.nvml.computing(handle) and time.perf_counter() < exit_time + 5:
                        pass
                    listed.append(time.perf_counter() - exit_time)
        self.measured(
            "from a process's exit to its absence from NVML's list", statistics.median(listed) * 1e6
        )
        self.measured(
            "from a process's exit to a waiter's answer", statistics.median(answered) * 1e6
        )
        self.measured(
            "from a process's exit to a waiter's answer, the slowest", max(answered) * 1e6
        )
        self.check("a waiter answers within 50 ms", max(answered) < 0.05, answered)


def until(condition, seconds=10):
    """Waits for something; whoever asks checks it afterwards."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", type=Path, default=HERE.parent / "target/release/autocvd")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    try:
        nvml = Nvml()
        ctypes.CDLL("libcuda.so.1")
    except (OSError, AttributeError) as error:
        print(f"gpu_check: skipped: no NVIDIA GPU can be used here ({error})", file=sys.stderr)
        return 77
    if nvml.count == 0:
        print("gpu_check: skipped: there is no GPU", file=sys.stderr)
        return 77
    if not arguments.program.exists():
        print(
            f"gpu_check: {arguments.program} does not exist; run cargo build --release",
            file=sys.stderr,
        )
        return 2
    name = nvml.text("nvmlDeviceGetName", nvml.handle(0)) or "unknown"
    driver = nvml.text("nvmlSystemGetDriverVersion") or "unknown"
    print(f"{nvml.count} × {name}, driver {driver}")
    check = Check(arguments.program.resolve(), nvml)
    parts = {
        "State": check.state,
        "Claims": check.claims,
        "Sources": check.agreement,
        "Facts": check.facts,
        "Reset": check.reset,
        "Teardown": check.teardown,
        "NVML's calls": check.calls,
        "One launch": check.launches,
        "Waiting": check.wakes,
    }
    for title, part in parts.items():
        print(f"\n{title}")
        try:
            part()
        except Exception as error:  # One part that cannot be done must not hide the others.
            check.check(f"{title}: {type(error).__name__}", False, error)
    shutil.rmtree(check.directory, ignore_errors=True)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    file = re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-{driver}-{date}") + ".json"
    arguments.results.mkdir(parents=True, exist_ok=True)
    results = {
        "command": "python3 benches/gpu_check.py",
        "date": date,
        "gpus": [name] * nvml.count,
        "driver": driver,
        "kernel": os.uname().release,
        "checks": check.checks,
        "microseconds": check.times,
        "facts": check.machine,
    }
    (arguments.results / file).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    failed = [name for name, passed in check.checks.items() if not passed]
    print(
        f"\n{len(check.checks) - len(failed)} of {len(check.checks)} checks passed; "
        f"written to {arguments.results / file}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
