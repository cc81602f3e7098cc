"""A manifest of Ollama's layout as it lies on disk: which blobs make a model, and what each is.

Beliefs: a manifest is a docker manifest of schema 2 whose layers are of the types
`application/vnd.ollama.image.*`, and a model's ID is the sha256 of the manifest's bytes -
manifest/manifest.go and server/images.go of ollama 0.12 - checked by tests/test_own_store.py.

Knows: the document, its limits, how one is composed.
Does not know: where manifests and blobs lie, or what a registry sends.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from moerun.errors import ModelError

LARGEST_MANIFEST_BYTES: Final = 4 << 20
CONFIG_TYPE: Final = "application/vnd.docker.container.image.v1+json"
_MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
_LAYER_PREFIX: Final = "application/vnd.ollama.image."
_MOST_LAYERS: Final = 1000
_MOST_BYTES: Final = 1 << 62
_DIGEST: Final = re.compile(r"sha256[:-](?P<hexadecimal>[0-9a-f]{64})")


class LayerKind(StrEnum):
    """What a layer holds, by the last word of its type."""

    MODEL = "model"
    PROJECTOR = "projector"
    ADAPTER = "adapter"
    TEMPLATE = "template"
    PROMPT = "prompt"  # as templates were called once
    SYSTEM = "system"
    PARAMS = "params"
    MESSAGES = "messages"
    LICENSE = "license"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    """One blob of a model. `from_name` is the model that a layer was taken over from."""

    media_type: str
    digest: str  # 64 hexadecimal digits of its sha256
    size_bytes: int
    from_name: str | None = None

    @property
    def file_name(self) -> str:
        """Return its name in the folder of blobs."""
        return f"sha256-{self.digest}"

    def is_kind(self, kind: LayerKind) -> bool:
        """Whether the layer holds that."""
        return self.media_type == _LAYER_PREFIX + kind


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredManifest:
    """A model as its manifest tells it; `raw` is what lies on disk, byte for byte."""

    raw: bytes
    config: StoredBlob | None
    layers: tuple[StoredBlob, ...]

    @property
    def digest(self) -> str:
        """Return the digest that lists show the beginning of."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def blobs(self) -> tuple[StoredBlob, ...]:
        """Return every blob that the manifest names, once each."""
        named = (*((self.config,) if self.config else ()), *self.layers)
        return tuple({blob.digest: blob for blob in named}.values())

    @property
    def size_bytes(self) -> int:
        """Return how large configuration and layers are together."""
        return sum(blob.size_bytes for blob in self.blobs)

    def of_kind(self, kind: LayerKind) -> tuple[StoredBlob, ...]:
        """Return the layers that hold that."""
        return tuple(layer for layer in self.layers if layer.is_kind(kind))


def layer_type(kind: LayerKind) -> str:
    """Return the media type of a layer."""
    return _LAYER_PREFIX + kind


def parse_manifest(raw: bytes) -> StoredManifest:
    """Return what a manifest says, every part checked; ModelError for one that is none."""
    if len(raw) > LARGEST_MANIFEST_BYTES:
        raise ModelError(
            f"the manifest has more than {LARGEST_MANIFEST_BYTES:,} bytes; remove the model and "
            "pull it again"
        )
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping) or not isinstance(value.get("layers"), list):
        raise _bad("is not one of schema 2")
    entries = value["layers"]
    if len(entries) > _MOST_LAYERS:
        raise _bad(f"has {len(entries):,} layers, and {_MOST_LAYERS:,} are the most")
    config = value.get("config")
    has_config = isinstance(config, Mapping) and bool(config.get("digest"))
    return StoredManifest(
        raw=raw,
        config=_blob(config) if has_config else None,
        layers=tuple(_blob(entry) for entry in entries),
    )


def compose_manifest(config: StoredBlob, layers: tuple[StoredBlob, ...]) -> StoredManifest:
    """Return the manifest of a model that is made here."""
    document = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": _entry(config),
        "layers": [_entry(layer) for layer in layers],
    }
    raw = json.dumps(document, separators=(",", ":")).encode()
    return StoredManifest(raw=raw, config=config, layers=layers)


def _entry(blob: StoredBlob) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "mediaType": blob.media_type,
        "digest": f"sha256:{blob.digest}",
        "size": blob.size_bytes,
    }
    return entry if blob.from_name is None else {**entry, "from": blob.from_name}


def _blob(entry: Any) -> StoredBlob:
    if not isinstance(entry, Mapping):
        raise _bad("has a layer that is none")
    kind, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise _bad("has a layer whose digest is not a sha256")
    if not isinstance(kind, str) or not isinstance(size, int) or isinstance(size, bool):
        raise _bad("has a layer without type or size")
    if not 0 <= size < _MOST_BYTES:
        raise _bad("has a layer that is larger than any disk")
    from_name = entry.get("from")
    return StoredBlob(
        media_type=kind,
        digest=match["hexadecimal"],
        size_bytes=size,
        from_name=from_name if isinstance(from_name, str) and from_name else None,
    )


def _bad(why: str) -> ModelError:
    return ModelError(f"the manifest {why}; remove the model and pull it again")
