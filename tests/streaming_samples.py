"""One sample of streaming with round numbers, for tests of what shows it."""

from dataclasses import replace

from moerun.experts.counters import (
    Latency,
    LayerHeat,
    Preloading,
    SlotCounters,
    StreamingSample,
    Traffic,
)
from tests.builders import GIB

SAMPLE = StreamingSample(
    at_s=100.0,
    mechanism="cache",
    policy="frequency",
    because="measured before on this machine",
    limit_bytes=4 * GIB,
    cache_bytes=3 * GIB,
    minimum_bytes=GIB // 2,
    expert_bytes=8 * GIB,
    expert_count=64,
    held_bytes=2 * GIB,
    held_experts=16,
    resident_bytes=2 * GIB,
    decode=Traffic(
        span_s=10.0,
        tokens=100,
        hits=900,
        misses=100,
        read_bytes=1_000_000_000,
        experts_in=100,
        experts_out=50,
        stall_s=0.25,
    ),
    prefill=Traffic(span_s=2.0, tokens=16, hits=0, misses=64, read_bytes=8 * GIB, stall_s=1.5),
    recent=Traffic(span_s=60.0, tokens=100, hits=950, misses=50, read_bytes=500_000_000),
    latency=Latency(count=164, p50_s=0.0031, p99_s=0.0082, largest_s=1.5),
    preloading=Preloading(
        experts_per_layer=8,
        predicted=1000,
        correct=861,
        read_bytes=3 * GIB,
        useful_bytes=2 * GIB,
    ),
    major_faults=12,
    full_loading_bytes=9 * GIB,
    heat=tuple(
        LayerHeat(
            layer=layer,
            uses=tuple(range(layer, layer + 16)),
            is_held=tuple(expert < 4 for expert in range(16)),
        )
        for layer in range(4)
    ),
    notes=("memory was short once",),
    storage_read_bytes=10 * GIB,
    storage_busy_s=8.0,
)


def a_sample(**changes) -> StreamingSample:
    """Return the sample with changes."""
    return replace(SAMPLE, **changes)


SLOTS = SlotCounters(
    layers=4,
    slots=24,
    held_experts=20,
    device_bytes=(("gpu:0000:01:00.0", 3 * GIB),),
    is_queued=True,
    tokens=80,
    hits=600,
    uploads=200,
    upload_bytes=1_600_000_000,
    upload_s=0.2,
    evicted=180,
)
