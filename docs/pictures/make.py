#!/usr/bin/env python3
"""Draws the pictures of README.md from what the program prints: status.svg and wait.svg.

    cargo build --workspace && python3 docs/pictures/make.py [--check] [status.svg] [wait.svg]

The program runs on a terminal of its own (a pty), and the terminal's screen is drawn. status.svg shows
examples/shared-server.json. wait.svg shows a launch that waits on a fake machine (tests/fake-nvml) on
which processes of two users compute; giving them to other users takes root.

--check draws nothing: it fails if a picture shows another text than the program prints now.
"""

import argparse
import contextlib
import fcntl
import html
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
COLUMNS = 100

# Width and height of a character, and the space around the screen, in SVG units.
CELL_WIDTH, CELL_HEIGHT, MARGIN, FONT_SIZE = 8.4, 19, 16, 14
BACKGROUND, FOREGROUND, DIM = "#0d1117", "#e6edf3", "#8b949e"
# The eight colours of a terminal, then the bright ones.
COLOURS = [
    "#6e7681", "#ff7b72", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#e6edf3",
    "#8b949e", "#ffa198", "#7ee787", "#f2cc60", "#a5d6ff", "#e2c5ff", "#87deea", "#ffffff",
]  # fmt: skip
# The users of wait.svg.
ALICE, BOB = 5001, 5002
EIGHTHS = "▏▎▍▌▋▊▉█"


class Screen:
    """What a terminal shows after the bytes that a program wrote: enough of one for autocvd."""

    def __init__(self):
        self.rows, self.row, self.column = [{}], 0, 0
        self.style = {}

    def feed(self, text):
        pattern = r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[=>78]|([\s\S])"
        for sequence in re.finditer(pattern, text):
            if sequence[2]:
                self.control(sequence[1], sequence[2])
            elif sequence[3]:
                self.put(sequence[3])

    def put(self, character):
        if character == "\n":
            self.row += 1
            while len(self.rows) <= self.row:
                self.rows.append({})
        elif character == "\r":
            self.column = 0
        elif character >= " ":
            self.rows[self.row][self.column] = (character, tuple(sorted(self.style.items())))
            self.column += 1

    def control(self, parameters, letter):
        numbers = [int(number or 0) for number in parameters.lstrip("?").split(";")]
        if letter == "m":
            self.render(numbers)
        elif letter == "K":
            first = 0 if numbers[0] == 2 else self.column
            line = self.rows[self.row]
            self.rows[self.row] = {at: cell for at, cell in line.items() if at < first}
        elif letter == "J":
            self.rows = self.rows[: self.row + 1]
            self.control("0", "K")
        elif letter == "A":
            self.row = max(0, self.row - max(1, numbers[0]))
        elif letter == "H":
            self.row = self.column = 0
        elif letter == "G":
            self.column = max(1, numbers[0]) - 1

    def render(self, numbers):
        numbers = list(numbers)
        while numbers:
            number = numbers.pop(0)
            if number == 0:
                self.style = {}
            elif number in (1, 2, 7):
                self.style[{1: "bold", 2: "dim", 7: "reverse"}[number]] = True
            elif number == 22:
                self.style.pop("bold", None), self.style.pop("dim", None)
            elif 30 <= number <= 37 or 90 <= number <= 97:
                self.style["colour"] = number - 30 if number < 90 else number - 90 + 8
            elif number == 39:
                self.style.pop("colour", None)
            elif number in (38, 48) and numbers[:1] == [5]:
                colour, numbers = numbers[1], numbers[2:]
                if number == 38 and colour < 16:
                    self.style["colour"] = colour

    def text(self):
        lines = []
        for row in self.rows:
            width = max(row, default=-1) + 1
            lines.append("".join(row.get(at, (" ", ()))[0] for at in range(width)).rstrip())
        return "\n".join(lines).rstrip()


def svg(screen, title):
    """The screen as a picture, its text readable to machines and to people who cannot see it."""
    rows = screen.text().count("\n") + 1
    width = COLUMNS * CELL_WIDTH + 2 * MARGIN
    height = rows * CELL_HEIGHT + 2 * MARGIN
    font = f"{FONT_SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
        f"<title>{html.escape(title)}</title>",
        f"<style>text {{ font: {font}; white-space: pre }} .b {{ font-weight: bold }}</style>",
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{BACKGROUND}"/>',
    ]
    for number, row in enumerate(screen.rows[:rows]):
        for start, text, style in runs(row):
            parts += draw(start, number, text, dict(style))
    return "\n".join(parts) + "\n</svg>\n"


def runs(row):
    """The parts of a line that look alike: first column, text, style."""
    start, text, last = 0, "", None
    for column in range(max(row, default=-1) + 1):
        character, style = row.get(column, (" ", ()))
        kind = (style, character in EIGHTHS + "░")
        if kind != last and text:
            yield start, text, last[0]
            start, text = column, ""
        text, last = text + character, kind
    if text:
        yield start, text, last[0]


def draw(column, row, text, style):
    colour = (
        COLOURS[style["colour"]] if "colour" in style else DIM if "dim" in style else FOREGROUND
    )
    opacity = ' opacity="0.6"' if "dim" in style and "colour" in style else ""
    x, y = MARGIN + column * CELL_WIDTH, MARGIN + row * CELL_HEIGHT
    if text[0] in EIGHTHS + "░":
        # A bar is drawn, not written: fonts differ in how they join block characters.
        for part in re.finditer(r"█+|░+|[^█░]", text):
            cells = len(part[0])
            if part[0][0] == "░":
                colour, opacity = "#30363d", ""
            elif part[0] != "█" * cells:
                cells = (EIGHTHS.index(part[0]) + 1) / 8
            yield (
                f'<rect x="{x + part.start() * CELL_WIDTH:.1f}" y="{y + 3}" fill="{colour}"{opacity} '
                f'width="{cells * CELL_WIDTH:.1f}" height="{CELL_HEIGHT - 6}"/>'
            )
    elif text.strip():
        bold = ' class="b"' if "bold" in style else ""
        yield (
            f'<text x="{x:.1f}" y="{y + 14}" fill="{colour}"{bold}{opacity} xml:space="preserve" '
            f'textLength="{len(text) * CELL_WIDTH:.1f}">{html.escape(text)}</text>'
        )


def on_terminal(command, environment, until, columns=COLUMNS):
    """What a program has written to its terminal once `until(text)` holds or it has ended."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.execvpe(command[0], command, environment)
    written, end = b"", time.monotonic() + 60
    while time.monotonic() < end and not until(written.decode(errors="ignore")):
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                new = os.read(terminal, 1 << 16)
            except OSError:
                break
            if not new:
                break
            written += new
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    os.close(terminal)
    return written.decode()


def plain_environment(**more):
    return {
        "PATH": f"{TARGET}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        **more,
    }


def prompt(screen, command):
    screen.feed(f"\x1b[2m$\x1b[0m \x1b[1m{command}\x1b[0m\n\r")


def status():
    """The screen of `autocvd status` on the recorded server."""
    record = ROOT / "examples/shared-server.json"
    environment = plain_environment(AUTOCVD_FROM=str(record))
    screen = Screen()
    prompt(screen, "autocvd status")
    screen.feed(on_terminal([str(TARGET / "autocvd"), "status"], environment, lambda text: False))
    return screen


def wait():
    """The screen of a launch that has waited for a while, on a machine whose GPUs are all in use."""
    libraries = [TARGET / "libfake_nvml.so", TARGET / "deps/libfake_nvml.so"]
    library = next((path for path in libraries if path.exists()), None)
    if library is None:
        sys.exit("no libfake_nvml.so: run `cargo build --workspace` first")
    with contextlib.ExitStack() as stack:
        machine = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autocvd-")))
        machine.chmod(0o777)
        (machine / "machine.json").write_text(json.dumps({"gpus": [{}] * 4}))
        (machine / "calls").touch()
        (machine / "calls").chmod(0o666)
        environment = plain_environment(
            AUTOCVD_NVML_LIB=str(library),
            AUTOCVD_CLAIM_DIR=str(machine / "claims"),
            FAKE_NVML=str(machine),
        )

        def start(user, *program):
            if os.geteuid() == 0:
                program = ["setpriv", f"--reuid={user}", "--clear-groups", *program]
            job = subprocess.Popen(program, env=environment)
            stack.callback(job.wait)
            stack.callback(job.kill)
            return job

        for gpu, user in enumerate([ALICE, ALICE, ALICE, BOB]):
            registered = machine / "procs" / str(gpu)
            registered.mkdir(parents=True)
            (registered / str(start(user, "sleep", "600").pid)).touch()
        autocvd = str(TARGET / "autocvd")
        # An earlier launch waits already.
        start(ALICE, autocvd, "-q", "-n", "2", "--", "true")
        time.sleep(1)
        command = [autocvd, "-t", "1h", "--", "python", "train.py"]
        if os.geteuid() == 0:
            # Names for the users, seen by this launch alone.
            passwd = machine / "passwd"
            users = f"alice:x:{ALICE}:{ALICE}::/:/bin/sh\nbob:x:{BOB}:{BOB}::/:/bin/sh\n"
            passwd.write_text(pathlib.Path("/etc/passwd").read_text() + users)
            script = 'mount --bind "$0" /etc/passwd && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, str(passwd), *command]
        begun = time.monotonic()
        written = on_terminal(
            command,
            environment,
            # Not between the erasing of a line and the next one.
            lambda text: text and not text.endswith("\x1b[K") and time.monotonic() - begun > 12,
        )
    screen = Screen()
    prompt(screen, "autocvd -t 1h -- python train.py")
    screen.feed(written)
    return screen


PICTURES = {
    "status.svg": (status, "autocvd status on a server with eight GPUs"),
    "wait.svg": (wait, "autocvd waits for a GPU: how many are free, who is on the rest, time left"),
}


def shown(picture):
    """The words and numbers that a picture shows."""
    text = " ".join(
        html.unescape(part) for part in re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    )
    return text.split()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if a picture is out of date")
    parser.add_argument("pictures", nargs="*", default=list(PICTURES))
    arguments = parser.parse_args()
    outdated = []
    for name in arguments.pictures:
        screen, title = PICTURES[name]
        picture = svg(screen(), title)
        if not arguments.check:
            (HERE / name).write_text(picture)
        elif not (HERE / name).exists() or shown((HERE / name).read_text()) != shown(picture):
            outdated.append(name)
    if outdated:
        sys.exit(f"out of date: {', '.join(outdated)}; run docs/pictures/make.py")


if __name__ == "__main__":
    main()
