"""The header of a model, which may be split over several files; the doors of this room.

Knows: the naming and the keys of split files, how to find all parts from any of them.
Does not know: what keys or tensors mean (`moerun.model.assembly` does), or tensor data.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.errors import MissingShard, NotGguf
from moerun.model.assembly import assemble
from moerun.model.description import Model
from moerun.model.gguf_file import read_file
from moerun.model.gguf_values import ArrayValue, GgufFile, TensorEntry, Value, shown

# belief: "%s-%05d-of-%05d.gguf" - llama_split_path, src/llama.cpp @ llama-cpp-python 0.3.36 -
# checked by tests/engine/test_state_bytes.py, which loads a split file
_SHARD_NAME: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of a whole model. Keys are those of the first file; `tensors` are of all."""

    files: tuple[GgufFile, ...]

    @property
    def metadata(self) -> Mapping[str, Value]:
        """The keys and values of the first file; long arrays are decoded when iterated."""
        return self.files[0].metadata

    @property
    def tensors(self) -> tuple[TensorEntry, ...]:
        """Every tensor, in the order of the files."""
        return tuple(tensor for file in self.files for tensor in file.tensors)

    def text(self, key: str) -> str | None:
        """Return the text of a key, None when it is absent or not a text."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return the whole number of a key, None when it is absent or not one."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def texts(self, key: str) -> Iterator[str]:
        """Yield the texts of an array key one by one; nothing when it is absent."""
        value = self.metadata.get(key)
        if isinstance(value, ArrayValue):
            for item in value:
                if isinstance(item, str):
                    yield item


def read_model(path: str | os.PathLike[str]) -> Model:
    """Read a model's header and return what it is; raises only ModelError and its kinds."""
    return assemble(read_header(path).files)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a model from its file, or from any part of a split one."""
    given = read_file(path)
    count = _split_number(given, "split.count") or 1
    if count <= 1:
        return Header(files=(given,))
    files = tuple(
        _read_shard(shard, index=index, count=count)
        for index, shard in enumerate(_shard_paths(given, count))
    )
    check_complete(files)
    return Header(files=files)


def _shard_paths(given: GgufFile, count: int) -> tuple[Path, ...]:
    place = Path(given.path)
    match = _SHARD_NAME.fullmatch(place.name)
    if match is None or int(match["count"]) != count:
        raise MissingShard(
            f"{shown(place.name)} is one of {count} parts, and its name does not end in "
            f"-00001-of-{count:05d}.gguf, so the others cannot be found; give all parts the names "
            "they were published with"
        )
    paths = tuple(
        place.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    )
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingShard(
            f"part {shown(missing[0])}{more} of {count} is missing beside {shown(place.name)}; "
            "download it into the same folder"
        )
    return paths


def _read_shard(path: Path, *, index: int, count: int) -> GgufFile:
    file = read_file(path, file_index=index)
    found = _split_number(file, "split.no"), _split_number(file, "split.count")
    if found != (index, count):
        raise MissingShard(
            f"{shown(path.name)} calls itself part {found[0]} of {found[1]}, and by its name it is "
            f"part {index} of {count} (counted from 0); download the parts of one model"
        )
    return file


def check_complete(files: tuple[GgufFile, ...]) -> None:
    """Refuse parts of a split model that do not hold what the first says, or hold it twice."""
    first = shown(Path(files[0].path).name)
    expected = _split_number(files[0], "split.tensors.count")
    found = sum(len(file.tensors) for file in files)
    if expected is None:
        # the engine reads the count from the first file and stops without it
        raise NotGguf(
            f"{first} does not say how many tensors its {len(files)} parts hold "
            "(split.tensors.count); split the model again"
        )
    if expected != found:
        raise MissingShard(
            f"the {len(files)} parts of {first} hold {found} tensors and should hold {expected}; "
            "download them again"
        )
    seen: set[str] = set()
    for file in files:
        for tensor in file.tensors:
            if tensor.name in seen:
                raise NotGguf(
                    f"tensor '{shown(tensor.name)}' is in two parts of {first}; download again"
                )
            seen.add(tensor.name)


def _split_number(file: GgufFile, key: str) -> int | None:
    value = file.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
