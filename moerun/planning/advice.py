"""Which quantization of a model suits a machine: each one planned, and one recommended.

Bits cost quality and memory costs speed, so the choice goes in steps: the most bits that lie in
VRAM whole, else the usual file if memory holds it, else the most bits that memory holds, else
what reads the least from the SSD. Four bits are where loss begins to be felt: of a Llama 3 of 8B,
perplexity rises by 0.18 with Q4_K_M, 0.66 with Q3_K_M and 3.5 with Q2_K, and by 0.003 with Q8_0
(tools/quantize/quantize.cpp @ llama-cpp-python 0.3.36), which is why more than that is never
recommended.

Knows: the plans of the quantizations of one model, and the order of preference.
Does not know: where their sizes come from, or how advice is shown.
"""

from dataclasses import dataclass
from typing import Final, assert_never

from moerun.errors import PlanError
from moerun.machine.description import SSD, Machine
from moerun.model.description import Model
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy
from moerun.planning.summary import Verdict, summarize
from moerun.units import format_gib

_CAREFUL_BITS: Final = 4.0
_COARSE_BITS: Final = 3.0
_FEWEST_BITS: Final = 2.0  # what is left of a model below is seldom worth its memory
_MOST_BITS: Final = 9.0  # Q8_0 has 8.5
_FEW_BYTES_PER_TOKEN: Final = 64 << 20  # some 20 ms of an NVMe drive


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One quantization and its placement; sums are None, and `refusal` says why, without one."""

    quantization: str
    file_bytes: int
    bits_per_weight: float
    verdict: Verdict | None = None
    vram_bytes: int | None = None
    ram_bytes: int | None = None
    ssd_bytes: int | None = None
    ssd_bytes_per_token: int | None = None
    context_tokens: int | None = None
    refusal: str | None = None

    @property
    def is_careful(self) -> bool:
        """Whether it has enough bits for answers that are close to the model's own."""
        return self.bits_per_weight >= _CAREFUL_BITS

    @property
    def avoids_ssd(self) -> bool:
        """Whether memory holds all of its weights, or so many that a token waits for few."""
        if self.verdict is Verdict.NEEDS_SSD:
            return _read_bytes(self) <= _FEW_BYTES_PER_TOKEN
        return self.verdict is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """All quantizations, the largest first, and the one to take with its reason.

    `recommended` is None when no quantization can be placed.
    """

    options: tuple[Option, ...]
    usual: str
    recommended: str | None
    because: str

    @property
    def differs(self) -> bool:
        """Whether the advice is another quantization than the usual one."""
        return self.recommended is not None and self.recommended != self.usual


def advise(
    models: tuple[Model, ...], machine: Machine, strategy: Strategy, *, usual: str
) -> Advice:
    """Plan each quantization of a model on a machine, and recommend one.

    `usual` is the label that a bare name means.
    """
    options = [_option(model, machine, strategy) for model in models]
    options.sort(key=lambda option: option.file_bytes, reverse=True)
    chosen, because = _choose(tuple(options), usual)
    return Advice(
        options=tuple(options),
        usual=usual,
        recommended=chosen.quantization if chosen else None,
        because=because,
    )


def labels_worth_planning(
    sizes: tuple[tuple[str, int], ...], machine: Machine, *, usual: str, verdict: Verdict
) -> tuple[str, ...]:
    """Return the labels that could be recommended in place of the usual one; often none.

    `sizes` are the bytes of each label, `verdict` that of the usual one's plan. What is larger
    than the memory it would have to lie in needs no plan to be ruled out.
    """
    usual_bytes = dict(sizes)[usual]
    vram_bytes = sum(gpu.total_bytes for gpu in machine.gpus)
    match verdict:
        case Verdict.IN_VRAM:
            found = [n for n, size in sizes if usual_bytes < size <= vram_bytes]
        case Verdict.IN_VRAM_AND_RAM | Verdict.IN_RAM:
            found = [n for n, size in sizes if size < usual_bytes and size <= vram_bytes]
        case Verdict.NEEDS_SSD:
            limit_bytes = vram_bytes + machine.host.total_bytes
            found = [n for n, size in sizes if size < usual_bytes and size <= limit_bytes]
        case _:
            assert_never(verdict)
    return tuple(found)


def _option(model: Model, machine: Machine, strategy: Strategy) -> Option:
    weights_bytes = sum(tensor.size_bytes for tensor in model.tensors)
    bits = 8 * weights_bytes / max(1, model.parameter_count)
    try:
        plan = plan_placement(model, machine, strategy)
    except PlanError as error:
        return Option(
            quantization=model.quantization,
            file_bytes=model.file_bytes,
            bits_per_weight=bits,
            refusal=error.message,
        )
    sums = summarize(model, plan)
    return Option(
        quantization=model.quantization,
        file_bytes=model.file_bytes,
        bits_per_weight=bits,
        verdict=sums.verdict,
        vram_bytes=sums.vram_bytes,
        ram_bytes=sums.ram_bytes,
        ssd_bytes=sums.ssd_bytes,
        ssd_bytes_per_token=sum(s.per_token_bytes for s in sums.experts if s.device == SSD),
        context_tokens=plan.context_tokens,
    )


def _choose(options: tuple[Option, ...], usual: str) -> tuple[Option | None, str]:
    """Return the option to take and why; the options come with the largest first."""
    placed = [option for option in options if option.verdict is not None]
    worthwhile = [option for option in placed if option.bits_per_weight <= _MOST_BITS] or placed
    if not worthwhile:
        return None, "no quantization of it can be placed on this machine"
    careful = [option for option in worthwhile if option.is_careful]
    in_vram = [option for option in careful if option.verdict is Verdict.IN_VRAM]
    if in_vram:
        return in_vram[0], _why_in_vram(in_vram[0], worthwhile)
    in_memory = [option for option in careful if option.avoids_ssd]
    if in_memory:
        return _usual_or_below(in_memory, worthwhile, usual)
    small = [o for o in worthwhile if o.avoids_ssd and o.bits_per_weight >= _FEWEST_BITS]
    if small:
        return small[0], _why_small(small[0], careful)
    least = min(
        (o for o in worthwhile if o.bits_per_weight >= _COARSE_BITS),
        key=_read_bytes,
        default=worthwhile[-1],
    )
    read = f"{format_gib(_read_bytes(least))} for each token"
    if len(options) == 1:
        return least, f"the only one there is; it reads {read} from the SSD"
    return least, (
        f"none of {_FEWEST_BITS:.0f} bits or more lies in memory whole; of those with "
        f"{_COARSE_BITS:.0f} or more it reads the least from the SSD, {read}"
    )


def _why_in_vram(chosen: Option, worthwhile: list[Option]) -> str:
    larger = [o for o in worthwhile if o.file_bytes > chosen.file_bytes]
    if not larger:
        return f"all of it lies in VRAM, with {chosen.bits_per_weight:.1f} bits per weight"
    return (
        f"the most bits per weight ({chosen.bits_per_weight:.1f}) that lie in VRAM whole; "
        f"{larger[-1].quantization} would leave {format_gib(_outside_bytes(larger[-1]))} outside"
    )


def _usual_or_below(
    in_memory: list[Option], worthwhile: list[Option], usual: str
) -> tuple[Option, str]:
    by_label = {option.quantization: option for option in in_memory}
    if usual in by_label:
        chosen = by_label[usual]
        where = f"its {format_gib(chosen.file_bytes)} lie in memory{_but(chosen)}"
        where += f", {_share_in_vram(chosen)}"
        if chosen is worthwhile[0]:
            return chosen, where
        return chosen, f"{where}; more bits would make each token read more, and gain little"
    chosen = in_memory[0]
    return chosen, (
        f"the most of {_CAREFUL_BITS:.0f} bits or more that memory holds{_but(chosen)}, "
        f"{_share_in_vram(chosen)}"
    )


def _why_small(chosen: Option, careful: list[Option]) -> str:
    sentence = f"with {chosen.bits_per_weight:.1f} bits per weight it lies in memory"
    if careful:
        least = min(careful, key=_read_bytes)
        read = f"{format_gib(_read_bytes(least))} for each token"
        sentence += f", where {least.quantization} would read {read} from the SSD"
    return f"{sentence}; answers lose quality below {_CAREFUL_BITS:.0f} bits"


def _but(option: Option) -> str:
    if option.verdict is not Verdict.NEEDS_SSD:
        return ""
    return f" but for {format_gib(_read_bytes(option))} that a token reads from the SSD"


def _share_in_vram(option: Option) -> str:
    if not option.vram_bytes:
        return "none of it in VRAM"
    return f"with {format_gib(option.vram_bytes)} of VRAM in use"


def _read_bytes(option: Option) -> int:
    """Return what a token reads from the SSD on average; what caches hold is not read."""
    return option.ssd_bytes_per_token or 0


def _outside_bytes(option: Option) -> int:
    return (option.ram_bytes or 0) + (option.ssd_bytes or 0)
