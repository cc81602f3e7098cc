"""New models of the own store: from a Modelfile, or as a second name of a model at hand.

Knows: which layers a new model takes over, and which it gets of its own.
Does not know: how a Modelfile is written, or what settings mean.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from moerun.errors import ModelError, ModelNotFound, UnsupportedModel
from moerun.model.description import Model
from moerun.store.described import described_files
from moerun.store.installed import InstalledModel, Source
from moerun.store.library import find_model, require_model
from moerun.store.manifests import (
    CONFIG_TYPE,
    LayerKind,
    StoredBlob,
    StoredManifest,
    compose_manifest,
    layer_type,
)
from moerun.store.modelfile import Modelfile
from moerun.store.names import parts_of
from moerun.store.ollama_layout import OllamaLayout
from moerun.store.own_store import OwnStore, Progress, own_reference
from moerun.store.profile import MAKER, ModelProfile, profile_of
from moerun.store.references import OllamaReference, is_path
from moerun.store.write_faults import told_as_refusals

_TAKEN_OVER: Final = (LayerKind.MODEL, LayerKind.PROJECTOR, LayerKind.ADAPTER)


def _silent(_: int) -> None:
    """Tell nobody."""


def copy_model(source: str, target: str) -> OllamaReference:
    """Give a model at hand a name of one's own; raises ModelError and UsageError."""
    reference = own_reference(target)
    model = require_model(source)
    if model.source is Source.MOERUN and model.manifest is not None:
        store = OwnStore()
        with told_as_refusals(store.root):
            store.write(reference, model.manifest)
        return reference
    create_model(reference, Modelfile(source=source), folder=Path.cwd())
    return reference


def create_model(
    reference: OllamaReference,
    modelfile: Modelfile,
    *,
    folder: Path,
    progress: Progress = _silent,
    store: OwnStore | None = None,
) -> StoredManifest:
    """Make a model; paths in FROM and ADAPTER start at `folder`. Returns its manifest."""
    base = base_of(modelfile, folder)
    adapters = tuple(_adapter(name, folder) for name in modelfile.adapters)
    return create_from(
        reference, modelfile, base, adapters=adapters, progress=progress, store=store
    )


def create_from(
    reference: OllamaReference,
    modelfile: Modelfile,
    base: InstalledModel,
    *,
    adapters: tuple[Path, ...] = (),
    progress: Progress = _silent,
    store: OwnStore | None = None,
) -> StoredManifest:
    """Make a model of one that was found, whatever FROM says, with adapters of one's own beside
    those that it has. Returns its manifest.
    """
    store = store or OwnStore()
    profile = profile_of(base)
    described = described_files(base.paths[0], (*base.adapters, *adapters))
    made: list[StoredManifest] = []

    def make() -> StoredManifest:
        weights = _weights(store, base, progress)
        kind = layer_type(LayerKind.ADAPTER)
        weights += tuple(store.add_file(path, kind, progress=progress) for path in adapters)
        texts = _texts(store, base, profile, modelfile)
        config = store.add_bytes(_config(described, (*weights, *texts)), CONFIG_TYPE)
        made.append(compose_manifest(config, (*weights, *texts)))
        return made[-1]

    with told_as_refusals(store.root):
        store.write(reference, make(), restore=make)
    return made[-1]


def base_of(modelfile: Modelfile, folder: Path) -> InstalledModel:
    """Return the model that FROM means: a file beside the Modelfile, else a model at hand."""
    name = modelfile.source
    near = _near(name, folder)
    if _is_weights(near):
        paths = parts_of(near)
        return InstalledModel(
            name=name,
            source=Source.FILE,
            paths=paths,
            size_bytes=sum(path.stat().st_size for path in paths if path.is_file()),
            modified_at_s=near.stat().st_mtime,
        )
    if _is_folder(near):
        raise UnsupportedModel(
            f"FROM {name} is a folder, and a model is made from a GGUF file",
            hint="convert_hf_to_gguf.py of llama.cpp makes one of a folder of safetensors",
        )
    found = find_model(name, folder=folder)
    if found is None:
        raise ModelNotFound(
            f"FROM {name}: no model of that name is on this machine.",
            hint=f"`moerun pull {name}` downloads one that a host has"
            if not is_path(name)
            else "a path starts at the folder of the Modelfile",
        )
    return found


def _adapter(name: str, folder: Path) -> Path:
    """Return the file that ADAPTER names."""
    near = _near(name, folder)
    if _is_folder(near):
        raise UnsupportedModel(
            f"ADAPTER {name} is a folder, and an adapter is a GGUF file",
            hint="convert_lora_to_gguf.py of llama.cpp makes one of a folder of safetensors",
        )
    if not _is_file(near):
        raise ModelNotFound(
            f"ADAPTER {name}: there is no such file",
            hint="a path starts at the folder of the Modelfile",
        )
    return near


def names_a_file(name: str, folder: Path) -> bool:
    """Whether what FROM names can only be on a disk, so that no host is asked for it."""
    near = _near(name, folder)
    return is_path(name) or _is_weights(near) or _is_folder(near)


def _near(name: str, folder: Path) -> Path:
    try:
        return folder / Path(name).expanduser()
    except RuntimeError:  # `~` of an unknown user
        return folder / name


def _is_weights(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and _is_file(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _weights(store: OwnStore, base: InstalledModel, progress: Progress) -> tuple[StoredBlob, ...]:
    """Take in the weights: links where that can be; only files of yours are hashed."""
    if base.manifest is not None and base.root is not None:
        layers = tuple(layer for kind in _TAKEN_OVER for layer in base.manifest.of_kind(kind))
        return tuple(_taken_over(store, base, layer) for layer in layers)
    kind = layer_type(LayerKind.MODEL)
    if base.digest is not None and len(base.paths) == 1:
        return (store.add_known(base.paths[0], base.digest, kind),)
    return tuple(store.add_file(path, kind, progress=progress) for path in base.paths)


def _taken_over(store: OwnStore, base: InstalledModel, layer: StoredBlob) -> StoredBlob:
    assert base.root is not None
    layout = OllamaLayout(base.root)
    if base.root != store.root:
        if not layout.has_blob(layer):
            raise ModelError(f"{base.name} is not whole: {layer.file_name[:19]}... is missing")
        store.add_known(layout.blob_path(layer), layer.digest, layer.media_type)
    return replace(layer, from_name=base.name)


def _texts(
    store: OwnStore, base: InstalledModel, profile: ModelProfile, modelfile: Modelfile
) -> tuple[StoredBlob, ...]:
    """Return the layers beside the weights: of the Modelfile, else of the base."""
    manifest = base.manifest
    layers: list[StoredBlob] = []

    def add(kind: LayerKind, text: str) -> None:
        layers.append(store.add_bytes(text.encode(), layer_type(kind)))

    def take_over(kind: LayerKind) -> None:
        taken = manifest.of_kind(kind) if manifest is not None else ()
        layers.extend(_taken_over(store, base, layer) for layer in taken)

    if modelfile.template is not None:
        add(LayerKind.TEMPLATE, modelfile.template)
    elif profile.own_template is not None:
        add(LayerKind.TEMPLATE, profile.own_template)
    else:
        take_over(LayerKind.TEMPLATE)
    if modelfile.system:
        add(LayerKind.SYSTEM, modelfile.system)
    elif modelfile.system is None:
        take_over(LayerKind.SYSTEM)
    parameters = dict(profile.parameters) | dict(modelfile.parameters)
    if parameters:
        add(LayerKind.PARAMS, json.dumps(parameters))
    messages = modelfile.messages or profile.messages
    if messages:
        said = [{"role": role, "content": content} for role, content in messages]
        add(LayerKind.MESSAGES, json.dumps(said))
    for text in modelfile.licenses:
        add(LayerKind.LICENSE, text)
    if not modelfile.licenses:
        take_over(LayerKind.LICENSE)
    return tuple(layers)


def _config(model: Model, layers: tuple[StoredBlob, ...]) -> bytes:
    """Return the configuration, by which ollama could read the store, too."""
    document: dict[str, Any] = {
        "model_format": "gguf",
        "model_family": model.architecture,
        "model_families": [model.architecture],
        "model_type": _short_count(model.parameter_count),
        "file_type": model.quantization,
        "architecture": "amd64",
        "os": "linux",
        "created_by": MAKER,
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{layer.digest}" for layer in layers],
        },
    }
    return json.dumps(document).encode()


def _short_count(count: int) -> str:
    """Return a number of parameters as ollama keeps it: 30.5B, 137.25M."""
    if count >= 10**9:
        return f"{count / 10**9:.1f}B"
    return f"{count / 10**6:.2f}M"
