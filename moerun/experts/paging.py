"""Experts as pages of the file's own mapping: the page cache holds them, the book keeps the limit.

Missing experts are asked for slice by slice, and the engine's threads wait in the kernel for what
is not there yet; what leaves is unmapped and dropped from the page cache.

Knows: advice to the kernel about pages of a mapping.
Does not know: which expert leaves, or when a page really came.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from moerun.engine.interface import MappedFile
from moerun.experts import memory_map
from moerun.experts.book import CacheBook
from moerun.experts.interface import CachePolicy, ExpertKey, Supplied
from moerun.experts.layout import page_slot_bytes
from moerun.experts.model_memory import ModelMemory


class PagingMechanism:
    """The loader's own mapping, with advice on exactly the slices that are needed."""

    def __init__(
        self,
        memory: ModelMemory,
        policy: CachePolicy,
        *,
        cache_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._memory = memory
        self._policy = policy
        self._book = CacheBook(
            policy, slot_bytes=page_slot_bytes(memory.layout), cache_bytes=cache_bytes
        )
        self._clock = clock
        self._lock = threading.Lock()
        self._current: frozenset[ExpertKey] = frozenset()
        self._passing: tuple[ExpertKey, ...] = ()

    def attach(self, mapped: Sequence[MappedFile]) -> None:
        """Take over the mappings of the files."""
        self._memory.attach(mapped)
        self._memory.give_file_back()

    def supply(self, layer: int, experts: Sequence[int]) -> Supplied:
        """Have the experts of a layer read."""
        started_s = self._clock()
        with self._lock:
            passed, self._passing = self._passing, ()
            request = self._book.request(layer, experts)
            wanted = frozenset((*request.hits, *request.misses))
            self._discard(key for key in passed if key not in wanted)
            self._discard(request.victims)
            self._current, self._passing = wanted, request.passing
            self._advise(layer, request.misses)
        read_bytes = len(request.misses) * self._read_bytes(layer)
        return Supplied(
            hits=len(request.hits),
            misses=len(request.misses),
            read_bytes=read_bytes,
            evicted=len(request.victims),
            stall_s=self._clock() - started_s if request.misses else 0.0,
        )

    def prefetch(self, layer: int, experts: Sequence[int]) -> int:
        """Have experts read that may be needed soon; return the bytes asked for."""
        with self._lock:
            request = self._book.foretell(layer, experts, keep=self._current)
            self._discard(request.victims)
            self._advise(layer, request.entering)
            return len(request.entering) * self._read_bytes(layer)

    def resize(self, cache_bytes: int) -> None:
        """Hold no more than that from now on; what is too much leaves at once."""
        with self._lock:
            self._discard(self._book.resize(cache_bytes, keep=self._current))

    def held_bytes(self) -> int:
        """Return the bytes of the experts that are held, by the books."""
        return self._book.held_bytes

    def resident_bytes(self) -> int:
        """Return the bytes of expert pages that are in memory, as the system tells (mincore)."""
        return self._memory.resident_bytes()

    def detach(self) -> None:
        """Leave every address readable; the page cache keeps what it holds for others to drop."""
        with self._lock:
            self._discard(tuple(self._policy.held()))

    def _read_bytes(self, layer: int) -> int:
        return sum(matrix.expert_bytes for matrix in self._memory.matrices[layer])

    def _advise(self, layer: int, keys: Iterable[ExpertKey]) -> None:
        ordered = sorted(keys)
        for matrix in self._memory.matrices[layer]:
            inner_first, inner_last = self._memory.inner_span(matrix)
            for key in ordered:
                first, last = matrix.slice_span(key.expert, key.expert)
                first, last = max(first, inner_first), min(last, inner_last)
                if first < last:
                    memory_map.will_need(first, last)

    def _discard(self, keys: Iterable[ExpertKey]) -> None:
        """Unmap the pages of experts, and have the page cache forget them."""
        for key in keys:
            held = self._held_of(key.layer)
            for matrix in self._memory.matrices[key.layer]:
                first, last = matrix.own_span(key.expert, held)
                if first < last:
                    memory_map.drop(first, last)
                    descriptor = self._memory.reader.descriptor(matrix.file)
                    memory_map.drop_from_page_cache(descriptor, first + matrix.delta, last - first)

    def _held_of(self, layer: int) -> Callable[[int], bool]:
        """Return what tells whether an expert of a layer is held."""
        return lambda expert: ExpertKey(layer, expert) in self._policy
