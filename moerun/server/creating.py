"""What `/api/create` asks for: of which model or files, and what the new one is to carry.

Knows: the fields of the request, and which of them are not taken, with a way out for each.
Does not know: where models lie, or how one is made.
"""

from dataclasses import dataclass
from typing import Any, Final

from moerun.errors import UsageError
from moerun.server.bodies import Fields
from moerun.server.refusals import NOT_IMPLEMENTED, Refused
from moerun.server.shelf import checked_name
from moerun.settings.description import ModelSettings
from moerun.settings.load import check_model
from moerun.store.go_template import parse_template
from moerun.store.modelfile import Modelfile
from moerun.store.parameters import LISTED, PARAMETERS, read_parameter
from moerun.store.profile import ModelProfile
from moerun.store.uploads import parse_digest

_NOT_TAKEN: Final = {
    "quantize": "moerun does not quantize; make the GGUF with llama-quantize of llama.cpp, send it "
    "to /api/blobs and name it in files",
    "modelfile": "the text of a Modelfile is not read here; send from, system, template, "
    "parameters, messages and license as fields",
    "path": "a path of this machine is not read over HTTP; `moerun create -f` does",
    "draft": "moerun has no draft models",
}
_OLDER_NAMES: Final = {"quantization": "quantize", "quantization_level": "quantize"}
_ROLES: Final = ("system", "user", "assistant")
_MOST_FILES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CreationWish:
    """A model to make of `source`, or of `files` (names and digests), with what it carries."""

    source: str | None
    files: tuple[tuple[str, str], ...]
    adapters: tuple[tuple[str, str], ...]
    modelfile: Modelfile

    @property
    def digests(self) -> tuple[str, ...]:
        """Return the digests of all that has to have been sent."""
        return tuple(digest for _, digest in (*self.files, *self.adapters))


def read_wish(body: Fields) -> CreationWish:
    """Return what is to be made of what; Refused and UsageError for what cannot be."""
    for name, why in _NOT_TAKEN.items():
        spelled = [name, *(old for old, new in _OLDER_NAMES.items() if new == name)]
        if any(body.values.get(each) for each in spelled):
            raise Refused(f"{name}: {why}", status=NOT_IMPLEMENTED)
    files = _files(body.child("files"))
    source = body.text("from").strip()
    if bool(source) == bool(files):
        raise Refused("either from or files is required: a model that is here, or GGUF files")
    return CreationWish(
        source=checked_name(source) if source else None,
        files=files,
        adapters=_files(body.child("adapters")),
        modelfile=Modelfile(
            source=source or files[0][0],
            parameters=_parameters(body.child("parameters")),
            system=body.text("system") if body.has("system") else None,
            template=_template(body),
            messages=tuple(_message(each) for each in body.objects("messages")),
            licenses=tuple(text for text in body.texts("license") if text),
        ),
    )


def _files(given: Fields) -> tuple[tuple[str, str], ...]:
    if len(given.values) > _MOST_FILES:
        said = f"{len(given.values):,} are given; at most {_MOST_FILES:,} are taken"
        raise Refused(f"{given.where[:-1]}: {said}")
    return tuple((name, parse_digest(given.needed_text(name))) for name in given.values)


def _template(body: Fields) -> str | None:
    """Return a template that can be used; an empty one is none."""
    template = body.text("template") or None
    if template is not None:
        try:
            parse_template(template)
        except UsageError as error:
            raise UsageError(f"template: {error.message}", hint=error.hint) from error
    return template


def _parameters(body: Fields) -> tuple[tuple[str, Any], ...]:
    read = tuple((name, _value(body, name)) for name in body.values if body.has(name))
    settings = ModelProfile(name="parameters", parameters=read).settings
    if settings:
        check_model(ModelSettings(origin="parameters", values=settings))
    return read


def _value(body: Fields, name: str) -> Any:
    where = body.where[:-1]
    if name in LISTED:
        return [read_parameter(name, each, where=where) for each in body.texts(name)]
    value = body.values[name]
    if not isinstance(value, str | int | float) and name in PARAMETERS:
        raise body.wrong(name, "a text, a number, true or false")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return read_parameter(name, text, where=where)


def _message(body: Fields) -> tuple[str, str]:
    role = body.needed_text("role")
    if role not in _ROLES:
        raise body.wrong("role", f"one of {', '.join(_ROLES)}")
    return role, body.needed_text("content")
