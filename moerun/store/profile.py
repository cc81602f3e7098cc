"""What a model carries beside its weights: parameters, system message, template, messages, license.

Knows: which layers hold them, and what of a stranger's text is used.
Does not know: how tokens are chosen, or how a conversation is held.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from moerun.store.installed import InstalledModel
from moerun.store.manifests import LayerKind, StoredBlob
from moerun.store.ollama_layout import OllamaLayout
from moerun.store.parameters import PARAMETERS, Target, usable

_ROLES: Final = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What goes with a model of that name; `parameters` keep the names of a Modelfile.

    `own_template` is one that a Modelfile on this machine gave; `template` may also be the one that
    came with the model, for programs that do not use the one of the GGUF. `notes` say what of it
    has no effect.
    """

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()
    system: str | None = None
    template: str | None = None
    own_template: str | None = None
    messages: tuple[tuple[str, str], ...] = ()
    licenses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def values(self, target: Target) -> dict[str, Any]:
        """Return what the parameters set of one kind, by the name of what is set."""
        return {
            PARAMETERS[name].sets: value
            for name, value in self.parameters
            if PARAMETERS[name].target is target
        }

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """Return the settings of memory and placement, by their short names."""
        return tuple(self.values(Target.SETTING).items())


def profile_of(model: InstalledModel) -> ModelProfile:
    """Return what a model carries; raises ModelError when a layer of it cannot be read."""
    manifest = model.manifest
    if manifest is None or model.root is None:
        return ModelProfile(name=model.name)
    layout = OllamaLayout(model.root)
    templates = (*manifest.of_kind(LayerKind.TEMPLATE), *manifest.of_kind(LayerKind.PROMPT))
    template = layout.read_text(templates[0]) if templates else None
    parameters, notes = usable(_mapping(layout, manifest.of_kind(LayerKind.PARAMS)))
    return ModelProfile(
        name=model.name,
        parameters=tuple(parameters.items()),
        system=_text(layout, manifest.of_kind(LayerKind.SYSTEM)),
        template=template,
        own_template=template if templates and _is_made_here(layout, model, templates[0]) else None,
        messages=_messages(layout, manifest.of_kind(LayerKind.MESSAGES)),
        licenses=tuple(layout.read_text(item) for item in manifest.of_kind(LayerKind.LICENSE)),
        notes=notes,
    )


MAKER: Final = "moerun"  # under `created_by` of the configuration of a model that is made here


def _is_made_here(layout: OllamaLayout, model: InstalledModel, template: StoredBlob) -> bool:
    """Whether a template was given in a Modelfile, and not taken over from another model."""
    manifest = model.manifest
    if manifest is None or manifest.config is None or template.from_name is not None:
        return False
    try:
        config = json.loads(layout.read_text(manifest.config))
    except (ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("created_by") == MAKER


def _text(layout: OllamaLayout, layers: tuple[StoredBlob, ...]) -> str | None:
    return "\n".join(layout.read_text(layer) for layer in layers) or None


def _mapping(layout: OllamaLayout, layers: tuple[StoredBlob, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for layer in layers:
        read = _json(layout, layer)
        if isinstance(read, dict):
            values |= read
    return values


def _messages(layout: OllamaLayout, layers: tuple[StoredBlob, ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for layer in layers:
        items = _json(layout, layer)
        for item in items if isinstance(items, list) else ():
            role, content = (
                (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
            )
            if role in _ROLES and isinstance(content, str):
                found.append((str(role), content))
    return tuple(found)


def _json(layout: OllamaLayout, layer: StoredBlob) -> Any:
    try:
        return json.loads(layout.read_text(layer))
    except (ValueError, RecursionError):
        return None
