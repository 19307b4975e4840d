"""What this process shares among its threads: the variables, and who has set them; the claims.

The variables are set by a *block* (`with gpus()`), which puts them back at its end, or for good, by
autocvd(). A process has one environment: of two blocks at the same time, in two threads or tasks,
the programs of one would run on the GPUs of the other, so the second one is refused.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock, _local, get_ident

from ._allocation import INSIDE, VISIBLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._allocation import Allocation

#: Tells a program how many bytes its share is of.
MEMORY = "AUTOCVD_MEMORY"
_NAMES = ("CUDA_DEVICE_ORDER", VISIBLE, MEMORY, INSIDE)


class Setting:
    """Variables that are set, or will be."""

    __slots__ = ("allocation", "before", "is_block", "owner", "values")

    def __init__(self, is_block: bool) -> None:
        self.is_block = is_block
        self.owner = owner()
        self.allocation: Allocation | None = None
        self.before: dict[str, str | None] = {}
        #: Empty as long as a block still waits for its GPUs.
        self.values: dict[str, str | None] = {}


class _Thread(_local):
    """What belongs to one thread."""

    def __init__(self) -> None:
        #: What it has taken and not released, the latest last.
        self.held: list[Allocation] = []


lock = RLock()
#: The settings in force, the latest last.
_settings: list[Setting] = []
_thread = _Thread()
#: All that is claimed: claims last until they are released, whoever forgets them.
_claimed: dict[int, Allocation] = {}
_watches_exec = False
#: What this process was started inside of. What autocvd sets later is for its children.
_inside: str | None = os.environ.get(INSIDE)


def owner() -> tuple[int, object]:
    """Tell whose code runs: a thread's, or an asyncio task's on it."""
    asyncio = sys.modules.get("asyncio")
    try:
        return get_ident(), asyncio and asyncio.current_task()
    except (AttributeError, RuntimeError):
        # Not imported as a whole, or no loop runs here.
        return get_ident(), None


def check_environment() -> None:
    """Refuse to set variables that another thread's or task's block has set."""
    mine = owner()
    with lock:
        if any(setting.is_block and setting.owner != mine for setting in _settings):
            raise RuntimeError(
                "another thread or task is in a 'with autocvd.gpus()' block that sets os.environ, "
                "which all of them share: the programs of one would run on the GPUs of the other. "
                "In each of them write 'with autocvd.gpus(..., set_env=False) as g:' and start its "
                "programs with 'g.run([...])' or "
                "'env={**os.environ, **g.env}'"
            )


def begin_block(setting: Setting) -> None:
    """Keep the environment for a block, from before it waits."""
    with lock:
        check_environment()
        setting.before = _read()
        _settings.append(setting)


def fill(setting: Setting, allocation: Allocation) -> None:
    """Set a block's variables."""
    with lock:
        variables = allocation._variables()
        setting.allocation = allocation
        setting.values = {name: variables.get(name) for name in _NAMES}
        _write(setting.values)


def set_for_good(allocation: Allocation) -> bool:
    """Set variables that stay; tell whether they were another thread's."""
    with lock:
        check_environment()
        mine = owner()
        last = _settings[-1] if _settings else None
        others = bool(last and last.owner != mine and last.allocation and last.allocation._is_held)
        if last and not last.is_block:
            last.owner = mine
            setting = last
        else:
            setting = Setting(is_block=False)
            setting.before = _read()
            _settings.append(setting)
        fill(setting, allocation)
        allocation._at_exit = _unset
        return others


def end_block(setting: Setting) -> None:
    """Put the environment back as it was before the block."""
    with lock:
        if setting not in _settings:
            # It was begun before a fork, by the parent; or never.
            _write(setting.before)
            return
        above = _settings[_settings.index(setting) + 1 :]
        later = next((other for other in above if other.is_block), None)
        try:
            if later:
                # Another block of this thread ends later: it puts back what was before both.
                later.before = setting.before
            else:
                _write(setting.before)
        finally:
            # What was set for good inside the block ends with it.
            end = above.index(later) if later else len(above)
            for ended in (setting, *above[:end]):
                _settings.remove(ended)


def _unset(allocation: Allocation) -> None:
    """Put back what was before variables that were set for good, if they are still in force."""
    with lock:
        if _settings and _settings[-1].allocation is allocation and not _settings[-1].is_block:
            try:
                _write(_settings[-1].before)
            finally:
                _settings.pop()


def original() -> tuple[str | None, str | None]:
    """Give CUDA_VISIBLE_DEVICES as it was at first, and what this process is inside of."""
    with lock:
        visible = os.environ.get(VISIBLE)
        for setting in reversed(_settings):
            if setting.values and visible == setting.values[VISIBLE]:
                visible = setting.before[VISIBLE]
        return visible, _inside


def _read() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in _NAMES}


def _write(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def held() -> list[Allocation]:
    """What this thread has taken and not released, the latest last."""
    _thread.held = [one for one in _thread.held if one._is_held]
    return _thread.held


def remember(allocation: Allocation) -> None:
    """Note what this thread has taken."""
    global _watches_exec
    if not _watches_exec:
        _watches_exec = True
        sys.addaudithook(_before_exec)
    held().append(allocation)
    allocation._at_release = _forget
    _claimed[id(allocation)] = allocation


def _forget(allocation: Allocation) -> None:
    """Note that it was released, by whatever thread."""
    _claimed.pop(id(allocation), None)


def _before_exec(event: str, _: object) -> None:
    """A program that this process becomes keeps its claims; programs that it starts do not."""
    if event == "os.exec":
        for allocation in list(_claimed.values()):
            allocation._keep_across_exec()


def _after_fork() -> None:
    """In a forked child: what is claimed is its parent's, and so is what it is inside of."""
    global lock, _inside
    lock = RLock()
    mine = [one for one in _thread.held if one._is_held]
    _inside = mine[-1]._inside if mine else os.environ.get(INSIDE)
    _thread.held = []
    _settings.clear()
    for allocation in list(_claimed.values()):
        allocation._disown()
    _claimed.clear()


os.register_at_fork(after_in_child=_after_fork)
