"""GGUF files of repositories that other programs downloaded: Hugging Face's cache, and LM Studio.

    <cache>/models--<user>--<name>/snapshots/<commit>/<path>     links to ../../blobs/<digest>
    <lm studio>/models/<user>/<name>/<file>

Beliefs: the layouts of huggingface_hub 2.4.0 (docs: manage-cache) and of LM Studio (docs: import
models), where a folder may also be found at its older place - checked by tests/test_library.py.

Knows: both layouts, and how the parts of a split model belong together.
Does not know: what is in a file, or how files come there.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from moerun.store.file_names import COMPANION, SHARD, label_of
from moerun.store.hub_folders import hub_cache
from moerun.store.installed import InstalledModel, Source
from moerun.store.references import HuggingFaceReference

_FOLDER: Final = re.compile(r"models--(?P<user>[A-Za-z0-9_.-]+?)--(?P<name>[A-Za-z0-9_.-]+)")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DEEPEST: Final = 4
_LM_STUDIO_FOLDERS: Final = (".lmstudio/models", ".cache/lm-studio/models")


def cached_models(environment: Mapping[str, str] | None = None) -> Iterator[InstalledModel]:
    """Yield the whole models of Hugging Face's cache; of several commits that of `main` first."""
    cache = hub_cache(environment)
    for folder in _folders(cache):
        match = _FOLDER.fullmatch(folder.name)
        if match is None:
            continue
        repository = f"{match['user']}/{match['name']}"
        seen: set[str] = set()
        for snapshot in _snapshots(folder):
            for model in _models_in(snapshot, cache, repository, Source.HUGGING_FACE):
                if model.name not in seen:
                    seen.add(model.name)
                    yield model


def lm_studio_folders(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Return the folders in which LM Studio may keep models; they need not be there."""
    environment = os.environ if environment is None else environment
    home = environment.get("HOME") or environment.get("USERPROFILE")
    return tuple(Path(home) / folder for folder in _LM_STUDIO_FOLDERS) if home else ()


def lm_studio_models(environment: Mapping[str, str] | None = None) -> Iterator[InstalledModel]:
    """Yield the whole models of LM Studio: exactly two folders, and files below."""
    for base in lm_studio_folders(environment):
        for publisher in _folders(base):
            for folder in _folders(publisher):
                repository = f"{publisher.name}/{folder.name}"
                yield from _models_in(folder, base, repository, Source.LM_STUDIO)


def matching(
    models: Iterator[InstalledModel], reference: HuggingFaceReference
) -> tuple[InstalledModel, ...]:
    """Return the models that a name of a repository means; without a choice all of it."""
    wanted = reference.repository.lower()
    label = reference.quantization.lower() if reference.quantization else None
    file = reference.file.lower() if reference.file else None
    found = []
    for model in models:
        if model.repository is None or model.repository.lower() != wanted:
            continue
        if label is not None and not _is_labelled(model, label):
            continue
        if file is not None and model.paths[0].name.lower() != file.rpartition("/")[2]:
            continue
        found.append(model)
    return tuple(sorted(found, key=lambda model: len(model.label or "")))


def _is_labelled(model: InstalledModel, label: str) -> bool:
    """Whether a model goes by a quantization; Q4_K_XL may mean UD-Q4_K_XL, as in a pull."""
    own = (model.label or "").lower()
    return own == label or own == f"ud-{label}"


def _models_in(
    folder: Path, base: Path, repository: str, source: Source
) -> Iterator[InstalledModel]:
    """Yield the models below a folder, named by repository and quantization, or by their file."""
    models = [
        model
        for group in _groups(_gguf_files(folder, depth=_DEEPEST))
        if (model := _model(group, folder, base, repository, source)) is not None
    ]
    labels = [model.label for model in models]
    for model in models:
        is_alone = model.label is not None and labels.count(model.label) == 1
        choice = model.label if is_alone else model.paths[0].relative_to(folder).as_posix()
        yield replace(model, name=f"{model.name}:{choice}")


def _model(
    group: tuple[Path, ...], folder: Path, base: Path, repository: str, source: Source
) -> InstalledModel | None:
    """Return the files of one model; None when parts are missing or lead out of the store."""
    match = SHARD.fullmatch(group[0].name)
    if match is not None and len(group) != int(match["count"]):
        return None
    real_base = os.path.realpath(base)
    sizes, modified, targets = [], [], []
    for path in group:
        target = os.path.realpath(path)
        if not target.startswith(real_base + os.sep) or not os.path.isfile(target):
            return None
        status = os.stat(target)
        sizes.append(status.st_size)
        modified.append(status.st_mtime)
        targets.append(Path(target))
    digest = targets[0].name if _SHA256.fullmatch(targets[0].name) else None
    prefix = "hf.co/" if source is Source.HUGGING_FACE else ""
    return InstalledModel(
        name=f"{prefix}{repository}",
        source=source,
        paths=group,
        size_bytes=sum(sizes),
        modified_at_s=max(modified),
        digest=digest,
        repository=repository,
        label=label_of(group[0].relative_to(folder).as_posix()),
    )


def _groups(files: Iterator[Path]) -> tuple[tuple[Path, ...], ...]:
    groups: dict[str, list[Path]] = {}
    for path in files:
        match = SHARD.fullmatch(path.name)
        stem = f"{match['stem']}*{match['count']}" if match is not None else path.name
        groups.setdefault(f"{path.parent}/{stem}", []).append(path)
    return tuple(tuple(sorted(group)) for _, group in sorted(groups.items()))


def _gguf_files(folder: Path, *, depth: int) -> Iterator[Path]:
    """Yield the GGUF files below a folder; folders that are links are not followed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            if depth and not entry.name.startswith("."):
                yield from _gguf_files(folder / entry.name, depth=depth - 1)
        elif entry.name.lower().endswith(".gguf") and not COMPANION.search(entry.name):
            yield folder / entry.name


def _snapshots(folder: Path) -> Iterator[Path]:
    """Yield the commits that a repository's folder has, that of `main` first."""
    main = None
    try:
        text = (folder / "refs" / "main").read_text(encoding="ascii")[:64].strip()
        main = text if re.fullmatch(r"[0-9a-f]{40}", text) else None
    except (OSError, UnicodeDecodeError):
        main = None
    yield from sorted(
        _folders(folder / "snapshots"), key=lambda path: (path.name != main, path.name)
    )


def _folders(folder: Path) -> tuple[Path, ...]:
    """Return the folders in a folder; none of one that is closed or absent."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return ()
    return tuple(folder / name for name in sorted(names))
