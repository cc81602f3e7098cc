"""What was found out on a machine, kept for the next run of the same model.

One document for each model, machine, engine and step of the limit: another of these may have
another winner. Limits are compared in steps, since what is free differs from one start to the
next.

Knows: what is remembered, and under which name.
Does not know: how it was found out.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moerun.experts.order import StreamingOrder
from moerun.experts.state_file import read_value, write_value
from moerun.planning.strategy import StreamingMode

TUNING_SCHEMA: Final = 1
_FOLDER: Final = "tuning"
_STEPS_PER_DOUBLING: Final = 8
_NAME_DIGITS: Final = 24
_WITHOUT_SLOTS: Final = (StreamingMode.CACHE, StreamingMode.PAGING)
_MECHANISMS: Final = {
    False: _WITHOUT_SLOTS,
    True: (*_WITHOUT_SLOTS, StreamingMode.SLOTS, StreamingMode.OFF),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningKey:
    """What a winner depends on; `slots` is how many there are for experts in all layers."""

    model_digest: str
    machine_fingerprint: str
    engine_version: str
    limit_bytes: int
    slots: int = 0

    @property
    def limit_step(self) -> int:
        """The limit in steps of an eighth of a power of two."""
        power = max(0, self.limit_bytes.bit_length() - 1)
        above = self.limit_bytes - (1 << power)
        return power * _STEPS_PER_DOUBLING + (above * _STEPS_PER_DOUBLING >> power)

    @property
    def name(self) -> str:
        """The name of the document."""
        parts = (self.model_digest, self.machine_fingerprint, self.engine_version)
        text = "\0".join((*parts, str(self.limit_step)))
        if self.slots:
            text += f"\0{self.slots} slots"
        return hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The winner of an earlier run with its reader threads and read size, and why it won.

    `preload_experts` is None where the run ended before reading ahead was tried.
    """

    model_digest: str
    machine_fingerprint: str
    engine_version: str
    limit_bytes: int
    mechanism: StreamingMode
    because: str
    preload_experts: int | None = None
    reader_threads: int | None = None
    read_bytes: int | None = None


def key_of(order: StreamingOrder, *, engine_version: str) -> TuningKey:
    """Return what a winner of an order depends on."""
    return TuningKey(
        model_digest=order.model_digest,
        machine_fingerprint=order.machine_fingerprint,
        engine_version=engine_version,
        limit_bytes=order.limit_bytes,
        slots=order.slots.slot_count if order.slots is not None else 0,
    )


def lost_slots(order: StreamingOrder, *, engine_version: str) -> str | None:
    """Return why slots lost their trial in an earlier run; None where they did not, or had none."""
    if order.slots is None or not order.slots.is_trial or order.state_folder is None:
        return None
    key = key_of(order, engine_version=engine_version)
    learned, _ = read_tuning(Path(order.state_folder), key)
    if learned is None or learned.mechanism is StreamingMode.SLOTS:
        return None
    return learned.because


def tuning_path(state: Path, key: TuningKey) -> Path:
    """Return where what was learned lies."""
    return state / _FOLDER / f"{key.name}.json"


def read_tuning(state: Path, key: TuningKey) -> tuple[Learned | None, str | None]:
    """Return what was learned and a note on a document that was passed over."""
    path = tuning_path(state, key)
    learned, note = read_value(path, Learned, schema=TUNING_SCHEMA)
    if learned is not None and learned.mechanism not in _MECHANISMS[bool(key.slots)]:
        return None, f"{path} is ignored: {learned.mechanism.value} is no mechanism"
    return learned, note


def write_tuning(state: Path, key: TuningKey, learned: Learned) -> str | None:
    """Write what was learned; return a sentence when it cannot be written."""
    return write_value(tuning_path(state, key), learned, schema=TUNING_SCHEMA)
