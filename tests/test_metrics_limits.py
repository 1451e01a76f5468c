"""Limits of made-up machines: trees of the files that Linux has under /proc and /sys."""

import os
from pathlib import Path

import pytest

from metrics.limits import cpu_limit, cpu_throttled_s, memory_limit_bytes, memory_used_bytes

MIB = 2**20
CPUS = len(os.sched_getaffinity(0))
V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
V2_STAT = "anon 1048576\nfile 900000000\nkernel 7777777\nshmem 2097152\nkernel_stack 4096\nslab_reclaimable 5000000\n"


def machine(root: Path, *, cgroup: str, mountinfo: str, **files: str) -> Path:
    """Write the files of a machine of 1 GiB, with ``files`` below /sys/fs/cgroup."""
    tree = {
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": f"22 1 259:1 / / rw - ext4 /dev/root rw\n{mountinfo}",
        "proc/self/statm": "50000 1000 300 1 0 2000 0\n",
        "proc/meminfo": "MemTotal:        1048576 kB\nMemFree:          1000 kB\n",
    }
    return write(root, tree | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})


def write(root: Path, tree: dict[str, str]) -> Path:
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_container_has_the_limits_of_its_cgroup(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="0::/\n",
        mountinfo=V2,
        **{
            "memory.max": "268435456\n",
            "memory.stat": V2_STAT,
            "cpu.max": "50000 100000\n",
            "cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 2500000\n",
        },
    )
    assert memory_limit_bytes(root) == 256 * MIB
    assert memory_used_bytes(root) == 3 * MIB + 4096  # what can be taken back does not count
    assert cpu_limit(root) == 0.5
    assert cpu_throttled_s(root) == 2.5


def test_of_nested_cgroups_the_smallest_limit_counts_and_what_is_used_against_it(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="0::/pod/broker\n",
        mountinfo=V2,
        **{
            "memory.max": "max\n",
            "pod/memory.max": "134217728\n",
            "pod/memory.stat": "anon 4194304\n",
            "pod/cpu.max": "max 100000\n",
            "pod/broker/memory.max": "536870912\n",
            "pod/broker/memory.stat": "anon 1048576\n",
            "pod/broker/cpu.max": "25000 100000\n",
        },
    )
    assert memory_limit_bytes(root) == 128 * MIB
    assert memory_used_bytes(root) == 4 * MIB
    assert cpu_limit(root) == 0.25


@pytest.mark.parametrize("memory_max", ["max\n", f"{2**40}\n"])
def test_without_a_limit_below_the_machines_it_is_the_machine_and_resident_memory(
    tmp_path: Path, memory_max: str
) -> None:
    files = {"memory.max": memory_max, "memory.stat": V2_STAT, "cpu.max": "max 100000\n", "cpu.stat": "usage_usec 5\n"}
    root = machine(tmp_path, cgroup="0::/\n", mountinfo=V2, **files)
    assert memory_limit_bytes(root) == 1024 * MIB
    assert memory_used_bytes(root) == 1000 * os.sysconf("SC_PAGE_SIZE")
    assert cpu_limit(root) == CPUS
    assert cpu_throttled_s(root) is None


def test_a_quota_above_the_cpus_that_it_may_run_on_does_not_count(tmp_path: Path) -> None:
    root = machine(tmp_path, cgroup="0::/\n", mountinfo=V2, **{"cpu.max": f"{(CPUS + 1) * 100_000} 100000\n"})
    assert cpu_limit(root) == CPUS


@pytest.mark.parametrize(("top", "folder"), [("/", "docker/abc/"), ("/docker/abc", "")])
def test_cgroup_v1_from_the_host_and_from_within_a_container(tmp_path: Path, top: str, folder: str) -> None:
    """A container without a namespace of its own sees its path on the host, and mounts only what is below."""
    root = machine(
        tmp_path,
        cgroup="4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n",
        mountinfo=V1.format(top=top),
        **{
            f"memory/{folder}memory.limit_in_bytes": "268435456\n",
            f"memory/{folder}memory.stat": "cache 5\nrss 7\ntotal_cache 500\ntotal_rss 2097152\ntotal_shmem 4096\n",
            f"memory/{folder}memory.kmem.usage_in_bytes": "1048576\n",
            "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000\n",
            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "1000000\n",
            "cpu,cpuacct/docker/abc/cpu.stat": "nr_periods 4\nnr_throttled 2\nthrottled_time 1500000000\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        },
    )
    assert memory_limit_bytes(root) == 256 * MIB
    assert memory_used_bytes(root) == 3 * MIB + 4096
    assert cpu_limit(root) == 0.15
    assert cpu_throttled_s(root) == 1.5


def test_no_limit_in_cgroup_v1_is_a_huge_one(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": "9223372036854771712\n"}
    root = machine(tmp_path, cgroup="4:memory:/\n0::/\n", mountinfo=V1.format(top="/"), **files)
    assert memory_limit_bytes(root) == 1024 * MIB


def test_where_no_cgroups_are_mounted_the_machine_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, cgroup="0::/pod\n", mountinfo="")
    assert memory_limit_bytes(root) == 1024 * MIB
    assert cpu_limit(root) == CPUS


def test_a_limit_that_changes_is_seen(tmp_path: Path) -> None:
    root = machine(tmp_path, cgroup="0::/\n", mountinfo=V2, **{"memory.max": "268435456\n"})
    assert memory_limit_bytes(root) == 256 * MIB
    write(root, {"sys/fs/cgroup/memory.max": "134217728\n"})
    assert memory_limit_bytes(root) == 128 * MIB


def test_this_machine_says_something_sensible() -> None:
    assert 0 < memory_used_bytes() < memory_limit_bytes()
    assert 0 < cpu_limit() <= CPUS
