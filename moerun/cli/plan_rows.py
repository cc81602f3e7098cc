"""One row for each model that is known: those installed, in any store, and the catalogue's.

Knows: which models are planned, and how what stands in the way becomes a verdict.
Does not know: the settings or the machine (it is given both), or how rows are shown.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from moerun.machine.description import Machine
    from moerun.model.description import Model
    from moerun.planning.strategy import Strategy
    from moerun.report.tables import ModelRow
    from moerun.store.installed import InstalledModel

REFUSED: Final = "refused"
TOO_LARGE: Final = "too large"
CATALOG: Final = "catalog"


def rows_of_all(
    machine: "Machine", strategy: "Strategy", *, only_fitting: bool
) -> tuple["ModelRow", ...]:
    """Return the rows of models installed, then of the catalogue; one installed hides its namesake.

    What fits lies in memory whole.
    """
    rows = tuple(_rows(machine, strategy))
    return tuple(row for row in rows if _fits(row)) if only_fitting else rows


def _rows(machine: "Machine", strategy: "Strategy") -> Iterator["ModelRow"]:
    from moerun.model.catalog import catalog_entry, catalog_names
    from moerun.model.catalog_model import derived_model
    from moerun.store.library import installed_models

    installed = installed_models()
    for found in installed:
        yield _row_of_installed(found, machine, strategy)
    taken = {found.name.lower() for found in installed}
    for name in catalog_names():
        if name in taken:
            continue
        entry = catalog_entry(name)
        model = derived_model(name, entry.recommended)
        path = f"hf.co/{entry.repositories[0]}:{entry.recommended}"
        yield _planned(name, path, CATALOG, model, machine, strategy)


def _row_of_installed(
    found: "InstalledModel", machine: "Machine", strategy: "Strategy"
) -> "ModelRow":
    from moerun.errors import ModelError
    from moerun.report.tables import ModelRow
    from moerun.store.described import described_model

    name, source = found.name, str(found.source)
    path = str(found.paths[0]) if found.paths else ""
    trouble = found.trouble or "none of its files is there"
    try:
        if found.trouble or not found.paths:
            raise ModelError(trouble)
        model = described_model(found)
    except ModelError as error:
        return ModelRow(name=name, path=path, source=source, verdict=REFUSED, error=error.message)
    return _planned(name, path, source, model, machine, strategy)


def _planned(
    name: str,
    path: str,
    source: str,
    model: "Model",
    machine: "Machine",
    strategy: "Strategy",
) -> "ModelRow":
    """Plan one model; what stands in the way becomes its verdict."""
    from moerun.errors import PlanError
    from moerun.planning.planner import plan_placement
    from moerun.planning.summary import summarize
    from moerun.report.tables import ModelRow

    try:
        placement = plan_placement(model, machine, strategy)
    except PlanError as error:
        return ModelRow(
            name=name,
            path=path,
            source=source,
            quantization=model.quantization,
            verdict=TOO_LARGE,
            file_bytes=model.file_bytes,
            error=error.message,
        )
    sums = summarize(model, placement)
    return ModelRow(
        name=name,
        path=path,
        source=source,
        quantization=model.quantization,
        verdict=str(sums.verdict),
        file_bytes=model.file_bytes,
        vram_bytes=sums.vram_bytes,
        ram_bytes=sums.ram_bytes,
        ssd_bytes=sums.ssd_bytes,
        context_tokens=placement.context_tokens,
    )


def _fits(row: "ModelRow") -> bool:
    return row.ssd_bytes == 0
