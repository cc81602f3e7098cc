"""A file of numbered bytes, mapped as the engine maps it, for tests of what moves experts."""

import ctypes
import mmap
import os
from pathlib import Path
from random import Random

from moerun.engine.interface import MappedFile
from moerun.experts.layout import ExpertLayout, FileRange, StreamedTensor
from moerun.model.description import ModelFile

DENSE_BYTES = 10_000


def forget(path: Path) -> None:
    """Have the page cache forget a file that nobody has touched in a mapping, if it can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class MappedModel:
    """Layers of two matrices behind some dense bytes; nothing but the last page is aligned."""

    def __init__(
        self,
        path: Path,
        *,
        layers: int = 3,
        experts: int = 8,
        expert_bytes: int = 9_000,
        offset_bytes: int = DENSE_BYTES,
    ) -> None:
        part_bytes = experts * expert_bytes
        size_bytes = offset_bytes + layers * 2 * part_bytes + 777
        self.content = Random(5).randbytes(size_bytes)
        path.write_bytes(self.content)
        self.path = path
        self.layout = ExpertLayout(
            files=(ModelFile(path=str(path), size_bytes=size_bytes, data_offset_bytes=0),),
            tensors=tuple(
                StreamedTensor(
                    name=f"blk.{layer}.ffn_{part}_exps.weight",
                    layer=layer,
                    file_index=0,
                    offset_bytes=offset_bytes + (2 * layer + number) * part_bytes,
                    expert_bytes=expert_bytes,
                    expert_count=experts,
                )
                for layer in range(layers)
                for number, part in enumerate(("up", "down"))
            ),
            resident=(
                FileRange(file_index=0, offset_bytes=500, size_bytes=offset_bytes - 500),
                FileRange(file_index=0, offset_bytes=size_bytes - 777, size_bytes=777),
            ),
            experts_used=2,
        )
        descriptor = os.open(path, os.O_RDONLY)
        # Private here, so that Python hands out its address; nothing ever writes to it.
        self._map = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE)
        os.close(descriptor)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    @property
    def mapped(self) -> tuple[MappedFile, ...]:
        size_bytes = -(-len(self.content) // mmap.PAGESIZE) * mmap.PAGESIZE
        return (
            MappedFile(
                path=str(self.path), address=self.address, offset_bytes=0, size_bytes=size_bytes
            ),
        )

    def expert(self, layer: int, expert: int) -> list[tuple[bytes, bytes]]:
        """Return what memory and what the file hold of one expert, for each matrix."""
        found = []
        for tensor in self.layout.by_layer[layer]:
            start = tensor.offset_bytes + expert * tensor.expert_bytes
            seen = ctypes.string_at(self.address + start, tensor.expert_bytes)
            found.append((seen, self.content[start : start + tensor.expert_bytes]))
        return found

    def holds(self, layer: int, expert: int) -> bool:
        """Whether an expert can be read where the engine reads it."""
        return all(seen == wanted for seen, wanted in self.expert(layer, expert))

    def resident_is_right(self) -> bool:
        return all(
            ctypes.string_at(self.address + part.offset_bytes, part.size_bytes)
            == self.content[part.offset_bytes : part.offset_bytes + part.size_bytes]
            for part in self.layout.resident
        )
