#!/usr/bin/env python3
"""An independent judge of decisions: written from docs/contract.md and the pages that it names, and
not from the program's code.

    python3 tests/judge/judge.py --program target/release/autocvd --cases 20000 --seed 1

Makes random machines, decides what should be given on each, and asks the program the same through
--from. Every tenth machine is also recorded again by the program itself (`status --json`) and has
to be decided alike; with --nvml LIBRARY every twentieth is told to the fake NVML library, too,
where it can be told: its claims are then locks, its failed commands lines of lock files, and what
the administrator sets is an /etc/autocvd.conf (which takes root). Prints 'N cases, 0
disagreements', or each disagreement with the command that shows it, and ends in 1.
"""

import argparse
import concurrent.futures
import contextlib
import fcntl
import itertools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30
WRONG_VALUE, IMPOSSIBLE, NOT_NOW = 2, 3, 4
COMPUTING = ("C", "C+G", "M+C", "M")
BAD_ACTIONS = ("GPU_RESET", "NODE_REBOOT", "DRAIN_AND_RESET", "BUS_RESET", "SYSTEM_REBOOT")
GOOD_ACTIONS = ("NONE", "DRAIN_P2P", "IMEX")
LEVELS = ("system", "node", "hostbridge", "multiple", "single", "internal")

# Random machines


def fact(rng, value, unknown=0.06, absent=0.0):
    """A value, None where the driver's call failed, or 'n/a' where the driver has no such thing."""
    draw = rng.random()
    return None if draw < unknown else "n/a" if draw < unknown + absent else value


def any_process(rng, kind):
    sizes = [0, 20 * MIB, 183 * MIB, 512 * MIB, 513 * MIB, 3 * GIB, 4 * GIB, 30 * GIB]
    process = {
        "pid": rng.randint(2, 30000),
        "type": kind,
        "used_memory": fact(rng, rng.choice(sizes), 0.25),
    }
    return process | ({"ignored": True} if rng.random() < 0.03 else {})


def any_processes(rng):
    lists = (
        [[]] * 12
        + [["G"]] * 3
        + [
            ["G", "G"],
            ["C"],
            ["C"],
            ["M+C"],
            ["C+G"],
            ["G", "C+G"],
            ["G", "C+G"],
            ["G", "C+G", "C+G"],
            ["M"],
        ]
    )
    return [any_process(rng, kind) for kind in rng.choice(lists)]


def any_memory(rng, total):
    """Device memory around the amounts at which verdicts change."""
    marks = [
        0,
        64 * MIB,
        64 * MIB + 1,
        256 * MIB,
        256 * MIB + 1,
        GIB,
        GIB + 1,
        total // 20,
        total // 20 + 1,
        total // 4,
        total // 4 + 1,
    ]
    used = min(total, rng.choice([0] * 6 + marks + [rng.randrange(total)]))
    reserved = min(total - used, rng.choice([0, 0, 600 * MIB]))
    return {"total": total, "used": used, "free": total - used - reserved}


def any_claims(rng):
    whole = {"pid": 77, "user": "anna", "command": "train", "since": 1}
    draw = rng.random()
    if draw < 0.1:
        return [rng.choice([whole, {**whole, "kind": "command"}])]
    if draw < 0.2:
        shares = [any_share(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
        # One that asked for the least used GPU may be beside them.
        return shares + ([whole] if rng.random() < 0.1 else [])
    return []


def any_share(rng):
    """A share, and how much its processes hold where they can be seen."""
    size = rng.choice([512 * MIB, 3 * GIB, 6 * GIB, 15 * GIB])
    used = fact(rng, rng.choice([0, 20 * MIB, 3 * GIB, 7 * GIB]), 0.3)
    share = {"kind": "share", "pid": 78, "user": "ben", "command": "sweep", "since": 1}
    return share | {"memory": size, "used_memory": used}


def place_in_shares(rng, device):
    """Lets most of the processes on a shared device be its shares'."""
    if any("memory" in claim for claim in device["claims"]):
        for process in device["processes"] if isinstance(device["processes"], list) else []:
            if rng.random() < 0.75:
                process["in_share"] = True
    return device


def any_marks(rng):
    """What the administrator or failed commands say of a device; written only where it is so."""
    if rng.random() < 0.5:
        return {}
    reserved = {"reserved": True} if rng.random() < 0.05 else {}
    if rng.random() < 0.1:
        reserved["unclaimable"] = "its lock file is a directory"
    return reserved | ({"suspect_until": 1764000000} if rng.random() < 0.12 else {})


def crowd(rng, gpu):
    """Puts small programs on a GPU, of shares for the most part, whose memory they explain."""
    if not isinstance(gpu["processes"], list) or not isinstance(gpu["memory"]["used"], int):
        return gpu
    kinds = rng.choice([["C"], ["C"], ["C", "C"], ["M+C"], ["G", "C"], []])
    processes = [any_process(rng, kind) for kind in kinds]
    for process in processes:
        process["used_memory"] = fact(rng, rng.choice([20 * MIB, 400 * MIB, 3 * GIB]), 0.05)
    total = gpu["memory"]["total"]
    held = sum(process["used_memory"] or 0 for process in processes)
    used = min(total, held + rng.choice([0, 0, 200 * MIB, 900 * MIB, 3 * GIB]))
    shares = [any_share(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
    return gpu | {
        "processes": processes,
        "memory": {"total": total, "used": used, "free": total - used},
        "utilization": {"gpu": fact(rng, rng.choice([0, 0, 3, 5, 6]), 0.05), "memory": 0},
        "claims": shares,
        "state": fact(rng, "shared", 0.7) if shares else None,
    }


def any_state(rng, claims):
    """What was judged of it once. A claimed one is recorded as that, whoever computes on it."""
    if claims:
        state = "shared" if all("memory" in claim for claim in claims) else "claimed"
    else:
        state = rng.choice(["free", "busy", "claimed", "shared", "unavailable"])
    return fact(rng, state, 0.9)


def any_place(rng, index, kind):
    domain = rng.choice([0, 0, 0, 9]) if kind == "numa" else 0
    return f"{domain:08X}:{index * 16 + 3:02X}:00.0"


def any_gpu(rng, index, kind):
    total = rng.choice([8 * GIB, 24 * GIB, 80 * GIB])
    memory = any_memory(rng, total)
    if rng.random() < 0.05:
        memory = dict.fromkeys(memory)
    utilization = rng.choice([0] * 8 + [3, 5, 6, 100])
    claims = any_claims(rng)
    gpu = {
        "index": index,
        "uuid": fact(
            rng,
            f"GPU-{index:x}{rng.randrange(16**7):07x}-0000-0000-0000-{rng.randrange(16**12):012x}",
            0.03,
        ),
        "pci_bus_id": any_place(rng, index, kind),
        "name": "NVIDIA A100",
        "memory": memory,
        "utilization": {"gpu": fact(rng, utilization, 0.08, 0.04), "memory": 0},
        "compute_mode": fact(
            rng,
            rng.choice(["DEFAULT"] * 8 + ["EXCLUSIVE_PROCESS"] * 2 + ["PROHIBITED"]),
            0.04,
            0.02,
        ),
        "mig": None,
        "processes": fact(rng, any_processes(rng), 0.08, 0.04),
        "memory_is_numa_node": kind == "numa",
        "health": any_health(rng),
        "claims": claims,
        "state": any_state(rng, claims),
        "reason": None,
        **any_marks(rng),
    }
    if kind == "unified" and rng.random() < 0.9:
        free = rng.randrange(total)
        gpu["memory"] = {"total": total, "used": "n/a", "free": free}
    if kind == "jetson":
        gpu["compute_mode"] = "n/a"
        gpu["memory"] = {"total": total, "used": "n/a", "free": rng.randrange(total)}
        gpu["utilization"] = {"gpu": "n/a", "memory": "n/a"}
    if kind == "mig" and rng.random() < 0.7:
        gpu["mig"] = {
            "devices": [any_mig_device(rng, index, number) for number in range(rng.randint(0, 3))]
        }
        gpu["utilization"] = {"gpu": "n/a", "memory": "n/a"}
        gpu["compute_mode"] = rng.choice(["DEFAULT", "DEFAULT", "DEFAULT", "PROHIBITED", "n/a"])
        gpu["memory_is_numa_node"] = rng.random() < 0.3
        gpu["claims"] = []
        gpu["state"] = fact(rng, "unavailable", 0.95)
    if kind == "crowded":
        gpu = crowd(rng, gpu)
    if rng.random() < 0.05:
        return lost(gpu)
    return place_in_shares(rng, gpu)


def lost(gpu):
    """As the driver tells of a GPU that fell off the bus: next to nothing."""
    unknown = dict.fromkeys(["total", "used", "free"])
    silent = {
        "memory": unknown,
        "utilization": {"gpu": None, "memory": None},
        "compute_mode": None,
        "mig": None,
    }
    return {
        **gpu,
        **silent,
        "processes": None,
        "health": None,
        "claims": [],
        "state": "unavailable",
        "reason": "GPU is lost",
    }


def any_health(rng):
    draw = rng.random()
    if draw < 0.3:
        return None
    action = "NONE" if draw < 0.9 else rng.choice(BAD_ACTIONS + GOOD_ACTIONS)
    return {
        "recovery_action": fact(rng, action, 0.1),
        "remap_failed": fact(rng, rng.random() < 0.03, 0.2),
    }


def any_mig_device(rng, index, number):
    claims = any_claims(rng)
    device = {
        "index": number,
        "gpu_instance_id": 7 + number,
        "compute_instance_id": 0,
        "uuid": fact(
            rng, f"MIG-{index}{number}{rng.randrange(16**6):06x}-0000-0000-0000-000000000000", 0.04
        ),
        "name": None,
        "memory": any_memory(rng, 10 * GIB)
        if rng.random() < 0.95
        else dict.fromkeys(["total", "used", "free"]),
        "processes": fact(rng, any_processes(rng), 0.15),
        "claims": claims,
        "state": any_state(rng, claims),
        "reason": None,
        **any_marks(rng),
    }
    return place_in_shares(rng, device)


def any_links(rng, gpus):
    style = rng.choice(["none", "none", "mesh", "pairs", "switch"])
    if style == "none":
        return []
    links = []
    for b in range(len(gpus)):
        for a in range(b):
            nvlinks = {
                "mesh": rng.choice([0, 0, 1, 2]),
                "pairs": 4 if a // 2 == b // 2 else 0,
                "switch": 1,
            }[style]
            links.append(
                {"gpus": [a, b], "nvlinks": nvlinks, "ancestor": fact(rng, rng.choice(LEVELS), 0.1)}
            )
    return links


def any_machine(rng):
    kinds = ["plain"] * 6 + ["crowded"] * 4 + ["mig", "mig", "numa", "unified", "jetson"]
    kind = rng.choice(kinds)
    gpus = [any_gpu(rng, index, kind) for index in range(rng.choice([1, 1, 2, 3, 4, 4, 6, 8]))]
    view = rng.choice(["host"] * 5 + ["container"] * 3 + ["wsl"])
    return {
        "schema": 1,
        "source": "nvml",
        "driver_version": "580.82.07",
        "process_view": view,
        "gpus": gpus,
        "links": any_links(rng, gpus),
    }


def any_id(rng, gpu):
    forms = [str(gpu["index"]), gpu["pci_bus_id"], gpu["pci_bus_id"][4:].lower()]
    if gpu["uuid"]:
        forms += [gpu["uuid"], gpu["uuid"][: rng.randint(12, 30)]]
    return rng.choice(forms)


def any_request(rng, machine):
    gpus = machine["gpus"]
    request = {"n": min(rng.choice([1, 1, 1, 2, 2, 3, 4]), 5), "options": set()}
    for option, share in [("-l", 0.2), ("--uuid", 0.12), ("--no-claim", 0.15)]:
        if rng.random() < share:
            request["options"].add(option)
    if rng.random() < 0.2:
        request["m"] = rng.choice([100 * MIB, 7 * GIB, 20 * GIB, 79 * GIB, 81 * GIB])
    if rng.random() < 0.2:
        request["m"] = rng.choice([100 * MIB, 2 * GIB, 7 * GIB, 20 * GIB, 81 * GIB])
        request["options"].add("--share")
    if rng.random() < 0.2:
        request["tolerate"] = rng.choice([20 * MIB, 512 * MIB, 4 * GIB, 40 * GIB])
    for option in ("only", "exclude"):
        if rng.random() < 0.15:
            request[option] = [
                any_id(rng, gpu) for gpu in rng.sample(gpus, rng.randint(1, len(gpus)))
            ]
        elif rng.random() < 0.03:
            request[option] = [rng.choice(["99", "GPU-ffffffff", "0000:ff:00.0"])]
    if rng.random() < 0.1 and not any(gpu["mig"] for gpu in gpus):
        words = [
            rng.choice([str(gpu["index"]), gpu["uuid"] or "0"])
            for gpu in rng.choices(gpus, k=rng.randint(1, 3))
        ]
        request["visible"] = rng.choice(
            ["", "-1", "NoDevFiles", "1gpu"] + [",".join(words), ",".join(words + ["99", "0"])] * 3
        )
    return request


# The document that the program reads


def document(machine):
    """The machine as JSON: null for what is unknown and for what does not apply, listed beside."""
    result = json.loads(json.dumps(machine))
    for gpu in result["gpus"]:
        gpu["not_applicable"] = strip(gpu)
        for device in (gpu["mig"] or {}).get("devices", []):
            device["not_applicable"] = strip(device)
    return result


def strip(device, prefix=""):
    names = []
    for key, value in list(device.items()):
        if key in ("memory", "utilization") and isinstance(value, dict):
            names += strip(value, f"{key}.")
        elif value == "n/a":
            device[key] = None
            names.append(prefix + key)
    return names


# What the contract says


def units(machine):
    """What can be given: GPUs, or the MIG devices of those on which MIG is enabled."""
    for gpu in machine["gpus"]:
        devices = gpu["mig"]["devices"] if gpu["mig"] else []
        yield from [(gpu, device) for device in devices] or [(gpu, None)]


def key(unit):
    return unit[0]["index"], unit[1]["index"] if unit[1] else -1


def own(unit):
    return unit[1] or unit[0]


def unhealthy(gpu):
    health = gpu["health"] or {}
    return health.get("recovery_action") in BAD_ACTIONS or health.get("remap_failed") is True


def unusable(unit):
    """Whether the facts alone, without the state that was recorded, say it cannot be used."""
    gpu, device = unit
    empty = gpu["mig"] is not None and device is None
    return gpu["compute_mode"] == "PROHIBITED" or unhealthy(gpu) or empty


def hidden_from_cuda(gpu):
    # One that answers and lacks a UUID may only have had no name to give it by.
    nameless = gpu["uuid"] is None and not is_silent(gpu)
    return gpu["state"] == "unavailable" and not unusable((gpu, None)) and not nameless


def is_silent(gpu):
    facts = [*gpu["memory"].values(), gpu["compute_mode"], gpu["processes"]]
    return gpu["mig"] is None and all(value is None for value in facts)


def indices_are_ordinals(machine):
    return not any(
        gpu["mig"] is not None
        or gpu["state"] == "unavailable"
        and not unusable((gpu, None))
        or is_silent(gpu)
        for gpu in machine["gpus"]
    )


def computes(process, processes):
    if process.get("ignored"):
        return False
    if process["type"] == "C+G":
        desktop = any(other["type"] == "G" for other in processes)
        return not (
            desktop and process["used_memory"] is not None and process["used_memory"] <= 512 * MIB
        )
    return process["type"] in COMPUTING


def listed(unit):
    processes = own(unit)["processes"]
    return processes if isinstance(processes, list) else []


def computing(unit):
    return [process for process in listed(unit) if computes(process, listed(unit))]


def utilization_of(unit):
    return "n/a" if unit[1] else unit[0]["utilization"]["gpu"]


def unexplained_in(unit):
    """Used memory that no listed process explains; one that is unknown explains 4 GiB."""
    held = [process["used_memory"] for process in listed(unit)]
    explained = sum(4 * GIB if memory is None else memory for memory in held)
    used = own(unit)["memory"]["used"]
    return max(0, used - explained) if isinstance(used, int) else used


def by_facts(unit, view):
    """'free', 'busy', 'unknown', or 'unknowable': what no waiting changes."""
    return "busy" if computing(unit) else beside_processes(unit, view)


def needs_mode(unit):
    return unit[0]["compute_mode"] is None and unit[1] is None


def by_complete_list(unit):
    """What memory says where the list is complete and names nobody else."""
    used, total = own(unit)["memory"]["used"], own(unit)["memory"]["total"]
    unexplained = unexplained_in(unit)
    if unit[0]["memory_is_numa_node"] or used == "n/a":
        return "free"
    if used is None:
        return "unknown"
    return "busy" if unexplained > GIB and unexplained * 100 > 5 * (total or 0) else "free"


def beside_processes(unit, view):
    """The same where the processes that are listed make it not busy."""
    processes, utilization = own(unit)["processes"], utilization_of(unit)
    used, total = own(unit)["memory"]["used"], own(unit)["memory"]["total"]
    unexplained = unexplained_in(unit)
    if needs_mode(unit):
        return "unknown"
    if view == "host" and isinstance(processes, list):
        return by_complete_list(unit)
    # The list proves nothing.
    if used is None:
        return "unknown"
    if used == "n/a":
        if utilization == "n/a":
            return "unknowable" if view != "host" or processes == "n/a" else "unknown"
        return "unknown" if utilization is None else "busy" if utilization > 5 else "free"
    if used <= 64 * MIB:
        return "free"
    if view == "wsl":
        if unexplained > max(GIB, (total or 0) // 4):
            return "busy"
        return (
            "unknown"
            if utilization is None
            else "busy"
            if utilization != "n/a" and utilization > 5
            else "free"
        )
    if unexplained > 256 * MIB:
        return "busy"
    return "busy" if isinstance(utilization, int) and utilization > 5 else "free"


def is_exclusive(unit):
    return str(unit[0]["compute_mode"]).startswith("EXCLUSIVE")


def are_idle(unit, processes, most):
    """Whether these processes hold no more than `most` together, and the device is idle."""
    held = [process["used_memory"] for process in processes]
    utilization = utilization_of(unit)
    idle = isinstance(utilization, int) and utilization <= 5
    return None not in held and sum(held) <= most and idle and not is_exclusive(unit)


def is_tolerable(unit, seen, view, most):
    """Whether nothing but idle processes of so much memory keeps it from being free."""
    users = computing(unit)
    if most is None or seen != "busy" or not users:
        return False
    return are_idle(unit, users, most) and beside_processes(unit, view) == "free"


def strangers(unit):
    return [process for process in computing(unit) if not process.get("in_share")]


def reserved_by_shares(unit):
    """What its shares have not allocated yet; all of one whose processes cannot be seen."""
    claims = own(unit)["claims"]
    return sum(max(0, claim["memory"] - (claim["used_memory"] or 0)) for claim in claims)


def beside_shares(unit, view):
    """Whether all its memory is explained by processes and shares."""
    used, total = own(unit)["memory"]["used"], own(unit)["memory"]["total"]
    if needs_mode(unit):
        return False
    if view == "host" and isinstance(own(unit)["processes"], list):
        return by_complete_list(unit) == "free"
    if not isinstance(used, int):
        return False
    most = max(GIB, (total or 0) // 4) if view == "wsl" else 256 * MIB
    return unexplained_in(unit) - reserved_by_shares(unit) <= most


def room_for_shares(unit, seen, view):
    """How large another share of it can be; None where there can be none."""
    free = own(unit)["memory"]["free"]
    if not isinstance(free, int) or seen not in ("free", "shared"):
        return None
    if seen == "free":
        return free
    others = [process["used_memory"] for process in strangers(unit)]
    # They may be those of shares whose processes cannot be told.
    unseen = [claim["memory"] for claim in own(unit)["claims"] if claim["used_memory"] is None]
    explained = not others or None not in others and sum(others) <= sum(unseen)
    if is_exclusive(unit) or not explained or not beside_shares(unit, view):
        return None
    return max(0, free - reserved_by_shares(unit))


def tolerant_room(unit, seen, view, most):
    """The same where idle processes of so much memory do not count."""
    free = own(unit)["memory"]["free"]
    if most is None or not isinstance(free, int):
        return None
    if seen == "shared":
        tolerable = are_idle(unit, strangers(unit), most) and beside_shares(unit, view)
        return max(0, free - reserved_by_shares(unit)) if tolerable else None
    return free if is_tolerable(unit, seen, view, most) else None


def heeds_claims_of(request):
    return "--no-claim" not in request["options"]


def verdict(unit, machine, request, needs_uuid):
    """One of 'unavailable', 'claimed', 'shared', and what the facts say."""
    gpu, device = unit
    heeds_claims = heeds_claims_of(request)
    if gpu.get("reserved") or own(unit).get("reserved"):
        return "unavailable"
    if unusable(unit) or gpu["state"] == "unavailable" or own(unit)["state"] == "unavailable":
        return "unavailable"
    if needs_uuid and own(unit)["uuid"] is None:
        return "unavailable"
    claims = own(unit)["claims"]
    if heeds_claims and claims:
        return "shared" if all("memory" in claim for claim in claims) else "claimed"
    if heeds_claims and own(unit)["state"] in ("claimed", "shared"):
        return "claimed"
    seen = by_facts(unit, machine["process_view"])
    return "busy" if seen == "free" and own(unit)["state"] == "busy" else seen


def place(bus_id):
    """Domain, bus and device of a PCI bus id, long or short."""
    return bus_id and [int(part, 16) for part in bus_id.split(".")[0].split(":")]


def resolve(word, machine):
    """The GPUs that an id names; None where it is wrong, 'absent' where nothing has that name."""
    gpus = machine["gpus"]
    if word.isdigit():
        found = [gpu for gpu in gpus if gpu["index"] == int(word)]
    elif word.startswith("GPU-"):
        found = [gpu for gpu in gpus if (gpu["uuid"] or "").lower() == word.lower()]
        found = found or [
            gpu for gpu in gpus if (gpu["uuid"] or "").lower().startswith(word.lower())
        ]
    else:
        found = [gpu for gpu in gpus if place(gpu["pci_bus_id"]) == place(word)]
    return "absent" if not found else found[0]["index"] if len(found) == 1 else None


def visible(value, machine):
    """The GPUs that CUDA_VISIBLE_DEVICES allows, as CUDA reads it."""
    counted = [gpu for gpu in machine["gpus"] if not hidden_from_cuda(gpu)]
    result = []
    for word in value.split(","):
        digits = "".join(itertools.takewhile(str.isdigit, word))
        if digits:
            found = counted[int(digits)]["index"] if int(digits) < len(counted) else "absent"
        else:
            found = resolve(word, machine) if word.startswith("GPU-") else "absent"
        if found in ("absent", None):
            break
        if found in result:
            return []
        result.append(found)
    return result


def best_ring(indices, nvlinks):
    """The number of NVLinks of the slowest link in the best ring through these GPUs."""
    first, *rest = indices
    rings = ((first, *order) for order in itertools.permutations(rest))
    return max(min(nvlinks(a, b) for a, b in zip(ring, ring[1:] + ring[:1])) for ring in rings)


def best_set(free, count, machine):
    links = {frozenset(link["gpus"]): link for link in machine["links"]}

    def nvlinks(a, b):
        return links.get(frozenset((a, b)), {}).get("nvlinks", 0)

    def nearness(a, b):
        level = links.get(frozenset((a, b)), {}).get("ancestor")
        return LEVELS.index(level) + 1 if level else 0

    if count == 1:
        return [max(free, key=key)]

    def score(chosen):
        indices = [unit[0]["index"] for unit in chosen]
        pairs = list(itertools.combinations(indices, 2))
        together = (sum(nvlinks(a, b) for a, b in pairs), sum(nearness(a, b) for a, b in pairs))
        return best_ring(indices, nvlinks), *together, sorted(indices, reverse=True)

    return max(itertools.combinations(free, count), key=score)


def decide(machine, request):
    """The exit code, and the ids that are printed."""
    gpus, view = machine["gpus"], machine["process_view"]
    most_held = request.get("max_per_user")
    if most_held is not None and request["n"] > most_held:
        return IMPOSSIBLE, []
    needs_uuid = "--uuid" in request["options"] or not indices_are_ordinals(machine)
    allowed = {gpu["index"] for gpu in gpus}
    if "visible" in request:
        seen = visible(request["visible"], machine)
        if not seen:
            return IMPOSSIBLE, []
        allowed &= set(seen)
    for option in ("only", "exclude"):
        found = [resolve(word, machine) for word in request.get(option, [])]
        for word, what in zip(request.get(option, []), list(found)):
            name = (
                "uuid" if word.startswith("GPU-") else "index" if word.isdigit() else "pci_bus_id"
            )
            unnamed = any(gpu[name] is None for gpu in gpus)
            if what is None or what == "absent" and not (option == "exclude" and unnamed):
                return WRONG_VALUE, []
            if what == "absent":
                # It may be the name of one that cannot be identified.
                found += [gpu["index"] for gpu in gpus if gpu[name] is None]
        if option in request:
            allowed = allowed & set(found) if option == "only" else allowed - set(found)
    count, wanted, tolerated = request["n"], request.get("m"), request.get("tolerate")
    shared = "--share" in request["options"]
    least = "-l" in request["options"] and not shared
    judged = [
        (unit, verdict(unit, machine, request, needs_uuid))
        for unit in units(machine)
        if unit[0]["index"] in allowed
    ]

    def room(unit):
        memory = own(unit)["memory"]
        numbers = isinstance(memory["used"], int) and isinstance(memory["free"], int)
        return (
            min(
                memory["used"] + memory["free"],
                memory["total"] if isinstance(memory["total"], int) else 1 << 99,
            )
            if numbers
            else memory["total"]
        )

    def ever(unit, seen):
        large = wanted is None or room(unit) is None or room(unit) >= wanted
        return (
            seen != "unavailable"
            and (count == 1 or unit[1] is None)
            and large
            and (least or seen != "unknowable")
        )

    def enough(unit):
        free = own(unit)["memory"]["free"]
        return wanted is None or free is not None and free >= wanted

    usable = [(unit, seen) for unit, seen in judged if ever(unit, seen)]
    if len(usable) < count:
        return IMPOSSIBLE, []

    def is_suspect(unit):
        # Failed commands are noted with the claims.
        return heeds_claims_of(request) and "suspect_until" in own(unit)

    def is_unclaimable(unit):
        return heeds_claims_of(request) and "unclaimable" in own(unit)

    claimable = [entry for entry in usable if not is_unclaimable(entry[0])]
    if not least and len(claimable) >= count:
        # Others may have those that cannot be claimed: it is better to wait for these.
        usable = claimable
    if shared:
        fitting = []
        for unit, seen in usable:
            room = room_for_shares(unit, seen, view)
            largest = tolerant_room(unit, seen, view, tolerated) if room is None else room
            if enough(unit) and largest is not None and largest >= wanted:
                claims = heeds_claims_of(request) and own(unit)["claims"]
                order = (is_unclaimable(unit), is_suspect(unit), room is None, not claims, largest)
                fitting.append((*order, [-number for number in key(unit)], unit))
        fitting.sort(key=lambda entry: entry[:-1])
        chosen = [entry[-1] for entry in fitting[:count]]
    elif least:
        usable = [(unit, seen) for unit, seen in usable if enough(unit)]

        def rank(entry):
            unit, seen = entry
            free = own(unit)["memory"]["free"]
            exclusive = is_exclusive(unit)
            occupied = exclusive and by_facts(unit, view) != "free"
            unknown = free is None or seen in ("unknown", "unknowable")
            recorded_busy = exclusive and own(unit)["state"] == "busy"
            return (
                occupied or recorded_busy,
                # Others may have taken one that cannot be claimed.
                seen in ("claimed", "shared") or is_unclaimable(unit),
                is_suspect(unit),
                unknown,
                -(free or 0),
                [-number for number in key(unit)],
            )

        chosen = [unit for unit, _ in sorted(usable, key=rank)[:count]]
    else:
        free = [unit for unit, seen in usable if seen == "free" and enough(unit)]
        idle = [
            unit
            for unit, seen in usable
            if enough(unit) and is_tolerable(unit, seen, view, tolerated)
        ]
        # Those that are tolerated come after the free ones, and those on which commands have
        # failed last.
        sure = [unit for unit in free if not is_unclaimable(unit)]
        idle_sure = [unit for unit in idle if not is_unclaimable(unit)]
        first = [unit for unit in sure if not is_suspect(unit)]
        last = [
            [unit for unit in idle_sure if not is_suspect(unit)],
            [unit for unit in sure if is_suspect(unit)],
            [unit for unit in idle_sure if is_suspect(unit)],
            [unit for unit in free + idle if is_unclaimable(unit)],
        ]
        free = first
        for more in last:
            missing = max(0, count - len(free))
            free = free + sorted(more, key=key, reverse=True)[:missing]
        free.sort(key=key)
        if wanted is not None and len(free) >= count:
            # The smallest that are enough; where they are of one size, the best set of these.
            def total(unit):
                known = own(unit)["memory"]["total"]
                return known if isinstance(known, int) else 1 << 99

            free.sort(key=lambda unit: (total(unit), [-number for number in key(unit)]))
            sizes = [total(unit) for unit in free]
            alike = sizes[0] == sizes[count - 1]
            free = [unit for unit in free if total(unit) == sizes[0]] if alike else free[:count]
            free.sort(key=key)
        chosen = best_set(free, count, machine) if len(free) >= count else []
    if len(chosen) < count:
        return NOT_NOW, []
    if most_held is not None:
        held = [unit for unit in units(machine) if unit in chosen or own(unit).get("held")]
        if len(held) > most_held:
            return NOT_NOW, []
    return 0, [
        own(unit)["uuid"] if needs_uuid else str(unit[0]["index"])
        for unit in sorted(chosen, key=key)
    ]


# What the program says


def command_line(program, request):
    line = [program, "-o", "-n", str(request["n"]), *sorted(request["options"])]
    for option in ("only", "exclude"):
        for word in request.get(option, []):
            line += [f"--{option}={word}"]
    if "m" in request:
        line += ["-m", str(request["m"] // MIB) + "MiB"]
    if "tolerate" in request:
        line += ["--tolerate", str(request["tolerate"] // MIB) + "MiB"]
    if "visible" in request:
        line += ["--inherit"]
    return line


def ask(line, request, directory, **more):
    environment = {"PATH": os.environ["PATH"], "AUTOCVD_CLAIM_DIR": f"{directory}/claims", **more}
    if "visible" in request:
        environment |= {
            "CUDA_VISIBLE_DEVICES": request["visible"],
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }
    ended = subprocess.run(
        line, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    ids = ended.stdout.strip().split(",") if ended.stdout.strip() else []
    return ended.returncode, ids, ended.stderr.strip()


# The fake NVML library


def told_by_nvml(machine):
    """The machine.json of the fake library for this machine; None where it cannot be told."""
    places = [place(gpu["pci_bus_id"]) for gpu in machine["gpus"]]
    if machine["process_view"] != "host" or places != sorted(places):
        return None
    gpus = []
    for gpu in machine["gpus"]:
        if gpu["mig"] is not None:
            return None
        errors = {}

        def call(value, *functions, given=lambda value: value):
            """What the library knows of a fact; a call that fails or does not apply has a code."""
            if value is None or value == "n/a":
                errors.update(dict.fromkeys(functions, 3 if value == "n/a" else 999))
                return None
            return given(value)

        described = {
            "pci_bus_id": gpu["pci_bus_id"],
            "uuid": gpu["uuid"],
            "compute_mode": call(gpu["compute_mode"], "nvmlDeviceGetComputeMode"),
            "utilization": call(
                gpu["utilization"]["gpu"],
                "nvmlDeviceGetUtilizationRates",
                given=lambda value: {"gpu": value, "memory": 0},
            ),
        }
        memory = gpu["memory"]
        if memory["used"] == "n/a":
            # The program fills in the host's own memory, which nothing here may depend on.
            return None
        described["memory"] = call(
            memory["used"],
            "nvmlDeviceGetMemoryInfo",
            "nvmlDeviceGetMemoryInfo_v2",
            given=lambda used: {**memory, "reserved": 0},
        )
        lists = [
            f"nvmlDeviceGet{kind}RunningProcesses{version}"
            for kind in ("Compute", "Graphics", "MPSCompute")
            for version in ("", "_v2", "_v3")
        ]
        listed = call(gpu["processes"], *lists) or []
        pids = [process["pid"] for process in listed]
        if len(set(pids)) < len(pids):
            return None
        described["processes"] = [
            {"pid": process["pid"], "type": process["type"], "memory": process["used_memory"]}
            for process in listed
        ]
        health = gpu["health"] or {}
        actions = [
            "NONE",
            "GPU_RESET",
            "NODE_REBOOT",
            "DRAIN_P2P",
            "DRAIN_AND_RESET",
            "IMEX",
            "BUS_RESET",
            "SYSTEM_REBOOT",
        ]
        action = health.get("recovery_action")
        described["recovery_action"] = actions.index(action) if action else None
        described["remap_failed"] = health.get("remap_failed")
        if gpu["memory_is_numa_node"]:
            described["numa_node"] = 999
        if gpu["reason"]:
            errors = {"handle": 15}
        gpus.append({**described, "errors": errors})
    if all("handle" in gpu["errors"] for gpu in gpus):
        return None
    links = [
        {"gpus": link["gpus"], "nvlinks": link["nvlinks"], "ancestor": link["ancestor"]}
        for link in machine["links"]
    ]
    return {"gpus": gpus, "links": links}


class Administrator:
    """Root's /etc/autocvd.conf, for programs in mount namespaces of their own."""

    def __init__(self, directory):
        self.etc = Path(directory) / "etc"

    def can_be(self):
        """Whether such namespaces may be made here."""
        self.set([])
        ended = subprocess.run(self.line(["true"]), capture_output=True)
        return os.geteuid() == 0 and ended.returncode == 0

    def set(self, lines):
        self.etc.mkdir(exist_ok=True)
        for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache"):
            if (Path("/etc") / name).exists():
                shutil.copy(Path("/etc") / name, self.etc / name)
        (self.etc / "autocvd.conf").write_text("".join(f"{line}\n" for line in lines))
        (self.etc / "autocvd.conf").chmod(0o644)

    def line(self, line):
        """The command line where /etc is this one."""
        script = 'mount --bind "$1" /etc && shift && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", str(self.etc), *line]


@contextlib.contextmanager
def claimed(machine, program, directory, environment):
    """Holds the claims of the machine, by foreign locks or by launches of this user, and notes the
    commands that have failed on it."""
    claims = directory / "claims"
    claims.mkdir(exist_ok=True)
    claims.chmod(0o1777)
    holders, files = [], []
    try:
        for gpu in machine["gpus"]:
            path = claims / f"{gpu['uuid']}.lock"
            if gpu["uuid"] and "suspect_until" in gpu:
                path.write_text(f"2 {int(time.time())}\n")
                path.chmod(0o666)
            if gpu["claims"] and gpu.get("held"):
                line = [program, "-q", "-l", "--only", gpu["uuid"], "--", "sh", "-c"]
                line += ["echo; exec sleep 600"]
                holder = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE)
                holders.append(holder)
                assert holder.stdout.readline() == b"\n", line
            elif gpu["claims"]:
                files.append(open(path, "a+"))
                path.chmod(0o666)
                fcntl.lockf(files[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
            holder.stdout.close()
        for file in files:
            file.close()


def as_seen_by_nvml(machine):
    """What of the machine can be seen of one that runs: a lost GPU has no names, and nothing tells
    of what was judged of it once, or of shares of processes that do not run."""
    seen = json.loads(json.dumps(machine))
    for gpu in seen["gpus"]:
        if gpu["reason"]:
            gpu["uuid"] = gpu["pci_bus_id"] = None
        else:
            gpu["state"] = None
        # A lock of a claim, and the note of failed commands, have the UUID as name.
        gpu["claims"] = [claim for claim in gpu["claims"] if gpu["uuid"] and "memory" not in claim]
        gpu.pop("unclaimable", None)
        if gpu["uuid"] is None:
            gpu.pop("suspect_until", None)
        for process in gpu["processes"] if isinstance(gpu["processes"], list) else []:
            process.pop("ignored", None)
            process.pop("in_share", None)
    return seen


def check(case, program, seed, library, directory):
    rng = random.Random(f"{seed}/{case}")
    machine = any_machine(rng)
    request = any_request(rng, machine)
    own_directory = Path(directory) / str(os.getpid())
    own_directory.mkdir(exist_ok=True)
    file = own_directory / f"{case}.json"
    file.write_text(json.dumps(document(machine)))
    expected = decide(machine, request)
    problems = []

    def compare(what, line, **environment):
        code, ids, told = ask(line, request, own_directory, **environment)
        if (code, ids) != expected:
            visible = (
                f"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={request['visible']} "
                if "visible" in request
                else ""
            )
            problems.append(
                f"case {case}, {what}: expected {expected}, got {(code, ids)}\n"
                f"  {visible}{shlex.join(line)}\n  {told}"
            )

    line = command_line(program, request)
    compare("--from", [*line, "--from", str(file)])
    if case % 10 == 0:
        again = own_directory / f"{case}-again.json"
        status = subprocess.run(
            [program, "status", "--json", "--from", file], capture_output=True, text=True
        )
        again.write_text(status.stdout)
        compare("what status recorded of it", [*line, "--from", str(again)])
        if not problems:
            again.unlink()
    told = told_by_nvml(machine) if library and case % 20 == 0 else None
    administrator = Administrator(own_directory)
    reserved = [str(gpu["index"]) for gpu in machine["gpus"] if gpu.get("reserved")]
    if told and (reserved or rng.random() < 0.3):
        told = told if administrator.can_be() else None
    else:
        administrator = None
    if told:
        fake = own_directory / f"{case}.nvml"
        fake.mkdir(exist_ok=True)
        (fake / "machine.json").write_text(json.dumps(told))
        fake_library = {"FAKE_NVML": str(fake), "AUTOCVD_NVML_LIB": library}
        # What holds a claim for a while would make the directory anew that is removed at the end.
        line += ["--probe", "nvml", "-t", "0", "--hold", "0"]
        machine = as_seen_by_nvml(machine)
        if administrator:
            settings = [f"exclude {index}" for index in reserved]
            if rng.random() < 0.7 and heeds_claims_of(request):
                request["max_per_user"] = rng.randint(1, 3)
                settings.append(f"max_per_user {request['max_per_user']}")
            administrator.set(settings)
            line = administrator.line(line)
        for gpu in machine["gpus"]:
            usable = verdict((gpu, None), machine, request, False) != "unavailable"
            if "max_per_user" in request and gpu["uuid"] and rng.random() < 0.3:
                gpu["claims"] = gpu["claims"] or [{"pid": 77, "kind": "command"}]
            if gpu["claims"] and usable and rng.random() < 0.6:
                gpu["held"] = True
        expected = decide(machine, request)
        environment = {
            "PATH": os.environ["PATH"],
            "AUTOCVD_CLAIM_DIR": f"{own_directory}/claims",
            **fake_library,
        }
        with claimed(machine, program, own_directory, environment):
            compare("NVML", line, **fake_library)
    if not problems:
        file.unlink()
    return problems, bool(told)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", default="target/release/autocvd")
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--nvml", help="the fake NVML library")
    parser.add_argument("--case", type=int, help="this one alone")
    arguments = parser.parse_args()
    cases = range(arguments.cases) if arguments.case is None else [arguments.case]
    directory = tempfile.mkdtemp(prefix="autocvd-judge-")
    failed, told = 0, 0
    with concurrent.futures.ProcessPoolExecutor(max_workers=2) as pool:
        work = (
            pool.submit(
                check,
                case,
                os.path.abspath(arguments.program),
                arguments.seed,
                arguments.nvml,
                directory,
            )
            for case in cases
        )
        for future in concurrent.futures.as_completed(list(work)):
            problems, by_nvml = future.result()
            told += by_nvml
            failed += bool(problems)
            if failed <= 20:
                print(*problems, sep="\n", end="\n" * bool(problems))
    print(
        f"seed {arguments.seed}: {len(cases)} cases, {failed} disagreements ({told} through NVML)"
    )
    if failed:
        print(f"the machines are in {directory}", file=sys.stderr)
    else:
        # Who holds a claim for a while may still be writing there.
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
