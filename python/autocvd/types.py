"""The types of what goes in and comes out, for annotations.

from autocvd.types import Gpu, Status
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Callable, List, Literal, Optional, SupportsFloat, SupportsIndex, TypedDict, Union

__all__ = [
    "Claim",
    "Gpu",
    "Ids",
    "Interval",
    "Link",
    "Memory",
    "Mig",
    "MigDevice",
    "Process",
    "Progress",
    "Size",
    "State",
    "Status",
    "SupportsIndex",
    "Timeout",
    "Utilization",
]

#: Seconds, a timedelta, or a text such as '2m 30s'.
Interval = Union[SupportsFloat, SupportsIndex, timedelta, str]
#: The same; None is for ever.
Timeout = Union[SupportsFloat, SupportsIndex, timedelta, str, None]
#: An index, a UUID or a unique start of one, a PCI bus id, or several of them.
Ids = Union[SupportsIndex, str, Iterable[Union[SupportsIndex, str]], None]
#: Bytes, or a text such as '10GiB'.
Size = Union[SupportsIndex, SupportsFloat, str, None]
#: A function that takes a line; True: the usual place; False: none; None: as `verbose` says.
Progress = Union[Callable[[str], object], bool, None]
#: What can be done with a GPU.
State = Literal["free", "busy", "claimed", "shared", "unavailable"]


class Memory(TypedDict):
    """Device memory, in bytes; None is unknown."""

    total: Optional[int]
    used: Optional[int]
    free: Optional[int]


class Utilization(TypedDict):
    """Percent of the driver's last sample period; None is unknown."""

    gpu: Optional[int]
    memory: Optional[int]


class _Ignored(TypedDict, total=False):
    #: Whether its program makes no GPU busy (`ignore` in /etc/autocvd.conf).
    ignored: bool
    #: Whether it belongs to a share of the GPU.
    in_share: bool


class Process(_Ignored):
    """A process that has a context on a GPU. `started` is Unix time, `used_memory` bytes.

    `type` is None where the driver does not list the process, which has the GPU open, and nobody
    listed explains what is used of its memory.
    """

    pid: int
    type: Optional[Literal["C", "G", "C+G", "M+C"]]
    user: Optional[str]
    command: Optional[str]
    used_memory: Optional[int]
    started: Optional[int]


class _Kind(TypedDict, total=False):
    kind: Literal["command", "lease", "shell", "share"]
    until: Optional[int]
    version: Optional[str]
    #: How many bytes a share is of, and how many its processes hold where they can be seen.
    memory: int
    used_memory: int


class Claim(_Kind):
    """A launch that has taken a GPU. `since` and `until` are Unix time in seconds."""

    pid: Optional[int]
    user: Optional[str]
    command: Optional[str]
    since: Optional[int]


class _Reserved(TypedDict, total=False):
    #: Whether the administrator keeps it from everybody (`exclude` in /etc/autocvd.conf).
    reserved: bool
    #: Until when launches take it last, in Unix seconds: commands have failed on it in a row.
    suspect_until: int
    #: Why no launch can claim it, so that it is given last; missing where it can be claimed.
    unclaimable: str
    #: Where it is shared: how many bytes another share can be.
    shareable: int


class MigDevice(_Reserved):
    """A MIG device."""

    index: int
    gpu_instance_id: Optional[int]
    compute_instance_id: Optional[int]
    uuid: Optional[str]
    name: Optional[str]
    memory: Memory
    processes: Optional[List[Process]]
    claims: List[Claim]
    state: State
    reason: Optional[str]


class Mig(TypedDict):
    """The MIG devices that a GPU is divided into."""

    devices: List[MigDevice]


class Health(TypedDict):
    """What the driver says of a GPU's health; None is unknown."""

    recovery_action: Optional[
        Literal[
            "NONE",
            "GPU_RESET",
            "NODE_REBOOT",
            "DRAIN_P2P",
            "DRAIN_AND_RESET",
            "IMEX",
            "BUS_RESET",
            "SYSTEM_REBOOT",
            "OTHER",
        ]
    ]
    remap_failed: Optional[bool]


class Gpu(_Reserved):
    """A GPU. Its index is nvidia-smi's; `processes` is None where the list cannot be read.

    `not_applicable` lists which of the members that are None this machine does not have at all.
    """

    index: int
    uuid: Optional[str]
    pci_bus_id: Optional[str]
    name: Optional[str]
    memory: Memory
    utilization: Utilization
    compute_mode: Optional[
        Literal["DEFAULT", "EXCLUSIVE_THREAD", "PROHIBITED", "EXCLUSIVE_PROCESS"]
    ]
    mig: Optional[Mig]
    processes: Optional[List[Process]]
    memory_is_numa_node: bool
    health: Optional[Health]
    claims: List[Claim]
    state: State
    reason: Optional[str]
    not_applicable: List[str]


class Link(TypedDict):
    """How two GPUs are connected."""

    gpus: List[int]
    nvlinks: int
    ancestor: Optional[Literal["internal", "single", "multiple", "hostbridge", "node", "system"]]


class Waiting(TypedDict):
    """A request that waits. `since` is Unix time in seconds, `place` its place from 1 on.

    `kept` has the UUIDs of the devices that are kept for it, because it has waited for so long.
    """

    pid: Optional[int]
    user: Optional[str]
    command: Optional[str]
    since: Optional[int]
    num_gpus: int
    min_free_memory: Optional[int]
    share: bool
    place: int
    kept: List[str]


class Status(TypedDict):
    """What `autocvd status --json` prints. None is unknown; `time` is Unix time in seconds."""

    schema: int
    source: Literal["nvml", "nvidia-smi", "file"]
    time: Optional[int]
    host: Optional[str]
    boot_id: Optional[str]
    version: Optional[str]
    driver_version: Optional[str]
    process_view: Literal["host", "container", "wsl"]
    gpus: List[Gpu]
    links: List[Link]
    waiting: List[Waiting]
