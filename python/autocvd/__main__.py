"""`python -m autocvd`: becomes the native program."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import sysconfig


def _candidates() -> list[str]:
    """Where pip puts programs, the likeliest first; then PATH."""
    found = [os.path.join(sysconfig.get_path("scripts"), "autocvd")]
    user = f"{os.name}_user"
    if user in sysconfig.get_scheme_names():
        found.append(os.path.join(sysconfig.get_path("scripts", user), "autocvd"))
    # `pip install --target`.
    found.append(os.path.join(os.path.dirname(os.path.dirname(__file__)), "bin", "autocvd"))
    try:
        from importlib.metadata import files

        # `pip install --prefix`: as it was written down.
        listed = [
            str(file.locate())
            for file in files("autocvd") or []
            if file.parts[-2:] == ("bin", "autocvd")
        ]
        found += map(os.path.normpath, listed)
    except Exception:
        # Not installed but copied.
        pass
    found.append(os.path.join(os.path.dirname(sys.executable), "autocvd"))
    on_path = shutil.which("autocvd")
    return [*found, on_path] if on_path else found


def program() -> str | None:
    """Give the path of the native program."""
    return next(filter(_is_native, _candidates()), None)


def _is_native(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF" and os.access(path, os.X_OK)
    except OSError:
        return False


def _fail() -> int:
    """As the program fails: what a shell evaluates runs nothing."""
    arguments = sys.argv[1:]
    shown = arguments[:1] in (["status"], ["completions"], ["man"], ["help"])
    if not shown and not {"--", "-o", "--id-only", "--json"}.intersection(arguments):
        print("sh -c 'exit 1' autocvd", flush=True)
    looked = ", ".join(dict.fromkeys(_candidates()))
    print(
        f"autocvd: the program 'autocvd' is not installed (looked for {looked}); "
        "'pip install .' in a copy of its repository installs it with this package",
        file=sys.stderr,
    )
    return 1


def main() -> int:
    path = program()
    if path is None:
        return _fail()
    # Python ignores these, and what it becomes would too.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    os.execv(path, [path, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
