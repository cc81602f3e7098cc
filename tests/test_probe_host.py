import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from moerun.errors import ProbeFailed
from moerun.machine.probe_host import current_affinity, probe_host
from tests.machine_builders import a_cgroup2_mount, a_host_tree, write_tree

FOUR = frozenset(range(4))


def probe(root: Path, affinity: frozenset[int] = FOUR):
    return probe_host(root=root, system="Linux", affinity=affinity)


def a_quota(root: Path, text: str) -> None:
    write_tree(
        root,
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": a_cgroup2_mount(),
            "sys/fs/cgroup/a/cpu.max": text,
        },
    )


def test_memory_and_name_come_from_proc(tmp_path: Path):
    host, notes = probe(a_host_tree(tmp_path))
    assert host.total_bytes == 1000 * 1024
    assert host.available_bytes == 800 * 1024
    assert host.swap_free_bytes == 50 * 1024
    assert host.processor == "Test CPU 9000"
    assert host.cgroup_limit_bytes is None
    assert notes == ()


def test_a_limit_bounds_total_and_available_and_is_said(tmp_path: Path):
    write_tree(
        a_host_tree(tmp_path),
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": a_cgroup2_mount(),
            "sys/fs/cgroup/a/memory.max": str(500 * 1024),
            "sys/fs/cgroup/a/memory.current": str(200 * 1024),
            "sys/fs/cgroup/a/memory.swap.max": "0",
            "sys/fs/cgroup/a/memory.swap.current": "0",
        },
    )
    host, notes = probe(tmp_path)
    assert host.total_bytes == host.cgroup_limit_bytes == 500 * 1024
    assert host.available_bytes == 300 * 1024
    assert host.swap_free_bytes == 0
    assert "control group" in notes[0]


def test_a_limit_above_the_memory_is_none(tmp_path: Path):
    write_tree(
        a_host_tree(tmp_path),
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": a_cgroup2_mount(),
            "sys/fs/cgroup/a/memory.max": str(5000 * 1024),
            "sys/fs/cgroup/a/memory.current": "0",
        },
    )
    host, _ = probe(tmp_path)
    assert host.cgroup_limit_bytes is None
    assert host.total_bytes == 1000 * 1024
    assert host.available_bytes == 800 * 1024


def test_hyper_threads_of_a_core_count_once_and_affinity_bounds(tmp_path: Path):
    a_host_tree(tmp_path)
    for processor, siblings in enumerate(("0,4", "1,5", "2,6", "3,7") * 2):
        folder = f"sys/devices/system/cpu/cpu{processor}/topology"
        write_tree(tmp_path, {f"{folder}/core_cpus_list": siblings})
    assert probe(tmp_path, frozenset(range(8)))[0].physical_cores == 4
    assert probe(tmp_path, frozenset((1, 5, 2)))[0].physical_cores == 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4)]
)
def test_a_quota_rounds_down_but_leaves_one_core(tmp_path: Path, quota: str, cores: int):
    a_quota(a_host_tree(tmp_path), quota)
    host, notes = probe(tmp_path)
    assert host.physical_cores == cores
    assert any("of its 4 processors" in note for note in notes) == (cores < 4)


def test_without_affinity_the_online_processors_count(tmp_path: Path):
    write_tree(a_host_tree(tmp_path), {"sys/devices/system/cpu/online": "0-2,5"})
    host, _ = probe_host(root=tmp_path, system="Linux", affinity=None)
    assert host.physical_cores == 4


def test_old_kernels_without_available_memory(tmp_path: Path):
    a_host_tree(tmp_path)
    write_tree(
        tmp_path, {"proc/meminfo": "MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 5 kB\nCached: 7 kB"}
    )
    assert probe(tmp_path)[0].available_bytes == 22 * 1024


@pytest.mark.parametrize("meminfo", [None, "", "MemTotal: lots", "MemTotal: 0 kB"])
def test_memory_of_unknown_size_is_one_sentence(tmp_path: Path, meminfo: str | None):
    if meminfo is not None:
        write_tree(tmp_path, {"proc/meminfo": meminfo})
    with pytest.raises(ProbeFailed, match=r"/proc/meminfo.*--machine"):
        probe(tmp_path)


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_are_asked_through_psutil(system: str):
    host, _ = probe_host(root=Path("/"), system=system, affinity=None)
    assert host.system == system
    assert 0 < host.available_bytes <= host.total_bytes
    assert host.physical_cores >= 1


@pytest.mark.skipif(platform.system() != "Linux", reason="compares with /proc of Linux")
def test_this_machine_agrees_with_psutil():
    script = (
        "import json, psutil\n"
        "memory = psutil.virtual_memory()\n"
        "print(json.dumps([memory.total, psutil.cpu_count(logical=True)]))"
    )
    total_bytes, processors = json.loads(subprocess.check_output([sys.executable, "-c", script]))
    host, _ = probe_host(root=Path("/"), system="Linux", affinity=current_affinity())
    assert host.total_bytes == (host.cgroup_limit_bytes or total_bytes)
    assert 1 <= host.physical_cores <= processors
