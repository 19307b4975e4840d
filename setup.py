import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

manifest = Path(__file__).with_name("Cargo.toml").read_text(encoding="utf-8")


def workspace(field: str) -> str:
    """Read a field of [workspace.package] of Cargo.toml."""
    return re.search(rf'^{field} = "(.+)"$', manifest, re.MULTILINE)[1]


def check_rust() -> None:
    """End the build with what it needs, where that is not there."""
    needed = workspace("rust-version")
    try:
        version = subprocess.run(
            [os.environ.get("CARGO", "cargo"), "--version"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = re.search(r"(\d+)\.(\d+)", version)
    except (OSError, subprocess.CalledProcessError):
        version, found = "", None
    if not found or tuple(map(int, found.groups())) < tuple(map(int, needed.split(".")[:2])):
        there = f"this is {version.strip()}" if found else "there is no 'cargo' on PATH"
        sys.exit(
            f"autocvd is built with Rust {needed} or newer, and {there}: install it "
            "(https://rustup.rs, or your distribution's rustc and cargo), then try again"
        )


if {"bdist_wheel", "build", "develop", "install", "editable_wheel"} & set(sys.argv):
    check_rust()

# pyo3's feature abi3-py39 in python/Cargo.toml: one wheel for every CPython from 3.9 on that has a
# GIL. A free-threaded one has no stable ABI of that kind, and gets a wheel of its own.
has_gil = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    version=workspace("version"),
    options={"bdist_wheel": {"py_limited_api": "cp39"}} if has_gil else {},
)
