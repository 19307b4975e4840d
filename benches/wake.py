#!/usr/bin/env python3
"""From the end of what holds a GPU to the answer of a launch that waits for it, and what waiting
costs.

    cargo build --release && cargo build --release -p fake-nvml
    python3 benches/wake.py [ROUNDS [SECONDS]]

ROUNDS (200) each with `-i 30s`, on one fake GPU: after a process exits, after a COMMAND ends, after
the program of an `eval $(autocvd)` ends. Then the CPU time and the switches of a waiter over
SECONDS (60).
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

from built import AUTOCVD, fake_nvml

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("rounds", nargs="?", type=int, default=200)
parser.add_argument("seconds", nargs="?", type=float, default=60)
arguments = parser.parse_args()
ROUNDS, SECONDS = arguments.rounds, arguments.seconds
library = fake_nvml()

directory = tempfile.TemporaryDirectory(prefix="autocvd-bench-")
machine = pathlib.Path(directory.name)
registered = machine / "procs/0"
registered.mkdir(parents=True)
queue = machine / "claims/queue"
(machine / "machine.json").write_text(json.dumps({"gpus": [{}]}))
environment = {
    "PATH": f"{pathlib.Path(AUTOCVD).parent}:{os.environ['PATH']}",
    "AUTOCVD_NVML_LIB": str(library),
    "AUTOCVD_CLAIM_DIR": str(machine / "claims"),
    "FAKE_NVML": str(machine),
}


def start(*command):
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, **streams)


def children(pid):
    return [
        int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def name(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return None


def until(condition):
    while not condition():
        time.sleep(0.001)


def process():
    """A process that computes."""
    job = start("sleep", "600")
    (registered / str(job.pid)).touch()
    return job, job.pid


def command():
    """A COMMAND."""
    job = start(AUTOCVD, "-q", "--", "sh", "-c", "echo; exec sleep 600")
    job.stdout.readline()
    return job, job.pid


def program():
    """The program of a shell that lives on."""
    job = start("bash", "-c", "eval $(autocvd -q) sleep 600; sleep 60 & wait")
    until(lambda: any(name(child) == "sleep\n" for child in children(job.pid)))
    return job, next(child for child in children(job.pid) if name(child) == "sleep\n")


def waiter():
    # Its answer is not to stay claimed.
    waiting = start(AUTOCVD, "-q", "-i", "30s", "--hold", "0")
    until(lambda: queue.exists() and any(not place.startswith(".") for place in os.listdir(queue)))
    time.sleep(0.05)
    return waiting


def latencies(holder):
    taken = []
    for _ in range(ROUNDS):
        job, pid = holder()
        waiting = waiter()
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        answer = waiting.stdout.readline()
        taken.append((time.monotonic() - began) * 1000)
        assert b"CUDA_VISIBLE_DEVICES=0" in answer, answer
        waiting.wait()
        job.kill()
        job.wait()
    return sorted(taken)


for what, holder in [
    ("a process exits", process),
    ("a COMMAND ends", command),
    ("a program ends", program),
]:
    taken = latencies(holder)
    p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    print(
        f"{what:16} to the answer: p50 {p50:5.1f} ms, p99 {p99:5.1f} ms, most {taken[-1]:5.1f} ms"
    )

job, _ = process()
waiting = waiter()


def spent():
    nanoseconds = int(pathlib.Path(f"/proc/{waiting.pid}/schedstat").read_text().split()[0])
    status = (
        pathlib.Path(f"/proc/{waiting.pid}/status").read_text().split("voluntary_ctxt_switches:")
    )
    return nanoseconds / 1e6, int(status[1].split()[0])


before, switches = spent()
time.sleep(SECONDS)
after, later = spent()
print(
    f"waiting for {SECONDS:.0f} s: {after - before:.2f} ms of CPU time, "
    f"woken {later - switches} times"
)
waiting.kill()
job.kill()
