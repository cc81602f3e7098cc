"""The host's part of a model in memory: where each slice lies, and what is laid over the mapping.

The engine reads tensors at the addresses where it mapped the files. What every token needs is read
once into memory of the process's own, laid over the mapping in place: the page cache cannot evict
it then, and no address changes. Experts get such memory as well, or stay the file's own pages,
depending on the mechanism.

A slice is whole pages but for its ends. The page in which two experts of a matrix meet belongs to
both and leaves with the last of them; a page that an expert shares with another tensor always
stays. What is read twice so is read from the same file, so it is the same.

Knows: the geometry of slices and pages, and what lies over which mapping now.
Does not know: which experts are held, and when anything is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from moerun.engine.interface import MappedFile
from moerun.errors import EngineRefused
from moerun.experts import memory_map
from moerun.experts.layout import ExpertLayout, StreamedTensor
from moerun.experts.memory_map import PAGE_BYTES, page_ceiling, page_floor
from moerun.experts.order import SsdCacheOrder
from moerun.experts.read_queue import Fetch, Read
from moerun.experts.reader import READ_BYTES, Reader
from moerun.experts.ssd_cache import SsdCache, open_ssd_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One matrix of experts at its address; `delta` leads from an address to the file's offset."""

    file: int
    address: int
    expert_bytes: int
    expert_count: int
    delta: int

    def slice_span(self, first: int, last: int) -> tuple[int, int]:
        """Return the whole pages in which experts `first` to `last` lie, that one included."""
        return (
            page_floor(self.address + first * self.expert_bytes),
            page_ceiling(self.address + (last + 1) * self.expert_bytes),
        )

    def middle(self, expert: int) -> int:
        """Return an address amid one expert."""
        return self.address + expert * self.expert_bytes + self.expert_bytes // 2

    def core_span(self, expert: int) -> tuple[int, int]:
        """Return the whole pages that hold nothing but one expert; they may be none."""
        start = self.address + expert * self.expert_bytes
        first = page_ceiling(start)
        return first, max(first, page_floor(start + self.expert_bytes))

    def own_span(self, expert: int, is_held: Callable[[int], bool]) -> tuple[int, int]:
        """Return the whole pages that nothing needs when an expert leaves; they may be none."""
        start = self.address + expert * self.expert_bytes
        first = page_floor(start)
        last = page_ceiling(start + self.expert_bytes)
        if self._is_needed(first, expert, is_held):
            first += PAGE_BYTES
        if last > first and self._is_needed(last - PAGE_BYTES, expert, is_held):
            last -= PAGE_BYTES
        return first, max(first, last)

    def _is_needed(self, page: int, leaving: int, is_held: Callable[[int], bool]) -> bool:
        """Whether a page holds something of another tensor, or of another expert that is held."""
        begin, end = page - self.address, page + PAGE_BYTES - self.address
        if begin < 0 or end > self.expert_bytes * self.expert_count:
            return True
        others = range(begin // self.expert_bytes, -(-end // self.expert_bytes))
        return any(other != leaving and is_held(other) for other in others)


class ModelMemory:
    """The mappings of one model, attached once; mechanisms take turns on them."""

    def __init__(
        self,
        layout: ExpertLayout,
        *,
        threads: int,
        read_bytes: int | None,
        ssd_cache: SsdCacheOrder | None = None,
        model_digest: str = "",
    ) -> None:
        """Open the files; raises ModelError when one cannot be opened.

        With an order for it, copies on a faster disk stand before the files.
        """
        self.layout = layout
        # direct reads are of whole pages, wherever one begins
        self.read_bytes: Final = max(PAGE_BYTES, page_floor(read_bytes or READ_BYTES))
        self.reader: Final = Reader([file.path for file in layout.files], threads=threads)
        self.ssd_cache: SsdCache | None = None
        self.notes: tuple[str, ...] = ()
        if ssd_cache is not None:
            self._open_ssd_cache(ssd_cache, model_digest)
        self.matrices: dict[int, tuple[Matrix, ...]] = {}
        self._mapped: tuple[tuple[int, MappedFile], ...] = ()
        self._resident_spans: tuple[tuple[int, int], ...] = ()
        self._is_overlaid = self._was_overlaid = False

    def attach(
        self,
        mapped: Sequence[MappedFile],
        *,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Take over the mappings, and read what every token needs; a second call does nothing."""
        if self.matrices:
            return
        files = {file.path: index for index, file in enumerate(self.layout.files)}
        self._mapped = tuple((files[part.path], part) for part in mapped if part.path in files)
        matrices: dict[int, list[Matrix]] = {}
        for tensor in self.layout.tensors:
            matrices.setdefault(tensor.layer, []).append(self._place(tensor))
        self._read_resident(on_progress)
        self.matrices = {layer: tuple(found) for layer, found in matrices.items()}

    def give_own_memory(self) -> None:
        """Lay fresh memory over all experts, and read the pages that they share with others.

        Where the system refuses, or a read fails, all of it is the file's again.
        """
        if self._is_overlaid:
            return
        fetches: list[Fetch] = []
        try:
            for matrix in self._all_matrices():
                self._cover(matrix, fetches)
            for fetch in fetches:
                fetch.wait()
        except BaseException:
            for fetch in fetches:
                fetch.settle()
            for matrix in self._all_matrices():
                self._uncover(matrix, *matrix.slice_span(0, matrix.expert_count - 1))
            raise
        self._is_overlaid = True

    def _cover(self, matrix: Matrix, fetches: list[Fetch]) -> None:
        """Lay fresh memory over a matrix, and begin to read what it shares with others."""
        first, last = matrix.slice_span(0, matrix.expert_count - 1)
        memory_map.lay_anonymous(first, last)
        inner_first, inner_last = self.inner_span(matrix)
        shared = {p for p in (first, last - PAGE_BYTES) if not inner_first <= p < inner_last}
        for page in shared:
            fetch = Fetch(1, 0.0)
            fetches.append(fetch)
            self.reader.submit([self.read(matrix, page, page + PAGE_BYTES, (fetch,))])

    def _uncover(self, matrix: Matrix, first: int, last: int) -> None:
        """Map the file over whole pages of a matrix again."""
        if first < last:
            descriptor = self.reader.descriptor(matrix.file)
            memory_map.map_file(descriptor, first, last, first + matrix.delta)

    def give_file_back(self) -> None:
        """Map the files over all experts again, but for pages that they share with others."""
        if not self._is_overlaid:
            return
        for matrix in self._all_matrices():
            self._uncover(matrix, *self.inner_span(matrix))
        self._is_overlaid, self._was_overlaid = False, True

    def inner_span(self, matrix: Matrix) -> tuple[int, int]:
        """Return the whole pages that hold nothing but experts of a matrix."""
        first = page_ceiling(matrix.address)
        end = matrix.address + matrix.expert_bytes * matrix.expert_count
        return first, max(first, page_floor(end))

    def read(self, matrix: Matrix, first: int, last: int, fetches: tuple[Fetch, ...]) -> Read:
        """Return the read of whole pages of a matrix."""
        return Read(matrix.file, first, first + matrix.delta, last - first, fetches)

    def resident_bytes(self) -> int:
        """Return the bytes of expert pages in memory, as the system tells.

        Of a mapped file that is not ours, it tells only what this process has touched.
        """
        tells = [memory_map.tells_residency(file.path) for file in self.layout.files]
        total_bytes = 0
        for matrix in self._all_matrices():
            is_told = self._is_overlaid or tells[matrix.file]
            count = memory_map.resident_bytes if is_told else memory_map.mapped_bytes
            total_bytes += count(*self.inner_span(matrix))
        return total_bytes

    def file_span(self, matrix: Matrix) -> tuple[int, int]:
        """Return the whole pages of a matrix that are the file's own while no cache runs."""
        first, last = matrix.slice_span(0, matrix.expert_count - 1)
        inner_first, inner_last = self.inner_span(matrix)
        if self._is_own(first):
            first = inner_first
        if self._is_own(last - PAGE_BYTES):
            last = inner_last
        return first, max(first, last)

    def _is_own(self, page: int) -> bool:
        """Whether a page in which a matrix ends is memory of the process's own, and stays it."""
        if self._was_overlaid:
            return True
        return any(first <= page < last for first, last in self._resident_spans)

    def close(self) -> None:
        """End the reading threads, and close the files."""
        self.reader.close()

    def _open_ssd_cache(self, order: SsdCacheOrder, model_digest: str) -> None:
        files = [
            (file.path, self.reader.descriptor(number))
            for number, file in enumerate(self.layout.files)
        ]
        self.ssd_cache, note = open_ssd_cache(
            order, files, model_digest=model_digest, read_bytes=self.read_bytes
        )
        if self.ssd_cache is not None:
            self.reader.read_through(self.ssd_cache)
        self.notes = (note,) if note is not None else ()

    def _all_matrices(self) -> list[Matrix]:
        return [matrix for matrices in self.matrices.values() for matrix in matrices]

    def _place(self, tensor: StreamedTensor) -> Matrix:
        part = self._part(tensor.file_index, tensor.offset_bytes, tensor.size_bytes, tensor.name)
        return Matrix(
            file=tensor.file_index,
            address=part.address + tensor.offset_bytes - part.offset_bytes,
            expert_bytes=tensor.expert_bytes,
            expert_count=tensor.expert_count,
            delta=part.offset_bytes - part.address,
        )

    def _part(self, file: int, offset_bytes: int, size_bytes: int, what: str) -> MappedFile:
        """Return the mapping that holds a range of a file."""
        for index, part in self._mapped:
            if (
                index == file
                and part.offset_bytes <= offset_bytes
                and offset_bytes + size_bytes <= part.offset_bytes + part.size_bytes
            ):
                return part
        raise EngineRefused(
            f"The engine did not map {what} of {self.layout.files[file].path}, so it cannot "
            "be streamed.",
            hint="--streaming off loads the model without it.",
        )

    def _read_resident(self, on_progress: Callable[[float], None] | None) -> None:
        """Lay own memory over what every token needs, and read it in large pieces."""
        fetches: list[Fetch] = []
        reads: list[Read] = []
        spans: list[tuple[int, int, int, int]] = []
        for part in self.layout.resident:
            mapping = self._part(part.file_index, part.offset_bytes, part.size_bytes, "a part")
            delta = mapping.offset_bytes - mapping.address
            start = part.offset_bytes - delta
            first, last = page_floor(start), page_ceiling(start + part.size_bytes)
            if spans and spans[-1][0] == part.file_index and spans[-1][2] >= first:
                file, before, _, _ = spans.pop()
                first = before
            spans.append((part.file_index, first, last, delta))
        self._resident_spans = tuple((first, last) for _, first, last, _ in spans)
        for file, first, last, delta in spans:
            memory_map.lay_anonymous(first, last)
            for start in range(first, last, self.read_bytes):
                end = min(last, start + self.read_bytes)
                fetch = Fetch(1, 0.0)
                fetches.append(fetch)
                reads.append(Read(file, start, start + delta, end - start, (fetch,)))
        self.reader.submit(reads)
        for number, fetch in enumerate(fetches, start=1):
            fetch.wait()
            if on_progress is not None:
                on_progress(number / len(fetches))
