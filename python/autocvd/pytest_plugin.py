"""A pytest plugin with a fixture: a GPU for the tests of a session.

    def test_training(gpu):
        ...

Each worker of pytest-xdist has a GPU of its own, and waits for one if need be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Allocation


@pytest.fixture(scope="session")
def gpu() -> Iterator[Allocation]:
    """A GPU for the whole session: CUDA_VISIBLE_DEVICES is set, and it is claimed.

    Without an NVIDIA GPU the tests that use it are skipped.
    """
    import autocvd

    block = autocvd.gpus()
    try:
        allocation = block.__enter__()
    except autocvd.NoGpuError as error:
        pytest.skip(str(error))
    try:
        yield allocation
    finally:
        block.__exit__(None, None, None)
