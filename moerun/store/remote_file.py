"""A file at a host as a value: where it is, how long, and what it must hash to.

Knows: the two kinds of digest that hosts of models promise.
Does not know: how it is fetched, or where it will lie.
"""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, assert_never

from moerun.errors import WrongContent

_LENGTHS: Final = {"sha256": 64, "git": 40}


class DigestKind(StrEnum):
    """How a digest is made: of the bytes, or as git names a blob (files that are not LFS)."""

    SHA256 = "sha256"
    GIT = "git"


class Hasher(Protocol):
    """What hashlib makes."""

    def update(self, data: memoryview, /) -> None:
        """Hash some more."""

    def hexdigest(self) -> str:
        """Return the digest so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A digest, checked to be one, so that it may be part of a file's name."""

    kind: DigestKind
    hexadecimal: str

    def __post_init__(self) -> None:
        length = _LENGTHS[self.kind]
        if re.fullmatch(rf"[0-9a-f]{{{length}}}", self.hexadecimal) is None:
            raise WrongContent(f"'{self.hexadecimal[:80]!a}' is no {self.kind} digest")

    def __str__(self) -> str:
        return f"{self.kind}:{self.hexadecimal}"

    def begin(self, size_bytes: int) -> Hasher:
        """Return what hashes a file of that length to this kind of digest."""
        match self.kind:
            case DigestKind.SHA256:
                return hashlib.sha256()
            case DigestKind.GIT:
                return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
        assert_never(self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file at a host; `name` is what people know it by."""

    name: str
    url: str
    size_bytes: int
    digest: Digest
