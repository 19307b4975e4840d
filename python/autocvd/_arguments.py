"""The arguments of the public functions: what may be given, and the answer to a wrong one."""

from __future__ import annotations

import sys

from . import _autocvd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Request:
    """Arguments that have been found to be right."""

    __slots__ = ("interval", "lines", "set_env", "timeout", "wanted")

    def __init__(
        self,
        num_gpus: object,
        least_used: object,
        timeout: object,
        interval: object,
        set_env: object,
        verbose: object,
        exclude: object,
        only: object,
        min_free_memory: object,
        share: object,
        inherit: object,
        claim: object,
        progress: Any,
    ) -> None:
        #: What is asked for: two requests are alike if this is.
        self.wanted: dict[str, Any] = {
            "num_gpus": _count(num_gpus),
            "least_used": _flag("least_used", least_used),
            "exclude": [] if exclude is None else _ids("exclude", exclude),
            "only": None if only is None else _ids("only", only),
            "min_free_memory": None if min_free_memory is None else _bytes(min_free_memory),
            "share": None,
            "inherit": _flag("inherit", inherit),
            "claim": _flag("claim", claim),
        }
        if _flag("share", share):
            size = self.wanted["min_free_memory"]
            if not size:
                hint = "say how much: share=True, min_free_memory='15GiB'"
                raise wrong("share", share, hint)
            self.wanted["share"], self.wanted["min_free_memory"] = size, None
        self.timeout = None if timeout is None else _seconds("timeout", timeout)
        self.interval = _seconds("interval", interval)
        self.set_env = _flag("set_env", set_env)
        if not self.interval:
            raise wrong("interval", interval, "give more than 0")
        if self.wanted["only"] == []:
            raise wrong(
                "only", only, "that leaves nothing to choose among; give ids, or None for all GPUs"
            )
        is_verbose = _flag("verbose", verbose)
        #: Where the lines of a wait go: a function, the usual place (True), or nowhere (False).
        self.lines: Callable[[str], object] | bool
        if callable(progress):
            self.lines = progress
        elif progress is None:
            self.lines = is_verbose
        elif progress is True or progress is False:
            self.lines = progress
        else:
            raise wrong(
                "progress", progress, "give a function that takes a line, or True, False or None"
            )

    @property
    def num_gpus(self) -> int:
        return int(self.wanted["num_gpus"])

    @property
    def claim(self) -> bool:
        return bool(self.wanted["claim"])

    def explain(self, error: ValueError) -> ValueError:
        """Say which arguments an error of the library is about."""
        text = str(error)
        if text.startswith(("exclude:", "only:")):
            return error
        shown = [f"num_gpus={self.num_gpus}"]
        shown += [
            f"{name}={self.wanted[name]!r}" for name in ("only", "exclude") if self.wanted[name]
        ]
        shown += [
            f"{name}={self.wanted[name]!r}"
            for name in ("min_free_memory", "share", "inherit")
            if self.wanted[name]
        ]
        return ValueError(f"{', '.join(shown)}: {text}")


def wrong(name: str, value: object, hint: str) -> ValueError:
    return ValueError(f"{name}={value!r}: {hint}")


def _flag(name: str, value: Any) -> bool:
    try:
        # 0 and 1 and numpy's booleans are equal to these; texts are not.
        if value in (False, True):
            return bool(value)
    except Exception:
        pass
    raise wrong(name, value, "give True or False")


def _whole(value: Any) -> int | None:
    """Give the value if it is a whole number, numpy's included."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        return None
    try:
        return int(type(value).__index__(value))
    except TypeError:
        # An array has the method and, unless it holds one whole number, no use for it.
        return None


def _count(value: Any) -> int:
    count = _whole(value)
    if count is None or count < 1:
        raise wrong("num_gpus", value, "give a whole number from 1 on")
    return min(count, sys.maxsize)


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, str):
        try:
            return _autocvd.parse_duration(value.strip())
        except ValueError as error:
            raise wrong(name, value, str(error)) from None
    hint = "give seconds from 0 on, a timedelta, or a time such as '2m 30s'"
    datetime = sys.modules.get("datetime")
    if datetime and isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    seconds = _real(value)
    # A century is for ever; NaN is in no range.
    if seconds is None or not 0 <= seconds <= 3.2e9:
        for_ever = name == "timeout" and seconds is not None and seconds > 0
        raise wrong(name, value, hint + (" (None waits for ever)" if for_ever else ""))
    return seconds


def _real(value: Any) -> float | None:
    """Give the value as a float if it is a real number: no text, no boolean."""
    if isinstance(value, (bool, bytes, bytearray, str)) or type(value).__name__ in (
        "bool_",
        "bool",
    ):
        return None
    if not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")
    except (TypeError, ValueError):
        return None


def _bytes(value: Any) -> int:
    hint = "give bytes, or a size such as '10GiB'"
    if isinstance(value, str):
        try:
            return _autocvd.parse_size(value.strip())
        except ValueError as error:
            raise wrong("min_free_memory", value, str(error)) from None
    size = _whole(value)
    if size is None:
        real = _real(value)
        # 10e9 is a number of bytes; half a byte is none, nor is infinity.
        size = int(real) if real is not None and real.is_integer() else None
    if size is None or size < 0:
        raise wrong("min_free_memory", value, hint)
    return min(size, 2**63)


def _ids(name: str, value: Any) -> list[str]:
    def one(item: Any) -> list[str]:
        number = _whole(item)
        if number is not None and number >= 0:
            return [str(number)]
        parts = [part.strip() for part in item.split(",")] if isinstance(item, str) else []
        if not all(parts) or not parts:
            raise wrong(name, value, "give an index, a UUID or a PCI bus id, or several of them")
        return parts

    if isinstance(value, (str, bytes)) or not hasattr(type(value), "__iter__"):
        return one(value)
    try:
        items = list(value)
    except TypeError:
        # An array without dimensions.
        items = [value]
    return [part for item in items for part in one(item)]
