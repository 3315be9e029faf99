"""Cores and memory are those that this process may use, and not those of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.llama import default_threads
from engines.machine import cores_here, group_memory_free, own_groups
from engines.room import GIB, groups_free

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, text: str) -> None:
    """Writes a file with that text, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(tmp_path: Path, groups: str, *mounts: str) -> Path:
    """A /proc/self with these lines; mounts are "ROOT POINT TYPE OPTIONS", POINT below `tmp_path`."""
    lines = []
    for mount in mounts:
        root, point, kind, options = mount.split()
        (tmp_path / point).mkdir(parents=True, exist_ok=True)
        at = str(tmp_path / point).replace(" ", "\\040")
        lines.append(f"32 31 0:29 {root} {at} rw,relatime shared:9 - {kind} {kind} {options}\n")
    write(tmp_path / "proc" / "cgroup", groups)
    write(tmp_path / "proc" / "mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + "".join(lines))
    return tmp_path / "proc"


def test_the_own_group_of_cgroup_v2_and_those_above_it_count(tmp_path: Path) -> None:
    """A systemd unit's limit is in its own group, not in the root's; a group above it may have a lower one."""
    unit = tmp_path / "cg" / "system.slice" / "npcd.service"
    unit.mkdir(parents=True)
    proc = machine(tmp_path, "0::/system.slice/npcd.service\n", "/ cg cgroup2 rw")
    assert own_groups(proc) == [unit, unit.parent, tmp_path / "cg"]
    write(unit / "memory.max", "8589934592\n")
    write(unit / "memory.current", "1073741824\n")
    write(unit / "cpu.max", "max 100000\n")
    write(unit.parent / "cpu.max", "150000 100000\n")
    assert groups_free(own_groups(proc)) == 7 * GIB
    write(unit / "memory.high", "4294967296\n")
    assert groups_free(own_groups(proc)) == 3 * GIB, "above memory.high the kernel slows the process down"
    write(unit.parent / "memory.max", "2147483648\n")
    write(unit.parent / "memory.current", "2147483648\n")
    assert groups_free(own_groups(proc)) == 0
    if len(os.sched_getaffinity(0)) > 1:
        cores = cores_here(own_groups(proc))
        assert (cores.usable, cores.machine) == (1, os.cpu_count())
        assert cores.why == f"a quota of 1.5 cores in {unit.parent}"


def test_the_groups_of_cgroup_v1_are_found_by_controller(tmp_path: Path) -> None:
    """Each controller has a hierarchy. Docker mounts each at the container's own group, whose path is the host's."""
    proc = machine(
        tmp_path,
        "9:name=systemd:/docker/ab\n4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/\n",
        "/docker/ab memory cgroup rw,memory",
        "/docker/ab cpuacct cgroup rw,cpu,cpuacct",
        "/docker/ab systemd cgroup rw,name=systemd",
    )
    memory, cpu = tmp_path / "memory", tmp_path / "cpuacct"
    assert memory in own_groups(proc)
    write(memory / "memory.limit_in_bytes", "9223372036854771712\n")
    write(memory / "memory.usage_in_bytes", "1000\n")
    assert groups_free(own_groups(proc)) is None, "no limit"
    write(memory / "memory.limit_in_bytes", str(8 * GIB))
    write(memory / "memory.usage_in_bytes", str(7 * GIB))
    write(memory / "memory.stat", f"inactive_file 5\ntotal_inactive_file {4 * GIB}\ntotal_active_file {GIB}\n")
    assert groups_free(own_groups(proc)) == 6 * GIB
    write(cpu / "cpu.cfs_quota_us", "-1\n")
    write(cpu / "cpu.cfs_period_us", "100000\n")
    assert cores_here([cpu]).usable == len(os.sched_getaffinity(0))
    write(cpu / "cpu.cfs_quota_us", "50000\n")
    assert cores_here([cpu]).usable == 1


@pytest.mark.parametrize("path", ["/../../elsewhere", "/docker/not/here"])
def test_a_group_that_is_not_in_the_mount_is_the_mount(tmp_path: Path, path: str) -> None:
    """In a namespace of its own a process may see a path that does not exist."""
    proc = machine(tmp_path, f"0::{path}\n", "/ cg cgroup2 rw")
    assert own_groups(proc) == [tmp_path / "cg"]


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    """Missing files, and lines of another form, give no limit."""
    assert own_groups(tmp_path) == []
    assert own_groups(machine(tmp_path, "what\n\n", "/ cg cgroup2 rw")) == []
    assert groups_free([]) is None
    assert group_memory_free(tmp_path) is None


def test_the_page_cache_is_free(tmp_path: Path) -> None:
    """Reading a model of 5 GiB fills the group with pages that the kernel drops when memory is needed."""
    write(tmp_path / "memory.max", str(8 * GIB))
    write(tmp_path / "memory.current", str(7 * GIB))
    assert group_memory_free(tmp_path) == 1 * GIB
    write(tmp_path / "memory.stat", f"anon {2 * GIB}\ninactive_file {GIB}\nactive_file {4 * GIB}\nshmem 4096\n")
    assert group_memory_free(tmp_path) == 6 * GIB


def test_a_process_that_may_run_on_one_core_computes_with_one_thread() -> None:
    """That is so below taskset, in a batch job or in a cpuset."""
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{core}}}); from engines.llama import default_threads as d; "
        "from engines.machine import cores_here; c = cores_here(); print(d(), c.usable, c.machine == os.cpu_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1 1 True\n"
    assert default_threads() == max(1, cores_here().usable - 1)
