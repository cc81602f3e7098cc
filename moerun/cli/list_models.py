"""`moerun list`: the models of this machine, whoever put them there.

Ask all stores, decide nothing, tell one row for each model.
"""

import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moerun.report.list_view import ListRow
    from moerun.store.header_facts import HeaderBook
    from moerun.store.installed import InstalledModel

SCHEMA = 1
VARIABLES = {
    "MOERUN_MODELS": "folder of your own models, and of GGUF files",
    "OLLAMA_MODELS": "folder of ollama's models; it is only read",
    "HF_HUB_CACHE": "folder of files from Hugging Face",
}


def list_models(
    prefix: Annotated[
        str | None,
        typer.Argument(metavar="PREFIX", help="Beginning of names to list, in any case."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the models of this machine.

    SOURCE says whose store a model lies in: moerun, ollama, hf (Hugging Face's cache), lmstudio,
    file, or demo. `moerun plan` lists what could be downloaded, too.
    """
    from moerun.report.list_view import list_document, list_lines
    from moerun.report.notices import tell
    from moerun.report.plain import printable
    from moerun.store.header_facts import HeaderBook
    from moerun.store.library import installed_models
    from moerun.store.ollama_store import closed_folders

    models = installed_models()
    book = HeaderBook()
    now_s = time.time()
    wanted = (prefix or "").lower()
    rows = tuple(
        _row(model, book, now_s, has_facts=as_json)
        for model in models
        if model.name.lower().startswith(wanted)
    )
    book.save(model.paths[0] for model in models if model.paths)
    if as_json:
        import json

        typer.echo(json.dumps({"schema": SCHEMA, "models": list_document(rows)}, indent=2))
        return
    for line in list_lines(rows):
        typer.echo(line)
    tell(
        *(
            f"Note: {printable(row.name)} cannot be run: {printable(row.trouble)}"
            for row in rows
            if row.trouble
        )
    )
    tell(
        *(
            f"Note: {folder} is closed to this user; its models are not listed"
            for folder in closed_folders()
        )
    )


def _row(
    model: "InstalledModel", book: "HeaderBook", now_s: float, *, has_facts: bool
) -> "ListRow":
    """Return a row; the header is read only for what the row does not know without."""
    from moerun.report.list_view import ListRow

    facts = None
    if model.paths and (has_facts or model.digest is None):
        facts = book.facts(model.paths[0])
    is_read = facts is not None and facts.trouble is None
    return ListRow(
        name=model.name,
        digest=model.digest or (facts.digest if facts is not None and is_read else None),
        size_bytes=model.size_bytes,
        modified_at_s=model.modified_at_s,
        age_s=max(0.0, now_s - model.modified_at_s),
        source=model.source.value,
        path=str(model.paths[0]) if model.paths else None,
        architecture=facts.architecture if facts is not None and is_read else None,
        quantization=facts.quantization if facts is not None and is_read else None,
        parameter_count=facts.parameter_count if facts is not None and is_read else None,
        expert_count=facts.expert_count if facts is not None and is_read else None,
        experts_used=facts.experts_used if facts is not None and is_read else None,
        trouble=model.trouble or (facts.trouble if facts is not None else None),
    )
