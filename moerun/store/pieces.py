"""Which pieces of a file that is being downloaded are on disk, and what each should read as.

A file is cut into some 4,096 pieces. When a piece is written, a record with its checksum is added
to a book beside the part; both survive the death of the process, and the checksum finds a piece
that the disk lost after all, as after a loss of power. So a download that dies loses what each of
its connections had of one piece: with 8 connections at most 0.2 % of a large file.

Knows: the book's form on disk, and how large a piece is.
Does not know: how bytes arrive, or the digest of the whole file.
"""

import struct
import zlib
from pathlib import Path
from typing import Final

from moerun.units import KIB, MIB

MOST_PIECES: Final = 4096  # of files up to 4 GiB; those of larger ones have MOST_PIECE_BYTES
LEAST_PIECE_BYTES: Final = 16 * KIB
MOST_PIECE_BYTES: Final = MIB
_MAGIC: Final = b"moerun pieces 1\n"
_HEADER: Final = struct.Struct("<16sQII")  # magic, size of the file, size of a piece, identity
_RECORD: Final = struct.Struct("<IIII")  # piece, its checksum, whether it is there, checksum of all
_RECORD_BODY: Final = struct.Struct("<III")


def piece_bytes_of(size_bytes: int) -> int:
    """Return how large the pieces of a file are: a power of two."""
    piece_bytes = LEAST_PIECE_BYTES
    while piece_bytes < MOST_PIECE_BYTES and size_bytes > piece_bytes * MOST_PIECES:
        piece_bytes *= 2
    return piece_bytes


class PieceBook:
    """The pieces on disk and their checksums; not to be used by two threads at once.

    `identity` says which content the part is of: a book of another content or size counts as
    empty, and so does whatever follows a record that was not written whole. One that `is_looked_at`
    is another process's, perhaps, and stays as it is.
    """

    def __init__(
        self, path: Path, *, size_bytes: int, identity: str, is_looked_at: bool = False
    ) -> None:
        self.size_bytes = size_bytes
        self.piece_bytes = piece_bytes_of(size_bytes)
        self.count = -(-size_bytes // self.piece_bytes)
        self._checksums: list[int | None] = [None] * self.count
        self._header = _HEADER.pack(
            _MAGIC, size_bytes, self.piece_bytes, zlib.crc32(identity.encode())
        )
        mode = "rb" if is_looked_at else "a+b"
        self._file = open(path, mode, buffering=0)  # noqa: SIM115 - closed by `close`
        try:
            sound_bytes = self._load()
            if not is_looked_at:
                self._mend(sound_bytes)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "PieceBook":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    def span(self, piece: int) -> tuple[int, int]:
        """Return where a piece begins and where it ends (exclusive), in bytes."""
        start = piece * self.piece_bytes
        return start, min(start + self.piece_bytes, self.size_bytes)

    def checksum(self, piece: int) -> int | None:
        """Return what a piece on disk should give, None when it is not there."""
        return self._checksums[piece]

    def there(self) -> tuple[int, ...]:
        """Return the pieces that are said to be on disk."""
        return tuple(piece for piece, value in enumerate(self._checksums) if value is not None)

    def enter(self, piece: int, checksum: int) -> None:
        """Write down that a piece is on disk."""
        self._checksums[piece] = checksum
        self._append(piece, checksum, is_there=True)

    def strike(self, piece: int) -> None:
        """Write down that a piece is not on disk after all."""
        self._checksums[piece] = None
        self._append(piece, 0, is_there=False)

    def clear(self) -> None:
        """Write down that nothing is on disk."""
        self._checksums = [None] * self.count
        self._file.truncate(0)
        self._file.write(self._header)

    def _append(self, piece: int, checksum: int, *, is_there: bool) -> None:
        # One write, at the end wherever that is: a record is there whole, or cut at the very end.
        body = _RECORD_BODY.pack(piece, checksum, is_there)
        self._file.write(body + struct.pack("<I", zlib.crc32(body)))

    def _load(self) -> int:
        """Take in the records and return where the sound ones end."""
        self._file.seek(0)
        data = self._file.read() or b""
        if data[: _HEADER.size] != self._header:
            return 0
        sound_bytes = _HEADER.size
        for start in range(_HEADER.size, len(data) - _RECORD.size + 1, _RECORD.size):
            piece, checksum, is_there, check = _RECORD.unpack_from(data, start)
            if check != zlib.crc32(data[start : start + _RECORD_BODY.size]) or piece >= self.count:
                break
            self._checksums[piece] = checksum if is_there else None
            sound_bytes = start + _RECORD.size
        return sound_bytes

    def _mend(self, sound_bytes: int) -> None:
        if sound_bytes == 0:
            self.clear()
        else:
            self._file.truncate(sound_bytes)
