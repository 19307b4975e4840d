#!/usr/bin/env python3
"""What many waiters cost, in the same and in another PID namespace, and how soon they go on.

    cargo build --release && cargo build --release -p fake-nvml
    python3 benches/waiters.py [COUNT…]

For each COUNT (1 16 64 256): a COMMAND claims the only fake GPU, and so many launches wait for it,
each for a COMMAND of 20 ms. CPU is what all waiters together use in 10 s in which nothing happens.
Then the first COMMAND is killed; the time is from the end of one COMMAND to the start of the next
one, as they note it. Memory is that of the judge of the first COMMAND, as its share of all pages
(PSS). Another namespace takes root. AUTOCVD names another program to measure.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from built import AUTOCVD, fake_nvml

COUNTS = [int(word) for word in sys.argv[1:]] or [1, 16, 64, 256]
SECONDS = 10
NOTE = "date +%s.%N >>$FAKE_NVML/notes; sleep 0.02; date +%s.%N >>$FAKE_NVML/notes"
LOOP = f'for i in $(seq "$1"); do "$2" -q -i 10min -- sh -c "{NOTE}" & done; wait'
IN_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def processes():
    return (pathlib.Path(f"/proc/{pid}") for pid in os.listdir("/proc") if pid.isdigit())


def named(name, environment):
    """The processes of this name on this fake machine."""
    mark = f"FAKE_NVML={environment['FAKE_NVML']}".encode()
    for process in processes():
        try:
            if (process / "comm").read_text() == f"{name}\n" and mark in (
                process / "environ"
            ).read_bytes():
                yield process
        except OSError:
            pass


def memory_of_judge(pid):
    """KiB of the judge of this COMMAND."""
    for process in processes():
        try:
            words = (process / "cmdline").read_bytes().rstrip(b"\0").split()
            if words[:1] == [b"autocvd:"] and words[-1] == str(pid).encode():
                lines = (process / "smaps_rollup").read_text().splitlines()
                return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:
            pass
    return 0


def cpu(waiting):
    """Milliseconds of CPU time of all their threads."""
    threads = (thread for process in waiting for thread in (process / "task").iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e6


def measure(count, prefix):
    with tempfile.TemporaryDirectory(prefix="autocvd-bench-") as directory:
        machine = pathlib.Path(directory)
        (machine / "machine.json").write_text(json.dumps({"gpus": [{}]}))
        (machine / "notes").touch()
        environment = {
            "PATH": os.environ["PATH"],
            "AUTOCVD_NVML_LIB": str(fake_nvml()),
            "AUTOCVD_CLAIM_DIR": str(machine / "claims"),
            "FAKE_NVML": directory,
        }
        holder = subprocess.Popen([AUTOCVD, "-q", "--", "sleep", "600"], env=environment)
        while not any(named("sleep", environment)):
            time.sleep(0.01)
        command = [*prefix, "bash", "-c", LOOP, "bash", str(count), AUTOCVD]
        waiters = subprocess.Popen(command, env=environment)
        queue = machine / "claims/queue"
        while not queue.exists() or len(os.listdir(queue)) < 2 * count:
            time.sleep(0.01)
        time.sleep(2)
        waiting = list(named("autocvd", environment))
        assert len(waiting) == count, f"{len(waiting)} of {count}"
        judge = memory_of_judge(holder.pid)
        before = cpu(waiting)
        time.sleep(SECONDS)
        idle = cpu(waiting) - before
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        waiters.wait()
        times = sorted(float(line) for line in (machine / "notes").read_text().split())
        gaps = sorted((start - end) * 1e3 for end, start in zip(times[1::2], times[2::2]))
        return idle, gaps, judge


load = os.getloadavg()[0]
print(f"{os.cpu_count()} cores, load {load:.1f}, Linux {os.uname().release}")
print("waiters  namespace  CPU of all in 10 s  p50 ms  p99 ms  most ms  judge KiB")
for prefix, name in [([], "same"), (IN_NAMESPACE, "another")]:
    for count in COUNTS if not prefix or os.geteuid() == 0 else []:
        idle, gaps, judge = measure(count, prefix)
        at = [gaps[len(gaps) * part // 100] for part in (50, 99)] + gaps[-1:] if gaps else []
        times = "  ".join(f"{gap:6.1f}" for gap in at) or "     –       –       –"
        print(f"{count:7}  {name:9}  {idle:15.1f} ms  {times}  {judge:9}", flush=True)
