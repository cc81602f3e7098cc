"""What `/api/create` asks for, as the Modelfile that says the same.

Knows: the fields of the request, and which of them are not taken.
Does not know: where models lie, or how one is made.
"""

import os
from pathlib import Path
from typing import Any

from moerun.server.bodies import Fields
from moerun.server.refusals import NOT_IMPLEMENTED, Refused
from moerun.server.shelf import checked_name
from moerun.settings.description import ModelSettings
from moerun.settings.load import load_settings
from moerun.store.go_template import parse_template
from moerun.store.modelfile import Modelfile
from moerun.store.parameters import LISTED, read_parameter
from moerun.store.profile import ModelProfile

_NOT_TAKEN = ("files", "adapters", "quantize", "quantization_level", "modelfile", "path")
_ROLES = ("system", "user", "assistant")


def read_modelfile(body: Fields) -> Modelfile:
    """Return what a model is made of; Refused and UsageError for what cannot be."""
    for name in _NOT_TAKEN:
        if body.values.get(name):
            raise Refused(
                f"{name} is not taken over HTTP; `moerun create` makes a model of files, and "
                "`from` one of a model that is here",
                status=NOT_IMPLEMENTED,
            )
    template = body.text("template") or None
    if template is not None:
        parse_template(template)
    return Modelfile(
        source=checked_name(body.needed_text("from")).removesuffix(":latest"),
        parameters=_parameters(body.child("parameters")),
        system=body.text("system") or None,
        template=template,
        messages=tuple(_message(each) for each in body.objects("messages")),
        licenses=tuple(body.texts("license")),
    )


def _parameters(body: Fields) -> tuple[tuple[str, Any], ...]:
    read = tuple((name, _value(body, name)) for name in body.values)
    profile = ModelProfile(name="parameters", parameters=read)
    if profile.settings:
        nowhere = Path(os.devnull)
        settings = ModelSettings(origin="parameters", values=profile.settings)
        load_settings(environment={}, user_folder=nowhere, folder=nowhere, model=settings)
    return read


def _value(body: Fields, name: str) -> Any:
    if name in LISTED:
        return [read_parameter(name, each, where=body.where[:-1]) for each in body.texts(name)]
    value = body.values[name]
    if not isinstance(value, str | int | float):
        raise body.wrong(name, "a text, a number, true or false")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return read_parameter(name, text, where=body.where[:-1])


def _message(body: Fields) -> tuple[str, str]:
    role = body.needed_text("role")
    if role not in _ROLES:
        raise body.wrong("role", f"one of {', '.join(_ROLES)}")
    return role, body.needed_text("content")
