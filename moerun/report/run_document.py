"""What `run --json` prints: the answer, how it went, and by what placement.

Knows: the keys of the document; they may be added to, never renamed.
Does not know: who prints it.
"""

from typing import Any

from moerun.codec import to_plain
from moerun.engine.interface import GenerationResult
from moerun.experts.counters import StreamingSample
from moerun.model.description import Model
from moerun.report.streaming_document import streaming_document
from moerun.report.timing_view import rate_per_s
from moerun.runner.buffer_report import BufferRow
from moerun.runner.loading import Loaded


def run_document(
    answer: str,
    result: GenerationResult | None,
    *,
    model: Model,
    loaded: Loaded,
    mode: str,
    buffers: tuple[BufferRow, ...],
    total_s: float,
    streaming: StreamingSample | None = None,
) -> dict[str, Any]:
    """Return the document without its schema number; figures are None when nothing was asked."""
    return {
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "path": model.files[0].path,
            "digest": model.digest,
        },
        "answer": answer,
        "stop_reason": result.stop_reason.value if result else None,
        "prompt_tokens": result.prompt_tokens if result else None,
        "reused_tokens": result.reused_tokens if result else None,
        "answer_tokens": result.answer_tokens if result else None,
        "seed": result.seed if result else None,
        "timings": _timings(result, loaded.report.load_s, total_s),
        "notes": [*loaded.report.notes, *(result.notes if result else ())],
        "plan": _plan(loaded, mode, buffers),
        "streaming": streaming_document(streaming),
        "engine_version": loaded.report.engine_version,
    }


def served_document(
    answer: str,
    result: GenerationResult | None,
    *,
    name: str,
    server: str,
    load_s: float | None,
    total_s: float,
) -> dict[str, Any]:
    """Return the same of an answer that a server gave; what it does not tell is None."""
    return {
        "model": {"name": name, "architecture": None, "path": None, "digest": None},
        "answer": answer,
        "stop_reason": result.stop_reason.value if result else None,
        "prompt_tokens": result.prompt_tokens if result else None,
        "reused_tokens": None,
        "answer_tokens": result.answer_tokens if result else None,
        "seed": result.seed if result else None,
        "timings": _timings(result, load_s, total_s),
        "notes": [],
        "plan": None,
        "streaming": None,
        "engine_version": None,
        "server": server,
    }


def _timings(
    result: GenerationResult | None, load_s: float | None, total_s: float
) -> dict[str, float | None]:
    timings: dict[str, float | None] = {"total_s": total_s, "load_s": load_s}
    if result is not None:
        read_tokens = result.prompt_tokens - result.reused_tokens
        timings |= {
            "prompt_s": result.prompt_s,
            "answer_s": result.answer_s,
            "prompt_tokens_per_s": rate_per_s(read_tokens, result.prompt_s),
            "answer_tokens_per_s": rate_per_s(result.answer_tokens, result.answer_s),
        }
    return timings


def buffer_facts(buffers: tuple[BufferRow, ...]) -> list[dict[str, Any]]:
    """Return each buffer with how far the report is from the plan."""
    return [{**to_plain(row), "drift_fraction": row.drift_fraction} for row in buffers]


def _plan(loaded: Loaded, mode: str, buffers: tuple[BufferRow, ...]) -> dict[str, Any]:
    """Return what decides the arithmetic and the placement; the engine's arguments stand in it."""
    args = loaded.args
    return {
        "mode": mode,
        "context_tokens": loaded.report.context_tokens,
        "load_mode": args.load_mode.value,
        "extra_buffers": args.extra_buffers,
        "batch_tokens": args.batch_tokens,
        "ubatch_tokens": args.ubatch_tokens,
        "flash_attention": args.flash_attention.value,
        "flash_attention_is_on": loaded.report.flash_attention,
        "kv_encoding_k": args.kv_encoding_k,
        "kv_encoding_v": args.kv_encoding_v,
        "threads": args.threads,
        "devices": [to_plain(reference) for reference in args.devices],
        "cautions": [caution.message for caution in loaded.plan.cautions],
        "buffers": buffer_facts(buffers),
    }
