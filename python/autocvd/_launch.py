"""Finding GPUs: from checked arguments to an allocation."""

from __future__ import annotations

import sys
import time
from _thread import get_ident

from . import _autocvd, _process
from ._allocation import Allocation
from ._progress import Silent, teller_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

    from ._arguments import Request
    from ._autocvd import Search
    from ._progress import Teller

#: How soon a signal is handled that arrives just before the sleep; during it, it ends the sleep.
_SIGNALS = 0.05
#: How often the time left is told.
_SECOND = 1.0


def autocvd(request: Request) -> Allocation:
    """Do what autocvd() says: keep what this thread has if that serves, else replace it."""
    _prepare(request)
    replaced: Allocation | None = None
    if request.claim:
        kept, replaced = _look_at_own(request)
        if kept is not None:
            _commit(kept, request)
            return kept
    if replaced is not None:
        replaced.release()
    try:
        allocation = _take(request)
    except Exception:
        if replaced is not None:
            _take_again(replaced)
        raise
    try:
        allocation._replaceable = True
        _commit(allocation, request)
    except BaseException:
        allocation.release()
        raise
    return allocation


def take_for_block(request: Request) -> tuple[Allocation, _process.Setting | None]:
    """Take GPUs for a block, and set its variables."""
    _prepare(request)
    setting = _process.begin_block() if request.set_env else None
    allocation = None
    try:
        allocation = _take(request)
        allocation._is_of_block = True
        if setting:
            _process.fill(setting, allocation)
        return allocation, setting
    except BaseException:
        _undo(allocation, setting)
        raise


async def take_for_block_async(request: Request) -> tuple[Allocation, _process.Setting | None]:
    """Take GPUs for an asynchronous block, and set its variables."""
    _prepare(request)
    setting = _process.begin_block() if request.set_env else None
    allocation = None
    try:
        allocation = await _take_async(request)
        allocation._is_of_block = True
        if setting:
            _process.fill(setting, allocation)
        return allocation, setting
    except BaseException:
        _undo(allocation, setting)
        raise


async def acquire_async(request: Request) -> Allocation:
    """Do what acquire_async() says."""
    _prepare(request)
    allocation = await _take_async(request)
    try:
        _commit(allocation, request)
    except BaseException:
        allocation.release()
        raise
    return allocation


def status() -> str:
    """Read the machine's state, as JSON."""
    search = _autocvd.status()
    _wait_for(search, Silent())
    return search.status()


def end_block(allocation: Allocation, setting: _process.Setting | None) -> None:
    """End a block: put the variables back, and end the claim."""
    if setting:
        _process.end_block(setting)
    allocation.release()


def release() -> None:
    """End what this thread has taken, but for what its blocks will end."""
    for allocation in list(_process.held()):
        if not allocation._is_of_block:
            allocation.release()


def _undo(allocation: Allocation | None, setting: _process.Setting | None) -> None:
    if allocation is not None:
        allocation.release()
    if setting:
        _process.end_block(setting)


def _prepare(request: Request) -> None:
    """Say what cannot go well before anything is waited for."""
    if not request.set_env:
        return
    _process.check_environment()
    user = _user_of_cuda()
    if user:
        warn(
            f"CUDA is already initialized in this process ({user}), so CUDA_VISIBLE_DEVICES comes too late "
            "for it; call autocvd() before the first use of CUDA"
        )


def _commit(allocation: Allocation, request: Request) -> None:
    """Set the variables for good."""
    if request.set_env and _process.set_for_good(allocation):
        warn(
            "os.environ now has this thread's GPUs instead of another one's, and so have the programs that any thread "
            "starts from now on; write autocvd(set_env=False) in each thread, and start programs with its run()"
        )


def _look_at_own(request: Request) -> tuple[Allocation | None, Allocation | None]:
    """Find what this thread has that serves, else what it has that is to be replaced."""
    held = _process.held()
    for allocation in reversed(held):
        if allocation._wanted == request.wanted:
            return allocation, None
    replaceable = next((one for one in reversed(held) if one._replaceable), None)
    alike = [
        one for one in reversed(held) if len(one) == request.num_gpus and _is_free(one, request)
    ]
    # Also where none can serve: a request that can never be met replaces nothing.
    for allocation in alike or ([replaceable] if replaceable is not None else []):
        visible, inside = _process.original()
        search = _autocvd.compare(
            request.wanted,
            allocation._keys,
            timeout=request.timeout,
            visible=visible,
            inside=inside,
        )
        _wait_for(search, Silent())
        try:
            if search.serves():
                return allocation, None
        except ValueError as error:
            raise request.explain(error) from None
    return None, replaceable


def _is_free(allocation: Allocation, request: Request) -> bool:
    """Whether it was free when it was taken, where that is asked for: the least used GPU may be in use."""
    was_least_used = bool(allocation._wanted and allocation._wanted["least_used"])
    return bool(request.wanted["least_used"]) or not was_least_used


def _take_again(allocation: Allocation) -> None:
    """Claim again what was to be replaced, for there is nothing to replace it by."""
    wanted = {
        **(allocation._wanted or {}),
        "only": allocation._keys,
        "exclude": [],
        "num_gpus": len(allocation),
    }
    search = _find(wanted, timeout=0, interval=30, wants_detail=False)
    try:
        _wait_for(search, Silent())
        claim = search.found()[-1]
    except Exception:
        search.cancel()
        claim = None
    if claim is None:
        warn(
            f"{allocation.visible_devices} is no longer claimed: other launches may have taken it meanwhile"
        )
        return
    allocation._hold(claim)
    _process.remember(allocation)


def _find(
    wanted: Mapping[str, Any], timeout: float | None, interval: float, wants_detail: bool
) -> Search:
    visible, inside = _process.original()
    return _autocvd.find(
        wanted,
        timeout=timeout,
        interval=interval,
        visible=visible,
        inside=inside,
        own_claims=[key for one in _process.held() for key in one._keys],
        wants_detail=wants_detail,
        explains=_logs("DEBUG"),
    )


def _take(request: Request) -> Allocation:
    with _Taking(request) as taking:
        _wait_for(taking.search, taking.teller)
        return taking.finish()


async def _take_async(request: Request) -> Allocation:
    with _Taking(request) as taking:
        await _wait_for_async(taking.search, taking.teller)
        return taking.finish()


class _Taking:
    """A search from its start to an allocation, or to nothing: an interrupt can come between any two steps."""

    def __init__(self, request: Request) -> None:
        self.teller = teller_for(request.lines)
        wants_detail = not isinstance(self.teller, Silent) or _logs("INFO")
        self.search = _find(request.wanted, request.timeout, request.interval, wants_detail)
        self._request = request
        self._allocation: Allocation | None = None

    def finish(self) -> Allocation:
        self._allocation = _finish(self.search, self._request)
        return self._allocation

    def __enter__(self) -> _Taking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.teller.finish(self._allocation._label if self._allocation is not None else None)
        finally:
            if error is not None:
                self.search.cancel()
                if self._allocation is not None:
                    self._allocation.release()


def _finish(search: Search, request: Request) -> Allocation:
    """Make an allocation of what was found."""
    try:
        indices, keys, variables, label, passed_over, claim = search.found()
    except ValueError as error:
        raise request.explain(error) from None
    allocation = Allocation(indices, keys, dict(variables))
    allocation._label = label
    if claim:
        allocation._wanted = request.wanted
        allocation._hold(claim)
        _process.remember(allocation)
    if _logs("INFO"):
        _log("INFO", f"chose {label}: CUDA_VISIBLE_DEVICES={allocation.visible_devices}")
        for line in passed_over:
            _log("DEBUG", line)
    return allocation


def _wait_for(search: Search, teller: Teller) -> None:
    """Sleep until the search has ended; handle signals, and tell of the wait."""
    threading = sys.modules.get("threading")
    on_main_thread = not threading or get_ident() == threading.main_thread().ident
    told = time.monotonic()
    try:
        while not _hear(search, teller):
            limits = [search.next_check()]
            if on_main_thread:
                limits.append(_SIGNALS)
            if teller.in_place:
                limits.append(_SECOND)
            search.wait(min((limit for limit in limits if limit is not None), default=3600.0))
            if teller.in_place and time.monotonic() - told >= _SECOND:
                told = time.monotonic()
                _count_down(search, teller)
    except BaseException:
        search.cancel()
        raise


async def _wait_for_async(search: Search, teller: Teller) -> None:
    """Let other tasks run until the search has ended."""
    import asyncio

    loop = asyncio.get_running_loop()
    while not _hear(search, teller):
        limit = search.next_check()
        if teller.in_place:
            limit = _SECOND if limit is None else min(limit, _SECOND)
        woken: asyncio.Future[None] = loop.create_future()
        descriptor = search.fileno()
        loop.add_reader(descriptor, _set, woken)
        try:
            await asyncio.wait([woken], timeout=limit)
        finally:
            loop.remove_reader(descriptor)
        if teller.in_place:
            _count_down(search, teller)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _hear(search: Search, teller: Teller) -> bool:
    """Pass on what a search has to tell; whether it has ended."""
    for kind, text in search.news():
        if kind == "warning":
            warn(text)
        else:
            if _logs("INFO"):
                _log("INFO", text.removeprefix("autocvd: "))
            if kind == "waiting" and teller.in_place:
                _count_down(search, teller)
            else:
                teller.tell(text)
    return search.is_done()


def _count_down(search: Search, teller: Teller) -> None:
    line = search.countdown()
    if line:
        teller.tell(line)


def _logs(level: str) -> bool:
    """Whether somebody reads the log. Nobody does who has not imported logging."""
    logging = sys.modules.get("logging")
    try:
        return bool(logging and logging.getLogger("autocvd").isEnabledFor(getattr(logging, level)))
    except AttributeError:
        # Half imported.
        return False


def _log(level: str, text: str) -> None:
    logging = sys.modules["logging"]
    logging.getLogger("autocvd").log(getattr(logging, level), "%s", text)


def _user_of_cuda() -> str | None:
    """Tell who has initialized CUDA in this process. Nothing is imported for it."""
    import os

    for module, is_initialized in (
        ("torch", lambda torch: torch.cuda.is_initialized()),
        (
            "jax._src.xla_bridge",
            lambda bridge: any(name in ("cuda", "gpu") for name in bridge._backends),
        ),
    ):
        try:
            if module in sys.modules and is_initialized(sys.modules[module]):
                return module.partition(".")[0]
        except Exception:
            # Half imported, or another version.
            pass
    # CUDA opens this device when it is initialized; NVML, which is asked here, does not.
    device = "/dev/nvidia-uvm"
    try:
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{descriptor}") == device:
                    return f"{device} is open"
            except OSError:
                pass
    except OSError:
        pass
    return None


def warn(text: str) -> None:
    """Warn the code that called into this package."""
    import warnings

    level = 2
    frame = sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)
