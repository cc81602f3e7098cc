"""`moerun show`: what a model is, whether it is on this machine, in the catalogue, or at a host.

Ask its header and what it carries, decide nothing, tell.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moerun.model.gguf_header import Header
    from moerun.report.show_view import ShownModel
    from moerun.store.installed import InstalledModel

SCHEMA = 1
VARIABLES = {
    "MOERUN_MODELS": "folder of your own models, and of GGUF files",
    "OLLAMA_MODELS": "folder of ollama's models; it is only read",
    "HF_TOKEN": "token for repositories that want one; goes to that host alone",
}
_LONGEST_VALUE = 100  # characters of a key's value


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model, or a path.")],
    wants_license: Annotated[bool, typer.Option("--license", help="Print its license.")] = False,
    wants_modelfile: Annotated[
        bool, typer.Option("--modelfile", help="Print a Modelfile that makes the same.")
    ] = False,
    wants_parameters: Annotated[
        bool, typer.Option("--parameters", help="Print its parameters.")
    ] = False,
    wants_system: Annotated[
        bool, typer.Option("--system", help="Print its system message.")
    ] = False,
    wants_template: Annotated[
        bool, typer.Option("--template", help="Print the template of its prompts.")
    ] = False,
    is_verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print all keys and tensors, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what a model is.

    Of a model at a host (hf.co/user/repo:QUANT) only the header is fetched, a few MB.
    """
    from moerun.errors import UsageError
    from moerun.report.notices import tell
    from moerun.report.plain import printable

    wishes = {
        "license": wants_license,
        "modelfile": wants_modelfile,
        "parameters": wants_parameters,
        "system": wants_system,
        "template": wants_template,
    }
    asked = [name for name, is_asked in wishes.items() if is_asked]
    if len(asked) > 1 or (asked and (as_json or is_verbose)):
        raise UsageError(
            "only one of --license, --modelfile, --parameters, --system and --template may be "
            "given, and neither --json nor --verbose with it"
        )
    shown, messages = _describe(model)
    if asked:
        _print_part(shown, asked[0], messages)
        return
    if as_json:
        import json

        from moerun.report.show_view import show_document

        document = {"schema": SCHEMA, **show_document(shown, is_verbose=is_verbose)}
        typer.echo(json.dumps(document, indent=2))
        return
    from moerun.report.show_view import show_lines

    for line in show_lines(shown, is_verbose=is_verbose):
        typer.echo(line)
    tell(*(f"Note: {printable(note)}" for note in shown.notes))


def _print_part(shown: "ShownModel", part: str, messages: tuple[tuple[str, str], ...]) -> None:
    """Print one text alone."""
    from moerun.report.show_view import modelfile_text, parameter_lines

    texts = {
        "license": "\n".join(shown.licenses),
        "modelfile": modelfile_text(shown, messages=messages) if part == "modelfile" else "",
        "parameters": "\n".join(parameter_lines(shown.parameters)),
        "system": shown.system or "",
        "template": shown.template or "",
    }
    if texts[part]:
        typer.echo(texts[part])


def _describe(name: str) -> "tuple[ShownModel, tuple[tuple[str, str], ...]]":
    """Return what a name means: on this machine first, then at a host, then in the catalogue."""
    from moerun.store.library import find_model
    from moerun.store.remote_names import said_remote

    found = find_model(name)
    if found is not None:
        return describe_installed(found)
    if (remote := said_remote(name)) is not None:
        from moerun.store.remote_header import remote_header

        return _shown(str(remote), "at its host", remote_header(remote)), ()
    from moerun.cli.planning_steps import catalog_reference

    if (reference := catalog_reference(name)) is None:
        return _of_library(name)
    from moerun.model.catalog import catalog_entry
    from moerun.model.catalog_model import catalog_model
    from moerun.report.show_view import ShownModel

    entry = catalog_entry(reference.entry)
    shown = ShownModel(
        name=str(reference),
        from_where=f"catalog ({entry.repositories[0]}); it is not downloaded",
        model=catalog_model(reference.entry, reference.quantization),
        capabilities=("completion",),
        notes=("its tensors and their sizes are derived from the published configuration",),
    )
    return shown, ()


def _of_library(name: str) -> "tuple[ShownModel, tuple[tuple[str, str], ...]]":
    """Return what ollama.com has under a bare word."""
    from moerun.cli.bare_names import asking_library, library_reference
    from moerun.store.library import require_model
    from moerun.store.remote_header import remote_header

    reference = library_reference(name)
    if reference is None:
        return describe_installed(require_model(name))  # which says what comes closest
    with asking_library(name):
        return _shown(str(reference), "at ollama.com", remote_header(reference)), ()


def describe_installed(
    found: "InstalledModel",
) -> "tuple[ShownModel, tuple[tuple[str, str], ...]]":
    """Return what a model on this machine is, and the messages that it carries."""
    from dataclasses import replace

    from moerun.model.gguf_header import read_header
    from moerun.store.described import described_model
    from moerun.store.profile import profile_of

    profile = profile_of(found)
    shown = _shown(found.name, found.source.value, read_header(found.paths[0]))
    shown = replace(
        shown,
        model=described_model(found) if found.adapters else shown.model,
        digest=found.digest or shown.model.digest,
        path=str(found.paths[0]),
        parameters=profile.parameters,
        system=profile.system,
        template=profile.own_template or shown.template or profile.template,
        licenses=profile.licenses or shown.licenses,
        notes=profile.notes,
    )
    return shown, profile.messages


def _shown(name: str, from_where: str, header: "Header") -> "ShownModel":
    """Return what a header alone tells."""
    from moerun.model.assembly import assemble
    from moerun.report.show_view import ShownModel

    model = assemble(header.files)
    license_name = header.text("general.license")
    return ShownModel(
        name=name,
        from_where=from_where,
        model=model,
        capabilities=_capabilities(header, generates_text=model.generates_text),
        template=header.text("tokenizer.chat_template"),
        licenses=(license_name,) if license_name else (),
        metadata=tuple((key, _value_text(value)) for key, value in header.metadata.items()),
        notes=model.cautions,
    )


def _capabilities(header: "Header", *, generates_text: bool) -> tuple[str, ...]:
    """Return what the template and the vocabulary promise, in ollama's words."""
    if not generates_text:
        return ("embedding",)
    template = header.text("tokenizer.chat_template") or ""
    found = ["completion"]
    if "tools" in template:
        found.append("tools")
    if header.number("tokenizer.ggml.fim_pre_token_id") is not None:
        found.append("insert")
    marks = ("<think>", "enable_thinking", "reasoning", "<|channel|>", "[THINK]", "thinking")
    if any(mark in template for mark in marks):
        found.append("thinking")
    return tuple(found)


def _value_text(value: Any) -> str:
    from moerun.model.gguf_values import ArrayValue

    if isinstance(value, ArrayValue):
        return f"[{value.length:,} values]"
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."
