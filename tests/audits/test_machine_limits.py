"""Workers and memory are those of the container: cgroups of version 2 and 1, in trees of files made
for the test.
"""

from __future__ import annotations

import os

import pytest
from view import drawn

from shadow.audits.document import plan_document
from shadow.audits.machine_limits import MachineLimits, machine_limits
from shadow.audits.pair_plan import PairPlan, PlannedSide, PlannedTier

GIB = 1 << 30
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))


def system(root, *, cgroup, mounts, free=64 * GIB, **files):
    """A fake /proc and /sys; files are what those below /sys/fs/cgroup say."""
    made = {
        "proc/meminfo": (
            f"MemTotal:  99999999 kB\nMemFree: 1 kB\nMemAvailable:   {free // 1024} kB\n"
        ),
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mounts}",
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text) + "\n")
    return root


def test_without_control_groups_all_of_the_machine_may_be_used(tmp_path):
    """Cores and MemAvailable; where there is no /proc at all, memory is as good as endless."""
    assert machine_limits(system(tmp_path, cgroup="0::/", mounts="")) == MachineLimits(
        16, "the machine", 64 * GIB, "the machine"
    )
    assert machine_limits(tmp_path / "nothing").memory == 1 << 60


def test_affinity_limits_the_cores(tmp_path, monkeypatch):
    """A cpuset, taskset or a batch system gives a process some of the processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})
    found = machine_limits(system(tmp_path, cgroup="0::/", mounts=V2))
    assert (found.cores, found.cores_by) == (3, "the processors of this process")


def test_version_2_in_a_container(tmp_path):
    """The group of the process is the top of what it sees; a part of a core counts as one."""
    root = system(
        tmp_path,
        cgroup="0::/",
        mounts=V2,
        **{
            "cpu.max": "250000 100000",
            "memory.max": 8 * GIB,
            "memory.high": "max",
            "memory.current": 3 * GIB,
            "memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7",
        },
    )
    assert machine_limits(root) == MachineLimits(
        3, "the control group /", 6 * GIB, "the control group /"
    )


def test_version_2_the_least_of_all_ancestors_counts(tmp_path):
    """A group without a limit in a slice with one; of memory the group with the least left, not the
    least limit.
    """
    root = system(
        tmp_path,
        cgroup="0::/user.slice/job/step",
        mounts=V2,
        **{
            "user.slice/cpu.max": "400000 100000",
            "user.slice/memory.max": 20 * GIB,
            "user.slice/memory.current": 19 * GIB,
            "user.slice/job/cpu.max": "max 100000",
            "user.slice/job/memory.max": 4 * GIB,
            "user.slice/job/memory.current": GIB,
            "user.slice/job/step/cpu.max": "600000 100000",
            "user.slice/job/step/memory.max": "max",
            "user.slice/job/step/memory.current": GIB,
        },
    )
    assert machine_limits(root) == MachineLimits(
        4, "the control group /user.slice", GIB, "the control group /user.slice"
    )


def test_version_2_memory_high_is_a_limit_and_nothing_left_is_none(tmp_path):
    """Above memory.high a group is slowed down; a group above its limit has 0 left, not less."""
    files = {"memory.max": 8 * GIB, "memory.high": 2 * GIB}
    root = system(tmp_path, cgroup="0::/", mounts=V2, **files, **{"memory.current": GIB})
    assert machine_limits(root).memory == GIB
    system(tmp_path, cgroup="0::/", mounts=V2, **files, **{"memory.current": 5 * GIB})
    assert machine_limits(root).memory == 0


@pytest.mark.parametrize("top", ["/", "/docker/abc"])
def test_version_1_with_the_names_of_the_host(tmp_path, top):
    """Each controller has its tree; the tree is the host's, or the container's part of it under the
    host's names.
    """
    inside = "docker/abc/" if top == "/" else ""
    root = system(
        tmp_path,
        cgroup="5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc",
        mounts=V1.format(top=top),
        **{
            f"cpu,cpuacct/{inside}cpu.cfs_quota_us": 200000,
            f"cpu,cpuacct/{inside}cpu.cfs_period_us": 100000,
            f"memory/{inside}memory.limit_in_bytes": 6 * GIB,
            f"memory/{inside}memory.usage_in_bytes": 2 * GIB,
            f"memory/{inside}memory.stat": f"cache 9\ninactive_file 5\ntotal_inactive_file {GIB}",
        },
    )
    assert machine_limits(root) == MachineLimits(
        2, "the control group /docker/abc", 5 * GIB, "the control group /docker/abc"
    )


def test_version_1_without_limits(tmp_path):
    """-1 and a number near 2^63 are what version 1 says for no limit."""
    root = system(
        tmp_path,
        cgroup="5:memory:/\n4:cpu,cpuacct:/",
        mounts=V1.format(top="/"),
        **{
            "cpu,cpuacct/cpu.cfs_quota_us": -1,
            "cpu,cpuacct/cpu.cfs_period_us": 100000,
            "memory/memory.limit_in_bytes": 9223372036854771712,
            "memory/memory.usage_in_bytes": 2 * GIB,
        },
    )
    assert machine_limits(root) == MachineLimits(16, "the machine", 64 * GIB, "the machine")


def test_both_versions_at_once(tmp_path):
    """Machines in transition have controllers in either tree: limits of both count."""
    root = system(
        tmp_path,
        cgroup="5:memory:/job\n0::/job",
        mounts=V1.format(top="/") + V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        **{
            "memory/job/memory.limit_in_bytes": 3 * GIB,
            "memory/job/memory.usage_in_bytes": GIB,
            "unified/job/cpu.max": "100000 100000",
        },
    )
    assert machine_limits(root) == MachineLimits(
        1, "the control group /job", 2 * GIB, "the control group /job"
    )


def test_a_group_outside_of_what_is_mounted_and_text_that_makes_no_sense(tmp_path):
    """Then the top of the tree counts, and what is not a number is no limit: nothing fails."""
    root = system(
        tmp_path,
        cgroup="0::/../elsewhere\nnonsense\n",
        mounts=V2 + "short line\n",
        **{"cpu.max": "many few", "memory.max": 2 * GIB, "memory.current": "?"},
    )
    assert machine_limits(root) == MachineLimits(16, "the machine", 2 * GIB, "the control group /")


def test_plan_shows_what_limits_it():
    """The cores, the free memory, and what limits them where that is not the machine."""
    side = PlannedSide("r", commit=None, access=None, shards=1, bytes=1, dtypes=[], parameters=0)
    plan = PairPlan(
        family="f", pair="p", base=side, tuned=side, config_differs={}, modules=[], skipped=[],
        matrices=1, vectors=0, bytes_to_move=0, shards_in_ranges=0, shards_to_fetch=0, frees=False,
        disk_peak=0, disk_report=0, disk_free=0, problem=None, jobs=1, memory=5, seconds=0.1,
        cores=1, cores_by="the control group /a", memory_free=2_000_000_000,
        memory_by="the machine",
        device="cpu", device_name=None,
        tiers=[PlannedTier("--norms", 90.0, 4_000_000), PlannedTier("", 5400.0, 6_000_000)],
    )  # fmt: skip
    text = "\n".join(map(str.rstrip, drawn(plan_document(plan), 200).split("\n")))
    assert "with 1 worker, beside file caches; 2.0 GB available\n" in text
    assert "1, limited by the control group /a" in text
    assert "--norms      about 2 minutes, 4.0 MB of memory\nall spectra  about 1.5 hours" in text
