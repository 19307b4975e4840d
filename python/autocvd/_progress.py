"""Where the lines of a wait go."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Teller(Protocol):
        in_place: bool

        def tell(self, text: str, /) -> object: ...
        def finish(self, chosen: str | None) -> None: ...


def teller_for(lines: Callable[[str], object] | bool) -> Teller:
    """Find the place for the lines: a function, or else a notebook's cell, the terminal, stderr."""
    if lines is False:
        return Silent()
    if callable(lines):
        return _Function(lines)
    display = _notebook()
    if display:
        return _Notebook(display)
    if sys.stderr is None:
        return Silent()
    return _Terminal() if _is_terminal() else _Lines()


def _is_terminal() -> bool:
    try:
        return bool(sys.stderr.isatty())
    except Exception:
        # It is closed, or no file at all.
        return False


def _write(text: str) -> None:
    """Write to stderr, if that can be done: a line is not worth a wait."""
    try:
        stream = sys.stderr
        if type(stream).__module__ == "_io" and type(stream).__name__ == "TextIOWrapper":
            # Past its buffer: what cannot be written would stay there, and change the exit code.
            stream.flush()
            os.write(stream.fileno(), text.encode(stream.encoding, "backslashreplace"))
        else:
            stream.write(text)
            stream.flush()
    except Exception:
        # A broken pipe, a terminal that is gone, a full disk, a descriptor that is closed.
        pass


def _notebook() -> Any:
    """IPython's display, where this runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    try:
        if ipython and getattr(ipython.get_ipython(), "kernel", None) is not None:
            from importlib import import_module

            return import_module("IPython.display").display
    except Exception:
        # A module that is half imported, or of that name only.
        pass
    return None


class Silent:
    """Tells nothing."""

    in_place = False

    def tell(self, text: str) -> None:
        pass

    def finish(self, chosen: str | None) -> None:
        pass


class _Function:
    in_place = False

    def __init__(self, function: Callable[[str], object]) -> None:
        self.tell = function

    def finish(self, chosen: str | None) -> None:
        pass


class _Lines:
    in_place = False

    def tell(self, text: str) -> None:
        _write(text + "\n")

    def finish(self, chosen: str | None) -> None:
        pass


class _Terminal:
    in_place = True
    _open = False

    def tell(self, text: str) -> None:
        try:
            width = max(os.get_terminal_size(sys.stderr.fileno()).columns, 20)
        except Exception:
            width = 80
        self._open = True
        _write("\r\x1b[K" + _cut(text, width - 1))

    def finish(self, chosen: str | None) -> None:
        if self._open:
            _write("\r\x1b[K")


def _cut(text: str, columns: int) -> str:
    """Cut the text to so many columns; some characters take two of them."""
    from unicodedata import east_asian_width

    used, fits = 0, 0
    for place, character in enumerate(text, 1):
        used += 2 if east_asian_width(character) in "WF" else 1
        if used < columns:
            fits = place
    return text if used <= columns else text[:fits] + "…"


class _Notebook:
    in_place = True

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None

    def tell(self, text: str) -> None:
        data = {"text/plain": text}
        try:
            if self._handle:
                self._handle.update(data, raw=True)
            else:
                self._handle = self._display(data, raw=True, display_id=True)
        except Exception:
            # The front end is gone: the wait goes on.
            pass

    def finish(self, chosen: str | None) -> None:
        if self._handle:
            self.tell(f"autocvd: {chosen}" if chosen else "autocvd: no longer waiting")
