"""Find free NVIDIA GPUs, or wait for them, and set CUDA_VISIBLE_DEVICES.

    from autocvd import autocvd
    autocvd(num_gpus=2)         # before the first use of CUDA: it reads the variables once
    import torch

autocvd()       sets os.environ for this process, and claims the GPUs for as long as it lives
gpus()          the same for a `with` block, for the programs that it starts
release()       ends this process's claims
status()        what is on this machine, as data
autocvd.auto    a module that picks the least used GPU when it is imported

A claim keeps every other autocvd, in Python or in a shell, off the GPUs. It belongs to the process
that made it: it ends with that process, however it ends, and neither a forked child nor a worker of
multiprocessing keeps it or ends it. A child that calls autocvd() gets other GPUs.

Of the environment's variables AUTOCVD_NVML_LIB and AUTOCVD_CLAIM_DIR count here as they do for the
program; those that stand for its options (AUTOCVD_TIMEOUT and so on) do not. Inside
`autocvd -n 4 -- python …` the choice is among those four, and in a batch job (Slurm, PBS, LSF)
among what the job was given.
"""

from __future__ import annotations

import os as _os
import sys as _sys

from . import _autocvd
from ._autocvd import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Any, Union

    Ids = Union[int, str, Iterable[Union[int, str]]]

__all__ = ["__version__", "autocvd", "gpus", "release", "status"]


def autocvd(
    num_gpus: int = 1,
    least_used: bool = False,
    timeout: float | str | None = None,
    interval: float | str = 30,
    set_env: bool = True,
    verbose: bool = True,
    *,
    exclude: Ids | None = None,
    only: Ids | None = None,
    min_free_memory: int | str | None = None,
    inherit: bool = False,
    claim: bool = True,
    progress: bool | Callable[[str], object] | None = None,
) -> list[int]:
    """Find free GPUs, or wait for them, and make CUDA see these alone.

    CUDA_DEVICE_ORDER and CUDA_VISIBLE_DEVICES are set in os.environ before this returns. CUDA reads
    them when it is first used in a process, so call this before that; a RuntimeWarning says where it
    is too late.

    Args:
        num_gpus: How many GPUs.
        least_used: Never wait: take the usable GPUs with the most free memory.
        timeout: Give up after so many seconds, or a time such as '2m 30s'. 0 looks once; None waits
            for ever.
        interval: Look again at least this often while waiting. What frees a GPU is seen at once in
            any case.
        set_env: Set os.environ. Without, only the indices are returned.
        verbose: Tell on stderr what is waited for; in a notebook, in the cell's output.
        exclude: GPUs to leave out: an index, a UUID or a unique start of one, a PCI bus id, or
            several of them.
        only: The GPUs to choose among, as `exclude`.
        min_free_memory: Only GPUs with so many bytes free, or a size such as '10GiB'.
        inherit: Choose among the GPUs that CUDA_VISIBLE_DEVICES allowed when this process began.
        claim: Keep other launches off the GPUs, and stay off theirs.
        progress: A function to call with each line instead of printing it; False prints nothing.

    Returns:
        The indices of the GPUs, ascending, as nvidia-smi counts them. To CUDA in this process they are
        0, 1, ….

    Raises:
        ValueError: An argument is wrong, or asks for more GPUs than there are.
        TimeoutError: The GPUs did not become free in time.
        OSError: No NVIDIA GPU can be read here. (TimeoutError is a kind of OSError.)

    The GPUs stay claimed until the process ends or release() is called. A second call gets other
    GPUs, in this thread and in others; the variables are those of the last one. A thread that asks for
    what it has itself claimed, without a timeout, gets a ValueError instead of waiting for itself.
    """
    return _take(
        num_gpus=num_gpus,
        least_used=least_used,
        timeout=timeout,
        interval=interval,
        set_env=set_env,
        verbose=verbose,
        exclude=exclude,
        only=only,
        min_free_memory=min_free_memory,
        inherit=inherit,
        claim=claim,
        progress=progress,
    )[0]


class gpus:
    """GPUs for the programs that are started inside a `with` block; the arguments are autocvd()'s.

        with autocvd.gpus(2) as ids:
            subprocess.run(["python", "train.py"])

    At the end of the block os.environ is as it was, and the GPUs are anybody's. CUDA in this process
    itself reads the variables only once, whatever blocks follow.
    """

    def __init__(
        self,
        num_gpus: int = 1,
        least_used: bool = False,
        timeout: float | str | None = None,
        interval: float | str = 30,
        set_env: bool = True,
        verbose: bool = True,
        *,
        exclude: Ids | None = None,
        only: Ids | None = None,
        min_free_memory: int | str | None = None,
        inherit: bool = False,
        claim: bool = True,
        progress: bool | Callable[[str], object] | None = None,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        # What each block that is under way has to undo: one object may serve several, one inside another.
        self._entered: list[tuple[Any, int | None]] = []

    def __enter__(self) -> list[int]:
        global _choice
        before = _choice, {name: _os.environ.get(name) for name in _VARIABLES}
        ids, token = _take(**self._arguments)
        self._entered.append((before, token))
        return ids

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _choice
        (choice, before), token = self._entered.pop()
        if self._arguments["set_env"]:
            _choice = choice
            for name, value in before.items():
                if value is None:
                    _os.environ.pop(name, None)
                else:
                    _os.environ[name] = value
        if token is not None:
            _autocvd.release(token)


def release() -> None:
    """End this process's claims: other launches may have the GPUs. os.environ stays as it is."""
    _autocvd.release()


def status() -> dict[str, Any]:
    """Tell what is on this machine: what `autocvd status --json` prints, as data.

    `status()["gpus"]` has a dict for each GPU: "index", "uuid", "name", "memory", "processes",
    "claims", "state" ('free', 'busy', 'claimed', 'unavailable'), "reason" and others. Memory is in
    bytes, utilization in percent; None is unknown.

    Raises:
        OSError: No NVIDIA GPU can be read here.
    """
    import json

    data: dict[str, Any] = json.loads(_autocvd.status(_warn))
    return data


# `from autocvd import autocvd` leaves the function alone within reach.
autocvd.gpus, autocvd.release, autocvd.status = gpus, release, status  # type: ignore[attr-defined]

_VARIABLES = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES")
# CUDA_VISIBLE_DEVICES as it was before the first choice, and as it was set then.
_choice: tuple[str | None, str] | None = None


def _take(
    num_gpus: Any,
    least_used: Any,
    timeout: Any,
    interval: Any,
    set_env: Any,
    verbose: Any,
    exclude: Any,
    only: Any,
    min_free_memory: Any,
    inherit: Any,
    claim: Any,
    progress: Any,
) -> tuple[list[int], int | None]:
    """Do what autocvd() says; also return what to release the claim by."""
    global _choice
    set_env, verbose = _flag("set_env", set_env), _flag("verbose", verbose)
    arguments: dict[str, Any] = {
        "num_gpus": _count(num_gpus),
        "least_used": _flag("least_used", least_used),
        "timeout": None if timeout is None else _seconds("timeout", timeout),
        "interval": _seconds("interval", interval),
        "exclude": [] if exclude is None else _ids("exclude", exclude),
        "only": None if only is None else _ids("only", only),
        "min_free_memory": None if min_free_memory is None else _bytes(min_free_memory),
        "inherit": _flag("inherit", inherit),
        "claim": _flag("claim", claim),
    }
    if not arguments["interval"]:
        raise _wrong("interval", interval, "give more than 0")
    if arguments["only"] == []:
        raise _wrong("only", only, "that leaves nothing to choose among; give ids, or None for all GPUs")
    if not (progress is None or progress is True or progress is False or callable(progress)):
        raise _wrong("progress", progress, "give a function that takes a line, or True, False or None")
    if set_env:
        user = _user_of_cuda()
        if user:
            _warn(
                f"CUDA is already initialized in this process ({user}), so CUDA_VISIBLE_DEVICES comes too late "
                "for it; call autocvd() before the first use of CUDA"
            )
    teller = None
    if progress is True or (progress is None and verbose) or callable(progress):
        from ._progress import teller_for

        teller = teller_for(progress if callable(progress) else None)
    visible = _os.environ.get("CUDA_VISIBLE_DEVICES")
    if _choice and _choice[1] == visible:
        visible = _choice[0]
    threading = _sys.modules.get("threading")
    chosen = None
    try:
        indices, variables, chosen, token = _autocvd.take(
            visible=visible,
            tell=teller.tell if teller else None,
            in_place=bool(teller and teller.in_place),
            warn=_warn,
            on_main_thread=not threading or threading.get_ident() == threading.main_thread().ident,
            **arguments,
        )
    finally:
        if teller:
            teller.finish(chosen)
    if set_env:
        _os.environ.update(variables)
        _choice = visible, _os.environ["CUDA_VISIBLE_DEVICES"]
    return indices, token


def _wrong(name: str, value: object, hint: str) -> ValueError:
    return ValueError(f"{name}={value!r}: {hint}")


def _flag(name: str, value: Any) -> bool:
    try:
        # 0 and 1 and numpy's booleans are equal to these; texts are not.
        if value in (False, True):
            return bool(value)
    except Exception:
        pass
    raise _wrong(name, value, "give True or False")


def _whole(value: Any) -> int | None:
    """Give the value if it is a whole number, numpy's included."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        return None
    return int(type(value).__index__(value))


def _count(value: Any) -> int:
    count = _whole(value)
    if count is None or count < 1:
        raise _wrong("num_gpus", value, "give a whole number from 1 on")
    return min(count, _sys.maxsize)


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, str):
        try:
            return _autocvd.parse_duration(value.strip())
        except ValueError as error:
            raise _wrong(name, value, str(error)) from None
    hint = "give seconds from 0 on, or a time such as '2m 30s'"
    if isinstance(value, (bool, bytes)) or not (hasattr(type(value), "__float__") or _whole(value) is not None):
        raise _wrong(name, value, hint)
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _wrong(name, value, hint) from None
    # A century is for ever; NaN is in no range.
    if not 0 <= seconds <= 3.2e9:
        raise _wrong(name, value, hint + (" (None waits for ever)" if name == "timeout" and seconds > 0 else ""))
    return seconds


def _bytes(value: Any) -> int:
    hint = "give bytes, or a size such as '10GiB'"
    if isinstance(value, str):
        try:
            return _autocvd.parse_size(value.strip())
        except ValueError as error:
            raise _wrong("min_free_memory", value, str(error)) from None
    size = _whole(value)
    if size is None or size < 0:
        raise _wrong("min_free_memory", value, hint)
    return min(size, 2**63)


def _ids(name: str, value: Any) -> list[str]:
    def one(item: Any) -> list[str]:
        number = _whole(item)
        if number is not None and number >= 0:
            return [str(number)]
        parts = [part.strip() for part in item.split(",")] if isinstance(item, str) else []
        if not all(parts) or not parts:
            raise _wrong(name, value, "give an index, a UUID or a PCI bus id, or several of them")
        return parts

    if isinstance(value, (str, bytes)) or not hasattr(type(value), "__iter__"):
        return one(value)
    try:
        items = list(value)
    except TypeError:
        # An array without dimensions.
        items = [value]
    return [part for item in items for part in one(item)]


def _user_of_cuda() -> str | None:
    """Tell who has initialized CUDA in this process. Nothing is imported for it."""
    for module, is_initialized in (
        ("torch", lambda torch: torch.cuda.is_initialized()),
        ("jax._src.xla_bridge", lambda bridge: any(name in ("cuda", "gpu") for name in bridge._backends)),
    ):
        try:
            if module in _sys.modules and is_initialized(_sys.modules[module]):
                return module.partition(".")[0]
        except Exception:
            # Half imported, or another version.
            pass
    # CUDA opens this device when it is initialized; NVML, which is asked here, does not.
    device = "/dev/nvidia-uvm"
    try:
        for descriptor in _os.listdir("/proc/self/fd"):
            try:
                if _os.readlink(f"/proc/self/fd/{descriptor}") == device:
                    return f"{device} is open"
            except OSError:
                pass
    except OSError:
        pass
    return None


def _warn(text: str) -> None:
    """Warn the code that called into this package."""
    import warnings

    level = 2
    frame = _sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == __name__:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)


_os.register_at_fork(after_in_child=_autocvd.after_fork)
