from collections.abc import Callable

__version__: str

def take(
    *,
    num_gpus: int,
    least_used: bool,
    timeout: float | None,
    interval: float,
    exclude: list[str],
    only: list[str] | None,
    min_free_memory: int | None,
    inherit: bool,
    claim: bool,
    visible: str | None,
    tell: Callable[[str], object] | None,
    in_place: bool,
    warn: Callable[[str], object],
    on_main_thread: bool,
) -> tuple[list[int], list[tuple[str, str]], str, int | None]: ...
def release(token: int | None = None) -> None: ...
def after_fork() -> None: ...
def status(warn: Callable[[str], object]) -> str: ...
def parse_duration(text: str) -> float: ...
def parse_size(text: str) -> int: ...
