"""What this process may use of its machine, and what it uses of that: cgroups (v2 and v1), affinity, the machine.

Owns:      where Linux says so, and what applies of several limits.
Not here:  the families (metrics/process.py), what is done when memory runs short (the broker).
Threads:   any; no function here is a checkpoint. A call reads a few files of /proc and /sys: about 0.1 ms.

A container's limits are those of its cgroup, and each cgroup above it has limits, too: the smallest applies. Its use is
asked of the same cgroup, since whatever shares it shares the limit. A file that is not there sets no limit.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path("/")

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

_UNRECLAIMABLE: Final = (
    "anon",
    "shmem",
    "sock",
    "kernel_stack",
    "pagetables",
    "percpu",
    "vmalloc",
    "slab_unreclaimable",
)
"""Of cgroup v2's memory.stat: what the kernel cannot take back. The cache of files counts against a limit, but leaves
before anybody is killed."""


class _Limit(NamedTuple):
    amount: float
    folder: Path
    """The cgroup that sets it."""


def memory_limit_bytes(root: Path = ROOT) -> int:
    """Return how much memory this process may use: the smallest limit of its cgroups, or what the machine has."""
    limit = _memory_limit(root)
    return _machine_bytes(root) if limit is None else int(limit.amount)


def memory_used_bytes(root: Path = ROOT) -> int:
    """Return what counts against `memory_limit_bytes` and cannot be reclaimed.

    Where a cgroup limits it: the anonymous, shared, socket and kernel memory of all in that cgroup. Else the memory
    that is resident in this process.
    """
    limit = _memory_limit(root)
    if limit is None:
        return resident_bytes(root)
    stat = _table(limit.folder / "memory.stat")
    if "anon" in stat:
        return sum(stat.get(name, 0) for name in _UNRECLAIMABLE)
    kernel = _text(limit.folder / "memory.kmem.usage_in_bytes")
    return stat.get("total_rss", 0) + stat.get("total_shmem", 0) + int(kernel or 0)


def resident_bytes(root: Path = ROOT) -> int:
    """Return how much memory is resident in this process."""
    return int(os.pread(_statm(root), 200, 0).split()[1]) * _PAGE_BYTES


def cpu_limit(root: Path = ROOT) -> float:
    """Return how many CPUs this process may use: the smallest quota of its cgroups, or those it may run on."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    return allowed if quota is None else min(allowed, quota.amount)


def cpu_throttled_s(root: Path = ROOT) -> float | None:
    """Return for how long, in all, the quota of `cpu_limit` has kept its cgroup from running; None without a quota."""
    quota = _cpu_quota(root)
    if quota is None:
        return None
    stat = _table(quota.folder / "cpu.stat")
    if "throttled_usec" in stat:
        return stat["throttled_usec"] / 1e6
    return stat.get("throttled_time", 0) / 1e9


def _memory_limit(root: Path) -> _Limit | None:
    limit = _smallest("memory", _memory_max, root)
    return limit if limit is not None and limit.amount < _machine_bytes(root) else None  # v1: none is a huge one


def _cpu_quota(root: Path) -> _Limit | None:
    return _smallest("cpu", _cpu_max, root)


def _smallest(controller: str, limit_of: Callable[[Path], float | None], root: Path) -> _Limit | None:
    found = ((limit_of(folder), folder) for folder in _folders(controller, root))
    limits = (_Limit(amount, folder) for amount, folder in found if amount is not None)
    return min(limits, key=lambda limit: limit.amount, default=None)


def _memory_max(folder: Path) -> float | None:
    text = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
    return None if text in ("", "max") else int(text)


def _cpu_max(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return None if quota in ("", "max", "-1") else int(quota) / int(period)


@cache  # a process stays in its cgroup; limits change
def _folders(controller: str, root: Path) -> tuple[Path, ...]:
    """Return the folder of the process's cgroup and those above it, innermost first, as far as they are mounted."""
    paths = dict(_cgroups(root))
    version = controller if controller in paths else ""
    for mounted, top, place in _mounts(root):
        if version not in mounted or version not in paths:
            continue
        inside = Path(paths[version])
        # without a cgroup namespace the path is the host's, and a container sees only what is below its own
        below = inside.relative_to(top) if inside.is_relative_to(top) else Path()
        innermost = root / place.lstrip("/") / below
        return (innermost, *list(innermost.parents)[: len(below.parts)])
    return ()


def _cgroups(root: Path) -> Iterator[tuple[str, str]]:
    """Return each controller of the process with its path in that hierarchy; that of version 2 is named ``""``."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _mounts(root: Path) -> Iterator[tuple[list[str], str, str]]:
    """Return the hierarchies that are mounted: their controllers (``""``: version 2), which part, and where."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split()[:3]
        top, place = mount.split()[3:5]
        if kind == "cgroup2":
            yield [""], top, place
        elif kind == "cgroup":
            yield options.split(","), top, place


@cache
def _statm(root: Path) -> int:
    """Return a descriptor that stays open: it is needed when the process may have none left."""
    return os.open(root / "proc/self/statm", os.O_RDONLY)


@cache
def _machine_bytes(root: Path) -> int:
    return int(_text(root / "proc/meminfo").split()[1]) * 1024  # "MemTotal: 123 kB"


def _table(path: Path) -> dict[str, int]:
    lines = (line.split() for line in _text(path).splitlines())
    return {name: int(value) for name, value in lines}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
