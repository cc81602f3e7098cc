"""A simulated cache: a table of sizes and policies, and the hit rates as bars.

Knows: columns, glyphs, and the shape of the document.
Does not know: how a trace is replayed.
"""

from collections.abc import Iterator
from math import isfinite
from typing import Any, Final, assert_never

from rich.text import Text

from moerun.codec import to_plain
from moerun.experts.simulate import Replay, SimulatedPolicy, Simulation, SizeResult, Uses
from moerun.report.console import Glyphs, Page, labelled
from moerun.report.plain import printable
from moerun.units import MIB, format_gib

SCHEMA: Final = 1
_INDENT: Final = 8
_HEADINGS: Final = ("RAM", "HELD", "POLICY", "HITS", "LATER", "READ/TOKEN", "TOKENS/S")
_WIDTHS: Final = (11, 6, 11, 8, 8, 12, 0)
_RATE_COLUMNS: Final = 7
_BAR_LABEL_COLUMNS: Final = 16


def simulation_lines(done: Simulation, page: Page) -> Iterator[Text]:
    """Yield what was replayed, a row for each size and policy, and the bars."""
    yield from _summary_lines(done, page)
    yield Text()
    yield _row(_HEADINGS)
    for size in done.sizes:
        yield from _size_rows(done, size, page)
    yield Text()
    yield from labelled("", _legend(done), page, indent=0)
    if any(size.replays for size in done.sizes):
        yield Text()
        yield from _bar_lines(done, page)


def simulation_document(done: Simulation) -> dict[str, Any]:
    """Return the figures as a document; ratios that have no value are null."""
    document: dict[str, Any] = {"schema": SCHEMA, **to_plain(done)}
    for plain, size in zip(document["sizes"], done.sizes, strict=True):
        plain["held_fraction"] = done.held_fraction(size)
        plain["is_enough"] = size.ram_bytes >= done.least_ram_bytes
        for entry, replay in zip(plain["replays"], size.replays, strict=True):
            for name in ("prefill", "decode", "warm"):
                entry[name] |= _ratios(done, getattr(replay, name))
    return document


def _ratios(done: Simulation, uses: Uses) -> dict[str, float | None]:
    speed = done.speed(uses)
    return {
        "hit_fraction": uses.hit_fraction,
        "repeat_hit_fraction": uses.repeat_hit_fraction,
        "read_bytes_per_token": uses.read_bytes_per_token,
        "overlapped_tokens_per_s": _finite(speed.overlapped_tokens_per_s) if speed else None,
        "in_turn_tokens_per_s": _finite(speed.in_turn_tokens_per_s) if speed else None,
    }


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None


def _summary_lines(done: Simulation, page: Page) -> Iterator[Text]:
    rows = [
        (
            "trace",
            f"{printable(done.model_name) or 'a model without name'}: {done.prompt_tokens:,} "
            f"tokens of prompts, {done.answer_tokens:,} of answers; {done.layer_count} layers of "
            f"{done.expert_count} experts, {done.experts_used} used",
        ),
        (
            "experts",
            f"{format_gib(done.expert_bytes)}, of which a token uses "
            f"{format_gib(done.cycle_bytes)}",
        ),
        ("rest", f"{format_gib(done.fixed.size_bytes)}: {done.fixed.origin}"),
    ]
    if done.disk is not None:
        rate = f"{done.disk.read_bytes_per_s / 1e9:.2f} GB/s"
        rows.append(("disk", f"{rate}, {done.disk.origin}"))
    if done.compute_s is not None:
        rows.append(("compute", f"{done.compute_s * 1e3:g} ms for each token (--compute-ms)"))
    for label, sentence in rows:
        yield from labelled(label, sentence, page, indent=_INDENT, style="bold")


def _size_rows(done: Simulation, size: SizeResult, page: Page) -> Iterator[Text]:
    ram = format_gib(size.ram_bytes)
    if not size.replays:
        sentence = (
            f"too small: streaming needs {format_gib(done.least_ram_bytes)}, one and a half "
            "tokens' experts included"
        )
        yield from labelled(ram, sentence, page, indent=_WIDTHS[0], style="yellow")
        return
    held = f"{done.held_fraction(size) * 100:.0f}%"
    for number, replay in enumerate(size.replays):
        cells = (ram, held) if number == 0 else ("", "")
        yield _row((*cells, replay.policy.value, *_figures(done, replay)))


def _figures(done: Simulation, replay: Replay) -> tuple[str, str, str, str]:
    read_bytes = replay.warm.read_bytes_per_token
    speed = done.speed(replay.warm)
    told = "-"
    if speed is not None:
        told = _rate(speed.overlapped_tokens_per_s)
        if done.compute_s:
            told = f"{_rate(speed.in_turn_tokens_per_s)} to {told}"
    return (
        _percent(replay.decode.hit_fraction),
        _percent(replay.warm.hit_fraction),
        "-" if read_bytes is None else f"{read_bytes / MIB:,.1f} MiB",
        told,
    )


def _legend(done: Simulation) -> str:
    first = next((r.decode for size in done.sizes for r in size.replays), None)
    sentences = []
    if first is not None and first.hits + first.misses:
        share = first.first_misses / (first.hits + first.misses)
        sentences.append(
            f"HITS are of all answers, from an empty cache: {_percent(share)} of their requests "
            "are for experts not used before in the trace, which no cache hits."
        )
        sentences.append("LATER, READ/TOKEN and TOKENS/S are of the later half of the answers.")
    if done.disk is None:
        sentences.append("No speed is told without a disk: pass --disk RATE, or --model.")
    elif done.compute_s:
        sentences.append("TOKENS/S: reading and computing in turn, to both at once.")
    else:
        sentences.append("TOKENS/S is the most that the disk allows, computing not counted.")
    return " ".join(sentences)


def _bar_lines(done: Simulation, page: Page) -> Iterator[Text]:
    """Yield the hit rates of all answers, by RAM and the share held; full width is all requests."""
    label_columns = _BAR_LABEL_COLUMNS + _WIDTHS[2]
    cells = page.columns - label_columns - _RATE_COLUMNS
    for size in done.sizes:
        for number, replay in enumerate(size.replays):
            share = replay.decode.hit_fraction
            if share is None:
                continue
            held = f"{done.held_fraction(size) * 100:.0f}%"
            ram = f"{format_gib(size.ram_bytes)}, {held}" if number == 0 else ""
            glyph, style = _look(replay.policy, page.glyphs)
            line = Text(ram.ljust(_BAR_LABEL_COLUMNS) + replay.policy.value.ljust(_WIDTHS[2]))
            filled = round(share * cells)
            line.append(glyph * filled, style=style)
            line.append(" " * (cells - filled) + _percent(share).rjust(_RATE_COLUMNS))
            yield line


def _look(policy: SimulatedPolicy, glyphs: Glyphs) -> tuple[str, str]:
    match policy:
        case SimulatedPolicy.LRU:
            return glyphs.state, "yellow"
        case SimulatedPolicy.FREQUENCY:
            return glyphs.dense, "green"
        case SimulatedPolicy.BELADY:
            return glyphs.fixed, ""
        case _:
            assert_never(policy)


def _row(cells: tuple[str, ...]) -> Text:
    return Text(
        "".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
    )


def _rate(tokens_per_s: float) -> str:
    if not isfinite(tokens_per_s):
        return "no reads"
    return f"{tokens_per_s:,.1f}" if tokens_per_s < 1000 else f"{tokens_per_s:,.0f}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction * 100:.1f}%"
