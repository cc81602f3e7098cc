"""Pages of a mapping: anonymous memory laid over them, dropped, counted, or the file again.

Beliefs of Linux: a fixed mapping replaces what was there and keeps the address (mmap(2)); what
MADV_DONTNEED drops of anonymous memory reads as zeroes and is no memory any more, of a file's
mapping it is only unmapped, and POSIX_FADV_DONTNEED then drops it from the page cache unless
another process maps it (madvise(2), posix_fadvise(2)); a fault in a mapping under MADV_RANDOM
reads its own page and none around it; huge pages would hold much more than a slice that is written
(MADV_NOHUGEPAGE); of a file that is neither ours nor writable, mincore takes every page for
resident (mincore(2), since 5.2), and pagemap tells which are mapped. Checked by
tests/test_memory_map.py.

Knows: the system calls, and how addresses are rounded to pages.
Does not know: what lies at an address.
"""

import ctypes
import errno
import functools
import mmap
import os
from pathlib import Path
from typing import Any, Final, NoReturn

from moerun.errors import MachineError

PAGE_BYTES: Final = mmap.PAGESIZE

_READ_WRITE: Final = 1 | 2
_READ: Final = 1
_SHARED: Final = 1
_PRIVATE: Final = 2
_FIXED: Final = 0x10
_ANONYMOUS: Final = 0x20
_NO_RESERVE: Final = 0x4000
_RANDOM: Final = 1
_WILL_NEED: Final = 3
_DO_NOT_NEED: Final = 4
_NO_HUGE_PAGES: Final = 15
_MOVE: Final = 1 | 2 | 4  # MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP
_USUAL_MAPPINGS: Final = 65530  # vm.max_map_count, where it cannot be read
_MOST_PAGES_AT_ONCE: Final = 1 << 16
_ENTRY_BYTES: Final = 8  # of one page in pagemap, whose highest bit says that it is mapped
_IS_MAPPED: Final = bytes(byte >> 7 for byte in range(256))


def page_floor(position: int) -> int:
    """Return the start of the page that a byte lies in."""
    return position & -PAGE_BYTES


def page_ceiling(position: int) -> int:
    """Return the end of the page that ends at a position, or holds it."""
    return -(-position // PAGE_BYTES) * PAGE_BYTES


def lay_anonymous(first: int, last: int) -> None:
    """Put fresh memory, which takes room only when written, in the place of whole pages."""
    kind = _PRIVATE | _ANONYMOUS | _FIXED | _NO_RESERVE
    found = _library().mmap(first, last - first, _READ_WRITE, kind, -1, 0)
    if found != first:
        _fail("lay memory over the model's mapping", last - first)
    # Where the kernel has no huge pages it says so, and there is nothing to turn off.
    _library().madvise(first, last - first, _NO_HUGE_PAGES)


def map_file(descriptor: int, first: int, last: int, offset_bytes: int) -> None:
    """Put a file, read only, in the place of whole pages."""
    found = _library().mmap(first, last - first, _READ, _SHARED | _FIXED, descriptor, offset_bytes)
    if found != first:
        _fail("map the model's file", last - first)


def drop(first: int, last: int) -> None:
    """Give the memory of whole pages back."""
    if _library().madvise(first, last - first, _DO_NOT_NEED) != 0:
        _fail("give memory back", last - first)


def move_pages(source: int, target: int, size_bytes: int) -> bool:
    """Move whole pages to where others were mapped; False where the system cannot."""
    return bool(_library().mremap(source, size_bytes, size_bytes, _MOVE, target) == target)


def mappings_left(*, share: float) -> int:
    """Return how many mappings this process may still make, of a share of all that it may have."""
    try:
        most = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
        with open("/proc/self/maps", "rb") as maps:
            used = sum(1 for _ in maps)
    except (OSError, ValueError):
        most, used = _USUAL_MAPPINGS, _USUAL_MAPPINGS // 10
    return max(0, int(most * share) - used)


def will_need(first: int, last: int) -> None:
    """Have the system read whole pages of a file's mapping."""
    if _library().madvise(first, last - first, _WILL_NEED) != 0:
        _fail("read ahead in the model's mapping", last - first)


def read_no_more_than_touched(first: int, last: int) -> None:
    """Have faults in whole pages of a file's mapping read no pages around them."""
    if _library().madvise(first, last - first, _RANDOM) != 0:
        _fail("take advice on the model's mapping", last - first)


def drop_from_page_cache(descriptor: int, offset_bytes: int, size_bytes: int) -> None:
    """Have the page cache forget a part of a file that nobody maps."""
    os.posix_fadvise(descriptor, offset_bytes, size_bytes, os.POSIX_FADV_DONTNEED)


def resident_bytes(first: int, last: int) -> int:
    """Return how many bytes of whole pages are in memory, as the system tells (mincore)."""
    total = 0
    states = _page_states()
    for start in range(first, last, _MOST_PAGES_AT_ONCE * PAGE_BYTES):
        size_bytes = min(last - start, _MOST_PAGES_AT_ONCE * PAGE_BYTES)
        if _library().mincore(start, size_bytes, states) != 0:
            _fail("count the pages in memory", size_bytes)
        pages = ctypes.string_at(states, size_bytes // PAGE_BYTES)
        total += len(pages) - pages.count(0)  # the lowest bit says it, the others are not used
    return total * PAGE_BYTES


def is_resident(page: int) -> bool:
    """Whether one page is in memory, as the system tells (mincore)."""
    state = ctypes.c_ubyte()
    return _library().mincore(page, PAGE_BYTES, ctypes.byref(state)) == 0 and bool(state.value & 1)


def tells_residency(path: str) -> bool:
    """Whether the system tells this process which pages of a file are in memory."""
    try:
        return os.access(path, os.W_OK, effective_ids=True) or os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


def mapped_bytes(first: int, last: int) -> int:
    """Return how many bytes of whole pages this process has mapped, whoever owns the file.

    All that may be, where the system tells a process nothing of its own pages.
    """
    pages = 0
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for start in range(first, last, _MOST_PAGES_AT_ONCE * PAGE_BYTES):
                count = min(last - start, _MOST_PAGES_AT_ONCE * PAGE_BYTES) // PAGE_BYTES
                pagemap.seek(start // PAGE_BYTES * _ENTRY_BYTES)
                entries = pagemap.read(count * _ENTRY_BYTES)
                pages += entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_IS_MAPPED).count(1)
    except PermissionError:
        return resident_bytes(first, last)
    return pages * PAGE_BYTES


def read_into(descriptor: int, address: int, size_bytes: int, offset_bytes: int) -> int:
    """Read into memory at an address, and return the bytes read; other threads go on meanwhile."""
    got = int(_library().pread(descriptor, address, size_bytes, offset_bytes))
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return got


def _page_states() -> Any:
    return (ctypes.c_ubyte * _MOST_PAGES_AT_ONCE)()


def _fail(doing: str, size_bytes: int) -> NoReturn:
    code = ctypes.get_errno()
    raise MachineError(
        f"The system did not {doing} ({size_bytes:,} bytes): "
        f"{errno.errorcode.get(code, code)}, {os.strerror(code)}.",
        hint="--streaming off runs the model without it; `moerun doctor` names what hinders it.",
    )


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = pointer
    library.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_int64)
    library.mremap.restype = pointer
    library.mremap.argtypes = (pointer, size, size, number, pointer)
    library.madvise.argtypes = (pointer, size, number)
    library.mincore.argtypes = (pointer, size, pointer)
    library.pread.restype = ctypes.c_ssize_t
    library.pread.argtypes = (number, pointer, size, ctypes.c_int64)
    return library
