"""A hub of repositories as Hugging Face answers: listings in pages, redirects to a host of files.

Knows: the API of models, trees and files, tokens, and what it says of what it does not give out.
Does not know: what a client makes of it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from tests.servers.file_host import Fault, FileHost, Handler, LocalServer, Request

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "a" * 20
PAGE_ENTRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One repository: its files by path, and to whom they are given."""

    files: dict[str, Path]
    is_gated: bool = False
    is_private: bool = False
    extra_entries: tuple[object, ...] = ()


class Hub(LocalServer):
    """The API; files come from a second host, whose address is signed."""

    def __init__(self, files: FileHost) -> None:
        super().__init__()
        self.files = files
        self.repositories: dict[str, Published] = {}
        self.lies_about: dict[str, str] = {}  # path to the sha256 that its listing tells

    @contextmanager
    def serving(self) -> Iterator["Hub"]:
        with self.files.running(), self.running():
            yield self

    def answer(self, handler: Handler, request: Request, fault: Fault) -> None:
        path = unquote(request.path.partition("?")[0])
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._answer_api(handler, request, "/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._answer_file(handler, request, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            handler.reply(404, {})

    def _refuses(self, handler: Handler, request: Request, name: str) -> bool:
        """Say no as the hub does; whether it was said."""
        repository = self.repositories.get(name)
        has_token = request.header("authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.is_private and not has_token):
            # Of what is not there, a stranger hears the same as of what is private.
            status = 404 if has_token else 401
            handler.reply(status, {"X-Error-Code": "RepoNotFound"})
            return True
        return False

    def _answer_api(self, handler: Handler, request: Request, name: str, below: list[str]) -> None:
        if self._refuses(handler, request, name):
            return
        if below[0] == "revision":
            if below[1] not in ("main", COMMIT):
                handler.reply(404, {"X-Error-Code": "RevisionNotFound"})
                return
            self._json(handler, {"id": name, "sha": COMMIT, "gated": False})
            return
        entries = [*self._entries(self.repositories[name])]
        start = int(request.path.partition("cursor=")[2] or 0)
        headers = {}
        if start + PAGE_ENTRIES < len(entries):
            url = f"{self.origin}/api/models/{name}/tree/{COMMIT}?recursive=true"
            headers["Link"] = f'<{url}&cursor={start + PAGE_ENTRIES}>; rel="next"'
        self._json(handler, entries[start : start + PAGE_ENTRIES], headers)

    def _entries(self, repository: Published) -> Iterator[object]:
        yield {"type": "directory", "path": "folder", "oid": "f" * 40, "size": 0}
        yield {"type": "file", "path": "README.md", "oid": "e" * 40, "size": 12}
        yield from repository.extra_entries
        for path, source in repository.files.items():
            size, digest = source.stat().st_size, self.lies_about.get(path) or sha256_of(source)
            yield {
                "type": "file",
                "path": path,
                "oid": "d" * 40,
                "size": size,
                "lfs": {"oid": digest, "size": size, "pointerSize": 134},
                "xetHash": "c" * 64,
            }

    def _answer_file(
        self, handler: Handler, request: Request, name: str, revision: str, path: str
    ) -> None:
        if self._refuses(handler, request, name):
            return
        repository = self.repositories[name]
        if repository.is_gated and request.header("authorization") != f"Bearer {TOKEN}":
            handler.reply(401, {"X-Error-Code": "GatedRepo"})
            return
        source = repository.files.get(path)
        if source is None or revision not in ("main", COMMIT):
            handler.reply(404, {"X-Error-Code": "EntryNotFound"})
            return
        digest = self.lies_about.get(path) or sha256_of(source)
        self.files.files[digest] = source
        handler.reply(
            302,
            {
                "Location": self.files.address(digest),
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(source.stat().st_size),
                "Accept-Ranges": "bytes",
            },
        )

    def _json(self, handler: Handler, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        handler.reply(200, {"Content-Type": "application/json", **(headers or {})}, body)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
