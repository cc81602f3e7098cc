"""What `benchmarks.streaming` found, as values, lines of text and one JSON document.

Knows: ratios, spreads, and what each figure is held against.
Does not know: how anything was measured.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.streaming_job import Outcome, Run, Side, Spread, possible_tokens_per_s, spread
from moerun.units import format_gib

SCHEMA = 1
# The kernel's own threads, which finish reads, take less than this.
_QUIET_PROCESSORS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One run of each side that was asked for, next to each other, and the disk's rate then."""

    disk_bytes_per_s: float
    stock: Run | None = None
    ours: Run | None = None

    def of(self, side: Side) -> Run | None:
        """Return the run of a side."""
        return self.stock if side is Side.STOCK else self.ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rounds of one model under one limit.

    `compute_s` is what a token takes stock with all in memory, and `full_bytes` its peak then.
    """

    model: str
    label: str
    model_bytes: int
    limit_bytes: int
    prompt_tokens: int
    decoded_tokens: int
    compute_s: float | None
    full_bytes: int | None
    rounds: tuple[Round, ...]

    def outcomes(self, side: Side) -> tuple[Outcome, ...]:
        """Return what a side measured, round by round."""
        return tuple(run.outcome for run in self.runs(side))

    def runs(self, side: Side) -> tuple[Run, ...]:
        """Return the runs of a side."""
        found = (each.of(side) for each in self.rounds)
        return tuple(run for run in found if run is not None)

    def ratio(self, figure: Callable[[Outcome], float]) -> Spread | None:
        """Return moerun's figure over stock's, round by round; None without both."""
        pairs = [(each.ours, each.stock) for each in self.rounds]
        ratios = [
            figure(ours.outcome) / figure(stock.outcome)
            for ours, stock in pairs
            if ours is not None and stock is not None
        ]
        return spread(ratios) if ratios else None

    @property
    def is_lossless(self) -> bool | None:
        """Whether all logits of all runs were equal; None when one side ran alone."""
        sides = [self.outcomes(side) for side in Side]
        if not all(sides):
            return None
        return len({outcome.digest for found in sides for outcome in found}) == 1

    @property
    def possible(self) -> float | None:
        """Tokens per second at the disk's rate with all computing hidden, for moerun's misses."""
        missed = [
            outcome.missed_bytes
            for outcome in self.outcomes(Side.OURS)
            if outcome.missed_bytes is not None
        ]
        if not missed or self.compute_s is None:
            return None
        return possible_tokens_per_s(
            missed_bytes_per_token=statistics.median(missed) / self.decoded_tokens,
            disk_bytes_per_s=statistics.median(each.disk_bytes_per_s for each in self.rounds),
            compute_s=self.compute_s,
        )


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """Yield what a person reads of one model under one limit."""
    c = comparison
    yield (
        f"{c.model}, {c.label}: limit {format_gib(c.limit_bytes)} of a model of "
        f"{format_gib(c.model_bytes)}; {c.prompt_tokens} tokens of prompt, {c.decoded_tokens} "
        f"decoded, {len(c.rounds)} rounds"
    )
    foreign = max(run.foreign_processors for side in Side for run in c.runs(side))
    if foreign > _QUIET_PROCESSORS:
        yield (
            f"  NOT QUIET: other programs kept up to {foreign:.2f} processors busy meanwhile; "
            "times mean little"
        )
    yield f"  {'':42}{'smallest':>10}{'median':>10}{'largest':>10}"
    for side in Side:
        if c.runs(side):
            yield from _side_lines(c, side)
    ratios: tuple[tuple[str, Spread | None], ...] = (
        ("tokens/s, moerun / stock", c.ratio(lambda o: o.tokens_per_s)),
        ("  of the later half", c.ratio(lambda o: o.later_tokens_per_s)),
        ("first token, moerun / stock", c.ratio(lambda o: o.first_token_s)),
    )
    yield from (_line(name, found) for name, found in ratios if found is not None)
    yield from _held_against(c)


def _side_lines(comparison: Comparison, side: Side) -> Iterator[str]:
    runs, tokens = comparison.runs(side), comparison.decoded_tokens
    figures: tuple[tuple[str, Callable[[Run], float | None]], ...] = (
        ("load, s", lambda run: run.outcome.load_s),
        ("first token from load, s", lambda run: run.outcome.first_token_s),
        ("tokens/s", lambda run: run.outcome.tokens_per_s),
        ("  of the later half", lambda run: run.outcome.later_tokens_per_s),
        ("MB per token from storage", lambda run: run.outcome.decoded_bytes / tokens / 1e6),
        ("peak memory, % of the limit", lambda run: 100 * run.peak_bytes / comparison.limit_bytes),
        ("peak below full loading, %", lambda run: _below(run.peak_bytes, comparison.full_bytes)),
        ("hit rate, %", _hit_percent),
        ("waiting for reads, ms per token", _stall_ms),
        ("expert switch p50, ms", lambda run: _latency_ms(run, "p50_s")),
        ("expert switch p99, ms", lambda run: _latency_ms(run, "p99_s")),
    )
    for name, figure in figures:
        values = [value for value in map(figure, runs) if value is not None]
        if values:
            yield _line(f"{side.value}: {name}", spread(values))


def _below(size_bytes: int, full_bytes: int | None) -> float | None:
    return None if full_bytes is None else 100 * (1 - size_bytes / full_bytes)


def _hit_percent(run: Run) -> float | None:
    sample = run.outcome.sample
    fraction = None if sample is None else sample.decode.hit_fraction
    return None if fraction is None else 100 * fraction


def _stall_ms(run: Run) -> float | None:
    sample = run.outcome.sample
    stall_s = None if sample is None else sample.decode.stall_s_per_token
    return None if stall_s is None else 1000 * stall_s


def _latency_ms(run: Run, field: str) -> float | None:
    sample = run.outcome.sample
    if sample is None or sample.latency is None:
        return None
    return 1000 * float(getattr(sample.latency, field))


def _held_against(comparison: Comparison) -> Iterator[str]:
    """Yield what has to agree: logits, bytes, rates, the physical limit, the simulator."""
    c = comparison
    if c.is_lossless is not None:
        yield f"  logits of all runs equal: {'yes' if c.is_lossless else 'NO'}"
    rate = statistics.median(each.disk_bytes_per_s for each in c.rounds)
    yield f"  disk, parallel direct reads: {rate / 1e9:.2f} GB/s"
    ours = c.outcomes(Side.OURS)
    if not ours:
        return
    read = statistics.median(outcome.decoded_bytes for outcome in ours)
    missed = [outcome.missed_bytes for outcome in ours if outcome.missed_bytes is not None]
    if missed and statistics.median(missed):
        yield f"  bytes of the process / of misses: {read / statistics.median(missed):.3f}"
    busy = [outcome.busy_bytes_per_s for outcome in ours if outcome.busy_bytes_per_s]
    if busy:
        middle = statistics.median(busy)
        yield f"  rate while reading / of the disk: {middle / rate:.2f} ({middle / 1e9:.2f} GB/s)"
    if c.possible is not None:
        stock = [outcome.tokens_per_s for outcome in c.outcomes(Side.STOCK)]
        beside = f", {c.possible / statistics.median(stock):.2f} times stock" if stock else ""
        yield f"  physically possible: {c.possible:.1f} tokens/s{beside}"
    sample = ours[-1].sample
    if sample is not None:
        one_ms = 1000 * sample.expert_bytes / sample.expert_count / rate
        yield f"  one expert alone at the disk's rate: {one_ms:.1f} ms"
        yield f"  {sample.mechanism}, {sample.policy}: {sample.because}"
    for outcome in ours:
        if outcome.simulated_hit_fraction is not None:
            yield f"  simulated hit rate, %: {100 * outcome.simulated_hit_fraction:.1f}"


def _line(name: str, found: Spread) -> str:
    return f"  {name:42}{found.smallest:10.2f}{found.median:10.2f}{found.largest:10.2f}"


def profile_lines(comparison: Comparison) -> Iterator[str]:
    """Yield where the time of a decoded token goes, in ms; what is left is hook and cold memory."""
    if comparison.compute_s is None:
        return
    for outcome in comparison.outcomes(Side.OURS):
        if outcome.sample is None:
            continue
        token_ms = 1000 / outcome.tokens_per_s
        stall_ms = 1000 * (outcome.sample.decode.stall_s_per_token or 0.0)
        compute_ms = 1000 * comparison.compute_s
        yield (
            f"  a token takes {token_ms:.1f} ms: computing {compute_ms:.1f}, waiting for reads "
            f"{stall_ms:.1f}, all else {token_ms - stall_ms - compute_ms:.1f}"
        )


def full_text(comparisons: Sequence[Comparison], *, has_profile: bool) -> str:
    """Return all lines."""
    lines: list[str] = []
    for comparison in comparisons:
        lines += comparison_lines(comparison)
        if has_profile:
            lines += profile_lines(comparison)
    return "\n".join(lines)
