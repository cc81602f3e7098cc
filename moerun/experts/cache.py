"""Experts in memory of the process's own: exactly the missing slices are read, past the page cache.

What is held is decided by the book; here its decisions become reads and pages given back. The
engine touches no experts but those of the latest request, so all others may leave at any time.

Knows: reads, pages, and how long each missing expert took.
Does not know: which expert leaves, or who asks.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from moerun.engine.interface import MappedFile
from moerun.experts import memory_map
from moerun.experts.book import CacheBook
from moerun.experts.counters import Latency
from moerun.experts.interface import CachePolicy, ExpertKey, Supplied
from moerun.experts.latency import Latencies
from moerun.experts.layout import page_slot_bytes
from moerun.experts.model_memory import Matrix, ModelMemory
from moerun.experts.page_reuse import PageReuse
from moerun.experts.read_queue import Fetch, Read

_NOTHING: Final = Supplied(hits=0, misses=0, read_bytes=0, evicted=0, stall_s=0.0)


class CacheMechanism:
    """A bounded cache of experts, laid over the places where the engine reads them."""

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
        self._slot_bytes = page_slot_bytes(memory.layout)
        self._book = CacheBook(policy, slot_bytes=self._slot_bytes, cache_bytes=cache_bytes)
        self._clock = clock
        self._lock = threading.Lock()
        self._fetches: dict[ExpertKey, Fetch] = {}  # what is read ahead and was not waited for
        self._current: frozenset[ExpertKey] = frozenset()  # what the engine may be reading now
        self._passing: tuple[ExpertKey, ...] = ()  # of these, what has no place in the book
        self._latencies = Latencies()
        self._pages = PageReuse(mappings_left=0)  # until the mappings are there to be counted

    def attach(self, mapped: Sequence[MappedFile]) -> None:
        """Take over the mappings of the files."""
        self._memory.attach(mapped)
        self._memory.give_own_memory()
        self._pages = PageReuse()

    def supply(self, layer: int, experts: Sequence[int]) -> Supplied:
        """Have the experts of a layer in memory."""
        started_s = self._clock()
        with self._lock:
            passed, self._passing = self._passing, ()
            request = self._book.request(layer, experts)
            wanted = frozenset((*request.hits, *request.misses))
            self._discard(key for key in passed if key not in wanted)
            self._discard(request.victims)
            self._current, self._passing = wanted, request.passing
            ahead = {k: self._fetches.pop(k) for k in request.hits if k in self._fetches}
            late = [fetch for fetch in ahead.values() if not fetch.is_done]
            if late:
                self._memory.reader.hasten(late)
            keys = sorted(request.misses)
            missing = dict(zip(keys, self._read(layer, keys, started_s), strict=True))
            self._pages.drop_rest()
        if not missing and not ahead:
            return _NOTHING if not wanted else self._supplied(request.hits, (), (), 0.0)
        self._wait({**ahead, **missing})
        if len(wanted) <= self._memory.layout.experts_used:  # one token; batches queue up
            self._latencies.note(fetch.done_s - started_s for fetch in (*missing.values(), *late))
        stall_s = self._clock() - started_s
        return self._supplied(request.hits, request.misses, request.victims, stall_s)

    def prefetch(self, layer: int, experts: Sequence[int]) -> int:
        """Start reading experts that may be needed soon; return the bytes asked for."""
        with self._lock:
            request = self._book.foretell(layer, experts, keep=self._current)
            self._discard(request.victims)
            keys = sorted(request.entering)
            fetches = self._read(layer, keys, self._clock(), is_ahead=True)
            self._fetches.update(zip(keys, fetches, strict=True))
            self._pages.drop_rest()
            return len(keys) * self._read_bytes(layer)

    def resize(self, cache_bytes: int) -> None:
        """Hold no more than that from now on; what is too much leaves at once."""
        with self._lock:
            self._discard(self._book.resize(cache_bytes, keep=self._current))
            self._pages.drop_rest()

    def held_bytes(self) -> int:
        """Return the bytes of the experts that are held, by the books."""
        return self._book.held_bytes

    def resident_bytes(self) -> int:
        """Return the bytes of expert pages that are in memory, as the system tells (mincore)."""
        return self._memory.resident_bytes()

    def latency(self) -> Latency | None:
        """Return how long missing experts of single tokens took from request until use."""
        return self._latencies.summary()

    def detach(self) -> None:
        """Stop, and leave every address readable through the file's own mapping."""
        with self._lock:
            for fetch in self._fetches.values():
                self._memory.reader.cancel(fetch)
            self._fetches.clear()
            self._memory.give_file_back()

    def _wait(self, fetches: Mapping[ExpertKey, Fetch]) -> None:
        """Wait until nothing of these is read any more; what failed is not held, and raises.

        A read that still ran when its pages moved on would write into another expert.
        """
        for fetch in reversed(
            list(fetches.values())
        ):  # the last is done last: one wait for nearly all
            fetch.settle()
        failed = [key for key, fetch in fetches.items() if fetch.failure is not None]
        if not failed:
            return
        with self._lock:
            for key in failed:
                if key in self._policy:
                    self._book.drop(key)
            self._discard(failed)
            self._pages.drop_rest()
        fetches[failed[0]].wait()

    def _supplied(
        self,
        hits: Collection[ExpertKey],
        misses: Collection[ExpertKey],
        victims: Collection[ExpertKey],
        stall_s: float,
    ) -> Supplied:
        read_bytes = sum(self._read_bytes(key.layer) for key in misses)
        return Supplied(
            hits=len(hits),
            misses=len(misses),
            read_bytes=read_bytes,
            evicted=len(victims),
            stall_s=stall_s,
        )

    def _read_bytes(self, layer: int) -> int:
        return sum(matrix.expert_bytes for matrix in self._memory.matrices[layer])

    def _read(
        self, layer: int, keys: Sequence[ExpertKey], started_s: float, *, is_ahead: bool = False
    ) -> list[Fetch]:
        """Begin to read experts: small ones matrix after matrix, as they are computed; large ones
        one after the other, since all would be late if they came together.
        """
        if not keys:
            return []
        matrices = self._memory.matrices[layer]
        for matrix in matrices:
            for key in keys:
                self._pages.fill(*matrix.core_span(key.expert))
        if any(matrix.expert_bytes > self._memory.read_bytes for matrix in matrices):
            return [self._read_large(layer, key, started_s, is_ahead=is_ahead) for key in keys]
        fetches = [Fetch(len(matrices), started_s) for _ in keys]
        reads: list[Read] = []
        for matrix in matrices:
            reads += self._reads(matrix, keys, fetches)
        self._memory.reader.submit(reads, is_ahead=is_ahead)
        return fetches

    def _read_large(self, layer: int, key: ExpertKey, started_s: float, *, is_ahead: bool) -> Fetch:
        """Begin to read one expert in pieces, between which what is waited for more can go."""
        step_bytes = self._memory.read_bytes
        pieces = [
            (matrix, begin, min(begin + step_bytes, last))
            for matrix in self._memory.matrices[layer]
            for first, last in [matrix.slice_span(key.expert, key.expert)]
            for begin in range(first, last, step_bytes)
        ]
        fetch = Fetch(len(pieces), started_s)
        reads = [self._memory.read(*piece, (fetch,)) for piece in pieces]
        self._memory.reader.submit(reads, is_ahead=is_ahead)
        return fetch

    def _reads(
        self, matrix: Matrix, keys: Sequence[ExpertKey], fetches: Sequence[Fetch]
    ) -> Iterable[Read]:
        """Return one read for each run of neighbours, up to the size of a read."""
        most = max(1, self._memory.read_bytes // matrix.expert_bytes)
        begin = 0
        for end in range(1, len(keys) + 1):
            is_run = end < len(keys) and keys[end].expert == keys[end - 1].expert + 1
            if is_run and end - begin < most:
                continue
            first, last = matrix.slice_span(keys[begin].expert, keys[end - 1].expert)
            yield self._memory.read(matrix, first, last, tuple(fetches[begin:end]))
            begin = end

    def _discard(self, keys: Iterable[ExpertKey]) -> None:
        """Offer the pages of experts that the book holds no more to those that come."""
        for key in keys:
            fetch = self._fetches.pop(key, None)
            if fetch is not None:
                self._memory.reader.cancel(fetch)
            held = self._held_of(key.layer)
            for matrix in self._memory.matrices[key.layer]:
                first, last = matrix.own_span(key.expert, held)
                inner_first, inner_last = matrix.core_span(key.expert)
                self._pages.offer(inner_first, inner_last)
                for begin, end in ((first, inner_first), (inner_last, last)):
                    if begin < end:
                        memory_map.drop(begin, end)

    def _held_of(self, layer: int) -> Callable[[int], bool]:
        """Return what tells whether an expert of a layer is held."""
        return lambda expert: ExpertKey(layer, expert) in self._policy
