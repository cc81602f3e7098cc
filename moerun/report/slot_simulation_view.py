"""Simulated slots in VRAM: a row for each number of slots and policy, beside whole layers.

Knows: columns, words, and the shape of the document.
Does not know: how a trace is replayed.
"""

from collections.abc import Iterator
from typing import Any, Final

from rich.text import Text

from moerun.codec import to_plain
from moerun.experts.slot_simulation import (
    SlotReplay,
    SlotResult,
    SlotSimulation,
    uploads_per_token,
)
from moerun.report.console import Page, labelled
from moerun.report.plain import printable
from moerun.units import MIB, format_gib

SCHEMA: Final = 1
_INDENT: Final = 8
_HEADINGS: Final = (
    "SLOTS", "HELD", "VRAM", "POLICY", "HITS", "LATER", "UPLOADS", "MIB", "T/S", "LAYERS",
)  # fmt: skip
_WIDTHS: Final = (6, 5, 9, 10, 7, 7, 8, 7, 7, 0)


def slot_simulation_lines(done: SlotSimulation, page: Page) -> Iterator[Text]:
    """Yield what was replayed, the rows, and what the columns are."""
    for label, sentence in _summary(done):
        yield from labelled(label, sentence, page, indent=_INDENT, style="bold")
    yield Text()
    yield _row(_HEADINGS)
    for size in done.sizes:
        yield from _size_rows(done, size, page)
    yield Text()
    yield from labelled("", _legend(done), page, indent=0)


def slot_simulation_document(done: SlotSimulation) -> dict[str, Any]:
    """Return the figures as a document; what has no value is null."""
    document: dict[str, Any] = {"schema": SCHEMA, **to_plain(done)}
    for plain, size in zip(document["sizes"], done.sizes, strict=True):
        plain["static_tokens_per_s"] = 1 / size.static_s if size.static_s else None
        for entry, replay in zip(plain["replays"], size.replays, strict=True):
            for name in ("decode", "warm"):
                uses = getattr(replay, name)
                token_s = done.token_s(uses)
                entry[name] |= {
                    "hit_fraction": uses.hit_fraction,
                    "repeat_hit_fraction": uses.repeat_hit_fraction,
                    "uploads_per_token": uploads_per_token(uses),
                    "upload_bytes_per_token": uses.read_bytes_per_token,
                    "token_s": token_s,
                    "tokens_per_s": 1 / token_s if token_s else None,
                }
    return document


def _summary(done: SlotSimulation) -> Iterator[tuple[str, str]]:
    yield (
        "trace",
        f"{printable(done.model_name) or 'a model without name'}: {done.answer_tokens:,} tokens of "
        f"answers; {done.layer_count} layers of {done.expert_count} experts, {done.experts_used} "
        "used",
    )
    yield (
        "experts",
        f"{format_gib(done.expert_bytes)}, of which a token uses {format_gib(done.token_bytes)}",
    )
    rates = done.rates
    if rates is not None:
        yield (
            "rates",
            f"VRAM {_rate(rates.device_bytes_per_s)}, link {_rate(rates.link_bytes_per_s)}, RAM "
            f"{_rate(rates.host_bytes_per_s)}, as stated; misses come at "
            f"{_rate(rates.upload_bytes_per_s)}",
        )
    if done.compute_s is not None:
        yield "compute", f"{done.compute_s * 1e3:g} ms for each token beside its experts"


def _size_rows(done: SlotSimulation, size: SlotResult, page: Page) -> Iterator[Text]:
    head = (f"{size.slots}", f"{size.held_fraction * 100:.0f}%", format_gib(size.vram_bytes))
    if not size.replays:
        sentence = f"too few: a token uses {done.experts_used} experts of each layer"
        yield from labelled(head[0], sentence, page, indent=_WIDTHS[0], style="yellow")
        return
    for number, replay in enumerate(size.replays):
        cells = head if number == 0 else ("", "", "")
        yield _row((*cells, *_figures(done, size, replay)))


def _figures(done: SlotSimulation, size: SlotResult, replay: SlotReplay) -> tuple[str, ...]:
    uploads, moved_bytes = uploads_per_token(replay.warm), replay.warm.read_bytes_per_token
    return (
        replay.policy.value,
        _percent(replay.decode.hit_fraction),
        _percent(replay.warm.hit_fraction),
        "-" if uploads is None else f"{uploads:,.1f}",
        "-" if moved_bytes is None else f"{moved_bytes / MIB:,.1f}",
        _tokens_per_s(done.token_s(replay.warm)),
        _tokens_per_s(size.static_s),
    )


def _legend(done: SlotSimulation) -> str:
    sentences = [
        "HITS are of all tokens of the answers, from empty slots; LATER and what follows of their "
        "later half. Whatever misses is uploaded: UPLOADS experts and MIB for each token."
    ]
    few = [size for size in done.sizes if not size.is_worth_having]
    if few:
        sentences.append(
            f"Plans have no fewer than {done.least_slots} slots of each layer, three times what a "
            "token uses."
        )
    if done.rates is None:
        sentences.append(
            "No speed is told without rates: pass --link RATE, --memory RATE and --device RATE."
        )
        return " ".join(sentences)
    sentences.append(
        "T/S are tokens per second, LAYERS those with whole layers of experts in the same VRAM."
    )
    evens = [
        f"{size.break_even_fraction:.0%} with {size.slots} slots"
        for size in done.sizes
        if size.break_even_fraction is not None and 0 <= size.break_even_fraction <= 1
    ]
    if evens:
        sentences.append(f"Slots are the faster from {', '.join(evens)} of hits.")
    return " ".join(sentences)


def _row(cells: tuple[str, ...]) -> Text:
    return Text(
        "".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
    )


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.1f} GB/s"


def _tokens_per_s(token_s: float | None) -> str:
    return "-" if not token_s else f"{1 / token_s:,.1f}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction * 100:.1f}%"
