from pathlib import Path

from moerun.machine.control_groups import read_control_groups
from tests.machine_builders import a_cgroup1_mount, a_cgroup2_mount, write_tree

V2 = "sys/fs/cgroup"


def test_without_control_groups_nothing_is_limited(tmp_path: Path):
    limits = read_control_groups(tmp_path)
    assert limits.memory_limit_bytes is None
    assert limits.headroom_bytes is None
    assert limits.processors is None


def test_version_2_takes_the_tightest_of_nested_groups(tmp_path: Path):
    write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/app.scope\n",
            "proc/self/mountinfo": a_cgroup2_mount(),
            f"{V2}/user.slice/memory.max": "500\n",
            f"{V2}/user.slice/memory.current": "450\n",
            f"{V2}/user.slice/memory.stat": "anon 400\ninactive_file 30\nactive_file 20\n",
            f"{V2}/user.slice/app.scope/memory.max": "max\n",
            f"{V2}/user.slice/app.scope/memory.high": "900\n",
            f"{V2}/user.slice/app.scope/memory.current": "100\n",
            f"{V2}/user.slice/app.scope/cpu.max": "250000 100000\n",
            f"{V2}/user.slice/cpu.max": "max 100000\n",
            f"{V2}/user.slice/memory.swap.max": "70\n",
            f"{V2}/user.slice/memory.swap.current": "20\n",
        },
    )
    limits = read_control_groups(tmp_path)
    assert limits.memory_limit_bytes == 500
    assert limits.headroom_bytes == 500 - (450 - 30)
    assert limits.swap_headroom_bytes == 50
    assert limits.processors == 2.5


def test_memory_high_limits_below_memory_max(tmp_path: Path):
    write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": a_cgroup2_mount(),
            f"{V2}/a/memory.max": "900",
            f"{V2}/a/memory.high": "600",
            f"{V2}/a/memory.current": "700",
        },
    )
    limits = read_control_groups(tmp_path)
    assert limits.memory_limit_bytes == 600
    assert limits.headroom_bytes == 0


def test_version_1_reads_memory_and_swap_and_quota(tmp_path: Path):
    memory = "sys/fs/cgroup/memory/docker/abc"
    write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            "proc/self/mountinfo": a_cgroup1_mount("memory") + a_cgroup1_mount("cpu"),
            f"{memory}/memory.limit_in_bytes": "1000",
            f"{memory}/memory.usage_in_bytes": "300",
            f"{memory}/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            f"{memory}/memory.memsw.limit_in_bytes": "1500",
            f"{memory}/memory.memsw.usage_in_bytes": "350",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    limits = read_control_groups(tmp_path)
    assert limits.memory_limit_bytes == 1000
    assert limits.headroom_bytes == 1000 - 200
    assert limits.swap_headroom_bytes == 500 - 50
    assert limits.processors == 1.5


def test_a_container_that_sees_its_own_group_as_the_top(tmp_path: Path):
    write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc/inner\n",
            "proc/self/mountinfo": a_cgroup1_mount("memory", root="/docker/abc"),
            "sys/fs/cgroup/memory/inner/memory.limit_in_bytes": "700",
            "sys/fs/cgroup/memory/inner/memory.usage_in_bytes": "10",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "800",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "790",
        },
    )
    limits = read_control_groups(tmp_path)
    assert limits.memory_limit_bytes == 700
    assert limits.headroom_bytes == 10


def test_a_group_outside_the_namespace_reads_the_top_of_the_mount(tmp_path: Path):
    write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../../elsewhere\n",
            "proc/self/mountinfo": a_cgroup2_mount(),
            f"{V2}/memory.max": "600",
            f"{V2}/memory.current": "100",
        },
    )
    assert read_control_groups(tmp_path).headroom_bytes == 500


def test_unreadable_numbers_are_no_limits(tmp_path: Path):
    write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a\nnonsense\n",
            "proc/self/mountinfo": "garbage\n" + a_cgroup2_mount(),
            f"{V2}/a/memory.max": "many",
            f"{V2}/a/cpu.max": "10",
        },
    )
    limits = read_control_groups(tmp_path)
    assert limits.memory_limit_bytes is None
    assert limits.processors is None
