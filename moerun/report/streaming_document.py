"""What streaming does, as plain data: every counter and the ratios between them.

Knows: the keys of the document; they may be added to, never renamed.
Does not know: who prints it.
"""

from typing import Any

from moerun.codec import to_plain
from moerun.experts.counters import StreamingSample, Traffic
from moerun.report.streaming_view import saved_bytes


def streaming_document(sample: StreamingSample | None) -> dict[str, Any] | None:
    """Return a sample with its ratios; None where nothing streams."""
    if sample is None:
        return None
    document: dict[str, Any] = to_plain(sample) | {
        "held_fraction": sample.held_fraction,
        "saved_bytes": saved_bytes(sample),
        "storage_bytes_per_s": sample.storage_bytes_per_s,
    }
    for name in ("decode", "prefill", "recent"):
        document[name] |= _ratios(getattr(sample, name))
    if sample.preloading is not None:
        document["preloading"] |= {
            "wasted_bytes": sample.preloading.wasted_bytes,
            "accuracy_fraction": sample.preloading.accuracy_fraction,
        }
    if sample.slots is not None:
        document["slots"] |= {
            "hit_fraction": sample.slots.hit_fraction,
            "uploads_per_token": sample.slots.uploads_per_token,
            "upload_s_per_token": sample.slots.upload_s_per_token,
            "upload_bytes_per_s": sample.slots.upload_bytes_per_s,
        }
        document["unslotted_fraction"] = sample.unslotted_fraction
    return document


def _ratios(traffic: Traffic) -> dict[str, float | None]:
    span_s = traffic.span_s
    return {
        "hit_fraction": traffic.hit_fraction,
        "read_bytes_per_token": traffic.read_bytes_per_token,
        "stall_s_per_token": traffic.stall_s_per_token,
        "experts_in_per_s": traffic.experts_in / span_s if span_s > 0 else None,
        "experts_out_per_s": traffic.experts_out / span_s if span_s > 0 else None,
    }
