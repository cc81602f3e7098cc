"""`moerun simulate --slots`: what slots in VRAM would hit, beside whole layers of experts.

Ask the trace and the model; replay; tell.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from moerun.cli.simulate import rate_of, sizes_of, words_of

if TYPE_CHECKING:
    from moerun.experts.simulate import SimulatedPolicy
    from moerun.experts.slot_simulation import SlotAmount, SlotQuestion
    from moerun.planning.slot_gain import Rates


def simulate_slots(
    trace: str,
    *,
    slots: str | None,
    vram: str | None,
    policies: "tuple[SimulatedPolicy, ...]",
    rates: tuple[str | None, str | None, str | None],
    model: str | None,
    compute_ms: float | None,
    as_json: bool,
) -> None:
    """Replay a trace through slots; `rates` are of VRAM, the link and RAM."""
    from moerun.experts.slot_simulation import SlotQuestion
    from moerun.experts.slot_simulation import simulate_slots as replay_all
    from moerun.experts.trace import read_trace
    from moerun.report.notices import tell
    from moerun.report.plain import printable

    question = SlotQuestion(
        amounts=(*_numbers(slots), *_memories(vram)),
        policies=policies,
        rates=_rates(rates),
        compute_s=None if compute_ms is None else compute_ms / 1e3,
    )
    recorded = read_trace(trace)
    if model is not None:
        question = _with_model(question, model)
    done = replay_all(recorded, question)
    tell(*(printable(f"Note: {note}") for note in done.notes))
    if as_json:
        from moerun.report.json_view import write_document
        from moerun.report.slot_simulation_view import slot_simulation_document

        typer.echo(write_document(slot_simulation_document(done)))
        return
    from moerun.report.console import open_console, page_of, print_lines
    from moerun.report.slot_simulation_view import slot_simulation_lines

    console = open_console()
    print_lines(console, slot_simulation_lines(done, page_of(console)))


def _numbers(text: str | None) -> "tuple[SlotAmount, ...]":
    from moerun.errors import UsageError
    from moerun.experts.slot_simulation import SlotAmount
    from moerun.units import parse_fraction

    found = []
    for word in words_of(text, flag="--slots", example="32,64 or 25%,50%") if text else ():
        try:
            if word.endswith("%"):
                found.append(SlotAmount(of_experts_fraction=parse_fraction(word)))
                continue
            number = int(word)
        except ValueError:
            number = 0
        if number < 1:
            raise UsageError(
                f"--slots: '{word}' is no number of experts; write for example 32, or 25%"
            )
        found.append(SlotAmount(slots=number))
    return tuple(found)


def _memories(text: str | None) -> "tuple[SlotAmount, ...]":
    from moerun.experts.slot_simulation import SlotAmount

    sizes = () if text is None else sizes_of(text, flag="--vram")
    return tuple(SlotAmount(vram_bytes=size) for size in sizes)


def _rates(texts: tuple[str | None, str | None, str | None]) -> "Rates | None":
    """Return the rates where all are stated; UsageError where only some are."""
    from moerun.errors import UsageError
    from moerun.planning.slot_gain import Rates

    flags = ("--device", "--link", "--memory")
    missing = [flag for flag, text in zip(flags, texts, strict=True) if text is None]
    if len(missing) == len(flags):
        return None
    if missing:
        raise UsageError(f"a speed needs all of {', '.join(flags)}; {missing[0]} is missing")
    device, link, memory = (
        rate_of(text or "", flag=flag) for flag, text in zip(flags, texts, strict=True)
    )
    return Rates(device_bytes_per_s=device, link_bytes_per_s=link, host_bytes_per_s=memory)


def _with_model(question: "SlotQuestion", name: str) -> "SlotQuestion":
    """Return the question with what a model's header tells of its experts."""
    from moerun.cli.planning_steps import read_named_model
    from moerun.errors import UsageError
    from moerun.planning.slots import slot_bytes_of

    model = read_named_model(name)
    slot_bytes = slot_bytes_of(model)
    if not slot_bytes:
        raise UsageError(f"{model.name} has no layer whose experts could have slots")
    return replace(
        question,
        slot_bytes=slot_bytes,
        expert_counts=dict.fromkeys(slot_bytes, model.expert_count),
    )
