from pathlib import Path

from moerun.machine.description import KernelSettings
from moerun.machine.probe_kernel import ProcessLimits, current_limits, read_kernel_settings
from tests.machine_builders import write_tree

KIB = 1024


def test_what_linux_says(tmp_path: Path):
    write_tree(
        tmp_path,
        {
            "proc/sys/vm/max_map_count": "65530\n",
            "proc/sys/vm/overcommit_memory": "2\n",
            "proc/meminfo": "MemTotal: 9 kB\nCommitLimit: 500 kB\nCommitted_AS: 200 kB\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        },
    )
    limits = ProcessLimits(
        release="6.18.44-generic",
        address_limit_bytes=7,
        private_limit_bytes=9,
        locked_limit_bytes=8,
    )
    assert read_kernel_settings(tmp_path, limits) == KernelSettings(
        version=(6, 18),
        map_count_limit=65530,
        commit_left_bytes=300 * KIB,
        address_limit_bytes=7,
        private_limit_bytes=9,
        locked_limit_bytes=8,
        huge_pages="madvise",
    )


def test_promises_count_only_where_they_are_strict(tmp_path: Path):
    files = {
        "proc/sys/vm/overcommit_memory": "1",
        "proc/meminfo": "CommitLimit: 500 kB\nCommitted_AS: 900 kB\n",
    }
    write_tree(tmp_path, files)
    assert read_kernel_settings(tmp_path, ProcessLimits()).commit_left_bytes is None
    write_tree(tmp_path, files | {"proc/sys/vm/overcommit_memory": "2"})
    assert read_kernel_settings(tmp_path, ProcessLimits()).commit_left_bytes == 0


def test_what_is_not_told_is_no_bound(tmp_path: Path):
    assert read_kernel_settings(tmp_path, ProcessLimits(release="odd")) == KernelSettings()


def test_the_limits_of_this_process_can_be_read():
    limits = current_limits()
    assert limits.release
    assert limits.address_limit_bytes is None or limits.address_limit_bytes > 0
