"""Find free NVIDIA GPUs, or wait for them, and set CUDA_VISIBLE_DEVICES.

    from autocvd import autocvd
    autocvd(num_gpus=2)         # before the first use of CUDA: it reads the variables once
    import torch

autocvd()       sets os.environ for this process, and claims the GPUs for as long as it lives
gpus()          the same for a `with` block, for the programs that it starts
acquire_async() the same for asyncio: `await` it
release()       ends what this thread has claimed
status()        what is on this machine, as data
autocvd.auto    a module that picks the least used GPU when it is imported

What these return is an Allocation: a list of the GPUs' indices, which can also run a program on
them.

A claim keeps every other autocvd, in Python or in a shell, off the GPUs. It belongs to the process
that made it, and ends with that process, however it ends. What the process starts, by whatever
means, chooses among its GPUs when it calls autocvd itself.

Of the environment's variables AUTOCVD_NVML_LIB and AUTOCVD_CLAIM_DIR count here as they do for the
program; those that stand for its options (AUTOCVD_TIMEOUT and so on) do not. Inside
`autocvd -n 4 -- python …` the choice is among those four, and in a batch job (Slurm, PBS, LSF)
among what the job was given.

A logger called 'autocvd' is told what was chosen and what is waited for (info), and why other GPUs
were passed over (debug).
"""

from __future__ import annotations

from ._allocation import Allocation
from ._autocvd import GpuTimeoutError, NoGpuError, __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Any, Protocol, TypeVar

    from typing_extensions import ParamSpec, TypeAlias

    from . import types
    from ._arguments import Request
    from ._launch import Block

    _P = ParamSpec("_P")
    _R = TypeVar("_R")
    _Gpus: TypeAlias = "gpus"

    class _Front(Protocol[_P, _R]):
        """The function, and what is within reach of it after `from autocvd import autocvd`."""

        gpus: type[_Gpus]
        release: Callable[[], None]
        status: Callable[[], types.Status]
        acquire_async: Callable[_P, Coroutine[Any, Any, _R]]

        def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R: ...

else:

    class _Types:
        """Stands for the module of that name: `typing` takes longer to import than all of this."""

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            from importlib import import_module

            return getattr(import_module(f"{__name__}.types"), name)

    types = _Types()

__all__ = [
    "Allocation",
    "GpuTimeoutError",
    "NoGpuError",
    "__version__",
    "acquire_async",
    "autocvd",
    "gpus",
    "release",
    "status",
]


def _front(function: Callable[_P, _R]) -> _Front[_P, _R]:
    return function  # type: ignore[return-value] # pyright: ignore[reportReturnType]


@_front
def autocvd(
    num_gpus: types.SupportsIndex = 1,
    least_used: bool = False,
    timeout: types.Timeout = None,
    interval: types.Interval = 30,
    set_env: bool = True,
    verbose: bool = True,
    *,
    exclude: types.Ids = None,
    only: types.Ids = None,
    min_free_memory: types.Size = None,
    share: bool = False,
    inherit: bool = False,
    claim: bool = True,
    progress: types.Progress = None,
) -> Allocation:
    """Find free GPUs, or wait for them, and make CUDA see these alone.

    CUDA_DEVICE_ORDER and CUDA_VISIBLE_DEVICES are set in os.environ before this returns. CUDA reads
    them when it is first used in a process, so call this before that; a RuntimeWarning says where
    it is too late.

    Args:
        num_gpus: How many GPUs.
        least_used: Never wait: take the usable GPUs with the most free memory.
        timeout: Give up after so many seconds, a timedelta, or a time such as '2m 30s'. 0 looks
            once; None waits for ever.
        interval: Look again at least this often while waiting. What frees a GPU is seen at once in
            any case.
        set_env: Set os.environ. Without, `.env` and `.run()` of what is returned give the GPUs to a
            program.
        verbose: Tell on stderr what is waited for; in a notebook, in the cell's output.
        exclude: GPUs to leave out: an index, a UUID or a unique start of one, a PCI bus id, or
            several of them.
        only: The GPUs to choose among, as `exclude`.
        min_free_memory: Only GPUs with so many bytes free, or a size such as '10GiB'.
        share: Take a share of `min_free_memory` of each GPU instead of whole GPUs, beside other
            shares. AUTOCVD_MEMORY says how many bytes that is; nothing enforces it.
        inherit: Choose among the GPUs that CUDA_VISIBLE_DEVICES allowed when this process began.
        claim: Keep other launches off the GPUs, and stay off theirs.
        progress: A function to call with each line instead of printing it; False prints nothing.

    Returns:
        The indices of the GPUs, ascending, as nvidia-smi counts them. To CUDA in this process they
        are 0, 1, …. They are an Allocation: with `.env`, `.uuids`, `.run()`, `.release()`.

    Raises:
        ValueError: An argument is wrong, or asks for more GPUs than there are.
        GpuTimeoutError: The GPUs did not become free in time. A TimeoutError.
        NoGpuError: No NVIDIA GPU can be read here. An OSError.
        RuntimeError: Another thread or task is in a `with gpus()` block that sets os.environ.

    The GPUs stay claimed until the process ends or they are released. A second call of a thread
    keeps what it has if that is what it asks for, and else replaces it: gpus() is for more. A
    thread that asks for what it has itself claimed, without a timeout, gets a ValueError instead of
    waiting for itself.
    """
    from . import _launch

    request = _request(
        num_gpus=num_gpus,
        least_used=least_used,
        timeout=timeout,
        interval=interval,
        set_env=set_env,
        verbose=verbose,
        exclude=exclude,
        only=only,
        min_free_memory=min_free_memory,
        share=share,
        inherit=inherit,
        claim=claim,
        progress=progress,
    )
    return _launch.autocvd(request)


async def acquire_async(
    num_gpus: types.SupportsIndex = 1,
    least_used: bool = False,
    timeout: types.Timeout = None,
    interval: types.Interval = 30,
    set_env: bool = True,
    verbose: bool = True,
    *,
    exclude: types.Ids = None,
    only: types.Ids = None,
    min_free_memory: types.Size = None,
    share: bool = False,
    inherit: bool = False,
    claim: bool = True,
    progress: types.Progress = None,
) -> Allocation:
    """Find free GPUs, or wait for them, while other tasks run; the arguments are autocvd()'s.

        allocation = await autocvd.acquire_async(2, set_env=False)

    Cancelling it ends the wait and takes nothing. Each call takes other GPUs. os.environ belongs to
    all tasks: with several of them, give set_env=False and use the allocation's `.env`.
    """
    from . import _launch

    request = _request(
        num_gpus=num_gpus,
        least_used=least_used,
        timeout=timeout,
        interval=interval,
        set_env=set_env,
        verbose=verbose,
        exclude=exclude,
        only=only,
        min_free_memory=min_free_memory,
        share=share,
        inherit=inherit,
        claim=claim,
        progress=progress,
    )
    return await _launch.acquire_async(request)


class gpus:
    """GPUs for the programs that are started inside a block; the arguments are autocvd()'s.

        with autocvd.gpus(2) as g:
            subprocess.run(["python", "train.py"])

    `async with` does the same for asyncio. At the end of the block os.environ is as it was, and the
    GPUs are anybody's. CUDA in this process itself reads the variables only once, whatever blocks
    follow.

    Threads and tasks share os.environ. Where several of them are in such blocks at the same time,
    it has to be left alone, or the second block raises a RuntimeError:

        with autocvd.gpus(set_env=False) as g:
            g.run(["python", "train.py"])
    """

    def __init__(
        self,
        num_gpus: types.SupportsIndex = 1,
        least_used: bool = False,
        timeout: types.Timeout = None,
        interval: types.Interval = 30,
        set_env: bool = True,
        verbose: bool = True,
        *,
        exclude: types.Ids = None,
        only: types.Ids = None,
        min_free_memory: types.Size = None,
        share: bool = False,
        inherit: bool = False,
        claim: bool = True,
        progress: types.Progress = None,
    ) -> None:
        self._request = _request(
            num_gpus=num_gpus,
            least_used=least_used,
            timeout=timeout,
            interval=interval,
            set_env=set_env,
            verbose=verbose,
            exclude=exclude,
            only=only,
            min_free_memory=min_free_memory,
            share=share,
            inherit=inherit,
            claim=claim,
            progress=progress,
        )
        # Those under way: threads may share one object, and blocks stand inside each other.
        self._entered: list[Block] = []

    def __enter__(self) -> Allocation:
        block = self._new_block()
        try:
            return block.begin()
        except BaseException:
            self._end(block)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(self._block_of_owner())

    async def __aenter__(self) -> Allocation:
        block = self._new_block()
        try:
            return await block.begin_async()
        except BaseException:
            self._end(block)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(self._block_of_owner())

    def _new_block(self) -> Block:
        from . import _launch

        block = _launch.Block(self._request)
        self._entered.append(block)
        return block

    def _block_of_owner(self) -> Block:
        from . import _process

        mine = _process.owner()
        # A generator may be closed by another thread than the one that ran it.
        own = [block for block in self._entered if block.owner == mine]
        return (own or self._entered)[-1]

    def _end(self, block: Block) -> None:
        try:
            block.end()
        except BaseException:
            # An interrupt came in between: what it left undone is done now.
            block.end()
            raise
        finally:
            self._entered.remove(block)


def release() -> None:
    """End what this thread has claimed: other launches may have the GPUs.

    os.environ stays as it is.

    What a `with` block has claimed ends with the block, and what other threads have claimed is
    theirs.
    """
    from . import _launch

    _launch.release()


def status() -> types.Status:
    """Tell what is on this machine: what `autocvd status --json` prints, as data.

    `status()["gpus"]` has a dict for each GPU: "index", "uuid", "name", "memory", "processes",
    "claims", "state" ('free', 'busy', 'claimed', 'shared', 'unavailable'), "reason" and others.
    Memory is in bytes, utilization in percent; None is unknown.

    Raises:
        NoGpuError: No NVIDIA GPU can be read here. An OSError.
    """
    import json

    from . import _launch

    data: types.Status = json.loads(_launch.status())
    return data


# `from autocvd import autocvd` leaves the function alone within reach.
autocvd.gpus = gpus
autocvd.release = release
autocvd.status = status
autocvd.acquire_async = acquire_async


def _request(
    *,
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
    progress: object,
) -> Request:
    arguments = dict(locals())
    from . import _arguments

    return _arguments.Request(**arguments)
