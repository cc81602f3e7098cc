"""The matrix of placements and settings of one model, in a process of its own.

A native crash ends this process and not the tests. Every combination is a line of JSON on
standard output, written at once, so that what was reached is known after a crash.

Knows: what is compared with what.
Does not know: which differences a test accepts (none).
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moerun.codec import to_plain
from moerun.engine.arguments import EngineArgs
from moerun.engine.decode import Decoder
from moerun.engine.llama import LlamaEngine, LlamaSession
from moerun.engine.load_log import MODEL, read_flash_attention
from moerun.errors import MoerunError
from moerun.planning.strategy import Toggle
from tests.engine.builders import device_references
from tests.engine.placements import (
    EXPERTS_ON_HOST,
    Placement,
    device_placements,
    host_placement,
    load_mode_placements,
)
from tests.engine.plain import Script, Settings, last_logits, plain_logits

FIRST_BYTE_TOKEN, LAST_BYTE_TOKEN = 3, 258


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One combination; `rows_apart` of `rows` differ, `refusal` is the engine's sentence.

    `device_weight_bytes` are the weights that the engine's log says lie on devices, in their
    order.
    """

    settings: str
    placement: str
    rows: int
    rows_apart: int
    largest_difference: float
    device_weight_bytes: tuple[int, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What moerun gave for a script: logits, the engine's log, and where the weights were."""

    logits: NDArray[np.float32]
    log: tuple[str, ...]
    device_weight_bytes: tuple[int, ...]


def script(prompt_tokens: int, step_tokens: int) -> Script:
    """Return a fixed random script over the byte tokens that every tiny model has."""
    random = np.random.default_rng(7)
    tokens = random.integers(FIRST_BYTE_TOKEN, LAST_BYTE_TOKEN, prompt_tokens + step_tokens)
    values = tuple(int(token) for token in tokens)
    return Script(prompt=values[:prompt_tokens], steps=values[prompt_tokens:])


SHORT = script(24, 8)
LONG = script(300, 3)

ONE_BATCH, WITHOUT_FLASH = "one batch", "no flash attention"
SETTINGS = (
    (ONE_BATCH, Settings(), SHORT),
    ("micro-batches of 8", Settings(ubatch_tokens=8), SHORT),
    (WITHOUT_FLASH, Settings(flash_attention=False), SHORT),
    ("a long prompt", Settings(), LONG),
)
AUTOMATIC = "flash attention left to the engine"


def moerun_logits(args: EngineArgs, script: Script) -> Run:
    """Load by moerun's engine room and run the script."""
    log: list[str] = []
    session = LlamaEngine(log_sink=log.append).load(args)
    logits = run_script(session, script)
    buffers = session.report.buffers
    session.close()
    return Run(
        logits=logits,
        log=tuple(log),
        device_weight_bytes=tuple(
            sum(b.size_bytes for b in buffers if b.device == device.id and b.kind == MODEL)
            for device in args.devices
        ),
    )


def run_script(session: LlamaSession, script: Script) -> NDArray[np.float32]:
    """Return a row of logits for each token of the script, run as an answer is."""
    decoder = Decoder(session.loaded)
    rows = [decoder.evaluate(list(script.prompt))]
    for token in script.steps:
        decoder.advance(token)
        rows.append(last_logits(session.loaded.context))
    return np.concatenate(rows)


def compare(
    settings_name: str, placement: Placement, script: Script, expected: NDArray[np.float32]
) -> Comparison:
    """Run a placement and hold it against the reference, bit by bit."""
    try:
        run = moerun_logits(placement.args, script)
    except MoerunError as error:
        return Comparison(
            settings=settings_name,
            placement=placement.name,
            rows=len(expected),
            rows_apart=len(expected),
            largest_difference=float("inf"),
            refusal=error.message,
        )
    return _difference(settings_name, placement.name, run, expected)


def compare_automatic(
    placement: Placement, references: dict[bool, NDArray[np.float32]]
) -> Comparison:
    """Run with flash attention left to the engine, against the reference of what it chose.

    The engine turns it off for all layers when its scheduler puts the attention of one layer on
    another device than the layer — resolve_fused_ops, src/llama-context.cpp @ 0.3.36 — so that
    the arithmetic depends on the placement then.
    """
    run = moerun_logits(replace(placement.args, flash_attention=Toggle.AUTO), SHORT)
    is_on = read_flash_attention(run.log)
    assert is_on is not None, "the log does not tell of flash attention"
    name = f"{AUTOMATIC}: {'on' if is_on else 'off'}"
    return _difference(name, placement.name, run, references[is_on])


def _difference(
    settings_name: str, placement_name: str, run: Run, expected: NDArray[np.float32]
) -> Comparison:
    is_apart = np.any(run.logits.view(np.uint32) != expected.view(np.uint32), axis=1)
    return Comparison(
        settings=settings_name,
        placement=placement_name,
        rows=len(expected),
        rows_apart=int(is_apart.sum()),
        largest_difference=float(np.max(np.abs(run.logits - expected))),
        device_weight_bytes=run.device_weight_bytes,
    )


def matrix(path: Path, workers: tuple[str, ...]) -> Iterator[Comparison]:
    """Yield every combination of settings and placements."""
    references = {}
    remote = device_references(workers)
    for name, settings, script in SETTINGS:
        expected = plain_logits(path, settings, script)
        assert np.all(np.isfinite(expected)), "the reference itself is not finite"
        references[name] = expected
        placements = [
            host_placement(path, settings),
            *device_placements(path, settings, remote, workers),
        ]
        if name == ONE_BATCH:
            placements += load_mode_placements(path, settings)
        for placement in placements:
            if name == ONE_BATCH or placement.is_telling:
                yield compare(name, placement, script, expected)
    by_flash_attention = {True: references[ONE_BATCH], False: references[WITHOUT_FLASH]}
    for placement in device_placements(path, Settings(), remote, workers):
        if placement.is_telling:
            yield compare_automatic(placement, by_flash_attention)


def matrix_of_threads(path: Path, workers: tuple[str, ...]) -> Iterator[Comparison]:
    """Yield a long prompt on two threads of the host, with workers of one and of two threads."""
    settings = Settings(threads=2)
    expected = plain_logits(path, settings, LONG)
    listed = device_references(workers)
    for device, worker in zip(listed, workers, strict=True):
        # The list of placements wants two devices; those of one are all that is run here.
        for placement in device_placements(path, settings, (device, device), (worker,)):
            if placement.name == EXPERTS_ON_HOST:
                yield compare(worker, placement, LONG, expected)


def main(arguments: list[str]) -> None:
    """Print the matrix of the model at the first argument; the others are workers."""
    combine = matrix
    if arguments[0] == "--threads":
        combine, arguments = matrix_of_threads, arguments[1:]
    path, *workers = arguments
    for comparison in combine(Path(path), tuple(workers)):
        sys.stdout.write(json.dumps(to_plain(comparison)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
