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

        def tell(self, text: str) -> object: ...
        def finish(self, chosen: str | None) -> None: ...


def teller_for(function: Callable[[str], object] | None) -> Teller | None:
    """Find the place for this process: the function, a notebook's cell, the terminal, stderr."""
    if function:
        return _Function(function)
    display = _notebook()
    if display:
        return _Notebook(display)
    if sys.stderr is None:
        return None
    return _Terminal() if sys.stderr.isatty() else _Lines()


def _notebook() -> Any:
    """IPython's display, where this runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    try:
        if ipython and getattr(ipython.get_ipython(), "kernel", None) is not None:
            from IPython.display import display  # type: ignore[import-not-found]

            return display
    except Exception:
        # A module that is half imported, or of that name only.
        pass
    return None


class _Function:
    in_place = False

    def __init__(self, function: Callable[[str], object]) -> None:
        self.tell = function

    def finish(self, chosen: str | None) -> None:
        pass


class _Lines:
    in_place = False

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def finish(self, chosen: str | None) -> None:
        pass


class _Terminal:
    in_place = True
    _open = False

    def tell(self, text: str) -> None:
        try:
            width = max(os.get_terminal_size(sys.stderr.fileno()).columns, 20)
        except (OSError, ValueError):
            width = 80
        self._open = True
        self._write(_cut(text, width - 1))

    def finish(self, chosen: str | None) -> None:
        if self._open:
            self._write("")

    def _write(self, text: str) -> None:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


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
        if self._handle:
            self._handle.update(data, raw=True)
        else:
            self._handle = self._display(data, raw=True, display_id=True)

    def finish(self, chosen: str | None) -> None:
        if self._handle:
            self.tell(f"autocvd: {chosen}" if chosen else "autocvd: no longer waiting")
