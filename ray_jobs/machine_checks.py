"""What a machine must have for a run: judges of facts, each without side effects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires

from packaging.requirements import Requirement

from ray_jobs.findings import Finding
from ray_jobs.machine_facts import Facts, Space

_GIB = 2**30

# Ray spills no more to a disk that is filled to 95 %, and ends tasks at 95 % of the memory.
_RAY_FULL = 0.95
_NEARLY_FULL = 0.90
_DISK_FAIL_BYTES = 1 * _GIB
_DISK_WARN_BYTES = 10 * _GIB
_MEMORY_FAIL_BYTES = 1 * _GIB
_MEMORY_WARN_BYTES = 4 * _GIB

# Ray takes 30 % of the memory for objects unless told otherwise, and at most 95 % of /dev/shm.
_STORE_SHARE = 0.3
_SHM_SHARE = 0.95

_FILES_FAIL = 4096
_FILES_WARN = 65536
_PROCESSES_WARN = 4096


@dataclass(frozen=True)
class Share:
    """What Ray counts as its own on a machine where it runs."""

    store_bytes: int
    cpus: float
    gpus: float


def check_machine(node: str, facts: Facts, share: Share | None) -> list[Finding]:
    """All findings about one machine.

    Args:
        node: its name.
        facts: what it answered.
        share: Ray's; None where Ray does not run yet.
    """
    return [
        *check_requirements(node, facts),
        *check_disks(node, facts),
        *check_memory(node, facts),
        *check_shm(node, facts, share),
        *check_gpus(node, facts, share),
        *check_limits(node, facts),
        *check_cores(node, facts, share),
    ]


def check_requirements(node: str, facts: Facts) -> Iterator[Finding]:
    """Versions against what this package asks for."""
    wanted = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, requires("fetal-planes") or ())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    faults = [
        f"{package} {found or 'is missing'} ({wanted.get(package, '')} is needed)"
        for package, found in facts.versions.items()
        if not found or (package in wanted and found not in wanted[package])
    ]
    if faults:
        remedy = "Install again there: pip install --constraint constraints.txt ."
        yield Finding("versions", node, "fail", "; ".join(faults), remedy)
        return
    seen = ", ".join(f"{package} {found}" for package, found in facts.versions.items())
    yield Finding("versions", node, "ok", seen)


def check_disks(node: str, facts: Facts) -> Iterator[Finding]:
    """Room where Ray spills objects and where runs are written."""
    for folder, space in facts.disks.items():
        used = 1 - space.free_bytes / max(1, space.total_bytes)
        seen = f"{folder}: {_size(space.free_bytes)} free of {_size(space.total_bytes)}"
        remedy = (
            f"Free space on the disk of {folder}, or move it: Ray spills to where RAY_TMPDIR "
            "points when it starts."
        )
        if space.free_bytes < _DISK_FAIL_BYTES or used >= _RAY_FULL:
            seen += "; Ray does not spill to a disk that is filled to 95 %"
            yield Finding("free-disk", node, "fail", seen, remedy)
        elif space.free_bytes < _DISK_WARN_BYTES or used >= _NEARLY_FULL:
            yield Finding("free-disk", node, "warn", seen, remedy)
        else:
            yield Finding("free-disk", node, "ok", seen)


def check_memory(node: str, facts: Facts) -> Iterator[Finding]:
    """Memory that is free now, within the control group's limit."""
    if (memory := facts.memory) is None:
        return
    used = 1 - memory.free_bytes / max(1, memory.total_bytes)
    seen = f"{_size(memory.free_bytes)} free of {_size(memory.total_bytes)}"
    remedy = "End what uses it, give the container more, or take a larger machine."
    if memory.free_bytes < _MEMORY_FAIL_BYTES or used >= _RAY_FULL:
        seen += "; Ray ends tasks at 95 %"
        yield Finding("free-memory", node, "fail", seen, remedy)
    elif memory.free_bytes < _MEMORY_WARN_BYTES or used >= _NEARLY_FULL:
        yield Finding("free-memory", node, "warn", seen, remedy)
    else:
        yield Finding("free-memory", node, "ok", seen)


def check_shm(node: str, facts: Facts, share: Share | None) -> Iterator[Finding]:
    """Whether the object store fits into shared memory; Ray is many times slower on a disk."""
    if facts.shm is None:
        return
    shm = facts.shm.total_bytes
    wanted = share.store_bytes if share is not None else _planned_store_bytes(facts.memory)
    if wanted is None:
        return
    whose = "Ray's object store has" if share is not None else "Ray would like an object store of"
    seen = f"/dev/shm has {_size(shm)}, {whose} {_size(wanted)}"
    if wanted <= shm * _SHM_SHARE:
        yield Finding("shared-memory", node, "ok", seen)
        return
    remedy = (
        f"Give the container a /dev/shm of {_size(int(wanted / _SHM_SHARE))} or more (docker run "
        "--shm-size; an emptyDir of medium Memory on Kubernetes), or start Ray with a smaller "
        "--object-store-memory."
    )
    yield Finding("shared-memory", node, "warn" if share is None else "fail", seen, remedy)


def _planned_store_bytes(memory: Space | None) -> int | None:
    return int(memory.free_bytes * _STORE_SHARE) if memory is not None else None


def check_gpus(node: str, facts: Facts, share: Share | None) -> Iterator[Finding]:
    """Whether GPUs that are there can be used; none is fine."""
    gpus = facts.gpus
    if not gpus.visible:
        yield Finding("gpu", node, "ok", "none")
        return
    seen = f"{gpus.visible} shown by driver {gpus.driver}"
    if gpus.error:
        seen += f", but torch cannot compute on them: {gpus.error}"
        remedy = "Install a driver that is new enough for torch's CUDA, or restart the machine."
        yield Finding("gpu", node, "fail", seen, remedy)
    elif not gpus.built:
        remedy = "Install torch and torchvision from the index for CUDA, not that for processors."
        yield Finding("gpu", node, "fail", f"{seen}, but torch was built without CUDA", remedy)
    elif not gpus.working:
        remedy = "Update the driver, or let the container have the devices (docker run --gpus all)."
        yield Finding("gpu", node, "fail", f"{seen}, of which torch can use none", remedy)
    elif len(gpus.working) < gpus.visible:
        seen += f", of which torch sees {len(gpus.working)}"
        remedy = "Give the container all GPUs, or ignore this if it shall not have them."
        yield Finding("gpu", node, "warn", seen, remedy)
    elif share is not None and share.gpus < gpus.visible:
        remedy = f"Start Ray there with --num-gpus={gpus.visible}, or leave it if that is meant."
        yield Finding("gpu", node, "warn", f"{seen}, of which Ray counts {share.gpus:g}", remedy)
    else:
        devices = ", ".join(gpus.working)
        yield Finding("gpu", node, "ok", f"{seen}: {devices}, CUDA {gpus.built}")


def check_limits(node: str, facts: Facts) -> Iterator[Finding]:
    """What the system lets a process have."""
    seen = ", ".join(f"{name} {_limit(value)}" for name, value in facts.limits.items())
    faults = dict(_limit_faults(facts.limits))
    for remedy, severity in faults.items():
        yield Finding("limits", node, "fail" if severity == "fail" else "warn", seen, remedy)
    if facts.limits and not faults:
        yield Finding("limits", node, "ok", seen)


def _limit_faults(limits: dict[str, int]) -> Iterator[tuple[str, str]]:
    files = limits.get("open files", -1)
    if 0 <= files < _FILES_WARN:
        remedy = (
            f"Raise the hard limit of open files to {_FILES_WARN} (ulimit -Hn; LimitNOFILE of "
            "systemd; docker run --ulimit nofile): each worker of Ray holds connections to others."
        )
        yield remedy, "fail" if files < _FILES_FAIL else "warn"
    for name in ("processes", "processes of the control group"):
        if 0 <= limits.get(name, -1) < _PROCESSES_WARN:
            yield f"Raise the limit of {name} to {_PROCESSES_WARN}: threads count too.", "warn"
    for name, flag in (("file size", "-f"), ("address space", "-v")):
        if limits.get(name, -1) >= 0:
            yield f"Remove the limit of {name} (ulimit {flag} unlimited).", "fail"


def check_cores(node: str, facts: Facts, share: Share | None) -> Iterator[Finding]:
    """Cores that programs see against those that the control group grants."""
    quota, cpus = facts.quota_cores, share.cpus if share is not None else 0
    granted = facts.cores if quota is None else min(quota, facts.cores)
    seen = f"{facts.cores} cores" if quota is None else f"{facts.cores} cores, quota {quota:g}"
    seen += f", Ray counts {cpus:g}" if cpus else ""
    if cpus > granted + 2:  # a local cluster counts two more, see ray_jobs.cluster
        remedy = f"Start Ray there with --num-cpus={max(1, int(granted))}."
        yield Finding("cores", node, "warn", seen, remedy)
    elif granted < facts.cores:
        remedy = (
            f"Set OMP_NUM_THREADS={max(1, int(granted))} there: torch keeps to the quota, but "
            "libraries beside it start a thread for each core that they see."
        )
        yield Finding("cores", node, "warn", seen, remedy)
    else:
        yield Finding("cores", node, "ok", seen)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / 2**20:.0f} MiB"


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else f"{value:,}"
