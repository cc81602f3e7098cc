"""How long an answer took, in the eight lines that scripts know, and ours after them.

The labels, their order and the units of the first eight are those that ollama prints after
`--verbose`; scripts look for them by name.

Knows: labels and the spelling of durations.
Does not know: how time was taken.
"""

from typing import Final

from moerun.engine.interface import GenerationResult

_LABEL_WIDTH: Final = 22


def timing_lines(result: GenerationResult, *, load_s: float, total_s: float) -> tuple[str, ...]:
    """Return the block; a line whose value is zero is left out."""
    read_tokens = result.prompt_tokens - result.reused_tokens
    lines = (
        ("total duration", format_duration(total_s), total_s),
        ("load duration", format_duration(load_s), load_s),
        ("prompt eval count", f"{read_tokens} token(s)", read_tokens),
        ("prompt eval duration", format_duration(result.prompt_s), result.prompt_s),
        _rate("prompt eval rate", read_tokens, result.prompt_s),
        ("eval count", f"{result.answer_tokens} token(s)", result.answer_tokens),
        ("eval duration", format_duration(result.answer_s), result.answer_s),
        _rate("eval rate", result.answer_tokens, result.answer_s),
    )
    return tuple(label_line(label, text) for label, text, value in lines if value)


def label_line(label: str, text: str) -> str:
    """Return one line in the columns of the block."""
    return f"{label + ': ':<{_LABEL_WIDTH}}{text}"


def rate_per_s(count: int, duration_s: float) -> float:
    """Return a rate, 0 when nothing was timed."""
    return count / duration_s if duration_s > 0 else 0.0


def format_duration(duration_s: float) -> str:
    """Return a duration as Go prints it: `1m2.345s`, `812.4ms`, `35.1µs`."""
    nanoseconds = round(duration_s * 1e9)
    if nanoseconds < 1_000:
        return f"{nanoseconds}ns"
    if nanoseconds < 1_000_000:
        return f"{_trimmed(nanoseconds, 1_000)}µs"
    if nanoseconds < 1_000_000_000:
        return f"{_trimmed(nanoseconds, 1_000_000)}ms"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{_trimmed(rest, 1_000_000_000)}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _rate(label: str, count: int, duration_s: float) -> tuple[str, str, float]:
    rate = rate_per_s(count, duration_s)
    return label, f"{rate:.2f} tokens/s", rate


def _trimmed(nanoseconds: int, unit: int) -> str:
    """Return whole units with the fraction's digits that are not trailing zeros."""
    whole, fraction = divmod(nanoseconds, unit)
    digits = f"{fraction:0{len(str(unit)) - 1}d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
