"""What a model is, in ollama's sections, with one for its experts.

Knows: sections, rows, how long texts are cut.
Does not know: where the facts come from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from moerun.model.description import Model
from moerun.report.list_view import short_size
from moerun.report.plain import printable
from moerun.units import format_gib

_INDENT: Final = "    "
_LINES_SHOWN: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownModel:
    """All that is shown of a model. `from_where` is a store, or the host it lies at."""

    name: str
    from_where: str
    model: Model
    capabilities: tuple[str, ...]
    digest: str | None = None
    path: str | None = None
    parameters: tuple[tuple[str, Any], ...] = ()
    system: str | None = None
    template: str | None = None
    licenses: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())


def show_lines(shown: ShownModel, *, is_verbose: bool) -> tuple[str, ...]:
    """Return the sections; a verbose page has metadata and tensors as well."""
    lines = [*_section("Model", _model_rows(shown))]
    lines += _plain_section("Capabilities", shown.capabilities)
    if shown.model.expert_count:
        lines += _section("Experts", _expert_rows(shown.model))
    if shown.model.adapters:
        lines += _section("Adapters", _adapter_rows(shown.model))
    if shown.parameters:
        lines += _section("Parameters", _parameter_rows(shown.parameters))
    if shown.system:
        lines += _plain_section("System", _beginning(shown.system))
    for text in shown.licenses[:1]:
        lines += _plain_section("License", _beginning(text))
    if is_verbose:
        lines += _section("Metadata", shown.metadata)
        rows = tuple(
            (tensor.name, f"{tensor.encoding:<8} {list(tensor.shape)}")
            for tensor in shown.model.tensors
        )
        lines += _section("Tensors", rows)
    return tuple(lines)


def show_document(shown: ShownModel, *, is_verbose: bool) -> dict[str, Any]:
    """Return the same as data, without its schema number."""
    model = shown.model
    document: dict[str, Any] = {
        "name": shown.name,
        "source": shown.from_where,
        "digest": shown.digest,
        "path": shown.path,
        "architecture": model.architecture,
        "parameter_count": model.parameter_count,
        "quantization": model.quantization,
        "file_bytes": model.file_bytes,
        "train_context_tokens": model.train_context_tokens,
        "embedding_length": model.embedding_length,
        "vocabulary_size": model.vocabulary_size,
        "capabilities": list(shown.capabilities),
        "adapters": [{"path": file.path, "size_bytes": file.size_bytes} for file in model.adapters],
        "experts": None,
        "parameters": dict(shown.parameters),
        "system": shown.system,
        "template": shown.template,
        "licenses": list(shown.licenses),
        "notes": list(shown.notes),
    }
    if model.expert_count:
        document["experts"] = {
            "expert_count": model.expert_count,
            "experts_used": model.experts_used,
            "sparse_layers": sum(layer.is_sparse for layer in model.layers),
            "layers": len(model.layers),
            "expert_bytes": model.expert_bytes,
            "dense_bytes": model.weight_bytes - model.expert_bytes,
            "expert_bytes_per_token": model.expert_bytes_per_token,
        }
    if is_verbose:
        document["metadata"] = dict(shown.metadata)
        document["tensors"] = [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "encoding": tensor.encoding,
                "size_bytes": tensor.size_bytes,
            }
            for tensor in model.tensors
        ]
    return document


def modelfile_text(shown: ShownModel, *, messages: Sequence[tuple[str, str]]) -> str:
    """Return a Modelfile that would make the same model.

    A template in Jinja is the GGUF's own, which FROM brings along; TEMPLATE takes Go's alone.
    """
    lines = [f"# Modelfile of {printable(shown.name)}", f"FROM {shown.path or shown.name}"]
    lines += [f"ADAPTER {file.path}" for file in shown.model.adapters]
    if shown.template is not None and "{%" not in shown.template:
        lines.append(f'TEMPLATE """{shown.template}"""')
    if shown.system is not None:
        lines.append(f'SYSTEM """{shown.system}"""')
    lines += [f"PARAMETER {name} {text}" for name, text in _parameter_rows(shown.parameters)]
    lines += [f'MESSAGE {role} """{text}"""' for role, text in messages]
    lines += [f'LICENSE """{text}"""' for text in shown.licenses]
    return "\n".join(lines)


def parameter_lines(parameters: tuple[tuple[str, Any], ...]) -> tuple[str, ...]:
    """Return the parameters, a line each."""
    rows = _parameter_rows(parameters)
    width = max((len(name) for name, _ in rows), default=0)
    return tuple(f"{name.ljust(width)}    {text}" for name, text in rows)


def _adapter_rows(model: Model) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"adapter {index}", f"{short_size(file.size_bytes)}, {printable(file.path)}")
        for index, file in enumerate(model.adapters, start=1)
    )


def _model_rows(shown: ShownModel) -> tuple[tuple[str, str], ...]:
    model = shown.model
    return (
        ("architecture", model.architecture),
        ("parameters", short_count(model.parameter_count)),
        ("context length", str(model.train_context_tokens)),
        ("embedding length", str(model.embedding_length)),
        ("quantization", model.quantization),
        ("size", short_size(model.file_bytes)),
        ("source", shown.from_where),
    )


def _expert_rows(model: Model) -> tuple[tuple[str, str], ...]:
    sparse = sum(layer.is_sparse for layer in model.layers)
    share = model.expert_bytes / model.weight_bytes if model.weight_bytes else 0.0
    return (
        ("experts", f"{model.experts_used} of {model.expert_count} used for a token"),
        ("sparse layers", f"{sparse} of {len(model.layers)}"),
        ("expert weights", f"{format_gib(model.expert_bytes)} ({share:.0%} of all)"),
        ("dense weights", format_gib(model.weight_bytes - model.expert_bytes)),
        ("read for a token", f"{format_gib(model.expert_bytes_per_token)} of experts"),
    )


def _parameter_rows(parameters: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, str], ...]:
    rows = []
    for name, value in parameters:
        for item in value if isinstance(value, list) else (value,):
            is_quoted = isinstance(value, list) or (isinstance(item, str) and " " in item)
            rows.append((name, f'"{item}"' if is_quoted else str(item)))
    return tuple(rows)


def _section(title: str, rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    width = max((len(printable(name)) for name, _ in rows), default=0)
    yield f"  {title}"
    for name, text in rows:
        yield f"{_INDENT}{printable(name).ljust(width)}    {printable(text)}".rstrip()
    yield ""


def _plain_section(title: str, rows: Sequence[str]) -> Iterator[str]:
    yield f"  {title}"
    yield from (f"{_INDENT}{printable(row)}" for row in rows)
    yield ""


def _beginning(text: str) -> tuple[str, ...]:
    """Return the first lines that say something, and dots for more."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    more = ("...",) if len(lines) > _LINES_SHOWN else ()
    return (*lines[:_LINES_SHOWN], *more)


def short_count(count: int) -> str:
    """Return a number of parameters as ollama writes it: 30.5B, 137.25M, 12K."""
    for factor, unit, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= factor:
            text = f"{count / factor:.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text) + unit
    return str(count)
