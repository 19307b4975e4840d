"""Picks the least used GPU when it is imported, for scripts that are not to change otherwise.

    import autocvd.auto     # before the first use of CUDA

`autocvd.auto.ids` has its index. The workers of multiprocessing, which import their parent's script
again, keep their parent's GPU.
"""

from __future__ import annotations

import os as _os
import sys as _sys

from . import autocvd as _autocvd


def _is_worker() -> bool:
    process = _sys.modules.get("multiprocessing.process")
    if process is None:
        return False
    # While a spawned worker imports its parent's script, only this tells.
    return process.parent_process() is not None or getattr(
        process.current_process(), "_inheriting", False
    )


#: The indices of the GPUs; empty in a worker, where they are the parent's.
ids: list[int] = (
    [] if _is_worker() and _os.environ.get("CUDA_VISIBLE_DEVICES") else _autocvd(least_used=True)
)
