#!/usr/bin/env python3
"""Thousands of launches of all forms, some killed: no two jobs on one GPU, and nothing left.

    cargo build --release && cargo build --release -p fake-nvml
    python3 benches/soak.py [LAUNCHES [AT_ONCE]]

LAUNCHES (10000) scripts on 8 fake GPUs, up to AT_ONCE (24) at a time: COMMAND, nested too, prefix,
`-s` and `-o`. One in eight is killed with `kill -9` at some moment, shell, launch, program and all.
Where this is root, every second one is another user's. Each job locks a file of its GPU, which a
second one would find locked. At the end it counts the processes of autocvd, the zombies, the locks
and the files that are left, and fails where there are any. SEED (7) is in the environment, and
AUTOCVD may name another program.
"""

import ctypes
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from built import AUTOCVD, fake_nvml

LAUNCHES, AT_ONCE = (int(word) for word in (sys.argv[1:] + ["10000", "24"][len(sys.argv) - 1 :]))
SEED = int(os.environ.get("SEED", "7"))
NOBODY = 65534

JOB = """#!/bin/bash
exec 9>>"$FAKE_NVML/locks/$CUDA_VISIBLE_DEVICES"
flock -n 9 || echo "GPU $CUDA_VISIBLE_DEVICES: $*" >>"$FAKE_NVML/overlaps"
echo >>"$FAKE_NVML/ran"
exec sleep "$1"
"""
FORMS = {
    "COMMAND": "exec autocvd -q -t 300 -- job {time}",
    "prefix": "eval $(autocvd -q -t 300) job {time}; exit $?",
    "-s": 'eval "$(autocvd -q -t 300 -s)" && job {time} && job {time}; exit $?',
    "-o": "id=$(autocvd -q -t 300 -o --hold 10s) && CUDA_VISIBLE_DEVICES=$id job {time}; code=$?; "
    "autocvd release; exit $code",
    "COMMAND in COMMAND": "exec autocvd -q -t 300 -- autocvd -q -t 300 -- job {time}",
}


def as_nobody():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def left(program):
    """The processes of autocvd that live, and the zombies that nobody has waited for."""
    living, zombies = [], 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = (
                pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
            )
            zombies += state == "Z" and int(parent) == os.getpid()
            if os.readlink(f"/proc/{pid}/exe") == str(program):
                living.append(pid)
        except OSError:
            pass
    return living, zombies


def main():
    # Orphans are this process's, so that their zombies would be seen.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    directory = tempfile.TemporaryDirectory(prefix="autocvd-bench-")
    machine = pathlib.Path(directory.name).resolve()
    for name in ["procs", "bin", "locks"]:
        (machine / name).mkdir()
    for name in ["calls", "overlaps", "ran", *(f"locks/{gpu}" for gpu in range(8))]:
        (machine / name).touch()
        (machine / name).chmod(0o666)
    (machine / "machine.json").write_text(json.dumps({"gpus": [{}] * 8}))
    program = machine / "bin/autocvd"
    shutil.copy(AUTOCVD, program)
    library = shutil.copy(fake_nvml(), machine / "bin")
    (machine / "bin/job").write_text(JOB)
    for name in ["", "bin", "bin/job", "bin/autocvd"]:
        (machine / name).chmod(0o755)
    (machine / "procs").chmod(0o777)
    environment = {
        "PATH": f"{machine}/bin:{os.environ['PATH']}",
        "AUTOCVD_NVML_LIB": str(library),
        "AUTOCVD_CLAIM_DIR": str(machine / "claims"),
        "FAKE_NVML": str(machine),
    }
    chance = random.Random(SEED)
    live, counts, failed = {}, dict.fromkeys([*FORMS, "killed", "other user's"], 0), []
    began, number = time.monotonic(), 0
    while number < LAUNCHES or live:
        while number < LAUNCHES and len(live) < AT_ONCE:
            form = chance.choice(list(FORMS))
            script = FORMS[form].format(time=f"{chance.uniform(0.005, 0.05):.3f}")
            is_nobodys = os.geteuid() == 0 and number % 2 == 1
            shell = subprocess.Popen(
                ["bash", "-c", script],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=as_nobody if is_nobodys else None,
            )
            counts[form] += 1
            counts["other user's"] += is_nobodys
            # Ids stay claimed for their hold where nothing releases them.
            is_doomed = chance.random() < (1 / 32 if form == "-o" else 1 / 8)
            end = time.monotonic() + chance.uniform(0, 0.3) if is_doomed else None
            # With its object, which would wait for it in our stead.
            live[shell.pid] = [form, end, shell]
            number += 1
        for pid, about in live.items():
            if about[1] and about[1] < time.monotonic():
                os.killpg(pid, signal.SIGKILL)
                counts["killed"] += 1
                about[:2] = "killed", None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            form, _, shell = live.pop(pid, ["killed", None, None])
            if shell:
                shell.returncode = os.waitstatus_to_exitcode(status)
            if form != "killed" and status != 0:
                failed.append(f"{form}: {os.waitstatus_to_exitcode(status)}")
        time.sleep(0.002)
    seconds = time.monotonic() - began

    def reap():
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    # One more sweeps what the killed ones left in the queue and of holders.
    subprocess.run(["sh", "-c", "autocvd -q -t 60 -n 8 -- true; :"], env=environment, check=True)
    end = time.monotonic() + 90
    while left(program)[0] and time.monotonic() < end:
        reap()
        time.sleep(0.1)
    gone_after = time.monotonic() - began - seconds
    reap()
    living, zombies = left(program)
    files = [
        str(path.relative_to(machine / "claims"))
        for path in (machine / "claims").rglob("*")
        if not path.is_dir() and path.suffix != ".lock"
    ]
    locks = pathlib.Path("/proc/locks").read_text()
    inodes = [path.stat().st_ino for path in (machine / "claims").glob("*.lock")]
    locked = sum(f":{inode} " in locks for inode in inodes)
    overlaps = (machine / "overlaps").read_text().splitlines()
    ran = len((machine / "ran").read_text().splitlines())
    each = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(
        f"{LAUNCHES} launches in {seconds:.0f} s, seed {SEED}, up to {AT_ONCE} at once: "
        f"{each}; {ran} jobs ran"
    )
    print(f"two on one GPU: {len(overlaps)}; failed: {len(failed)}")
    print(
        f"left after {gone_after:.0f} s: {len(living)} processes, {zombies} zombies, "
        f"{locked} locks, {len(files)} files"
    )
    for line in [*overlaps, *failed, *files][:20]:
        print(line)
    sys.exit(bool(overlaps or failed or living or zombies or locked or files))


main()
