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

    from ._allocation import Role
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
        with _Taking(request, "call") as taking:
            _wait_for(taking.search, taking.teller)
            allocation = taking.finish()
            _commit(allocation, request)
            return allocation
    except Exception:
        if replaced is not None:
            _take_again(replaced)
        raise


async def acquire_async(request: Request) -> Allocation:
    """Do what acquire_async() says."""
    _prepare(request)
    with _Taking(request, "task") as taking:
        await _wait_for_async(taking.search, taking.teller)
        allocation = taking.finish()
        _commit(allocation, request)
        return allocation


class Block:
    """A block of gpus(): all that it has to undo, known before it takes anything."""

    def __init__(self, request: Request) -> None:
        self.owner = _process.owner()
        self._request = request
        self._setting = _process.Setting(is_block=True) if request.set_env else None
        self._taking: _Taking | None = None

    def begin(self) -> Allocation:
        """Take the GPUs, and set the variables."""
        with self._prepared() as taking:
            _wait_for(taking.search, taking.teller)
            return self._filled(taking)

    async def begin_async(self) -> Allocation:
        """Do the same while other tasks run."""
        with self._prepared() as taking:
            await _wait_for_async(taking.search, taking.teller)
            return self._filled(taking)

    def _prepared(self) -> _Taking:
        _prepare(self._request)
        if self._setting:
            _process.begin_block(self._setting)
        self._taking = _Taking(self._request, "block")
        return self._taking

    def _filled(self, taking: _Taking) -> Allocation:
        allocation = taking.finish()
        if self._setting:
            _process.fill(self._setting, allocation)
        return allocation

    def end(self) -> None:
        """Put the variables back, and end the claim."""
        try:
            if self._setting:
                _process.end_block(self._setting)
        finally:
            if self._taking:
                self._taking.undo()


def status() -> str:
    """Read the machine's state, as JSON."""
    search = _autocvd.status()
    _wait_for(search, Silent())
    return search.status()


def release() -> None:
    """End what this thread has taken, but for what its blocks will end."""
    for allocation in list(_process.held()):
        if allocation._role != "block":
            allocation.release()


def _prepare(request: Request) -> None:
    """Say what cannot go well before anything is waited for."""
    if not request.set_env:
        return
    _process.check_environment()
    user = _user_of_cuda()
    if user:
        warn(
            f"CUDA is already initialized in this process ({user}), so CUDA_VISIBLE_DEVICES comes "
            "too late for it; call autocvd() before the first use of CUDA"
        )


def _commit(allocation: Allocation, request: Request) -> None:
    """Set the variables for good."""
    if request.set_env and _process.set_for_good(allocation):
        warn(
            "os.environ now has this thread's GPUs instead of another one's, and so have the "
            "programs that any thread starts from now on; write autocvd(set_env=False) in each "
            "thread, and start programs with its run()"
        )


def _look_at_own(request: Request) -> tuple[Allocation | None, Allocation | None]:
    """Find what this thread has that serves, else what it has that is to be replaced."""
    held = _process.held()
    for allocation in reversed(held):
        if allocation._wanted == request.wanted:
            return allocation, None
    replaceable = next((one for one in reversed(held) if one._role == "call"), None)
    alike = [
        one
        for one in reversed(held)
        if len(one) == request.num_gpus and _is_free(one, request) and _is_as_much(one, request)
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
            serves = search.serves()
        except ValueError as error:
            raise request.explain(error) from None
        if serves and _is_as_much(allocation, request):
            return allocation, None
    return None, replaceable


def _is_free(allocation: Allocation, request: Request) -> bool:
    """Whether it was free when it was taken, where that is asked for."""
    was_least_used = bool(allocation._wanted and allocation._wanted["least_used"])
    return bool(request.wanted["least_used"]) or not was_least_used


def _is_as_much(allocation: Allocation, request: Request) -> bool:
    """Whether it is a share of the same size, or whole GPUs where these are asked for."""
    had = allocation._wanted["share"] if allocation._wanted else None
    return bool(had == request.wanted["share"])


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
        warn(f"{allocation.visible_devices} is no longer claimed: other launches may have it now")
        return
    allocation._claim, allocation._is_released = claim, False
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


class _Taking:
    """A search from its start to an allocation, or to nothing, wherever an interrupt comes."""

    def __init__(self, request: Request, role: Role) -> None:
        self.teller = teller_for(request.lines)
        self._request = request
        self._role: Role = role
        self._allocation: Allocation | None = None
        wants_detail = not isinstance(self.teller, Silent) or _logs("INFO")
        self.search = _find(request.wanted, request.timeout, request.interval, wants_detail)

    def finish(self) -> Allocation:
        """Make an allocation of what was found."""
        try:
            indices, keys, variables, label, passed_over, claim = self.search.found()
        except ValueError as error:
            raise self._request.explain(error) from None
        allocation = Allocation(indices, keys, dict(variables))
        allocation._label = label
        allocation._role = self._role
        allocation._wanted = self._request.wanted
        self._allocation = allocation
        if claim:
            allocation._claim = claim
            _process.remember(allocation)
        if _logs("INFO"):
            _log("INFO", f"chose {label}: CUDA_VISIBLE_DEVICES={allocation.visible_devices}")
            for line in passed_over:
                _log("DEBUG", line)
        return allocation

    def undo(self) -> None:
        """Take nothing, or give back what was taken."""
        self.search.cancel()
        if self._allocation is not None:
            self._allocation.release()

    def __enter__(self) -> _Taking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self.undo()
        finally:
            allocation = self._allocation if error is None else None
            self.teller.finish(None if allocation is None else allocation._label)


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
