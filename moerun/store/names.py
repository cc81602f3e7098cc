"""Which model a word on the command line means, and which models are at hand.

At hand are the embedded demo, the GGUF files of the working folder, and those of the folder that
`MOERUN_MODELS` names. A name is a file's name without its ending; a split model goes by its first
part and is named without the numbers.

Knows: names, and the places that are searched.
Does not know: what is in a file.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from moerun.errors import ModelError, ModelNotFound, UsageError
from moerun.model.catalog import catalog_names

DEMO: Final = "demo"
MODELS_VARIABLE: Final = "MOERUN_MODELS"
_ENDING: Final = ".gguf"
_SHARD: Final = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_PROJECTOR: Final = "mmproj"  # a companion of a model, none itself


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAtHand:
    """A model that needs no download: what it is called, and its (first) file."""

    name: str
    path: Path


def demo_path() -> Path:
    """Return where the embedded model lies."""
    return Path(__file__).parents[1] / "data" / "demo" / "demo.gguf"


def models_at_hand(
    *, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[ModelAtHand, ...]:
    """Return the models that can be named, the demo first; the nearer of two namesakes counts."""
    environment = os.environ if environment is None else environment
    found = {DEMO: demo_path()} if demo_path().is_file() else {}
    folders = [folder or Path.cwd()]
    if of_user := environment.get(MODELS_VARIABLE):
        folders.append(Path(of_user).expanduser())
    for place in folders:
        for path in _files(place):
            found.setdefault(_name_of(path), path)
    return tuple(ModelAtHand(name=name, path=path) for name, path in found.items())


def resolve_file(
    name: str, *, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Path | None:
    """Return the file that a name or a path means, None when no file does.

    ModelNotFound for an empty name, a folder, and what cannot be a path.
    """
    if not name.strip():
        raise ModelNotFound("The name of the model is empty.", hint=_LISTING)
    folder = folder or Path.cwd()
    at_hand = models_at_hand(folder=folder, environment=environment)
    for model in at_hand:
        if model.name == name:
            return model.path
    if (path := _existing(name, folder)) is not None:
        return path
    namesakes = [model for model in at_hand if model.name.lower() == name.lower()]
    return namesakes[0].path if namesakes else None


def resolve_model(
    name: str,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    others: tuple[str, ...] = (),
) -> Path:
    """Return the file that a name or a path means; ModelNotFound names what comes closest.

    `others` are names that stores have, which may come closest, too.
    """
    if (path := resolve_file(name, folder=folder, environment=environment)) is not None:
        return path
    folder = folder or Path.cwd()
    at_hand = models_at_hand(folder=folder, environment=environment)
    hint = _closest(name, (*(model.name for model in at_hand), *others)) or _LISTING
    if name.endswith(_ENDING) or os.sep in name or (os.altsep is not None and os.altsep in name):
        raise ModelNotFound(f"There is no file {name}.", hint=hint)
    raise ModelNotFound(f"No model at hand is called '{name}'.", hint=hint)


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return all parts of a model from its first one, by their names alone."""
    match = _SHARD.search(path.stem)
    if match is None:
        return (path,)
    stem, count = path.stem[: match.start()], int(match["count"])
    return tuple(
        path.with_name(f"{stem}-{number:05d}-of-{count:05d}{path.suffix}")
        for number in range(1, count + 1)
    )


def path_within(folder: Path, *parts: str) -> Path:
    """Return the path of these parts below a folder; UsageError for one that would lie elsewhere.

    The last guard of every store, behind the grammar: links are followed, so that a folder which
    was made to point elsewhere is refused too.
    """
    base = folder.resolve()
    try:
        path = base.joinpath(*parts)
        lies_within = path != base and path.resolve().is_relative_to(base)
    except (OSError, RuntimeError, ValueError) as error:  # circles of links, zero bytes
        raise UsageError(f"{'/'.join(parts)[:80]!r} cannot be a path in {folder}.") from error
    if not lies_within or ".." in path.relative_to(base).parts:
        raise UsageError(f"{'/'.join(parts)[:80]!r} would lie outside {folder}.")
    return path


def _existing(name: str, folder: Path) -> Path | None:
    """Return the file of that path, None when there is none; a folder is refused."""
    try:
        path = folder / Path(name).expanduser()
        if path.is_dir():
            raise _directory(path, name)
        return path if path.exists() else None
    except (OSError, RuntimeError) as error:  # too long a name, or `~` of an unknown user
        reason = error.strerror if isinstance(error, OSError) else str(error)
        said = f"{name[:80]} cannot be a path: {str(reason).rstrip('.')}."
        raise ModelNotFound(said, hint=_LISTING) from error


_LISTING: Final = (
    "`moerun plan` lists the models at hand and the catalogue; a path to a .gguf file is one, too"
)


def _files(folder: Path) -> list[Path]:
    """Return the models of a folder, split ones by their first part; a folder that is closed or
    absent has none.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in entries if _is_model(path)]


def _is_model(path: Path) -> bool:
    if path.suffix != _ENDING or _PROJECTOR in path.name.lower():
        return False
    shard = _SHARD.search(path.stem)
    return (shard is None or int(shard["number"]) == 1) and path.is_file()


def _name_of(path: Path) -> str:
    return _SHARD.sub("", path.stem)


def _directory(path: Path, name: str) -> ModelError:
    within = _files(path)
    hint = f"did you mean {within[0]}?" if within else _LISTING
    return ModelNotFound(f"{name} is a folder, not a GGUF file.", hint=hint)


def _closest(name: str, known: tuple[str, ...]) -> str | None:
    names = {name: name for name in catalog_names()}
    names |= {other.lower(): other for other in known}
    wanted = _name_of(Path(name)).lower() if name.endswith(_ENDING) else name.lower()
    close = get_close_matches(wanted, names, n=3, cutoff=0.5)
    close += [name for name in sorted(names) if name.startswith(wanted) and len(wanted) > 2]
    close = list(dict.fromkeys(close))[:3]
    return f"did you mean {' or '.join(names[match] for match in close)}?" if close else None
