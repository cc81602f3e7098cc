"""Where a loaded library calls one of its functions through, and lending that place out.

A shared library of Linux calls what it exports through a table of addresses, so that another
library may stand in its way; a slot of that table may be filled by anyone. Memory is read and
written through /proc/self/mem: there a wrong address is an error and not a crash, and the table
may be write-protected.

Knows: ELF of 64 bits as the dynamic linker has it in memory, on x86-64 and aarch64.
Does not know: which functions these are.
"""

import ctypes
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_MEMORY: Final = "/proc/self/mem"
_LINK_MAP: Final = 2  # RTLD_DI_LINKMAP of dlinfo
# Tags of the dynamic section, and the kinds of relocation that fill a slot: R_*_GLOB_DAT,
# R_*_JUMP_SLOT. They are part of the systems' binary interfaces and do not change.
_END, _PLT_SIZE, _STRINGS, _SYMBOLS, _RELOCATIONS, _SIZE = 0, 2, 5, 6, 7, 8
_STRINGS_SIZE, _PLT_KIND, _PLT = 10, 20, 23
_FILLS: Final = {"x86_64": (6, 7), "aarch64": (1025, 1026)}
_DYNAMIC_ENTRY: Final = struct.Struct("<qQ")
_RELOCATION: Final = struct.Struct("<QQq")
_SYMBOL_BYTES, _NAME_BYTES = 24, 4  # a symbol begins with where its name is
_ADDRESS: Final = struct.Struct("<Q")
_MOST_DYNAMIC_ENTRIES: Final = 256

_turn = threading.Lock()


class _LinkMap(ctypes.Structure):
    """The public head of `struct link_map` — <link.h>."""

    _fields_ = (
        ("load_address", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("dynamic_section", ctypes.c_size_t),
    )


def find_call_slot(library: ctypes.CDLL, symbol: str) -> int | None:
    """Return the address of the one slot that a library calls a function through.

    None where there is none to be found: another system, a library that was linked so as to call
    the function directly, or more slots than one.
    """
    fills = _FILLS.get(os.uname().machine) if sys.platform == "linux" else None
    if fills is None or ctypes.sizeof(ctypes.c_void_p) != _ADDRESS.size:
        return None
    try:
        slots = _slots(library, symbol.encode(), fills)
    except OSError:
        return None
    return slots[0] if len(slots) == 1 else None


@contextmanager
def redirected(slot: int, target: int) -> Iterator[bool]:
    """While open, calls through the slot reach the target; tells whether they do.

    One at a time in a process, or the slots would be given back in the wrong order.
    """
    with _turn:
        try:
            original = _exchange(slot, target)
        except OSError:  # some kernels keep protected pages from being written this way
            original = None
        try:
            yield original is not None
        finally:
            if original is not None:
                _exchange(slot, original)


def _exchange(slot: int, value: int) -> int:
    """Write an address into a slot and return the one that was there."""
    memory = os.open(_MEMORY, os.O_RDWR)
    try:
        before = _read(memory, slot, _ADDRESS.size)
        os.pwrite(memory, _ADDRESS.pack(value), slot)
    finally:
        os.close(memory)
    return int(_ADDRESS.unpack(before)[0])


def _link_map(library: ctypes.CDLL) -> _LinkMap:
    dlinfo = ctypes.CDLL(None).dlinfo
    found = ctypes.POINTER(_LinkMap)()
    handle = ctypes.c_void_p(library._handle)
    if dlinfo(handle, ctypes.c_int(_LINK_MAP), ctypes.byref(found)) != 0 or not found:
        raise OSError("the dynamic linker does not know the library")
    return found.contents


def _slots(library: ctypes.CDLL, symbol: bytes, fills: tuple[int, ...]) -> list[int]:
    memory = os.open(_MEMORY, os.O_RDONLY)
    try:
        loaded = _link_map(library)
        table = _dynamic_section(memory, loaded)
        names = _read(memory, table[_STRINGS], table[_STRINGS_SIZE])
        found = []
        for offset, kind, index in _relocations(memory, table):
            entry = _read(memory, table[_SYMBOLS] + index * _SYMBOL_BYTES, _NAME_BYTES)
            start = int.from_bytes(entry, "little")
            if kind in fills and names[start : start + len(symbol) + 1] == symbol + b"\0":
                found.append(loaded.load_address + offset)
        return found
    finally:
        os.close(memory)


def _dynamic_section(memory: int, library: _LinkMap) -> dict[int, int]:
    """Return the entries by tag, addresses as they are in this process.

    One C library leaves addresses relative to the library there, another does not.
    """
    base = library.load_address
    entries: dict[int, int] = {}
    for position in range(_MOST_DYNAMIC_ENTRIES):
        address = library.dynamic_section + position * _DYNAMIC_ENTRY.size
        tag, value = _DYNAMIC_ENTRY.unpack(_read(memory, address, _DYNAMIC_ENTRY.size))
        if tag == _END:
            break
        is_address = tag in (_STRINGS, _SYMBOLS, _RELOCATIONS, _PLT)
        entries[tag] = base + value if is_address and value < base else value
    if not {_STRINGS, _STRINGS_SIZE, _SYMBOLS} <= entries.keys():
        raise OSError("the library has no table of symbols")
    return entries


def _relocations(memory: int, table: dict[int, int]) -> Iterator[tuple[int, int, int]]:
    """Yield offset, kind and symbol of each relocation of data and of calls."""
    sections = [(_RELOCATIONS, _SIZE)]
    if table.get(_PLT_KIND) == _RELOCATIONS:  # the kind is said by the tag of the other table
        sections.append((_PLT, _PLT_SIZE))
    for start, size in sections:
        if start not in table:
            continue
        for offset, what, _ in _RELOCATION.iter_unpack(
            _read(memory, table[start], table.get(size, 0))
        ):
            yield offset, what & 0xFFFFFFFF, what >> 32


def _read(memory: int, address: int, size_bytes: int) -> bytes:
    content = os.pread(memory, size_bytes, address)
    if len(content) != size_bytes:
        raise OSError(f"only {len(content)} of {size_bytes} bytes at {address:#x} can be read")
    return content
