"""Ranges of one file over one connection, tried again while it makes sense.

A host of models answers with the address of another host, where the bytes are; it is asked once,
and again when that address has run out. `If-Range` keeps a file that changes meanwhile from being
mixed with its older self.

Knows: ranges and what a host may answer instead, which failures pass and which do not.
Does not know: digests, or which other connections there are.
"""

import re
import threading
import zlib
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from moerun.errors import AccessDenied, MoerunError, Unreachable, WrongContent
from moerun.store.http_client import Channel, Credentials, Reply
from moerun.store.http_connection import Patience, host_of
from moerun.store.pieces import PieceBook
from moerun.store.remote_file import DigestKind, RemoteFile
from moerun.store.work_list import WorkList
from moerun.units import KIB

_CONTENT_RANGE: Final = re.compile(
    r"bytes (?P<first>\d+)-(?P<last>\d+)/(?P<total>\d+|\*)", re.ASCII
)
_READ_AT_ONCE_BYTES: Final = 256 * KIB
_EXPIRED: Final = frozenset({401, 403, 404, 410})  # what hosts say of an address that has run out
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Source:
    """Where the bytes of a file are at present; shared by its connections."""

    def __init__(
        self, file: RemoteFile, *, patience: Patience, credentials: Credentials | None
    ) -> None:
        self.file = file
        self.patience = patience
        self.credentials = credentials
        self.lock = threading.Lock()
        # One writes at a time, as the file system has it anyway: there others would not sleep but
        # spin, which on two cores takes the time that fetching and hashing need.
        self.writing = threading.Lock()
        self.has_no_ranges = False
        self._url = file.url
        self._etag: str | None = None

    def request(self, first: int, last: int) -> tuple[str, dict[str, str]]:
        """Return the address to ask, and the headers for a range (`last` included)."""
        with self.lock:
            headers = {"Range": f"bytes={first}-{last}"}
            # A weak tag promises no equal bytes, so `If-Range` may not hold one (RFC 9110, 13.1.5).
            if self._etag is not None and not self._etag.startswith("W/"):
                headers["If-Range"] = self._etag
            return self._url, headers

    def learn(self, reply: Reply) -> None:
        """Remember where a good answer came from."""
        with self.lock:
            self._url = reply.url
            self._etag = reply.header("etag")

    def forget(self, url: str) -> bool:
        """Ask the first host again next time; whether there is anything to be forgotten."""
        with self.lock:
            is_other = url != self.file.url
            if self._url == url:
                self._url, self._etag = self.file.url, None
            return is_other

    def take_whole(self) -> bool:
        """Whether the caller is the first to find that the host knows no ranges."""
        with self.lock:
            was_known, self.has_no_ranges = self.has_no_ranges, True
            return not was_known


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sink:
    """Where a connection reads to, and writes to from there."""

    part: FileIO
    buffer: memoryview


class Fetcher:
    """One connection: claims pieces, fetches them, writes them down."""

    def __init__(self, source: Source, work: WorkList, book: PieceBook, part: Path) -> None:
        self._source = source
        self._work = work
        self._book = book
        self._path = part
        self._channel = Channel(patience=source.patience, credentials=source.credentials)
        self._asked_pause_s: float | None = None
        self._has_whole = False
        self.fetched_bytes = 0

    def run(self) -> None:
        """Fetch until the work is over; raises Unreachable when trying again has not helped."""
        failures = 0
        with self._channel, open(self._path, "rb+", buffering=0) as part:
            sink = _Sink(part=part, buffer=memoryview(bytearray(self._book.piece_bytes)))
            while (pieces := self._work.claim()) is not None:
                before_bytes, self._asked_pause_s = self.fetched_bytes, None
                try:
                    self._fetch(pieces, sink)
                    failures = 0
                except Unreachable:
                    self._channel.close()
                    failures = 1 if self.fetched_bytes > before_bytes else failures + 1
                    if failures >= self._source.patience.tries:
                        raise
                finally:
                    self._work.give_back(pieces)
                if self._source.has_no_ranges and not self._has_whole:
                    return  # another connection fetches it all
                if failures and self._work.wait(
                    self._source.patience.pause_s(failures, self._asked_pause_s)
                ):
                    return

    def abort(self) -> None:
        """End what is under way, from another thread."""
        self._channel.abort()

    def _fetch(self, pieces: range, sink: "_Sink") -> None:
        file = self._source.file
        first, last = self._book.span(pieces[0])[0], self._book.span(pieces[-1])[1] - 1
        url, headers = self._source.request(first, last)
        reply = self._channel.get(url, headers=headers)
        if reply.status == 206:
            self._check_range(reply, first, last)
            _check_promise(reply, file)
            self._source.learn(reply)
            for piece in pieces:
                self._receive(piece, sink)
        elif reply.status == 200:
            self._fetch_whole(reply, pieces, sink, was_bound="If-Range" in headers)
        else:
            raise self._refused(reply, url)

    def _fetch_whole(self, reply: Reply, pieces: range, sink: "_Sink", *, was_bound: bool) -> None:
        """Read from the beginning what came instead of a range."""
        file = self._source.file
        _check_promise(reply, file)
        if reply.length_bytes not in (None, file.size_bytes):
            raise _wrong_length(file, reply, reply.length_bytes)
        if was_bound:
            # The file, or the host's idea of it, is another one: begin anew with what it is now.
            self._source.forget(reply.url)
            raise Unreachable(f"{file.name} changed at {host_of(reply.url)} while it was fetched")
        self._has_whole = self._has_whole or self._source.take_whole()
        if not self._has_whole:
            return
        self._work.give_back(pieces)
        for piece in range(self._book.count):
            start, end = self._book.span(piece)
            if self._work.take(piece):
                try:
                    self._receive(piece, sink)
                finally:
                    self._work.give_back(range(piece, piece + 1))
            else:
                self._channel.read_into(sink.buffer[: end - start])

    def _receive(self, piece: int, sink: "_Sink") -> None:
        """Read one piece and write it; each as it comes, since both take their time."""
        start, end = self._book.span(piece)
        checksum = 0
        sink.part.seek(start)
        for at in range(start, end, _READ_AT_ONCE_BYTES):
            view = sink.buffer[: min(_READ_AT_ONCE_BYTES, end - at)]
            self.fetched_bytes += self._channel.read_into(view)
            checksum = zlib.crc32(view, checksum)
            with self._source.writing:
                while view:
                    view = view[sink.part.write(view) or 0 :]
        self._work.finish(piece, checksum)

    def _check_range(self, reply: Reply, first: int, last: int) -> None:
        file = self._source.file
        match = _CONTENT_RANGE.fullmatch(reply.header("content-range") or "")
        if match is None or (int(match["first"]), int(match["last"])) != (first, last):
            if match is not None and match["total"] not in ("*", str(file.size_bytes)):
                raise _wrong_length(file, reply, int(match["total"]))
            raise WrongContent(
                f"{host_of(reply.url)} was asked for bytes {first:,} to {last:,} of {file.name} "
                "and sends others"
            )
        if match["total"] not in ("*", str(file.size_bytes)):
            raise _wrong_length(file, reply, int(match["total"]))

    def _refused(self, reply: Reply, asked_url: str) -> MoerunError:
        """Return what an answer without bytes means: Unreachable where trying again may help."""
        file, host = self._source.file, host_of(reply.url)
        if reply.status in _EXPIRED and asked_url != file.url and self._source.forget(asked_url):
            return Unreachable(f"{host} refuses {file.name} ({reply.status} {reply.reason})")
        if reply.status == 416:
            return WrongContent(f"{host} has fewer bytes of {file.name} than {file.size_bytes:,}")
        return refusal(reply, file.name, pause=self._ask_pause)

    def _ask_pause(self, seconds: float | None) -> None:
        self._asked_pause_s = seconds


def refusal(reply: Reply, what: str, *, pause: object = None) -> MoerunError:
    """Return what it means that a host answers with an error instead of `what`."""
    host = host_of(reply.url)
    said = f"({reply.status} {reply.reason})"
    if reply.status in (401, 403):
        return AccessDenied(
            f"{host} does not give out {what} {said}",
            hint="set HF_TOKEN to a token of yours, and accept the model's licence on its page",
        )
    if reply.status in _PASSING:
        if callable(pause):
            pause(reply.retry_after_s)
        return Unreachable(f"{host} is not able to give {what} now {said}", hint="try again later")
    if reply.status in (404, 410):
        return WrongContent(f"{host} has no {what} {said}")
    return WrongContent(f"{host} answers the request for {what} with {said[1:-1]}")


def _check_promise(reply: Reply, file: RemoteFile) -> None:
    """Compare what the first host says of the file, before any byte, with what it listed."""
    linked = (reply.first_header("x-linked-etag") or "").removeprefix("W/").strip('"')
    is_sha256 = file.digest.kind is DigestKind.SHA256 and re.fullmatch("[0-9a-f]{64}", linked)
    if is_sha256 and linked != file.digest.hexadecimal:
        raise WrongContent(
            f"{file.name} changed at {host_of(file.url)} after it was listed; pull again"
        )
    length = reply.first_header("x-linked-size") or ""
    if length.isdigit() and int(length) != file.size_bytes:
        raise _wrong_length(file, reply, int(length))


def _wrong_length(file: RemoteFile, reply: Reply, found_bytes: int | None) -> WrongContent:
    return WrongContent(
        f"{host_of(reply.url)} has {file.name} with {found_bytes or 0:,} bytes, and "
        f"{file.size_bytes:,} were promised"
    )
