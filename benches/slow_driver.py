#!/usr/bin/env python3
"""One launch beside other programs, on a driver that takes its time.

    cargo bench && python3 benches/slow_driver.py [ROUNDS]

A driver whose calls cost nothing shows what each program adds, but makes ratios large. Here the
fake driver takes 0, 10 and 20 ms to initialize, as real ones do with persistence mode. The programs
run in turn, ROUNDS (21) times each; medians are printed. `cargo bench` has built autocvd and
installed the others, from PyPI, below target/bench-python.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def milliseconds(command, environment):
    begun = time.perf_counter()
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"{command[0]}: exit code {run.returncode}: {run.stderr}")
    return (time.perf_counter() - begun) * 1000


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rounds", nargs="?", type=int, default=21)
    rounds = parser.parse_args().rounds
    programs = {
        "autocvd": [str(TARGET / "release/autocvd"), "-q"],
        "nvisel": [str(TARGET / "bench-python/bin/nvisel")],
    }
    places = [TARGET / "release/libfake_nvml.so", TARGET / "release/deps/libfake_nvml.so"]
    library = next((path for path in places if path.exists()), None)
    missing = [command[0] for command in programs.values() if not pathlib.Path(command[0]).exists()]
    if library is None or missing:
        sys.exit(f"missing: {library or 'libfake_nvml.so'} {missing}; run `cargo bench` first")
    with tempfile.TemporaryDirectory(prefix="autocvd-bench-") as directory:
        machine = pathlib.Path(directory)
        (machine / "procs").mkdir()
        (machine / "calls").touch()
        # nvitop finds the library by its name.
        (machine / "libnvidia-ml.so.1").symlink_to(library)
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": directory,
            "LD_LIBRARY_PATH": directory,
            "AUTOCVD_NVML_LIB": str(library),
            "AUTOCVD_CLAIM_DIR": str(machine / "claims"),
            "FAKE_NVML": directory,
        }
        for delay in (0, 10, 20):
            description = {"init": {"delay_ms": delay}, "gpus": [{}] * 8}
            (machine / "machine.json").write_text(json.dumps(description))
            times = {name: [] for name in programs}
            for _ in range(rounds):
                for name, command in programs.items():
                    times[name].append(milliseconds(command, environment))
            medians = {name: statistics.median(values) for name, values in times.items()}
            shown = ", ".join(f"{name} {median:.1f} ms" for name, median in medians.items())
            ratio = medians["nvisel"] / medians["autocvd"]
            print(f"initialization takes {delay} ms: {shown}; {ratio:.1f} times")


if __name__ == "__main__":
    main()
