"""Plans and tables as one JSON document; keys are field names.

Knows: the shape of the documents and their schema number, which grows when a key changes.
Does not know: where the values come from.
"""

import json
from typing import Any, Final

from moerun.codec import to_plain
from moerun.machine.description import Machine
from moerun.model.description import Model
from moerun.planning.plan import Plan
from moerun.planning.summary import summarize
from moerun.report.tables import ModelRow

SCHEMA: Final = 1
_MODEL_SUMS: Final = ("file_bytes", "weight_bytes", "expert_bytes", "expert_bytes_per_token")
_MODEL_FACTS: Final = (
    "name",
    "architecture",
    "quantization",
    "files",
    "expert_count",
    "experts_used",
    "train_context_tokens",
    "embedding_length",
    "vocabulary_size",
    "parameter_count",
    "digest",
    "cautions",
)


def plan_document(model: Model, machine: Machine, plan: Plan) -> dict[str, Any]:
    """Return a plan with what it was made from; the model without its list of tensors."""
    facts = {name: to_plain(getattr(model, name)) for name in _MODEL_FACTS}
    sums = {name: getattr(model, name) for name in _MODEL_SUMS}
    summary = summarize(model, plan)
    return {
        "schema": SCHEMA,
        "model": facts | sums | {"layer_count": len(model.layers)},
        "machine": to_plain(machine),
        "summary": to_plain(summary)
        | {"memory_bytes": summary.memory_bytes, "saved_bytes": summary.saved_bytes}
        | _cache_facts(plan)
        | _slot_facts(plan),
        "plan": to_plain(plan),
    }


def _cache_facts(plan: Plan) -> dict[str, float]:
    """Return what a cache holds of the experts that stream; nothing where none do."""
    if plan.streaming is None:
        return {}
    return {
        "held_fraction": plan.streaming.held_fraction,
        "held_cycles": plan.streaming.held_cycles,
    }


def _slot_facts(plan: Plan) -> dict[str, int]:
    """Return what slots take in all; nothing where there are none."""
    if plan.slots is None:
        return {}
    return {"slot_bytes": plan.slots.total_bytes, "slot_count": plan.slots.slot_count}


def models_document(rows: tuple[ModelRow, ...], machine: Machine) -> dict[str, Any]:
    """Return one entry for each model at hand."""
    return {"schema": SCHEMA, "machine": to_plain(machine), "models": to_plain(rows)}


def advice_document(name: str, facts: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Return the advice on the quantizations of one model of the catalogue."""
    return {"schema": SCHEMA, "machine": to_plain(machine), "name": name, "advice": facts}


def write_document(document: dict[str, Any]) -> str:
    """Return the text of a document; characters beyond ASCII are escaped, so any pipe takes it."""
    return json.dumps(document, indent=2)
