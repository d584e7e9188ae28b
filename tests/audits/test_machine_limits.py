"""Workers and memory are those of the container, by cgroups in trees of files."""

import os

import pytest

from shadow.run.machine import MachineLimits, machine_limits

GIB = 1 << 30
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


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


MACHINE = "the machine"
V2_MEMORY = {"memory.max": 8 * GIB, "memory.high": 2 * GIB}


# what: /proc/self/cgroup, mounts, files below /sys/fs/cgroup -> cores, by which group, memory, by
# which group; None where the machine limits
SYSTEMS = {
    "no groups": ("0::/", "", {}, (16, None, 64 * GIB, None)),
    "a container: a part of a core counts as one": (
        "0::/", V2,
        {
            "cpu.max": "250000 100000", "memory.max": 8 * GIB, "memory.high": "max",
            "memory.current": 3 * GIB,
            "memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7",
        },
        (3, "/", 6 * GIB, "/"),
    ),
    "the least of all ancestors: of memory that with the least left": (
        "0::/user.slice/job/step", V2,
        {
            "user.slice/cpu.max": "400000 100000", "user.slice/memory.max": 20 * GIB,
            "user.slice/memory.current": 19 * GIB, "user.slice/job/cpu.max": "max 100000",
            "user.slice/job/memory.max": 4 * GIB, "user.slice/job/memory.current": GIB,
            "user.slice/job/step/cpu.max": "600000 100000",
            "user.slice/job/step/memory.max": "max", "user.slice/job/step/memory.current": GIB,
        },
        (4, "/user.slice", GIB, "/user.slice"),
    ),
    "memory.high": ("0::/", V2, {**V2_MEMORY, "memory.current": GIB}, (16, None, GIB, "/")),
    "nothing left": ("0::/", V2, {**V2_MEMORY, "memory.current": 5 * GIB}, (16, None, 0, "/")),
    "the container's part of the host's tree": (
        "0::/docker/abc", V2.replace("0:28 / ", "0:28 /docker/abc "), {"cpu.max": "200000 100000"},
        (2, "/docker/abc", 64 * GIB, None),
    ),
    "version 1 is not read": ("5:memory:/job\n4:cpu:/job", V2, {}, (16, None, 64 * GIB, None)),
    "a group that is not mounted, and no numbers": (
        "0::/../elsewhere\nnonsense\n", V2 + "short line\n",
        {"cpu.max": "many few", "memory.max": 2 * GIB, "memory.current": "?"},
        (16, None, 2 * GIB, "/"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SYSTEMS)
def test_limits_of_control_groups(tmp_path, what):
    cgroup, mounts, files, (cores, cores_by, memory, memory_by) = SYSTEMS[what]
    found = machine_limits(system(tmp_path, cgroup=cgroup, mounts=mounts, **files))
    named = [f"the control group {one}" if one else MACHINE for one in (cores_by, memory_by)]
    assert found == MachineLimits(cores, named[0], memory, named[1])


def test_without_proc_and_with_an_affinity(tmp_path, monkeypatch):
    """Memory is as good as endless; a cpuset or a batch system gives some of the processors."""
    assert machine_limits(tmp_path / "nothing").memory == 1 << 60
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})
    found = machine_limits(system(tmp_path, cgroup="0::/", mounts=V2))
    assert (found.cores, found.cores_by) == (3, "the processors of this process")
