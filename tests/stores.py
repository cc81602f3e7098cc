"""Small stores for tests: own ones, ollama's, a Hugging Face cache and LM Studio's folder."""

import hashlib
import json
from pathlib import Path

from moerun.store.manifests import CONFIG_TYPE, LayerKind, StoredBlob, compose_manifest, layer_type
from moerun.store.own_store import OwnStore
from moerun.store.references import OllamaReference


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put_blob(root: Path, content: bytes, media_type: str) -> StoredBlob:
    """Lay a blob down as another program would."""
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    digest = digest_of(content)
    (root / "blobs" / f"sha256-{digest}").write_bytes(content)
    return StoredBlob(media_type=media_type, digest=digest, size_bytes=len(content))


def put_model(
    root: Path, reference: OllamaReference, content: bytes, **texts: object
) -> StoredBlob:
    """Lay a model down in ollama's layout; `texts` are layers by their kind."""
    config = put_blob(root, json.dumps({"model_format": "gguf"}).encode(), CONFIG_TYPE)
    model = put_blob(root, content, layer_type(LayerKind.MODEL))
    layers = [model]
    for kind, value in texts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        layers.append(put_blob(root, text.encode(), layer_type(LayerKind(kind))))
    path = root.joinpath("manifests", *reference.manifest_parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compose_manifest(config, tuple(layers)).raw)
    return model


def add_model(store: OwnStore, name: str, source: Path) -> OllamaReference:
    """Name a file in moerun's own store."""
    reference = OllamaReference(model=name)

    def blobs() -> tuple[StoredBlob, StoredBlob]:
        return (
            store.add_bytes(json.dumps({"name": name}).encode(), CONFIG_TYPE),
            store.add_file(source, layer_type(LayerKind.MODEL)),
        )

    config, model = blobs()
    store.write(reference, compose_manifest(config, (model,)), restore=blobs)
    return reference


def put_in_cache(cache: Path, repository: str, files: dict[str, bytes], commit: str = "a" * 40):
    """Lay files down as huggingface_hub does: blobs, and links to them in a snapshot."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    for name, content in files.items():
        blob = folder / "blobs" / digest_of(content)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        place = folder / "snapshots" / commit / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(Path("../" * (2 + name.count("/"))) / "blobs" / blob.name)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
