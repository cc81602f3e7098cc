"""moerun's side of `benchmarks.streaming`: its engine room and its experts, in this process.

The planner has no part here: the order says what the limit leaves for experts after the weights
that always stay, the KV cache, the compute buffers and this very process as it is before loading.

Knows: how an order follows from a limit, and how the engine is fed.
Does not know: the clock, or what stock does.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, assert_never

from benchmarks.streaming_job import Job
from benchmarks.streaming_machine import resident
from moerun.engine.abi import VERSION
from moerun.engine.arguments import EngineArgs
from moerun.engine.decode import Decoder
from moerun.engine.interface import ExpertSupplier
from moerun.engine.llama import LlamaEngine, LlamaSession
from moerun.experts.assembly import open_order
from moerun.experts.counters import StreamingSample
from moerun.experts.layout import ExpertLayout, expert_layout, page_slot_bytes
from moerun.experts.order import StreamingOrder
from moerun.experts.simulate import SimulatedPolicy, least_cache_bytes, replay
from moerun.experts.streamer import Streamer
from moerun.experts.trace import read_trace, start_trace, trace_header
from moerun.machine.description import HOST
from moerun.model.gguf_header import read_model
from moerun.planning.plan import ChargeKind
from moerun.planning.strategy import LoadMode, StreamingMode, Toggle

# What the kernel charges for page tables of gigabytes, for threads, and for reads under way.
KERNEL_BYTES: Final = 48 << 20


class Ours:
    """The engine room with a streamer, or without one where all fits or none is wanted."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._engine = LlamaEngine()
        self._streamer: Streamer | None = None
        self._session: LlamaSession | None = None
        self._decoder: Decoder | None = None
        self._logits_bytes = 0
        self.cache_bytes: int | None = None
        self._engine.measure(self._arguments(LoadMode.MMAP))  # opens the libraries

    def load(self) -> None:
        """Decide what streams, and load."""
        supplier = self._open_supplier()
        mode = LoadMode.MMAP if supplier is None else LoadMode.STREAM
        self._session = self._engine.load(self._arguments(mode), supplier=supplier)
        self._decoder = Decoder(self._session.loaded)
        self._logits_bytes = 4 * self._session.loaded.vocabulary_size

    def run(self, tokens: Sequence[int]) -> bytes:
        """Run tokens and return the logits after the last."""
        assert self._decoder is not None, "load comes first"
        assert self._session is not None, "load comes first"
        if len(tokens) == 1:
            self._decoder.advance(tokens[0])
        else:
            self._decoder.prefill(list(tokens), is_cancelled=lambda: False)
        loaded = self._session.loaded
        logits = loaded.abi.llama.llama_get_logits_ith(loaded.context, -1)
        return ctypes.string_at(logits, self._logits_bytes)

    def sample(self) -> StreamingSample | None:
        """Return the counters, without the map of experts."""
        return None if self._streamer is None else replace(self._streamer.sample(), heat=())

    def close(self) -> None:
        """Free the model."""
        if self._session is not None:
            self._session.close()

    def simulated_hit_fraction(self) -> float | None:
        """Return what the simulator makes of the routing just recorded; None without a record."""
        streamer, path = self._streamer, self._job.trace_path
        if streamer is None or path is None:
            return None
        layout, trace = streamer.layout, read_trace(path)
        found = replay(
            trace,
            SimulatedPolicy(streamer.policy_name),
            slot_bytes=page_slot_bytes(layout),
            cache_bytes=streamer.cache_bytes,
        )
        return found.decode.hit_fraction

    def _open_supplier(self) -> ExpertSupplier | None:
        job = self._job
        model = read_model(job.model_path)
        devices = {tensor.name: HOST for tensor in model.loaded_tensors}
        layout = expert_layout(model, devices)
        room_bytes = job.limit_bytes - self._fixed_bytes(layout)
        if job.most_expert_bytes is not None:
            room_bytes = min(room_bytes, job.most_expert_bytes)
        if not _streams(job.streaming.mode, room_bytes, layout):
            return None
        minimum_bytes = least_cache_bytes(page_slot_bytes(layout), layout.experts_used)
        if room_bytes < minimum_bytes:
            raise RuntimeError(
                f"a limit of {job.limit_bytes:,} leaves {room_bytes:,} bytes for experts, and one "
                f"and a half tokens need {minimum_bytes:,}"
            )
        self.cache_bytes = min(room_bytes, layout.expert_bytes)
        order = StreamingOrder(
            layout=layout,
            mode=job.streaming.mode,
            limit_bytes=job.limit_bytes,
            cache_bytes=self.cache_bytes,
            minimum_bytes=minimum_bytes,
            policy=job.streaming.policy,
            preload_experts=job.streaming.preload_experts,
            reader_threads=job.streaming.reader_threads,
            state_folder=job.state_folder,
            model_digest=model.digest,
            machine_fingerprint="benchmark",
            trace_path=job.trace_path,
            traced=tuple((tensor.name, tensor.layer) for tensor in layout.tensors),
        )
        if job.trace_path is not None:
            start_trace(job.trace_path, trace_header(model, layout))
        opened = open_order(order, engine_version=VERSION)
        self._streamer = opened.streamer
        return opened.supplier

    def _fixed_bytes(self, layout: ExpertLayout) -> int:
        """Return what the limit has to hold besides experts, as far as it is known by now."""
        measured = self._engine.measure(self._arguments(LoadMode.MMAP))
        kinds = (ChargeKind.KV_CACHE, ChargeKind.COMPUTE)
        buffers_bytes = sum(measured.size_bytes(HOST, kind) or 0 for kind in kinds)
        here = resident(os.getpid())
        assert here is not None, "this process runs"
        return here.total_bytes + layout.resident_bytes + buffers_bytes + KERNEL_BYTES

    def _arguments(self, load_mode: LoadMode) -> EngineArgs:
        job = self._job
        return EngineArgs(
            model_path=job.model_path,
            devices=(),
            n_gpu_layers=0,
            tensor_split=(),
            overrides=(),
            context_tokens=job.context_tokens,
            batch_tokens=job.ubatch_tokens,
            ubatch_tokens=job.ubatch_tokens,
            kv_encoding_k="F16",
            kv_encoding_v="F16",
            flash_attention=Toggle.ON,
            extra_buffers=False,
            load_mode=load_mode,
            threads=job.threads,
        )


def _streams(mode: StreamingMode, room_bytes: int, layout: ExpertLayout) -> bool:
    """Whether experts stream: always when a mechanism is named, by itself only when they must."""
    match mode:
        case StreamingMode.OFF:
            return False
        case StreamingMode.AUTO:
            return room_bytes < layout.expert_bytes
        case StreamingMode.CACHE | StreamingMode.PAGING:
            return True
        case StreamingMode.SLOTS:
            raise ValueError("slots need a device, which this benchmark has not")
        case _:
            assert_never(mode)
