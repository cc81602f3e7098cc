"""Memory pools, read from file trees that look like /proc and /sys."""

import os
from pathlib import Path

import pytest

from moerun.machine.pressure import MemoryPools
from tests.machine_builders import a_cgroup1_mount, a_cgroup2_mount, a_host_tree, write_tree

KIB = 1024
V2 = "sys/fs/cgroup"


def test_the_machine_alone(tmp_path: Path):
    a_host_tree(tmp_path)
    stall = "some avg10=1.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=1\n"
    write_tree(tmp_path, {"proc/pressure/memory": stall})
    with MemoryPools(tmp_path) as pools:
        (machine,) = pools.read()
    assert machine.name == "the machine"
    assert machine.total_bytes == 1000 * KIB
    assert machine.available_bytes == 800 * KIB
    assert machine.swap_bytes == 50 * KIB
    assert machine.stall_s == 2.5


def test_old_kernels_say_less(tmp_path: Path):
    meminfo = "MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 1 kB\nCached: 20 kB\n"
    write_tree(tmp_path, {"proc/meminfo": meminfo})
    with MemoryPools(tmp_path) as pools:
        (machine,) = pools.read()
    assert machine.available_bytes == 31 * KIB
    assert machine.stall_s is None


def test_where_there_is_nothing_to_read_there_are_no_pools(tmp_path: Path):
    with MemoryPools(tmp_path) as pools:
        assert pools.read() == ()


def test_version_2_gives_every_group_with_a_limit(tmp_path: Path):
    a_host_tree(tmp_path)
    write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/app.scope\n",
            "proc/self/mountinfo": a_cgroup2_mount(),
            f"{V2}/user.slice/memory.max": "500\n",
            f"{V2}/user.slice/memory.high": "450\n",
            f"{V2}/user.slice/memory.current": "440\n",
            f"{V2}/user.slice/memory.swap.max": "0\n",
            f"{V2}/user.slice/memory.stat": "anon 300\ninactive_file 30\nactive_file 20\n",
            f"{V2}/user.slice/app.scope/memory.max": "300\n",
            f"{V2}/user.slice/app.scope/memory.high": "max\n",
            f"{V2}/user.slice/app.scope/memory.current": "100\n",
            f"{V2}/user.slice/app.scope/memory.swap.max": "max\n",
            f"{V2}/user.slice/app.scope/memory.pressure": "some avg10=0.00 total=70\n",
        },
    )
    with MemoryPools(tmp_path) as pools:
        machine, inner, outer = pools.read()
        assert machine.name == "the machine"
        assert (inner.total_bytes, inner.available_bytes) == (300, 200)
        assert inner.swap_bytes == machine.swap_bytes
        assert inner.stall_s == pytest.approx(70e-6)
        assert (outer.total_bytes, outer.available_bytes) == (450, 450 - (440 - 50))
        assert outer.swap_bytes == 0
        (tmp_path / V2 / "user.slice/app.scope/memory.max").write_text("max\n")
        (tmp_path / V2 / "user.slice/memory.current").write_text("600\n")
        machine, outer = pools.read()  # a limit may come and go
        assert outer.available_bytes == 0


def test_version_1_counts_the_groups_below_as_well(tmp_path: Path):
    a_host_tree(tmp_path)
    memory = "sys/fs/cgroup/memory/docker/abc"
    write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n",
            "proc/self/mountinfo": a_cgroup1_mount("memory"),
            f"{memory}/memory.limit_in_bytes": "1000",
            f"{memory}/memory.usage_in_bytes": "700",
            f"{memory}/memory.stat": "inactive_file 1\n"
            "total_inactive_file 100\ntotal_active_file 50\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000",
        },
    )
    with MemoryPools(tmp_path) as pools:
        _, group = pools.read()
        assert pools.alarms() == 0  # nobody may ask for them here
    assert group.name == "the control group"
    assert group.available_bytes == 1000 - (700 - 150)


def test_a_move_to_another_group_is_seen_when_files_are_opened_anew(tmp_path: Path):
    a_host_tree(tmp_path)
    write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": a_cgroup2_mount(),
            f"{V2}/a/memory.max": "300\n",
            f"{V2}/a/memory.current": "100\n",
            f"{V2}/b/memory.max": "900\n",
            f"{V2}/b/memory.current": "100\n",
        },
    )
    with MemoryPools(tmp_path) as pools:
        assert pools.read()[1].total_bytes == 300
        (tmp_path / "proc/self/cgroup").write_text("0::/b\n")
        pools.reopen()
        assert pools.read()[1].total_bytes == 900


def test_no_file_stays_open(tmp_path: Path):
    a_host_tree(tmp_path)
    before = len(os.listdir("/dev/fd"))
    pools = MemoryPools(tmp_path)
    assert len(os.listdir("/dev/fd")) > before
    pools.close()
    assert len(os.listdir("/dev/fd")) == before
