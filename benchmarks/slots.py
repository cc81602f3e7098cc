"""What slots cost where every expert is in one: the same model with and without, in one run.

`python -m benchmarks.slots [--layers 48] [--json FILE]` writes a model of many narrow layers, whose
own work is next to nothing, and decodes it in turn, round by round: without slots, and with slots
that hold all experts, kept by the streamer that answers run with. The slots lie in the processor's
own memory, so that reading and rewriting a choice costs no device's latency: what is added for each
layer and token is the hook, the policy and the rewriting alone. That of a worker on loopback is
told beside it: how long it takes to read a choice from it and to write it back.

Knows: what is timed: the engine room's decoding of single tokens, no expert being missing.
Does not know: what is cheap enough.
"""

import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.hook_cost import narrow_options, write_narrow_model
from moerun.engine import abi
from moerun.engine.arguments import EngineArgs, LayerSlots
from moerun.engine.decode import Decoder
from moerun.engine.devices import register_workers
from moerun.engine.llama import LlamaEngine
from moerun.engine.rpc_worker import loopback_worker
from moerun.experts.assembly import open_order
from moerun.experts.counters import SlotCounters
from moerun.experts.layout import ExpertLayout, expert_layout
from moerun.experts.order import StreamingOrder
from moerun.machine.description import HOST
from moerun.model.gguf_header import read_model
from moerun.planning.plan import SlotLayer, SlotPlan
from moerun.planning.strategy import LoadMode, StreamingMode, Toggle

CONTEXT_TOKENS = 1024
PROMPT = tuple(range(260, 276))
ROUND_TRIPS = 2000

Decode = Callable[[int], float]
"""Decodes so many tokens after the prompt and returns seconds for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Slots against none, for each layer and token; `uploads` came while time was taken."""

    layers: int
    experts_used: int
    ms_per_token_without: float
    ms_per_token_with: float
    us_per_layer_smallest: float
    us_per_layer_median: float
    us_per_layer_largest: float
    uploads: int
    loopback_us: float


@contextmanager
def decoding(
    path: Path, layout: ExpertLayout, *, has_slots: bool, threads: int
) -> Iterator[tuple[Decode, Callable[[], SlotCounters | None]]]:
    """Load the model; give what decodes with it, and the counters of its slots."""
    arguments = EngineArgs(
        model_path=str(path),
        devices=(),
        n_gpu_layers=0,
        tensor_split=(),
        overrides=(),
        context_tokens=CONTEXT_TOKENS,
        batch_tokens=64,
        ubatch_tokens=64,
        kv_encoding_k="F16",
        kv_encoding_v="F16",
        flash_attention=Toggle.ON,
        extra_buffers=False,
        load_mode=LoadMode.MMAP,
        threads=threads,
    )
    engine, sample = LlamaEngine(log_sink=None), None
    if has_slots:
        order = an_order(layout)
        opened = open_order(order, engine_version="benchmark")
        assert order.slots is not None
        assert opened.streamer is not None
        wished = tuple(
            LayerSlots(layer=layer.layer, device=layer.device, slots=layer.slots)
            for layer in order.slots.layers
        )
        session = engine.load(
            replace(arguments, expert_slots=wished), supplier=opened.supplier, slots=opened.slots
        )
        sample = opened.streamer.sample
    else:
        session = engine.load(arguments)
    decoder = Decoder(session.loaded)

    def decode(tokens: int) -> float:
        decoder.evaluate(list(PROMPT))
        started_s = time.perf_counter()
        for step in range(tokens):
            decoder.advance(260 + step % 64)
        return (time.perf_counter() - started_s) / tokens

    yield decode, lambda: sample().slots if sample is not None else None
    session.close()


def an_order(layout: ExpertLayout) -> StreamingOrder:
    """Return an order for slots that hold every expert, in the processor's memory."""
    slots = SlotPlan(
        layers=tuple(
            SlotLayer(
                layer=layer,
                device=HOST,
                slots=layout.expert_counts[layer],
                slot_bytes=slot_bytes,
                size_bytes=layout.expert_counts[layer] * slot_bytes,
            )
            for layer, slot_bytes in layout.slot_bytes.items()
        ),
        expected_hit_fraction=1.0,
        held_fraction=1.0,
    )
    return StreamingOrder(
        layout=layout,
        mode=StreamingMode.OFF,
        limit_bytes=layout.expert_bytes,
        cache_bytes=layout.expert_bytes,
        minimum_bytes=layout.expert_bytes,
        preload_experts=0,
        is_adaptive=False,
        slots=slots,
        slotted=layout.tensors,
    )


def measure(path: Path, *, rounds: int, tokens: int, threads: int) -> Cost:
    """Run both ways in turn, each round beginning with the other, and return what slots add."""
    model = read_model(path)
    layout = expert_layout(model, {tensor.name: HOST for tensor in model.loaded_tensors})
    timed: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        ways = [
            stack.enter_context(decoding(path, layout, has_slots=flag, threads=threads))
            for flag in (False, True)
        ]
        for decode, _ in ways:  # every expert that is used has its slot then
            decode(tokens)
            decode(tokens)
        before = ways[1][1]()
        for number in range(rounds):
            for index in (number % 2, 1 - number % 2):
                timed[index].append(ways[index][0](tokens))
        after = ways[1][1]()
    assert before is not None
    assert after is not None
    layers = len(layout.by_layer)
    added = [(mine - plain) * 1e6 / layers for plain, mine in zip(timed[0], timed[1], strict=True)]
    return Cost(
        layers=layers,
        experts_used=layout.experts_used,
        ms_per_token_without=statistics.median(timed[0]) * 1e3,
        ms_per_token_with=statistics.median(timed[1]) * 1e3,
        us_per_layer_smallest=min(added),
        us_per_layer_median=statistics.median(added),
        us_per_layer_largest=max(added),
        uploads=after.uploads - before.uploads,
        loopback_us=loopback_us(4 * max(layout.expert_counts.values())),
    )


def loopback_us(size_bytes: int) -> float:
    """Return how long a worker on loopback takes to give a choice and to take it back."""
    opened = abi.open_engine()
    with loopback_worker(threads=1) as worker:
        register_workers((worker,))
        pointer = opened.device_at(opened.device_count() - 1)
        functions = opened.buffers
        buffer = functions.allocate(opened.device_buffer_type(pointer), size_bytes)
        assert buffer
        tensor = abi.Tensor()
        tensor.type, tensor.buffer, tensor.data = abi.TYPE_I32, buffer, functions.base(buffer)
        tensor.ne[:] = (size_bytes // 4, 1, 1, 1)
        tensor.nb[:] = (4, size_bytes, size_bytes, size_bytes)
        address = ctypes.addressof(tensor)
        memory = ctypes.create_string_buffer(size_bytes)
        functions.write(address, memory, 0, size_bytes)
        started_s = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            opened.read_tensor(address, memory, 0, size_bytes)
            functions.write(address, memory, 0, size_bytes)
        opened.read_tensor(address, memory, 0, size_bytes)
        taken_s = time.perf_counter() - started_s
        functions.free(buffer)
    return taken_s / ROUND_TRIPS * 1e6


def main() -> None:
    """Measure and print; the document goes to a file if one is named."""
    options = narrow_options("slots")
    with tempfile.TemporaryDirectory() as folder:
        path = write_narrow_model(folder, options.layers)
        cost = measure(path, rounds=options.rounds, tokens=options.tokens, threads=options.threads)
    print(
        f"{cost.layers} layers, {cost.experts_used} experts for each token, all in slots; "
        f"{options.rounds} rounds of {options.tokens} tokens"
    )
    print(f"  without slots      {cost.ms_per_token_without:8.3f} ms/token")
    print(f"  with slots         {cost.ms_per_token_with:8.3f} ms/token")
    print(
        f"  added for each layer and token, min/median/max: {cost.us_per_layer_smallest:.1f} / "
        f"{cost.us_per_layer_median:.1f} / {cost.us_per_layer_largest:.1f} us"
    )
    print(f"  uploads meanwhile: {cost.uploads}")
    print(f"  reading a choice from a worker on loopback and writing it: {cost.loopback_us:.1f} us")
    if options.json is not None:
        document = {"schema": 1, **asdict(cost)}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
