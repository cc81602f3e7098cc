"""A recorded trace of routing as values, and as the lines of its file.

The file is CSV below comment lines of `key=value` pairs: one row for each token, layer and chosen
expert. Rows stand in the order in which they were computed, those of a batch layer by layer, so a
pass of the model ends where the layer falls back.

Knows: columns, header lines, and what makes a pass.
Does not know: files, policies, or memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from moerun.errors import UsageError

FIRST_LINE: Final = "# route_trace v1"
COLUMNS: Final = (
    "turn", "phase", "step", "layer", "slot", "expert", "weight", "residency", "expert_bytes",
)  # fmt: skip
VERSION: Final = 1
_NEEDED: Final = ("step", "layer", "expert")
_NUMBERS: Final = {str(number): number for number in range(4096)}  # most cells, read at once
_HIGHEST: Final = 1 << 20  # no model has so many layers or experts; a larger number is damage


class Phase(IntEnum):
    """What the tokens of a pass were."""

    PREFILL = 0
    DECODE = 1


class LayerChoice(NamedTuple):
    """The different experts that one pass chose in one layer, in the order of their rows."""

    layer: int
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One run through the layers, for one token or a batch."""

    turn: int
    phase: Phase
    tokens: int
    choices: tuple[LayerChoice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedLayer:
    """What a layer weighs: one of its experts, and what every token needs of it."""

    layer: int
    expert_bytes: int
    dense_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHeader:
    """What the comment lines say; 0 or empty where they do not.

    `shared_bytes` are embeddings and output, which belong to no layer.
    """

    model_name: str = ""
    architecture: str = ""
    layer_count: int = 0
    expert_count: int = 0
    experts_used: int = 0
    layers: tuple[TracedLayer, ...] = ()
    shared_bytes: int = 0

    @property
    def dense_bytes(self) -> int:
        """What every token needs, as far as the lines tell."""
        return self.shared_bytes + sum(layer.dense_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A whole trace. `notes` say what was amiss and could be passed over."""

    header: TraceHeader
    passes: tuple[Pass, ...]
    notes: tuple[str, ...] = ()

    @property
    def slot_bytes(self) -> dict[int, int]:
        """Bytes of one expert of each layer that routes."""
        return {
            layer.layer: layer.expert_bytes for layer in self.header.layers if layer.expert_bytes
        }

    @property
    def routed_layers(self) -> frozenset[int]:
        """The layers that have rows."""
        return frozenset(choice.layer for each in self.passes for choice in each.choices)

    def tokens(self, phase: Phase) -> int:
        """Return how many tokens were computed in a phase."""
        return sum(each.tokens for each in self.passes if each.phase is phase)


def header_lines(header: TraceHeader) -> Iterator[str]:
    """Yield the comment lines and the names of the columns."""
    yield FIRST_LINE
    yield (
        f"# model={_word(header.model_name)} arch={_word(header.architecture)} "
        f"n_layer={header.layer_count} n_expert={header.expert_count} "
        f"n_expert_used={header.experts_used}"
    )
    for layer in header.layers:
        yield (
            f"# layer={layer.layer} expert_bytes={layer.expert_bytes} "
            f"dense_bytes={layer.dense_bytes}"
        )
    if header.shared_bytes:
        yield f"# shared_bytes={header.shared_bytes}"
    yield ",".join(COLUMNS)


def read_lines(lines: Iterable[str], *, label: str) -> Trace:
    """Return the trace that these lines hold; UsageError names the line that is none.

    A last line that was cut off is passed over with a note: a recorder may have been killed.
    """
    reading = _Reading(label)
    pending: tuple[int, str] | None = None
    for number, line in enumerate(lines, start=1):
        if pending is not None:
            reading.take(*pending)
        pending = (number, line)
    if pending is not None:
        reading.take(*pending, is_last=True)
    return reading.finish()


def _word(text: str) -> str:
    """Return a text as the value of a `key=value` pair, which ends at a blank."""
    return "_".join("".join(c if c.isprintable() else " " for c in text).split()) or "-"


class _Reading:
    """A trace being read, row by row."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._facts: dict[str, str] = {}
        self._layers: dict[int, TracedLayer] = {}
        self._places: dict[str, int] = {}
        self._seen_bytes: dict[int, int] = {}
        self._passes: list[Pass] = []
        self._notes: list[str] = []
        self._last = (-1, -1, -1, -1)  # turn, phase, step and layer of the last row
        self._steps: set[int] = set()
        self._choices: dict[int, dict[int, None]] = {}
        self._expert_limit = _HIGHEST

    def take(self, number: int, line: str, *, is_last: bool = False) -> None:
        """Read one line."""
        text = line.strip().removeprefix("\ufeff")
        if not text:
            return
        if text.startswith("#"):
            self._take_comment(number, text)
        elif not self._places:
            self._take_columns(number, text)
        else:
            try:
                self._take_row(number, text)
            except UsageError:
                if not is_last or line.endswith("\n"):
                    raise
                self._notes.append(f"line {number} of {self._label} was cut off and is left out")

    def finish(self) -> Trace:
        """Return what was read."""
        self._end_pass()
        if not self._places:
            raise UsageError(
                f"{self._label} is no trace of routing: it has no line that names the columns "
                f"{','.join(COLUMNS)}; `moerun trace MODEL` records one"
            )
        if not self._passes:
            raise UsageError(f"{self._label} holds no routing; record it with a longer prompt")
        return Trace(header=self._header(), passes=tuple(self._passes), notes=tuple(self._notes))

    def _take_comment(self, number: int, text: str) -> None:
        if text.startswith("# route_trace"):
            version = text.split()[-1]
            if version != f"v{VERSION}":
                raise UsageError(
                    f"{self._label} is a trace of version {version}, and this moerun reads "
                    f"v{VERSION}; record it again with `moerun trace`"
                )
            return
        pairs = dict(pair.split("=", 1) for pair in text[1:].split() if "=" in pair)
        if "layer" not in pairs:
            self._facts |= pairs
            return
        layer = self._number(number, "layer", pairs["layer"])
        self._layers[layer] = TracedLayer(
            layer=layer,
            expert_bytes=self._size(number, "expert_bytes", pairs.get("expert_bytes", "0")),
            dense_bytes=self._size(number, "dense_bytes", pairs.get("dense_bytes", "0")),
        )

    def _take_columns(self, number: int, text: str) -> None:
        names = [name.strip().lower() for name in text.split(",")]
        missing = [name for name in _NEEDED if name not in names]
        if missing:
            raise UsageError(
                f"{self._label}, line {number}: the columns of a trace are named here, and "
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not among them; "
                "`moerun trace MODEL` records a trace"
            )
        self._places = {name: place for place, name in enumerate(names)}
        if limit := self._facts.get("n_expert"):
            self._expert_limit = self._number(number, "n_expert", limit) or _HIGHEST

    def _take_row(self, number: int, text: str) -> None:
        cells = text.split(",")
        if len(cells) < len(self._places):
            raise UsageError(
                f"{self._label}, line {number}: {len(cells)} values stand under "
                f"{len(self._places)} columns; the file is damaged, record it again"
            )
        places = self._places
        turn = self._number(number, "turn", cells[places["turn"]]) if "turn" in places else 0
        phase = self._number(number, "phase", cells[places["phase"]]) if "phase" in places else 1
        step = self._number(number, "step", cells[places["step"]])
        layer = self._number(number, "layer", cells[places["layer"]])
        expert = self._number(number, "expert", cells[places["expert"]])
        if phase not in (Phase.PREFILL, Phase.DECODE):
            raise UsageError(
                f"{self._label}, line {number}: phase {phase} is neither 0 (prompt) nor 1 (answer)"
            )
        if expert >= self._expert_limit:
            raise UsageError(
                f"{self._label}, line {number}: expert {expert} of {self._expert_limit}; the "
                "numbers begin with 0"
            )
        if "expert_bytes" in places and layer not in self._layers:
            size = self._size(number, "expert_bytes", cells[places["expert_bytes"]] or "0")
            self._seen_bytes[layer] = max(size, self._seen_bytes.get(layer, 0))
        self._add(turn, phase, step, layer, expert)

    def _add(self, turn: int, phase: int, step: int, layer: int, expert: int) -> None:
        last_turn, last_phase, last_step, last_layer = self._last
        if (
            layer < last_layer
            or turn != last_turn
            or phase != last_phase
            or (phase == Phase.DECODE and step != last_step)
        ):
            self._end_pass()
        self._last = (turn, phase, step, layer)
        self._steps.add(step)
        chosen = self._choices.get(layer)
        if chosen is None:
            self._choices[layer] = {expert: None}
        else:
            chosen[expert] = None

    def _end_pass(self) -> None:
        if not self._choices:
            return
        turn, phase, _, _ = self._last
        self._passes.append(
            Pass(
                turn=turn,
                phase=Phase(phase),
                tokens=len(self._steps),
                choices=tuple(
                    LayerChoice(layer, tuple(chosen)) for layer, chosen in self._choices.items()
                ),
            )
        )
        self._steps = set()
        self._choices = {}

    def _header(self) -> TraceHeader:
        layers = dict(self._layers)
        for layer, size in self._seen_bytes.items():
            layers[layer] = TracedLayer(layer=layer, expert_bytes=size, dense_bytes=0)
        return TraceHeader(
            model_name=self._facts.get("model", ""),
            architecture=self._facts.get("arch", ""),
            layer_count=self._fact("n_layer"),
            expert_count=self._fact("n_expert"),
            experts_used=self._fact("n_expert_used") or self._widest_choice(),
            layers=tuple(layers[layer] for layer in sorted(layers)),
            shared_bytes=self._fact("shared_bytes"),
        )

    def _fact(self, name: str) -> int:
        text = self._facts.get(name, "0")
        return int(text) if text.isascii() and text.isdigit() else 0

    def _widest_choice(self) -> int:
        single = [each for each in self._passes if each.tokens == 1]
        return max((len(choice.experts) for p in single for choice in p.choices), default=0)

    def _number(self, number: int, name: str, text: str) -> int:
        known = _NUMBERS.get(text)
        if known is not None:
            return known
        value = self._size(number, name, text)
        if value >= _HIGHEST:
            raise UsageError(
                f"{self._label}, line {number}: {name} is {value:,}, more than any model has"
            )
        return value

    def _size(self, number: int, name: str, text: str) -> int:
        word = text.strip()
        if not (word.isascii() and word.isdigit() and len(word) < 20):
            raise UsageError(
                f"{self._label}, line {number}: {name} is '{text[:40]}', which is no number from "
                "0 on; the file is damaged, record it again"
            )
        return int(word)


def row_lines(
    *,
    place: tuple[int, Phase, int, int],
    experts: Sequence[int],
    weights: Sequence[float] | None,
    read_bytes: Sequence[int] | None,
) -> list[str]:
    """Return the rows of one token in one layer; `place` is turn, phase, step and layer.

    `read_bytes` are what had to be read of each expert, 0 where it was held; None leaves those
    cells empty.
    """
    turn, phase, step, layer = place
    head = f"{turn},{phase.value},{step},{layer},"
    told = ["" for _ in experts] if weights is None else [f"{weight:.6g}" for weight in weights]
    if read_bytes is None:
        tails = ["," for _ in experts]
    else:
        tails = [f"0,{size}" if size else "1,0" for size in read_bytes]
    return [
        f"{head}{slot},{expert},{weight},{tail}\n"
        for slot, (expert, weight, tail) in enumerate(zip(experts, told, tails, strict=True))
    ]
