"""A Jupyter kernel that starts through autocvd: each notebook has its GPU without a line of code.

    python -m autocvd.kernelspec install                    # for this user
    python -m autocvd.kernelspec install -- -n 2 -t 50      # two GPUs; give up after 50 s

The kernel is `autocvd -- python -m ipykernel_launcher …`, with the Python that runs this. autocvd
becomes the kernel, so that interrupts, restarts and the end reach it, and its GPUs are free once it
has ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from .__main__ import program

DESCRIPTION = "Jupyter kernels that have a GPU of their own"


def _data_directory(prefix: str | None) -> str:
    """Give the directory in which Jupyter looks for kernels, as Jupyter itself finds it."""
    if prefix is not None:
        return os.path.join(prefix, "share", "jupyter")
    named = os.environ.get("JUPYTER_DATA_DIR")
    if named:
        return named
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(
        os.path.expanduser("~"), ".local", "share"
    )
    return os.path.join(base, "jupyter")


def _specification(path: str, display_name: str, options: list[str]) -> dict[str, object]:
    kernel = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return {
        "argv": [path, *options, "--", *kernel],
        "display_name": display_name,
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {"debugger": True},
    }


def install(prefix: str | None, name: str, display_name: str, options: list[str]) -> str:
    """Write the kernel's specification; give its directory."""
    path = program()
    if path is None:
        raise FileNotFoundError(
            "the program 'autocvd' is not beside this Python, nor on PATH; install this package"
        )
    directory = os.path.join(_data_directory(prefix), "kernels", name)
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "kernel.json"), "w", encoding="utf-8") as file:
        json.dump(_specification(path, display_name, options), file, indent=1)
        file.write("\n")
    return directory


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m autocvd.kernelspec`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options: list[str] = []
    if "--" in arguments:
        place = arguments.index("--")
        arguments, options = arguments[:place], arguments[place + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m autocvd.kernelspec",
        description=DESCRIPTION,
        usage="%(prog)s install [--sys-prefix | --prefix DIR] [--name NAME] [--display-name TEXT] "
        "[-- OPTION ...]",
        epilog="OPTION: an option of autocvd, such as -n 2. Jupyter waits for a kernel for 60 s: "
        "with -t 50 its log says why there is none.",
    )
    commands = parser.add_subparsers(required=True, metavar="install")
    command = commands.add_parser(
        "install", help="install such a kernel for this Python", usage=parser.usage
    )
    place_of = command.add_mutually_exclusive_group()
    place_of.add_argument("--user", action="store_true", help="for this user (the default)")
    place_of.add_argument("--sys-prefix", action="store_true", help="for this Python's environment")
    place_of.add_argument(
        "--prefix", metavar="DIR", help="below DIR, such as /usr/local for all users"
    )
    command.add_argument(
        "--name", default="autocvd", help="its directory's name (default: %(default)s)"
    )
    command.add_argument(
        "--display-name", metavar="TEXT", default="Python (autocvd)", help="what notebooks call it"
    )
    given = parser.parse_args(arguments)
    if not given.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        parser.error(f"--name {given.name!r}: give letters, digits, '-', '_' and '.'")
    prefix = sys.prefix if given.sys_prefix else given.prefix
    try:
        print(install(prefix, given.name, given.display_name, options))
    except OSError as error:
        print(f"autocvd.kernelspec: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
