"""The child of `benchmarks.streaming`: one side, one model, one script of tokens, one report.

Both sides have the same threads, context, micro-batch and flash attention, no repacking and no
full-size window cache; both are fed the same tokens one by one, whatever the logits say. Before
the clock starts, Python and the engine's libraries are there on both sides.

`python -m benchmarks.streaming_side` reads a job as JSON from standard input, and writes the
outcome as JSON to standard output; the engine's log goes to standard error.

Knows: how each side is loaded and fed, and what is counted meanwhile.
Does not know: limits (the parent's), or what figures are good.
"""

import ctypes
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.streaming_job import Counted, Job, Outcome, Side
from benchmarks.streaming_machine import Disk, process_read_bytes
from moerun.codec import from_plain, to_plain
from moerun.experts.counters import StreamingSample

FLASH_ON, LOAD_MMAP = 1, 1


class Decoding(Protocol):
    """One side, ready to load."""

    def load(self) -> None:
        """Load the model and make its context."""
        ...

    def run(self, tokens: Sequence[int]) -> bytes:
        """Run tokens and return the logits after the last."""
        ...

    def sample(self) -> StreamingSample | None:
        """Return the counters of streaming."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

    def simulated_hit_fraction(self) -> float | None:
        """Return what the simulator makes of the same routing, once closed, if it was recorded."""
        ...

    @property
    def cache_bytes(self) -> int | None:
        """Room for experts, where there is such a thing."""
        ...


class Stock:
    """llama-cpp-python's low-level calls, as any program uses them."""

    cache_bytes: int | None = None

    def __init__(self, job: Job) -> None:
        from llama_cpp import llama_cpp

        self._llama = llama_cpp
        self._job = job
        llama_cpp.llama_backend_init()

    def load(self) -> None:
        """Load through mmap, which reads the whole file."""
        llama, job = self._llama, self._job
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = False
        parameters.load_mode = LOAD_MMAP
        # An empty list: without one the engine takes every device that the process knows of.
        self._devices = (ctypes.c_void_p * 1)(None)
        parameters.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        self._model = llama.llama_model_load_from_file(job.model_path.encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama-cpp-python cannot load {job.model_path}")
        context = llama.llama_context_default_params()
        context.n_ctx = job.context_tokens
        context.n_batch = context.n_ubatch = job.ubatch_tokens
        context.n_threads = context.n_threads_batch = job.threads
        context.flash_attn_type = FLASH_ON
        context.swa_full = False
        self._context = llama.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError("llama-cpp-python cannot make a context")
        vocabulary = llama.llama_model_get_vocab(self._model)
        self._logits_bytes = 4 * llama.llama_vocab_n_tokens(vocabulary)

    def run(self, tokens: Sequence[int]) -> bytes:
        """Run tokens and return the logits after the last."""
        llama = self._llama
        array = (llama.llama_token * len(tokens))(*tokens)
        status = llama.llama_decode(self._context, llama.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status}")
        return ctypes.string_at(llama.llama_get_logits_ith(self._context, -1), self._logits_bytes)

    def sample(self) -> StreamingSample | None:
        """Return nothing: there are no counters."""
        return None

    def close(self) -> None:
        """Free the model."""
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def simulated_hit_fraction(self) -> float | None:
        """Return nothing: nothing was recorded."""
        return None


def carry_out(job: Job, side: Decoding) -> Outcome:
    """Run the whole script and count."""
    disk = Disk.below(Path(job.model_path))
    digest = hashlib.sha256()
    before = _counted(disk)
    side.load()
    loaded = _counted(disk)
    digest.update(side.run(job.prompt))
    first = _counted(disk)
    first_sample = side.sample()
    token_s: list[float] = []
    for token in job.decoded:
        started_s = time.perf_counter()
        logits = side.run((token,))
        token_s.append(time.perf_counter() - started_s)
        digest.update(logits)
    last = _counted(disk)
    sample = side.sample()
    outcome = Outcome(
        load_s=loaded.at_s - before.at_s,
        before=before,
        loaded=loaded,
        first=first,
        last=last,
        token_s=tuple(token_s),
        digest=digest.hexdigest(),
        cache_bytes=side.cache_bytes,
        first_sample=first_sample,
        sample=sample,
    )
    side.close()
    return replace(outcome, simulated_hit_fraction=side.simulated_hit_fraction())


def _counted(disk: Disk) -> Counted:
    done = disk.counters()
    return Counted(
        at_s=time.perf_counter(),
        process_bytes=process_read_bytes(),
        disk_bytes=done.read_bytes,
        disk_busy_s=done.busy_s,
    )


def open_side(job: Job) -> Decoding:
    """Return the side that the job names; opens libraries and loads nothing."""
    if job.side is Side.STOCK:
        return Stock(job)
    from benchmarks.streaming_ours import Ours

    return Ours(job)


def main() -> None:
    """Do what standard input says."""
    job: Any = from_plain(Job, json.loads(sys.stdin.read()))
    side = open_side(job)
    outcome = carry_out(job, side)
    sys.stdout.write(json.dumps(to_plain(outcome)))


if __name__ == "__main__":
    main()
