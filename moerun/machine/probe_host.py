"""The host: memory, swap, cores and the processor's name, within the limits on this process.

Knows: /proc and /sys of Linux, and psutil for other systems.
Does not know: GPUs, storage, or how many threads a plan will use.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from moerun.errors import ProbeFailed
from moerun.machine.control_groups import ControlGroupLimits, read_control_groups
from moerun.machine.description import DARWIN, LINUX, Host
from moerun.machine.mounts import read_text
from moerun.units import KIB, format_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    total_bytes: int
    available_bytes: int
    swap_free_bytes: int


def probe_host(
    *, root: Path, system: str, affinity: frozenset[int] | None
) -> tuple[Host, tuple[str, ...]]:
    """Return the host as this process may use it, and notes.

    `affinity` holds the processors the scheduler lets us run on, None where that is unknown.
    Raises ProbeFailed when not even the size of the memory can be read.
    """
    if system != LINUX:
        return _host_elsewhere(system), ()
    memory = _read_meminfo(root)
    limits = read_control_groups(root)
    limit_bytes = limits.memory_limit_bytes
    if limit_bytes is not None and limit_bytes >= memory.total_bytes:
        limit_bytes = None
    available_bytes = min(memory.available_bytes, _or_more(limits.headroom_bytes))
    processors = affinity if affinity is not None else _online_processors(root)
    host = Host(
        total_bytes=limit_bytes if limit_bytes is not None else memory.total_bytes,
        available_bytes=available_bytes,
        swap_free_bytes=min(memory.swap_free_bytes, _or_more(limits.swap_headroom_bytes)),
        physical_cores=_linux_cores(root, processors, limits),
        cgroup_limit_bytes=limit_bytes,
        processor=_linux_processor(root),
        system=system,
    )
    return host, _host_notes(host, memory, limits, processors)


def current_affinity() -> frozenset[int] | None:
    """Return the processors this process may run on, None where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):  # macOS and Windows
        return None
    return frozenset(os.sched_getaffinity(0))


def _or_more(bound_bytes: int | None) -> int:
    """Return a bound, or a number no memory reaches."""
    return bound_bytes if bound_bytes is not None else 1 << 62


def _read_meminfo(root: Path) -> _Memory:
    text = read_text(root / "proc/meminfo")
    if text is None:
        raise ProbeFailed(
            "the size of the memory could not be read from /proc/meminfo; "
            "give the machine as a file with --machine"
        )
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            sizes[name] = int(words[0]) * KIB
    if not sizes.get("MemTotal"):
        raise ProbeFailed(
            "/proc/meminfo does not name the total memory (MemTotal); "
            "give the machine as a file with --machine"
        )
    available_bytes = sizes.get("MemAvailable")
    if available_bytes is None:  # kernels before 3.14, and some containers
        available_bytes = sum(sizes.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
    return _Memory(
        total_bytes=sizes["MemTotal"],
        available_bytes=min(available_bytes, sizes["MemTotal"]),
        swap_free_bytes=sizes.get("SwapFree", 0),
    )


def _linux_cores(root: Path, processors: frozenset[int], limits: ControlGroupLimits) -> int:
    """Return the cores we may use: hyper-threads count once, and a quota bounds the sum.

    A quota is rounded down: with a thread more than it allows, all threads are made to wait at
    the end of each period, and decoding goes in lockstep.
    """
    cores: set[str] = set()
    for processor in processors:
        topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        siblings = read_text(topology / "core_cpus_list")
        siblings = siblings or read_text(topology / "thread_siblings_list")
        cores.add(siblings or str(processor))
    count = max(1, len(cores))
    if limits.processors is not None:
        count = min(count, max(1, int(limits.processors)))
    return count


def _online_processors(root: Path) -> frozenset[int]:
    """Return the processors that /sys lists, such as `0-3,6`."""
    processors: set[int] = set()
    for part in (read_text(root / "sys/devices/system/cpu/online") or "").split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            processors.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return frozenset(processors)


def _linux_processor(root: Path) -> str:
    """Return the processor's name; ARM kernels give none, so the instruction set stands in."""
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        name, _, rest = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return rest.strip()
    return platform.machine()


def _host_notes(
    host: Host, memory: _Memory, limits: ControlGroupLimits, processors: frozenset[int]
) -> tuple[str, ...]:
    notes = []
    if host.cgroup_limit_bytes is not None:
        notes.append(
            "a control group limits this process to "
            f"{format_gib(host.cgroup_limit_bytes)} of the machine's "
            f"{format_gib(memory.total_bytes)} of memory"
        )
    if limits.processors is not None and limits.processors < len(processors):
        notes.append(
            f"a control group gives this process the time of {limits.processors:g} "
            f"of its {len(processors)} processors"
        )
    return tuple(notes)


def _host_elsewhere(system: str) -> Host:
    """Return the host of macOS or Windows, which psutil knows."""
    import psutil

    try:
        memory = psutil.virtual_memory()
        swap_free_bytes = int(psutil.swap_memory().free)
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    except (OSError, psutil.Error) as error:
        raise ProbeFailed(
            f"the host's memory and cores could not be read: {error}; "
            "give the machine as a file with --machine"
        ) from error
    return Host(
        total_bytes=int(memory.total),
        available_bytes=int(memory.available),
        swap_free_bytes=swap_free_bytes,
        physical_cores=cores,
        processor=_apple_processor() if system == DARWIN else platform.processor(),
        system=system,
    )


def _apple_processor() -> str:
    """Return the chip's name, such as `Apple M2 Max`; Python itself only says `arm`."""
    import subprocess

    try:
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return platform.processor()
    return answer.stdout.strip() or platform.processor()
