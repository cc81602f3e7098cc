"""Experts as pages of the file's own mapping: the page cache holds them, the book keeps the limit.

Missing experts are asked for slice by slice, and the engine's threads wait in the kernel for what
is not there yet; what leaves is unmapped and dropped from the page cache. The system may take pages
all the same: it is asked about some of what the book holds, and what it took is a miss.

Knows: advice to the kernel about pages of a mapping.
Does not know: which expert leaves, or when a page really came.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from moerun.engine.interface import MappedFile
from moerun.experts import memory_map
from moerun.experts.book import CacheBook
from moerun.experts.interface import CachePolicy, ExpertKey, Supplied
from moerun.experts.layout import page_slot_bytes
from moerun.experts.memory_map import page_floor
from moerun.experts.model_memory import ModelMemory

# Once pages of a held expert were taken, so many requests look at all that they hit.
_WARY_REQUESTS: Final = 500


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
        self._spans: dict[int, tuple[tuple[int, int], ...]] = {}  # of the matrices in the file
        self._ahead: set[ExpertKey] = set()  # read ahead and not asked for since
        self._turn = self._wary_until = 0

    def attach(self, mapped: Sequence[MappedFile]) -> None:
        """Take over the mappings of the files."""
        self._memory.attach(mapped)
        self._memory.give_file_back()
        # All that is needed is advised before it is touched. What a fault read around it would be
        # in no book, and with a read-ahead of megabytes, as some systems have, it is most of all.
        for layer, matrices in self._memory.matrices.items():
            self._spans[layer] = tuple(self._memory.file_span(matrix) for matrix in matrices)
            for first, last in self._spans[layer]:
                if first < last:
                    memory_map.read_no_more_than_touched(first, last)

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
            taken = self._taken(layer, request.hits)
            self._advise(layer, (*request.misses, *taken))
        misses = len(request.misses) + len(taken)
        return Supplied(
            hits=len(request.hits) - len(taken),
            misses=misses,
            read_bytes=misses * self._read_bytes(layer),
            evicted=len(request.victims),
            stall_s=self._clock() - started_s if misses else 0.0,
        )

    def prefetch(self, layer: int, experts: Sequence[int]) -> int:
        """Have experts read that may be needed soon; return the bytes asked for."""
        with self._lock:
            request = self._book.foretell(layer, experts, keep=self._current)
            self._discard(request.victims)
            self._advise(layer, request.entering)
            self._ahead.update(request.entering)
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

    def _taken(self, layer: int, hits: Sequence[ExpertKey]) -> tuple[ExpertKey, ...]:
        """Return held experts whose pages the system took; a few are looked at, in turn."""
        self._turn += 1
        if not hits:
            return ()
        is_wary = self._turn < self._wary_until
        looked_at = hits if is_wary else (hits[self._turn % len(hits)],)
        matrices = self._memory.matrices[layer]
        matrix = matrices[self._turn % len(matrices)]
        taken = tuple(
            key
            for key in looked_at
            if key not in self._ahead  # may be on its way
            and not memory_map.is_resident(page_floor(matrix.middle(key.expert)))
        )
        self._ahead.difference_update(hits)
        self._ahead.update(taken)
        if taken:
            self._wary_until = self._turn + _WARY_REQUESTS
        return taken

    def _advise(self, layer: int, keys: Iterable[ExpertKey]) -> None:
        """Have all pages of experts read; those that are in memory cost nothing."""
        ordered = sorted(keys)
        matrices = self._memory.matrices[layer]
        for matrix, (file_first, file_last) in zip(matrices, self._spans[layer], strict=True):
            for key in ordered:
                first, last = matrix.slice_span(key.expert, key.expert)
                first, last = max(first, file_first), min(last, file_last)
                if first < last:
                    memory_map.will_need(first, last)

    def _discard(self, keys: Iterable[ExpertKey]) -> None:
        """Unmap the pages of experts, and have the page cache forget them."""
        for key in keys:
            self._ahead.discard(key)
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
