"""What is told of a model without loading it: details, capabilities, its header as JSON.

Knows: which keys of a GGUF say what a client asks for, and ollama's words for it.
Does not know: where models lie, or HTTP.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from moerun.engine.interface import Capability
from moerun.engine.thinking import has_channels, tags_of
from moerun.errors import ModelError
from moerun.model.gguf_header import Header, read_header, read_model
from moerun.model.gguf_values import ArrayValue

TEMPLATE_KEY: Final = "tokenizer.chat_template"
_LEFT_OUT: Final = ("general.name", TEMPLATE_KEY)
_SUFFIX_KEYS: Final = (
    "tokenizer.ggml.fim_suf_token_id",
    "tokenizer.ggml.suffix_token_id",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model by its header. `metadata` leaves out its name and template; arrays are empty."""

    digest: str
    size_bytes: int
    architecture: str
    parameter_count: int
    quantization: str
    train_context_tokens: int
    embedding_length: int
    template: str
    license: str
    capabilities: tuple[Capability, ...]
    metadata: tuple[tuple[str, Any], ...]

    @property
    def details(self) -> dict[str, Any]:
        """Return the object that every listing of ollama's holds."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.architecture,
            "families": [self.architecture],
            "parameter_size": count_text(self.parameter_count),
            "quantization_level": self.quantization,
            "context_length": self.train_context_tokens,
            "embedding_length": self.embedding_length,
        }


class FactsReader:
    """Reads the facts of files, each once as long as it does not change."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int], ModelFacts]] = {}

    def facts_of(self, path: str) -> ModelFacts:
        """Return the facts of a model's (first) file; ModelError when it cannot be read."""
        try:
            status = os.stat(path)
        except OSError as error:
            name = os.path.basename(path)
            raise ModelError(f"{name} cannot be read: {error.strerror or error}") from error
        mark = (status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        if known is None or known[0] != mark:
            known = (mark, read_facts(path))
            self._known[path] = known
        return known[1]


def read_facts(path: str) -> ModelFacts:
    """Read the facts of a file; ModelError when it cannot be read."""
    header, model = read_header(path), read_model(path)
    template = header.text(TEMPLATE_KEY) or ""
    return ModelFacts(
        digest=hashlib.sha256(f"{model.digest}:{model.file_bytes}".encode()).hexdigest(),
        size_bytes=model.file_bytes,
        architecture=model.architecture,
        parameter_count=model.parameter_count,
        quantization=model.quantization,
        train_context_tokens=model.train_context_tokens,
        embedding_length=model.embedding_length,
        template=template,
        license=header.text("general.license") or "",
        capabilities=_capabilities(header, template, generates=model.generates_text),
        metadata=_metadata(header, model.parameter_count),
    )


def tensors_of(path: str) -> list[dict[str, Any]]:
    """Return every tensor as ollama's verbose `show` lists it."""
    return [
        {"name": tensor.name, "type": tensor.encoding, "shape": list(tensor.shape)}
        for tensor in read_model(path).tensors
    ]


def whole_metadata(path: str) -> dict[str, Any]:
    """Return the metadata with its arrays, as a verbose `show` has it."""
    header = read_header(path)
    return {
        key: [_sound(each) for each in value] if isinstance(value, ArrayValue) else _sound(value)
        for key, value in header.metadata.items()
        if key not in _LEFT_OUT
    }


def count_text(count: int) -> str:
    """Return a count of parameters as ollama writes it: 30.5B, 137.25M, 12K."""
    for unit, suffix, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= unit:
            return f"{round(count / unit, digits):g}{suffix}"
    return str(count)


def _metadata(header: Header, parameter_count: int) -> tuple[tuple[str, Any], ...]:
    plain: Mapping[str, Any] = {
        key: [] if isinstance(value, ArrayValue) else _sound(value)
        for key, value in header.metadata.items()
        if key not in _LEFT_OUT
    }
    return tuple({"general.parameter_count": parameter_count, **plain}.items())


def _sound(value: Any) -> Any:
    """Return a value as JSON can have it, which knows no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _capabilities(header: Header, template: str, *, generates: bool) -> tuple[Capability, ...]:
    """Return what a model can do, by its keys and by what its template speaks of.

    The same rules as ollama's server/images.go: a pooling type means vectors alone.
    """
    architecture = header.text("general.architecture") or ""
    if not generates or header.number(f"{architecture}.pooling_type"):
        return (Capability.EMBEDDING,)
    found = [Capability.COMPLETION]
    if "tools" in template or "tool_call" in template:
        found.append(Capability.TOOLS)
    if any(key in header.metadata for key in _SUFFIX_KEYS):
        found.append(Capability.INSERT)
    if tags_of(template) is not None or has_channels(template):  # as the engine sees it
        found.append(Capability.THINKING)
    return tuple(found)
