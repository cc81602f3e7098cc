"""Running one job in a child of its own, within a limit, watched ten times a second.

Knows: children, control groups, dropped caches, samples of memory.
Does not know: what the child does, or which jobs there are.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.streaming_job import Job, Outcome, Run
from benchmarks.streaming_machine import (
    MemoryGroup,
    Unmeasurable,
    cached_bytes,
    drop_caches,
    memory_group,
    processors_busy_s,
    resident,
)
from moerun.codec import from_plain, to_plain

SAMPLE_S: Final = 0.1
LOG_LINES: Final = 12
MOST_KEPT_FRACTION: Final = 0.01


class ChildFailed(RuntimeError):
    """A child ended without a report: killed for memory, or with an error."""


def run_job(job: Job, *, limit_bytes: int | None, timeout_s: float) -> Run:
    """Drop the caches, run the job in a child, and return what both saw.

    Raises ChildFailed, and Unmeasurable where the file's pages cannot be dropped.
    """
    path = Path(job.model_path)
    drop_caches([path])
    kept_bytes = cached_bytes(path)
    if kept_bytes > MOST_KEPT_FRACTION * path.stat().st_size:
        raise Unmeasurable(
            f"{kept_bytes:,} bytes of {path} stay in memory though caches were dropped: some other "
            "program has it open, and they would be charged to nobody's limit"
        )
    with ExitStack() as stack:
        group = None
        if limit_bytes is not None:
            group = stack.enter_context(memory_group(limit_bytes))
        log = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        answer = stack.enter_context(tempfile.TemporaryFile("w+"))
        question = stack.enter_context(tempfile.TemporaryFile("w+"))
        json.dump(to_plain(job), question)
        question.seek(0)
        started_s, worked_s = time.perf_counter(), processors_busy_s() - _children_s()
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.streaming_side"],
            stdin=question,
            stdout=answer,
            stderr=log,
            preexec_fn=_entering(group),
        )
        try:
            watched = _watch(child, until_s=time.monotonic() + timeout_s)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        foreign_s = processors_busy_s() - _children_s() - worked_s
        span_s = time.perf_counter() - started_s
        answer.seek(0)
        text = answer.read()
        if child.returncode != 0 or not text:
            log.seek(0)
            raise ChildFailed(_reason(child.returncode, log.read(), timeout_s))
        outcome = from_plain(Outcome, json.loads(text))
        return Run(
            outcome=outcome,
            spawn_to_load_s=outcome.before.at_s - started_s,
            peak_bytes=max(total for total, _ in watched),
            peak_anonymous_bytes=max(anonymous for _, anonymous in watched),
            group_peak_bytes=None if group is None else group.peak_bytes(),
            samples=len(watched),
            foreign_processors=max(0.0, foreign_s) / span_s,
        )


def _children_s() -> float:
    """Return the processor time of all children that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


def _entering(group: MemoryGroup | None) -> Callable[[], None] | None:
    """Return what the child does before its program starts, so that all of it is charged."""
    return None if group is None else group.enter


def _watch(child: subprocess.Popen[bytes], *, until_s: float) -> list[tuple[int, int]]:
    """Return resident and anonymous bytes, sampled until the child ends or its time is up."""
    found: list[tuple[int, int]] = [(0, 0)]
    while child.poll() is None and time.monotonic() < until_s:
        look = resident(child.pid)
        if look is not None:
            found.append((look.total_bytes, look.anonymous_bytes))
        time.sleep(SAMPLE_S)
    return found


def _reason(code: int, log: str, timeout_s: float) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    said = "\n".join(lines[-LOG_LINES:]) or "it said nothing"
    if code == -9:
        return f"the child was killed: out of its memory limit, or not done in {timeout_s:.0f} s"
    return f"the child ended with {code}:\n{said}"
