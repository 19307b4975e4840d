#!/usr/bin/env python3
"""What it costs to hand one GPU from waiter to waiter: wake-ups, looks, and the time until the next
one runs.

    cargo build --release && cargo build --release -p fake-nvml
    python3 benches/handover.py [WAITERS…]

For each number of WAITERS (1 2 4 8 16 32 64 128 256): so many launches wait for one fake GPU, each
for a COMMAND of 20 ms; then the process that holds the GPU is killed. A wake-up is a voluntary
context switch of a waiter up to the start of its COMMAND. A look is a call for the GPU's compute
processes; a claimed GPU is not looked at. The time is from the end of a COMMAND to the start of the
next one, as these note it. AUTOCVD names another program to measure.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from built import AUTOCVD, fake_nvml

COUNTS = [int(word) for word in sys.argv[1:]] or [1, 2, 4, 8, 16, 32, 64, 128, 256]
library = fake_nvml()
NOTE = """date +%s.%N >>$FAKE_NVML/notes; grep ^voluntary /proc/$$/status >>$FAKE_NVML/switches
sleep 0.02; date +%s.%N >>$FAKE_NVML/notes"""


def looks(machine):
    text = (machine / "calls").read_text()
    return sum("ComputeRunningProcesses" in line for line in text.splitlines())


def switches(text):
    lines = (line.split() for line in text.splitlines())
    return sum(int(words[1]) for words in lines if words[0] == "voluntary_ctxt_switches:")


def measure(count):
    with tempfile.TemporaryDirectory(prefix="autocvd-bench-") as directory:
        machine = pathlib.Path(directory)
        (machine / "procs/0").mkdir(parents=True)
        (machine / "machine.json").write_text(json.dumps({"gpus": [{}]}))
        (machine / "calls").touch()
        (machine / "notes").touch()
        environment = {
            "PATH": os.environ["PATH"],
            "AUTOCVD_NVML_LIB": str(library),
            "AUTOCVD_CLAIM_DIR": str(machine / "claims"),
            "FAKE_NVML": str(machine),
        }
        holder = subprocess.Popen(["sleep", "600"])
        (machine / "procs/0" / str(holder.pid)).touch()
        waiters = []
        for number in range(count):
            command = [AUTOCVD, "-q", "-i", "10min", "--", "sh", "-c", NOTE]
            waiters.append(subprocess.Popen(command, env=environment))
            queue = machine / "claims/queue"
            while (
                not queue.exists()
                or sum(not name.endswith(".socket") for name in os.listdir(queue)) <= number
            ):
                time.sleep(0.002)
        time.sleep(2)
        before = looks(machine)
        slept = sum(
            switches(pathlib.Path(f"/proc/{waiter.pid}/status").read_text()) for waiter in waiters
        )
        holder.kill()
        holder.wait()
        for waiter in waiters:
            waiter.wait()
        times = sorted(float(line) for line in (machine / "notes").read_text().split())
        gaps = sorted(start - end for end, start in zip(times[1::2], times[2::2]))
        woken = switches((machine / "switches").read_text()) - slept
        return woken / count, (looks(machine) - before) / count, gaps


print("waiters  wake-ups per hand-over  looks per hand-over  p50 ms  most ms")
for count in COUNTS:
    woken, looked, gaps = measure(count)
    middle, most = (gaps[len(gaps) // 2] * 1e3, gaps[-1] * 1e3) if gaps else (0, 0)
    print(f"{count:7}  {woken:22.1f}  {looked:19.1f}  {middle:6.1f}  {most:7.1f}", flush=True)
