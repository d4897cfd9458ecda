"""What this process may use of its machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may keep busy, at least 1.

    Of the cores it may run on, whole ones that its control groups grant: more threads than that
    are held back, as in a pod with a limit on a node with many cores.

    Args:
        root: of the file system, with ``proc`` and ``sys`` in it.
    """
    quota = cpu_quota(root)
    return visible_cores() if quota is None else max(1, min(visible_cores(), int(quota)))


def visible_cores() -> int:
    """Processor cores that this process may run on, however short."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that this process may keep busy by the limits of control groups, version 1 or 2.

    Args:
        root: of the file system, with ``proc`` and ``sys`` in it.

    Returns:
        The least of its own group's limit and those of the groups above; None for no limit.
    """
    quotas = (_quota(folder) for folder in _groups(root))
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process' control groups and those above, as far as they can be seen.

    A container may see its own group as the top while it is told the host's path, of which then
    nothing is there.
    """
    paths = {"": PurePosixPath(), "cpu": PurePosixPath()}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if ".." not in path:
            paths |= dict.fromkeys(controllers.split(","), PurePosixPath(path.lstrip("/")))
    mounts = root / "sys/fs/cgroup"
    for controller, mount in (("", "."), ("", "unified"), ("cpu", "cpu")):
        for group in (paths[controller], *paths[controller].parents):
            yield mounts / mount / group


def _quota(group: Path) -> float | None:
    """Limit of one control group, in cores."""
    quota, _, period = _text(group / "cpu.max").partition(" ")
    if not quota:
        quota = _text(group / "cpu.cfs_quota_us")
        period = _text(group / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit():  # `max` or -1: none
        return None
    return int(quota) / int(period)


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""
