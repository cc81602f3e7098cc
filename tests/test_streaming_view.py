import io
import json
from dataclasses import replace

from rich.console import Console

from moerun.experts.counters import Traffic
from moerun.report.console import Page, is_coloured
from moerun.report.streaming_document import streaming_document
from moerun.report.streaming_view import ExpertTier, streaming_lines, verbose_lines
from tests.builders import GIB
from tests.streaming_samples import SAMPLE, SLOTS, a_sample

SHOWN = """\
experts  cache, frequency
ram   ▓▓▓▓▓▓▓▓▓▓······························ 2.0 GiB  25.0%  16 experts
ssd   ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓·········· 6.0 GiB  75.0%  48 experts

                               decode          prefill      last minute
hit rate                        90.0%             0.0%            95.0%
experts in                       10/s              0/s              0/s
experts out                       5/s              0/s              0/s
read from SSD           10.0 MB/token   536.9 MB/token     5.0 MB/token
waited for experts        2.5ms/token     93.8ms/token        0µs/token
tokens                            100               16              100

why:                  measured before on this machine
cache:                3.0 GiB at most now, 0.5 GiB at least, within 4.0 GiB for
                      the whole process; the system has 2.0 GiB of experts in
                      memory
expert switch:        p50 3.1ms, p99 8.2ms, longest 1.5s, of 164
SSD:                  1.34 GB/s while it was read past the page cache, 10.0 GiB
                      in all
reading ahead:        8 experts of the next layer, 86.1% of 1,000 foretold
                      right; 2.0 GiB useful, 1.0 GiB wasted
page faults:          12 that waited for storage
memory saved:         6.0 GiB of the 9.0 GiB that full loading holds
note:                 memory was short once

"""


def shown(sample=SAMPLE, **changes):
    return [
        line.plain.rstrip()
        for line in streaming_lines(sample, Page(columns=80), is_coloured=False, **changes)
    ]


def test_all_that_streaming_does_is_shown():
    lines = shown()
    assert "\n".join(lines[:25]) + "\n" == SHOWN
    assert "held in RAM" in lines[25]


def test_experts_on_cards_have_a_share_too():
    lines = shown(elsewhere=(ExpertTier(label="gpu0", held_bytes=8 * GIB, experts=None),))
    assert lines[1].startswith("gpu0  ▓▓")
    assert lines[1].endswith("8.0 GiB  50.0%")
    assert lines[2].endswith("2.0 GiB  12.5%  16 experts")


def test_nothing_asked_yet_is_blank():
    nothing = Traffic(span_s=0.0)
    lines = shown(
        a_sample(
            decode=nothing,
            prefill=nothing,
            recent=nothing,
            latency=None,
            preloading=None,
            major_faults=None,
            resident_bytes=None,
            heat=(),
            notes=(),
        )
    )
    text = "\n".join(lines)
    assert "hit rate                            -                -                -" in text
    assert "no expert was missing yet" in text
    assert "reading ahead:        off" in text
    assert "page faults" not in text
    assert "held in RAM" not in text


def test_reading_ahead_that_was_tried_and_left_off_keeps_its_figures():
    assert SAMPLE.preloading is not None
    sample = a_sample(preloading=replace(SAMPLE.preloading, experts_per_layer=0))
    assert "off now, 86.1% of 1,000 foretold right" in "\n".join(shown(sample))


def test_the_same_counters_follow_an_answer():
    lines = verbose_lines(a_sample(because="a\x1b[31mb"))
    assert lines[:3] == (
        "experts:              cache, frequency",
        "experts held:         2.0 GiB of 8.0 GiB in RAM (25.0%), 16 of 64",
        "expert hit rate:      90.0% in decode, 0.0% in prefill",
    )
    assert all(line.isprintable() for line in lines)


def test_slots_tell_what_they_hold_hit_and_move():
    text = " ".join("\n".join(shown(a_sample(slots=SLOTS))).split())
    assert "slots: 20 of 24 in 4 layers hold an expert; 3.0 GiB on gpu:0000:01:00.0" in text
    assert "slot hit rate: 75.0% of 800 requests of 80 tokens" in text
    assert "one after another" not in text
    assert "uploads: 2.5 experts/token, 20.0 MB/token, 2.5ms/token at 8.00 GB/s" in text
    assert "CPU share: 24.8% of requests went without slots" in text  # 264 of 1,064
    assert "cache: 3.0 GiB" in text
    named = "\n".join(shown(a_sample(slots=SLOTS), labels={"gpu:0000:01:00.0": "gpu0"}))
    assert "3.0 GiB on gpu0" in named


def test_slots_that_no_token_used_and_experts_that_are_all_in_ram():
    unused = replace(SLOTS, tokens=0, hits=0, uploads=0, upload_bytes=0, upload_s=0.0)
    text = "\n".join(shown(a_sample(slots=replace(unused, is_queued=False), cache_bytes=8 * GIB)))
    assert "no token used slots yet" in text
    assert "uploads:" not in text
    assert "cache:" not in text
    slow = shown(a_sample(slots=replace(SLOTS, is_queued=False)))
    assert "one after another" in "\n".join(slow)


def test_the_document_tells_of_slots():
    document = streaming_document(a_sample(slots=SLOTS))
    assert document is not None
    assert json.loads(json.dumps(document)) == document | {
        "slots": document["slots"] | {"device_bytes": [["gpu:0000:01:00.0", 3 * GIB]]}
    }
    assert document["slots"]["hit_fraction"] == 0.75
    assert document["slots"]["uploads_per_token"] == 2.5
    assert document["unslotted_fraction"] == 1 - 800 / 1064
    without = streaming_document(SAMPLE)
    assert without is not None
    assert without["slots"] is None
    assert "unslotted_fraction" not in without


def test_the_document_has_the_counters_and_their_ratios():
    assert streaming_document(None) is None
    document = streaming_document(SAMPLE)
    assert document is not None
    assert json.loads(json.dumps(document)) == document
    assert document["held_fraction"] == 0.25
    assert document["saved_bytes"] == 6 * GIB
    assert document["decode"]["hit_fraction"] == 0.9
    assert document["decode"]["experts_in_per_s"] == 10
    assert document["preloading"]["wasted_bytes"] == GIB
    assert document["heat"][1]["uses"][0] == 1


def test_a_picture_has_colour_only_where_there_are_many():
    def on(color_system, **changes):
        console = Console(
            file=io.StringIO(), force_terminal=True, color_system=color_system, **changes
        )
        return is_coloured(console)

    assert on("truecolor")
    assert on("256")
    assert not on("standard")
    assert not on("truecolor", no_color=True)
    assert not is_coloured(Console(file=io.StringIO()))
