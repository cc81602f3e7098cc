"""A plan as lines for a terminal.

Knows: the order of the answer, its words, and the strip of layers.
Does not know: how a plan is made, or what a console is.
"""

from collections.abc import Iterator
from typing import Final

from rich.text import Text

from moerun.machine.description import SSD, Machine
from moerun.model.description import Model
from moerun.planning.plan import Plan
from moerun.planning.strategy import Tier
from moerun.planning.summary import layer_tiers, summarize
from moerun.report.bars import TIER_STYLES, device_lines
from moerun.report.console import Page, flow, labelled
from moerun.report.plain import printable
from moerun.units import format_gib

_INDENT: Final = 12
_STRIP_INDENT: Final = 6
_STRIP_GROUP: Final = 10
_LETTERS: Final = {Tier.VRAM: "V", Tier.RAM: "R", Tier.SSD: "S"}
_TIER_NAMES: Final = {Tier.VRAM: "VRAM", Tier.RAM: "RAM", Tier.SSD: "SSD"}
_NOTHING: Final = "-"  # a layer without experts, or without any weights


def plan_lines(
    model: Model, machine: Machine, plan: Plan, page: Page, *, explains: bool = False
) -> Iterator[Text]:
    """Yield the whole answer; with `explains`, every decision and its reason at the end."""
    yield from title_lines(model, page)
    yield Text()
    yield from device_lines(model, machine, plan, page)
    yield Text()
    yield from strip_lines(model, plan, page)
    yield Text()
    yield from _fact_lines(model, machine, plan, page)
    if plan.cautions:
        yield Text()
    for caution in plan.cautions:
        sentence = printable(caution.message)
        yield from labelled("Caution", sentence, page, indent=_INDENT, style="bold yellow")
    if explains:
        yield Text()
        yield from decision_lines(plan, page)


def title_lines(model: Model, page: Page) -> Iterator[Text]:
    """Yield the model's name and what it is."""
    yield Text(printable(model.name), style="bold")
    facts = [printable(model.architecture), printable(model.quantization)]
    facts += [format_gib(model.file_bytes), f"{len(model.layers)} layers"]
    if model.expert_count:
        facts.append(f"{model.experts_used} of {model.expert_count} experts per token")
        facts.append(f"experts {format_gib(model.expert_bytes)}")
    else:
        facts.append("no experts")
    yield from flow(map(Text, facts), page, indent=0, gap=page.glyphs.separator)


def strip_lines(model: Model, plan: Plan, page: Page) -> Iterator[Text]:
    """Yield one letter for each layer, in tens: the tier that its experts lie in.

    A layer over two tiers has the small letter of the faster one.
    """
    tiers = layer_tiers(model, plan)
    what = "Experts" if model.is_sparse else "Weights"
    streams = plan.streaming is not None
    legend = _legend(tiers, streams=streams)
    if plan.slots is not None:
        legend += f"  likely ones of {len(plan.slots.layers)} layers in slots, too"
    yield from labelled(f"{what} by layer", legend, page, indent=_STRIP_INDENT + 12)
    groups = max(1, (page.columns - _STRIP_INDENT) // (_STRIP_GROUP + 1))
    per_line = groups * _STRIP_GROUP
    for start in range(0, len(tiers), per_line):
        line = Text(f"{start:>{_STRIP_INDENT - 2}}  ", style="dim")
        for index, found in enumerate(tiers[start : start + per_line]):
            if index and index % _STRIP_GROUP == 0:
                line.append(" ")
            line.append(_letter(found), style=f"not dim {_style(found, streams=streams)}")
        yield line


def decision_lines(plan: Plan, page: Page) -> Iterator[Text]:
    """Yield every decision: what was chosen for what, and why."""
    yield Text("Decisions", style="bold")
    step = ""
    for decision in plan.decisions:
        sentence = f"{decision.subject}: {decision.chosen}"
        if decision.instead_of is not None:
            sentence += f" instead of {decision.instead_of}"
        if decision.because:
            sentence += f" ({decision.because})"
        label = "" if decision.step == step else f"  {decision.step}"
        step = decision.step
        yield from labelled(label, printable(sentence), page, indent=_INDENT)


def _fact_lines(model: Model, machine: Machine, plan: Plan, page: Page) -> Iterator[Text]:
    for label, sentence in (
        ("Context", _context_sentence(model, plan)),
        ("Loading", _loading_sentence(plan)),
        ("Slots", _slots_sentence(model, plan)),
        ("Streaming", _streaming_sentence(plan)),
        ("Per token", _token_sentence(machine, model, plan)),
        ("Memory", _memory_sentence(model, plan)),
        ("Arithmetic", _arithmetic_sentence(plan)),
    ):
        if sentence:
            yield from labelled(label, sentence, page, indent=_INDENT)


def _context_sentence(model: Model, plan: Plan) -> str:
    sentence = f"{plan.context_tokens:,} tokens"
    if model.train_context_tokens:
        sentence += f" of {model.train_context_tokens:,} trained"
    rung = plan.next_rung
    if rung is None:
        return sentence
    if not rung.fits:
        return f"{sentence}; {rung.context_tokens:,} would not fit"
    costs = []
    if rung.layers_moved:
        costs.append(f"move {rung.layers_moved} layers with their KV cache off the GPUs")
    if rung.expert_bytes_moved:
        costs.append(f"move {format_gib(rung.expert_bytes_moved)} of experts to slower memory")
    if rung.ends_copy:
        costs.append("leave no room to copy the host weights")
    cost = " and ".join(costs) or "move no expert"
    return f"{sentence}; {rung.context_tokens:,} would {cost}"


def _loading_sentence(plan: Plan) -> str:
    because = next((d.because for d in plan.decisions if d.subject == "load mode"), "")
    return f"{plan.load_mode}: {because}" if because else str(plan.load_mode)


def _streaming_sentence(plan: Plan) -> str:
    """Say what the cache holds of the experts on SSD, and the least that is worth holding."""
    found = plan.streaming
    if found is None:
        return ""
    return (
        f"a cache of {format_gib(found.cache_bytes)} of RAM holds {found.held_fraction:.0%} of the "
        f"{format_gib(found.expert_bytes)} of experts on SSD, those of {found.held_cycles:.1f} "
        f"tokens; the least is {format_gib(found.minimum_bytes)}"
    )


def _slots_sentence(model: Model, plan: Plan) -> str:
    """Say how many of each layer's experts VRAM holds copies of, and what that may answer."""
    found = plan.slots
    if found is None:
        return ""
    counts = sorted({layer.slots for layer in found.layers})
    told = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    sentence = (
        f"{told} of the {model.expert_count} experts of each of {len(found.layers)} layers in "
        f"VRAM, {format_gib(found.total_bytes)}; about {found.expected_hit_fraction:.0%} of "
        "requests may hit, the rest is uploaded"
    )
    return f"{sentence}; on trial" if found.is_trial else sentence


def _token_sentence(machine: Machine, model: Model, plan: Plan) -> str:
    """Say what one token reads of the experts, if it draws on all of them alike."""
    shares = [
        f"{format_gib(share.per_token_bytes)} from {_place(machine, share.device)}"
        for share in summarize(model, plan).experts
    ]
    return f"reads of the experts {', '.join(shares)} on average" if shares else ""


def _memory_sentence(model: Model, plan: Plan) -> str:
    sums = summarize(model, plan)
    if not sums.ssd_bytes:
        return f"{format_gib(sums.memory_bytes)}, with all weights in memory"
    return (
        f"{format_gib(sums.memory_bytes)} instead of the {format_gib(sums.full_bytes)} that full "
        f"loading takes: {format_gib(sums.saved_bytes)} saved"
    )


def _arithmetic_sentence(plan: Plan) -> str:
    """Say what the exact numbers of an answer depend on."""
    kv = {plan.kv_encoding_k.lower(): None, plan.kv_encoding_v.lower(): None}
    return (
        f"micro-batch {plan.ubatch_tokens}, repacking {'on' if plan.extra_buffers else 'off'}, "
        f"flash attention {plan.flash_attention}, KV {'/'.join(kv)}, {plan.threads} threads"
    )


def _place(machine: Machine, device: str) -> str:
    return next(
        (machine.label(gpu.id) for gpu in machine.gpus if gpu.id == device),
        "SSD" if device == SSD else "RAM",
    )


def _legend(tiers: tuple[tuple[Tier, ...], ...], *, streams: bool) -> str:
    """Name the letters that occur; what is on SSD may stream through RAM."""
    met = [tier for tier in Tier if any(tier in found for found in tiers)]
    words = [f"{_LETTERS[tier]} {_TIER_NAMES[tier]}" for tier in met]
    if streams:
        words = [f"{word}, streamed" if word.endswith("SSD") else word for word in words]
    split = sorted({_letter(found) for found in tiers if len(found) > 1})
    if split:
        words.append(f"{', '.join(split)}: partly in slower memory")
    if any(not found for found in tiers):
        words.append(f"{_NOTHING} none")
    return "  ".join(words)


def _letter(tiers: tuple[Tier, ...]) -> str:
    if not tiers:
        return _NOTHING
    letter = _LETTERS[tiers[0]]
    return letter if len(tiers) == 1 else letter.lower()


def _style(tiers: tuple[Tier, ...], *, streams: bool) -> str:
    if not tiers:
        return "default"
    style = TIER_STYLES[tiers[0]]
    return f"bold {style}" if streams and tiers[0] is Tier.SSD else style
