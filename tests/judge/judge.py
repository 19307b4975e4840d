#!/usr/bin/env python3
"""An independent judge of decisions: written from docs/contract.md, sections 1 to 3, and not from
the program's code.

    python3 tests/judge/judge.py --program target/release/autocvd --cases 20000 --seed 1

Makes random machines, decides what should be given on each, and asks the program the same through
--from. Every tenth machine is also recorded again by the program itself (`status --json`) and has
to be decided alike; with --nvml LIBRARY every twentieth is told to the fake NVML library, too,
where it can be told. Prints 'N cases, 0 disagreements', or each disagreement with the command that
shows it, and ends in 1.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
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
    return (
        [{"pid": 77, "user": "anna", "command": "train", "since": 1}] if rng.random() < 0.1 else []
    )


def any_marks(rng):
    """What the administrator or failed commands say of a device; written only where it is so."""
    if rng.random() < 0.5:
        return {}
    reserved = {"reserved": True} if rng.random() < 0.05 else {}
    return reserved | ({"suspect_until": 1764000000} if rng.random() < 0.12 else {})


def any_state(rng, claims):
    """What was judged of it once. A claimed one is recorded as that, whoever computes on it."""
    states = ["free", "busy", "claimed", "unavailable"]
    return fact(rng, "claimed" if claims else rng.choice(states), 0.9)


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
    if rng.random() < 0.05:
        return lost(gpu)
    return gpu


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
    return {
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
    kind = rng.choice(["plain"] * 6 + ["mig", "mig", "numa", "unified", "jetson"])
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


def is_marked(machine):
    """Whether something is recorded that no driver tells."""
    devices = [device for unit in units(machine) for device in unit if device]
    processes = [
        process
        for device in devices
        if isinstance(device["processes"], list)
        for process in device["processes"]
    ]
    return any(
        mark in thing
        for thing in devices + processes
        for mark in ("reserved", "suspect_until", "ignored")
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


def by_facts(unit, view):
    """'free', 'busy', 'unknown', or 'unknowable': what no waiting changes."""
    gpu, device = unit
    processes = own(unit)["processes"]
    listed = processes if isinstance(processes, list) else []
    memory = own(unit)["memory"]
    utilization = "n/a" if device else gpu["utilization"]["gpu"]
    if any(computes(process, listed) for process in listed):
        return "busy"
    if gpu["compute_mode"] is None and device is None:
        return "unknown"
    explained = sum(
        4 * GIB if process["used_memory"] is None else process["used_memory"] for process in listed
    )
    used, total = memory["used"], memory["total"]
    unexplained = max(0, used - explained) if isinstance(used, int) else used
    complete = view == "host" and isinstance(processes, list)
    if complete:
        if gpu["memory_is_numa_node"] or used == "n/a":
            return "free"
        if used is None:
            return "unknown"
        return "busy" if unexplained > GIB and unexplained * 100 > 5 * (total or 0) else "free"
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


def verdict(unit, machine, request, needs_uuid):
    """One of 'unavailable', 'claimed', and what the facts say."""
    gpu, device = unit
    heeds_claims = "--no-claim" not in request["options"]
    if gpu.get("reserved") or own(unit).get("reserved"):
        return "unavailable"
    if unusable(unit) or gpu["state"] == "unavailable" or own(unit)["state"] == "unavailable":
        return "unavailable"
    if needs_uuid and own(unit)["uuid"] is None:
        return "unavailable"
    if heeds_claims and (own(unit)["claims"] or own(unit)["state"] == "claimed"):
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
    gpus = machine["gpus"]
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
    count, wanted, least = request["n"], request.get("m"), "-l" in request["options"]
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
    if least:
        usable = [(unit, seen) for unit, seen in usable if enough(unit)]

        def rank(entry):
            unit, seen = entry
            free = own(unit)["memory"]["free"]
            exclusive = str(unit[0]["compute_mode"]).startswith("EXCLUSIVE")
            occupied = exclusive and by_facts(unit, machine["process_view"]) != "free"
            unknown = free is None or seen in ("unknown", "unknowable")
            recorded_busy = exclusive and own(unit)["state"] == "busy"
            suspect = "suspect_until" in own(unit)
            return (
                occupied or recorded_busy,
                seen == "claimed",
                suspect,
                unknown,
                -(free or 0),
                [-number for number in key(unit)],
            )

        chosen = [unit for unit, _ in sorted(usable, key=rank)[:count]]
    else:
        free = [unit for unit, seen in usable if seen == "free" and enough(unit)]
        # Those on which commands have failed come last.
        suspect = [unit for unit in free if "suspect_until" in own(unit)]
        free = [unit for unit in free if unit not in suspect]
        missing = max(0, count - len(free))
        free = sorted(free + sorted(suspect, key=key, reverse=True)[:missing], key=key)
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
    if machine["process_view"] != "host" or places != sorted(places) or is_marked(machine):
        return None
    gpus = []
    for gpu in machine["gpus"]:
        recorded = [own(unit)["claims"] or own(unit)["state"] for unit in units({"gpus": [gpu]})]
        if (
            gpu["mig"] is not None
            or gpu["state"] == "unavailable"
            and gpu["reason"] is None
            or any(recorded)
            and gpu["reason"] is None
        ):
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


def as_seen_by_nvml(machine):
    """What of the machine the library tells: a lost GPU has no names."""
    seen = json.loads(json.dumps(machine))
    for gpu in seen["gpus"]:
        if gpu["reason"]:
            gpu["uuid"] = gpu["pci_bus_id"] = None
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
    if told:
        fake = own_directory / f"{case}.nvml"
        fake.mkdir(exist_ok=True)
        (fake / "machine.json").write_text(json.dumps(told))
        expected = decide(as_seen_by_nvml(machine), request)
        compare(
            "NVML",
            [*line, "--probe", "nvml", "-t", "0"],
            FAKE_NVML=str(fake),
            AUTOCVD_NVML_LIB=library,
        )
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
