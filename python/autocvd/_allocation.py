"""What autocvd() returns: the GPUs, and all that goes with them."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Any, Literal

    from ._autocvd import Claim

    # Made by autocvd(), whose next call replaces it; by a block, which ends it; or by a task.
    Role = Literal["call", "block", "task"]


VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Tells a program what its parent holds: there it chooses.
INSIDE = "AUTOCVD_INSIDE"


def _nothing(_: Allocation) -> None:
    pass


class Allocation(list[int]):
    """GPUs that were found, and claimed: a list of their indices as nvidia-smi counts them.

    It ends with release(), at the end of a `with` block over it, or with the process.

    Attributes:
        env: The variables that give these GPUs to a program: `{**os.environ, **allocation.env}`.
        uuids: The GPUs' UUIDs, in the order of the indices; MIG devices have their own.
    """

    env: dict[str, str]
    uuids: list[str]

    def __init__(
        self,
        indices: Sequence[int],
        uuids: Sequence[str],
        variables: Mapping[str, str],
    ) -> None:
        super().__init__(indices)
        self.uuids = list(uuids)
        self.env = {name: value for name, value in variables.items() if name != INSIDE}
        self._inside = variables.get(INSIDE)
        self._keys = list(uuids)
        self._label = ""
        self._claim: Claim | None = None
        self._is_released = False
        self._is_kept_across_exec = False
        #: The request that it was the answer to.
        self._wanted: Mapping[str, Any] | None = None
        self._role: Role = "task"
        #: What the process does where the claim ends, and where a block over it does.
        self._at_release: Callable[[Allocation], None] = _nothing
        self._at_exit: Callable[[Allocation], None] = _nothing

    @property
    def _is_held(self) -> bool:
        return self._claim is not None and self._claim.is_held()

    @property
    def visible_devices(self) -> str:
        """CUDA_VISIBLE_DEVICES: indices, or UUIDs where CUDA would take an index for another."""
        return self.env[VISIBLE]

    def _variables(self) -> dict[str, str]:
        """All that a program has to be told, what it is inside of included."""
        return {**self.env, INSIDE: self._inside} if self._inside else dict(self.env)

    def release(self) -> None:
        """End the claim: other launches may have the GPUs. os.environ stays as it is."""
        self._is_released = True
        if self._claim:
            self._claim.release()
            self._claim = None
        self._at_release(self)

    def run(self, args: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program on these GPUs: subprocess.run() with their environment.

        Raises:
            RuntimeError: The GPUs were released.
        """
        import subprocess

        if self._is_released:
            raise RuntimeError("these GPUs were released; take new ones")
        environment = options.pop("env", None)
        environment = os.environ if environment is None else environment
        return subprocess.run(args, env={**environment, **self._variables()}, **options)

    def __enter__(self) -> Allocation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        self._at_exit(self)

    async def __aenter__(self) -> Allocation:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, in another process too, tells of the same GPUs; the claim stays with this one.
        return Allocation, (list(self), self.uuids, self._variables())

    def _keep_across_exec(self) -> None:
        # A search along PATH is several attempts.
        if self._claim and not self._is_kept_across_exec:
            self._is_kept_across_exec = True
            self._claim.keep_across_exec()

    def _disown(self) -> None:
        """In a forked child: the claim is the parent's."""
        if self._claim:
            self._claim.forget()
            self._claim = None
