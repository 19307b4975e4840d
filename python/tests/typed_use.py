"""How a typed program uses the package: read by mypy, pyright and stubtest, and never run.

A line with an ignore has to be an error: mypy --strict reports an ignore that is not needed.
"""

from __future__ import annotations

from datetime import timedelta

import autocvd as module
from autocvd import Allocation, GpuTimeoutError, NoGpuError, autocvd
from autocvd.types import Gpu, Status


def plain() -> list[int]:
    try:
        return autocvd(2, timeout=timedelta(hours=1), min_free_memory=10e9, exclude=[0, "GPU-1"])
    except (GpuTimeoutError, NoGpuError):
        return autocvd(progress=print, only="0,1", interval="1m")


def attributes() -> int | None:
    allocation: Allocation = autocvd()
    environment: dict[str, str] = allocation.env
    uuids: list[str] = allocation.uuids
    allocation.run(["true", *environment, *uuids], check=True)
    allocation.release()
    with autocvd.gpus(1, set_env=False) as block:
        visible: str = block.visible_devices
    with module.gpus() as same_type:
        block = same_type
    autocvd.release()
    module.release()
    status: Status = autocvd.status()
    gpu: Gpu = module.status()["gpus"][len(visible)]
    return gpu["memory"]["used"] or status["gpus"][0]["utilization"]["gpu"]


async def tasks() -> Allocation:
    async with autocvd.gpus(2) as block:
        first: Allocation = block
    second = await module.acquire_async(2, set_env=False)
    third: Allocation = await autocvd.acquire_async(len(first), timeout="1h")
    return third or second


def wrong() -> None:
    autocvd("2")  # type: ignore[arg-type]
    autocvd(nonsense=1)  # type: ignore[call-arg]
    autocvd.gpus(exclude=1.5)  # type: ignore[arg-type]
    autocvd.status()["nonsense"]  # type: ignore[typeddict-item]
    autocvd().nonsense  # type: ignore[attr-defined]
