#!/usr/bin/env python3
"""How often a waiter asks the driver, and how soon it notices what no exit tells.

    cargo build --release && cargo build --release -p fake-nvml
    python3 benches/waiter.py [SECONDS]

NVML calls of one waiter (`-i 30s`, one fake GPU) over SECONDS (60): while nothing happens, beside
80 short processes on a GPU that a long one holds, and while the driver fails. Then the time from
the moment at which the GPU is free to the answer: after a teardown of 5 s, after memory that an
exit leaves behind for 4 s, after a driver call that failed at the wake, and where 300 processes
ran. AUTOCVD names another program to measure.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from built import AUTOCVD, fake_nvml

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 60
library = fake_nvml()
GIB = 1 << 30


class Machine:
    """One fake GPU and what runs on it."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="autocvd-bench-")
        self.path = pathlib.Path(self.directory.name)
        self.registered = self.path / "procs/0"
        self.registered.mkdir(parents=True)
        self.gpu = {}
        self.save()

    def save(self, **members):
        self.gpu.update(members)
        new = self.path / "machine.json.new"
        new.write_text(json.dumps({"gpus": [self.gpu]}))
        new.rename(self.path / "machine.json")

    def job(self, text="", seconds="600"):
        job = subprocess.Popen(["sleep", seconds])
        (self.registered / str(job.pid)).write_text(text)
        return job

    def waiter(self, *options):
        environment = {
            "PATH": os.environ["PATH"],
            "AUTOCVD_NVML_LIB": str(library),
            "AUTOCVD_CLAIM_DIR": str(self.path / "claims"),
            "FAKE_NVML": str(self.path),
        }
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        waiter = subprocess.Popen([AUTOCVD, *options], env=environment, **streams)
        time.sleep(1)
        return waiter

    def calls(self):
        path = self.path / "calls"
        return len(path.read_text().splitlines()) if path.exists() else 0


def calls_beside(name, during):
    machine = Machine()
    (machine.path / "calls").touch()
    holder = machine.job()
    time.sleep(0.05)
    waiter = machine.waiter("-i", "30s")
    before = machine.calls()
    end = time.monotonic() + SECONDS
    during(machine, end)
    time.sleep(max(0, end - time.monotonic()))
    rate = (machine.calls() - before) * 60 / SECONDS
    print(f"{name}: {rate:.0f} NVML calls a minute")
    waiter.kill()
    holder.kill()


def short_processes(machine, end):
    running = []
    while time.monotonic() < end:
        running = [job for job in running if job.poll() is None]
        while len(running) < 80:
            running.append(machine.job(seconds=f"0.{len(running) % 9 + 1}"))
        time.sleep(0.05)
    for job in running:
        job.kill()
        job.wait()


def fails(machine, end):
    machine.save(errors={"handle": 15})
    for job in list(machine.registered.iterdir()):
        os.kill(int(job.name), 9)


def until_answer(name, prepare, free):
    machine = Machine()
    (machine.path / "calls").touch()
    job = prepare(machine)
    waiter = machine.waiter("-i", "30s")
    freed = free(machine, job)
    try:
        waiter.communicate(timeout=60)
        print(f"{name}: {(time.monotonic() - freed) * 1e3:.1f} ms")
    except subprocess.TimeoutExpired:
        waiter.kill()
        print(f"{name}: more than a minute")


def end(job):
    job.kill()
    job.wait()


def after_teardown(machine, job):
    end(job)
    return time.monotonic() + 5


def after_orphan(machine, job):
    machine.save(memory={"total": 80 * GIB, "reserved": 0, "used": 20 * GIB, "free": 60 * GIB})
    end(job)
    time.sleep(4)
    machine.save(memory={"total": 80 * GIB, "reserved": 0, "used": 0, "free": 80 * GIB})
    return time.monotonic()


def after_failure(machine, job):
    machine.save(errors={"nvmlDeviceGetComputeMode": 999})
    end(job)
    time.sleep(4)
    machine.save(errors={})
    return time.monotonic()


def after_many(machine, jobs):
    for job in jobs:
        end(job)
    return time.monotonic()


calls_beside("nothing happens", lambda machine, end: None)
calls_beside("beside 80 short processes", short_processes)
calls_beside("the driver fails", fails)
until_answer("a teardown of 5 s", lambda machine: machine.job("C 1000 5000"), after_teardown)
until_answer("memory left behind for 4 s", lambda machine: machine.job(), after_orphan)
until_answer("a call that fails for 4 s", lambda machine: machine.job(), after_failure)
until_answer("300 processes", lambda machine: [machine.job() for _ in range(300)], after_many)
