"""A registry of models as Ollama's answers: manifests, and blobs that another host sends.

Knows: the two kinds of address, and asking for a token.
Does not know: what a client makes of it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.file_host import Fault, FileHost, Handler, LocalServer, Request
from tests.servers.hub import sha256_of

TYPE = "application/vnd.ollama.image"
TOKEN = "anybody's"


class OllamaRegistry(LocalServer):
    """The registry; with `realm` it wants a token that is given out there."""

    def __init__(self, files: FileHost) -> None:
        super().__init__()
        self.files = files
        self.manifests: dict[str, bytes] = {}
        self.realm: str | None = None

    @contextmanager
    def serving(self) -> Iterator["OllamaRegistry"]:
        with self.files.running(), self.running():
            yield self

    def publish(self, name: str, layers: dict[str, Path], config: Path) -> bytes:
        """Put a model there; `name` is namespace/model:tag."""

        def entry(kind: str, path: Path) -> dict[str, object]:
            digest = sha256_of(path)
            self.files.files[f"sha256:{digest}"] = path
            return {
                "mediaType": kind,
                "digest": f"sha256:{digest}",
                "size": path.stat().st_size,
            }

        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": entry("application/vnd.docker.container.image.v1+json", config),
            "layers": [entry(f"{TYPE}.{kind}", path) for kind, path in layers.items()],
        }
        raw = json.dumps(manifest, separators=(",", ":")).encode()
        self.manifests[name] = raw
        return raw

    def answer(self, handler: Handler, request: Request, fault: Fault) -> None:
        path = request.path.partition("?")[0]
        if path == "/token":
            handler.reply(200, {}, json.dumps({"token": TOKEN}).encode())
            return
        if self.realm is not None and request.header("authorization") != f"Bearer {TOKEN}":
            asked = f'Bearer realm="{self.realm}",service="here",scope="repository:pull"'
            handler.reply(401, {"WWW-Authenticate": asked})
            return
        parts = path.strip("/").split("/")
        if len(parts) != 5 or parts[0] != "v2":
            handler.reply(404, {})
        elif parts[3] == "manifests":
            raw = self.manifests.get(f"{parts[1]}/{parts[2]}:{parts[4]}")
            handler.reply(404 if raw is None else 200, {}, raw or b'{"errors":[]}')
        elif parts[3] == "blobs" and parts[4] in self.files.files:
            handler.reply(307, {"Location": self.files.address(parts[4])})
        else:
            handler.reply(404, {})
