"""Keeping a dry run from forgetting which devices the graph's builder chose.

A load reserves compute buffers for a graph in which some tensors were given to a device by the
builder: norms, and the rows of the last layer that the output wants. A dry run asks for the sizes
instead, and the engine resets its scheduler before it counts, so that up to a batch of hidden
states for each copy of a pipeline crosses to another device than it will. The sizes are those of
a load when this one reset is left out.

Beliefs: `ggml_backend_sched_reserve_size` resets and `ggml_backend_sched_reserve` does not, and
both call within libggml-base through the table of addresses, as GCC does for what is exported —
ggml/src/ggml-backend.cpp:1977; libllama, which has a table of its own, resets before it builds a
graph and before it decodes, so that leaving out the calls within libggml-base harms no context
that is in use meanwhile — src/llama-context.cpp:2533, :1427 @ 0.3.36 — checked by
tests/engine/test_dry_run.py.

Knows: which call is left out, and by what.
Does not know: tables of addresses; what is measured.
"""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from moerun.engine import abi, call_slots

_RESET: Final = "ggml_backend_sched_reset"
# Takes the scheduler and changes nothing, so a call that is sent here does nothing.
_HARMLESS: Final = "ggml_backend_sched_get_n_copies"


@contextmanager
def keeping_assignments(opened: abi.Abi) -> Iterator[bool]:
    """While open, a dry run counts as a load does; tells whether that could be had.

    It cannot on macOS and Windows, and in libraries that were linked to call themselves directly.
    """
    path = abi.library_path(opened.folder, "ggml-base")
    slot, harmless = (None, None) if path is None else _places(str(path))
    if slot is None or harmless is None:
        yield False
        return
    with call_slots.redirected(slot, harmless) as is_kept:
        yield is_kept


@functools.cache
def _places(library_path: str) -> tuple[int | None, int | None]:
    """Return the slot of the call and the address of the harmless function."""
    library = ctypes.CDLL(library_path)  # it is loaded already: this finds it
    try:
        harmless = ctypes.cast(library[_HARMLESS], ctypes.c_void_p).value
    except AttributeError:
        return None, None
    return call_slots.find_call_slot(library, _RESET), harmless
