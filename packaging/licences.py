#!/usr/bin/env python3
"""Print the licences of the crates that are compiled into the program for a target.

    licences.py TRIPLE

Of each crate it prints the licence texts that come with it. A licence that is not accepted here ends the
build, to be looked at.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

# Each crate must allow one of these.
ACCEPTED = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unicode-3.0", "Zlib"}
TEXTS = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def crates(triple: str) -> list:
    """Return the packages of the program, without those that only build it."""
    tree = output(
        *("cargo", "tree", "--locked", "--package", "autocvd", "--target", triple),
        *("--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"),
    )
    names = {tuple(line.split()[:2]) for line in tree.splitlines() if line.strip()}
    packages = json.loads(output("cargo", "metadata", "--locked", "--format-version", "1"))
    found = [p for p in packages["packages"] if (p["name"], "v" + p["version"]) in names]
    assert len(found) == len(names), "cargo tree and cargo metadata disagree"
    return sorted((p for p in found if p["name"] != "autocvd"), key=lambda p: p["name"])


def is_accepted(expression: str) -> bool:
    """Tell whether an SPDX expression without parentheses can be met."""
    choices = re.split(r"\s+OR\s+|/", expression.replace("(", "").replace(")", ""))
    return any(set(re.split(r"\s+AND\s+", choice.strip())) <= ACCEPTED for choice in choices)


def main() -> None:
    """Print a section for each crate, and each text once."""
    texts = {}
    print("The program autocvd is compiled from its own source (MIT), Rust's standard library (MIT OR Apache-2.0)")
    print("and these crates:")
    packages = crates(sys.argv[1])
    for package in packages:
        licence = package["license"] or ""
        if not is_accepted(licence):
            sys.exit(f"licences: {package['name']} has the licence '{licence}': look at it")
        directory = Path(package["manifest_path"]).parent
        files = sorted(path for path in directory.iterdir() if TEXTS.match(path.name) and path.is_file())
        for path in files:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            texts.setdefault(text, []).append(f"{package['name']} {package['version']}")
        if not files:
            authors = ", ".join(package["authors"]) or "its authors"
            texts.setdefault(f"{licence}, copyright {authors}; no text comes with the crate.", []).append(
                f"{package['name']} {package['version']}"
            )
        print(f"  {package['name']} {package['version']}: {licence}")
    for text, names in texts.items():
        print("\n" + "=" * 80 + "\n" + ", ".join(names) + "\n" + "-" * 80 + "\n" + text)


main()
