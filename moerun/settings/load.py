"""Settings from all layers: defaults, the user's file, the project's, the model, variables, flags.

Knows: the order of the layers, what a project's file may not set, and contradictions of keys.
Does not know: how a value is written, or what will be planned.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moerun.errors import ConfigError
from moerun.places import config_folder, working_folder
from moerun.planning.strategy import Tier, Toggle
from moerun.settings.description import (
    DEFAULT_ORIGIN,
    LoadedSettings,
    ModelSettings,
    Settings,
)
from moerun.settings.keys import (
    KEYS,
    PINS_SECTION,
    SECTIONS,
    Key,
    closest_name,
    find_key,
)
from moerun.settings.nodes import (
    LARGEST_TEXT_BYTES,
    Entries,
    Node,
    Text,
    node_of,
    read_inline,
    read_yaml,
)
from moerun.settings.values import BadValue
from moerun.units import format_gib

USER_FILE: Final = "config.yaml"
PROJECT_FILE: Final = "moerun.yaml"
_QUANTIZED_FREE: Final = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assignment:
    """One key set by one layer; relative paths start at `folder`."""

    key: Key
    node: Node
    origin: str
    folder: Path
    is_of_project: bool = False


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    user_folder: Path | None = None,
    model: ModelSettings | None = None,
) -> LoadedSettings:
    """Return the settings of all layers; later layers win, key by key.

    `flags` holds what the command line gave, by key (`vram_limit`, `pins`, `context`); None and
    an empty tuple mean that the flag was not given. `file` takes the place of both files, and may
    set what the user's may; `model` is what the model that is planned asks for, which may be
    anyone's, and so sets no workers and no paths. Raises ConfigError naming key and origin.
    """
    environment = os.environ if environment is None else environment
    folder = folder or working_folder()
    user_folder = user_folder or config_folder(environment)
    settings = Settings()
    origins = {key.name: DEFAULT_ORIGIN for key in KEYS}
    layers = (
        *_of_files(file, folder, user_folder),
        _of_model(model, folder),
        _of_environment(environment, folder),
        _of_flags(flags or {}, folder),
    )
    for layer in layers:
        for assignment in layer:
            settings = assignment.key.apply(settings, _parse(assignment))
            origins[assignment.key.name] = assignment.origin
    settings = _with_smaller_ubatch(settings, origins)
    loaded = LoadedSettings(
        settings=settings,
        origins=tuple(origins.items()),
        notes=_variable_notes(environment),
    )
    _check_together(loaded)
    return loaded


def with_model(loaded: LoadedSettings, model: ModelSettings) -> LoadedSettings:
    """Return settings that were loaded before the model was known, with what it asks for.

    Variables and flags still win, and a ConfigError names key and origin as when loading.
    """
    settings, origins = loaded.settings, dict(loaded.origins)
    for assignment in _of_model(model, Path.cwd()):
        name = assignment.key.name
        if origins[name] in (assignment.key.variable, assignment.key.flag):
            continue
        settings = assignment.key.apply(settings, _parse(assignment))
        origins[name] = assignment.origin
    settings = _with_smaller_ubatch(settings, origins)
    changed = replace(loaded, settings=settings, origins=tuple(origins.items()))
    _check_together(changed)
    return changed


def check_model(model: ModelSettings) -> None:
    """Refuse what a model asks for where it cannot be meant; no file and no variable is read."""
    nowhere = Path(os.devnull)
    load_settings(environment={}, user_folder=nowhere, folder=nowhere, model=model)


def read_settings_file(path: Path) -> Settings:
    """Return the defaults with what one file sets."""
    settings = Settings()
    for assignment in _of_file(path, str(path)):
        settings = assignment.key.apply(settings, _parse(assignment))
    return settings


def _of_files(
    file: Path | None, folder: Path, user_folder: Path
) -> tuple[Iterator[_Assignment], ...]:
    """Return the layers of files: the one that was named, else the user's and the project's."""
    if file is not None:
        if _read_file(file, str(file)) is None:
            raise _error(str(file), "there is no such file")
        return (_of_file(file, str(file)),)
    return (
        _of_file(user_folder / USER_FILE, str(user_folder / USER_FILE)),
        _of_file(folder / PROJECT_FILE, f"./{PROJECT_FILE}", is_of_project=True),
    )


def _of_file(path: Path, origin: str, *, is_of_project: bool = False) -> Iterator[_Assignment]:
    """Yield what a file sets; one that is absent sets nothing."""
    text = _read_file(path, origin)
    root = read_yaml(text, origin) if text is not None else None
    if root is None:
        return
    for key, node in _walk(root, section=""):
        yield _Assignment(
            key=key,
            node=node,
            origin=node.origin,
            folder=path.parent,
            is_of_project=is_of_project,
        )


def _read_file(path: Path, origin: str) -> str | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _error(origin, "it is a folder or a device, not a file")
        if status.st_size > LARGEST_TEXT_BYTES:
            size = format_gib(status.st_size)
            limit = format_gib(LARGEST_TEXT_BYTES)
            raise _error(origin, f"it has {size}; settings of more than {limit} are not read")
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _error(origin, f"it cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _error(origin, f"byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _walk(node: Node, *, section: str) -> Iterator[tuple[Key, Node]]:
    """Yield the keys of a section and of those below it."""
    if isinstance(node, Text) and node.is_null and section:
        return  # a heading above comments only
    if not isinstance(node, Entries):
        where = f"'{section}'" if section else "the file"
        raise _error(node.origin, f"{where} must hold keys with values", key=section)
    for name, value in node.entries:
        path = f"{section}.{name.text}" if section else name.text
        if path in SECTIONS:
            yield from _walk(value, section=path)
            continue
        key = next((key for key in KEYS if key.name == path), None)
        if key is None:
            raise _unknown_key(name, section)
        yield key, value


def _unknown_key(name: Text, section: str) -> ConfigError:
    """Say which key was meant, or where it belongs."""
    place = f" of {section}" if section else ""
    elsewhere = find_key(name.text)
    names = [key.name for key in KEYS] + list(SECTIONS)
    siblings = tuple(
        full.rpartition(".")[2] for full in names if full.rpartition(".")[0] == section
    )
    match = closest_name(name.text, siblings)
    if elsewhere is not None:
        hint = f"it belongs at {elsewhere.name}"
    elif match is not None:
        hint = f"did you mean '{match}'?"
    elif section == PINS_SECTION:
        hint = f"patterns go below {PINS_SECTION}.patterns"
    else:
        hint = f"the keys here are {', '.join(siblings)}"
    return _error(name.origin, f"'{name.text}' is not a setting{place}", key=name.text, hint=hint)


def _of_model(model: ModelSettings | None, folder: Path) -> Iterator[_Assignment]:
    for name, value in model.values if model is not None else ():
        assert model is not None
        key = find_key(name)
        if key is None or key.is_personal or key.is_path:
            raise _error(
                model.origin,
                f"a model may not set '{name}'",
                key=name,
                hint="set it in your config.yaml, or with a flag",
            )
        is_text = isinstance(value, str)
        node = read_inline(value, model.origin) if is_text else node_of(value, model.origin)
        yield _Assignment(key=key, node=node, origin=model.origin, folder=folder)


def _of_environment(environment: Mapping[str, str], folder: Path) -> Iterator[_Assignment]:
    for key in KEYS:
        text = environment.get(key.variable, "")
        if text.strip():
            node = read_inline(text, key.variable)
            yield _Assignment(key=key, node=node, origin=key.variable, folder=folder)


def _of_flags(flags: Mapping[str, object], folder: Path) -> Iterator[_Assignment]:
    for name, value in flags.items():
        key = find_key(name)
        if key is None:
            raise KeyError(f"no setting is called {name}")
        if value is None or value == ():
            continue
        node = read_inline(value, key.flag) if isinstance(value, str) else node_of(value, key.flag)
        yield _Assignment(key=key, node=node, origin=key.flag, folder=folder)


def _parse(assignment: _Assignment) -> Mapping[str, Any]:
    """Return the fields that an assignment sets, with its paths made absolute."""
    key, origin = assignment.key, assignment.origin
    if assignment.is_of_project and key.is_personal:
        raise _error(
            origin,
            f"a project's file may not set {key.name}",
            key=key.name,
            hint=f"set it in {USER_FILE} of your settings folder, or with {key.variable}",
        )
    try:
        fields = key.parse(assignment.node)
    except BadValue as error:
        raise _error(error.origin, f"{key.name}: {error}", key=key.name) from error
    if not key.is_path:
        return fields
    return {
        name: _absolute(value, assignment) if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _absolute(path: str, assignment: _Assignment) -> str:
    absolute = os.path.abspath(assignment.folder / path)
    is_inside = Path(os.path.realpath(absolute)).is_relative_to(os.path.realpath(assignment.folder))
    if assignment.is_of_project and not is_inside:
        raise _error(
            assignment.origin,
            f"{assignment.key.name}: {path} lies outside the folder of the project's file",
            key=assignment.key.name,
            hint=f"set it in {USER_FILE} of your settings folder, or with "
            f"{assignment.key.variable}",
        )
    return absolute


def _with_smaller_ubatch(settings: Settings, origins: dict[str, str]) -> Settings:
    """Return the settings with a micro-batch within the batch, where only the batch was set.

    The origin of the micro-batch is then the batch's.
    """
    batch_tokens = settings.strategy.batch_tokens
    if origins["ubatch"] != DEFAULT_ORIGIN or settings.strategy.ubatch_tokens <= batch_tokens:
        return settings
    origins["ubatch"] = origins["batch"]
    return replace(settings, strategy=replace(settings.strategy, ubatch_tokens=batch_tokens))


def _check_together(loaded: LoadedSettings) -> None:
    """Refuse keys that contradict one another, whatever the model and the machine are."""
    strategy = loaded.settings.strategy
    if strategy.ubatch_tokens > strategy.batch_tokens:
        raise _contradiction(
            loaded,
            "ubatch",
            f"a micro-batch of {strategy.ubatch_tokens:,} tokens is larger than the batch of "
            f"{strategy.batch_tokens:,}",
            "batch",
        )
    if strategy.flash_attention is Toggle.OFF and strategy.kv_encoding_v not in _QUANTIZED_FREE:
        raise _contradiction(
            loaded,
            "kv_type_v",
            f"{strategy.kv_encoding_v.lower()} for V needs flash attention, which is off",
            "flash_attention",
        )
    residency = strategy.expert_residency
    shares = (
        (Tier.VRAM, residency.vram_fraction if residency else None),
        (Tier.RAM, residency.ram_fraction if residency else None),
    )
    for tier, share in shares:
        if share and tier not in strategy.hierarchy:
            raise _contradiction(
                loaded,
                "expert_residency",
                f"{share * 100:g}% of the experts are wanted in {tier.upper()}, which the "
                "hierarchy leaves out",
                "hierarchy",
            )


def _contradiction(loaded: LoadedSettings, name: str, why: str, other_name: str) -> ConfigError:
    key, other = find_key(name), find_key(other_name)
    assert key is not None
    assert other is not None
    return _error(
        loaded.origin(key.name),
        f"{key.name}: {why} ({other.name} is set at {loaded.origin(other.name)})",
        key=key.name,
        hint=f"change {key.name} or {other.name}",
    )


def _variable_notes(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Say which variables look like a mistyped setting; others may belong to other programs."""
    known = tuple(key.variable for key in KEYS)
    notes = []
    for name in sorted(environment):
        if not name.startswith("MOERUN_") or name in known:
            continue
        match = closest_name(name.lower(), tuple(variable.lower() for variable in known))
        if match is not None and _differ_little(name.lower(), match):
            notes.append(f"{name} is not a setting; did you mean {match.upper()}?")
    return tuple(notes)


def _differ_little(name: str, match: str) -> bool:
    """Whether two names are alike beyond the prefix that all share."""
    from difflib import SequenceMatcher

    prefix = len("MOERUN_")
    return SequenceMatcher(None, name[prefix:], match[prefix:]).ratio() > 0.8


def _error(origin: str, why: str, *, key: str = "", hint: str | None = None) -> ConfigError:
    return ConfigError(f"{origin}: {why}", key=key, origin=origin, hint=hint)
