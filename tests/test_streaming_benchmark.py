"""The parts of `make bench-stream` that need no engine: figures, options, limits, the machine."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.streaming import limit_bytes, read_options
from benchmarks.streaming_disk import direct_rate
from benchmarks.streaming_job import (
    Counted,
    Job,
    Outcome,
    Run,
    Side,
    Streaming,
    possible_tokens_per_s,
)
from benchmarks.streaming_machine import (
    Disk,
    DiskCounters,
    NoControlGroup,
    Unmeasurable,
    alone,
    cached_bytes,
    memory_group,
    process_read_bytes,
    resident,
)
from benchmarks.streaming_models import LATENCY_SHAPES, ROUTED_SHAPE, BenchmarkModel, fingerprint
from benchmarks.streaming_report import Comparison, Round, comparison_lines, profile_lines
from moerun.codec import from_plain, to_plain
from moerun.experts.counters import Latency, StreamingSample, Traffic
from moerun.experts.order import PolicyName
from moerun.planning.strategy import StreamingMode

MIB = 1 << 20


def counted(at_s: float, process_bytes: int = 0, busy_s: float = 0.0) -> Counted:
    return Counted(
        at_s=at_s, process_bytes=process_bytes, disk_bytes=process_bytes, disk_busy_s=busy_s
    )


def a_sample(*, hits: int, misses: int, read_bytes: int) -> StreamingSample:
    traffic = Traffic(
        span_s=2.0, tokens=4, hits=hits, misses=misses, read_bytes=read_bytes, stall_s=0.4
    )
    return StreamingSample(
        at_s=0.0,
        mechanism="cache",
        policy="lru",
        because="as ordered",
        limit_bytes=100,
        cache_bytes=50,
        minimum_bytes=10,
        expert_bytes=80,
        expert_count=8,
        held_bytes=40,
        held_experts=4,
        resident_bytes=40,
        decode=traffic,
        prefill=Traffic(span_s=0.0),
        recent=traffic,
        latency=Latency(count=4, p50_s=0.002, p99_s=0.004, largest_s=0.005),
        preloading=None,
        major_faults=0,
        full_loading_bytes=100,
    )


def a_run(
    token_s: tuple[float, ...], *, digest: str = "same", sample=None, first_s=3.0, foreign=0.0
) -> Run:
    outcome = Outcome(
        load_s=2.0,
        before=counted(10.0),
        loaded=counted(12.0),
        first=counted(10.0 + first_s, 1000),
        last=counted(20.0, 1440, 0.44),
        token_s=token_s,
        digest=digest,
        sample=sample,
    )
    return Run(
        outcome=outcome,
        spawn_to_load_s=0.2,
        peak_bytes=101,
        peak_anonymous_bytes=60,
        group_peak_bytes=102,
        samples=10,
        foreign_processors=foreign,
    )


def a_comparison(*rounds: Round, compute_s: float | None = 0.1) -> Comparison:
    return Comparison(
        model="skewed",
        label="40 %",
        model_bytes=250,
        limit_bytes=100,
        prompt_tokens=16,
        decoded_tokens=4,
        compute_s=compute_s,
        full_bytes=404,
        rounds=rounds,
    )


STOCK = a_run((1.0, 0.6, 0.4, 0.4), first_s=6.0)
OURS = a_run((0.4, 0.3, 0.2, 0.2), sample=a_sample(hits=24, misses=8, read_bytes=400))
ROUND = Round(disk_bytes_per_s=1000.0, stock=STOCK, ours=OURS)


def test_an_outcome_counts_the_first_token_from_loading_on():
    outcome = OURS.outcome
    assert outcome.first_token_s == pytest.approx(3.0)
    assert outcome.tokens_per_s == pytest.approx(4 / 1.1)
    assert outcome.later_tokens_per_s == pytest.approx(5.0)
    assert outcome.decoded_bytes == 440
    assert outcome.busy_bytes_per_s == pytest.approx(1000.0)


def test_the_rate_while_reading_is_of_the_readers_where_they_count():
    first = replace(
        a_sample(hits=0, misses=0, read_bytes=0), storage_read_bytes=100, storage_busy_s=1.0
    )
    last = replace(first, storage_read_bytes=700, storage_busy_s=1.5)
    outcome = replace(OURS.outcome, first_sample=first, sample=last)
    assert outcome.busy_bytes_per_s == pytest.approx(1200.0)
    by_the_kernel = replace(outcome, sample=first)
    assert by_the_kernel.busy_bytes_per_s == pytest.approx(1000.0)
    idle = replace(by_the_kernel, last=by_the_kernel.first)
    assert idle.busy_bytes_per_s is None


def test_ratios_are_of_runs_beside_each_other():
    comparison = a_comparison(ROUND, ROUND)
    ratio = comparison.ratio(lambda outcome: outcome.tokens_per_s)
    assert ratio is not None
    assert ratio.median == pytest.approx(2.4 / 1.1)
    alone = a_comparison(Round(disk_bytes_per_s=1000.0, ours=OURS))
    assert alone.ratio(lambda outcome: outcome.load_s) is None
    assert alone.is_lossless is None


def test_one_other_logit_is_a_loss():
    assert a_comparison(ROUND).is_lossless is True
    other = Round(disk_bytes_per_s=1.0, stock=STOCK, ours=a_run((1.0,), digest="other"))
    assert a_comparison(ROUND, other).is_lossless is False
    assert "NO" in "\n".join(comparison_lines(a_comparison(ROUND, other)))


def test_what_is_possible_is_bound_by_the_slower_of_disk_and_computing():
    def possible(missed: float, compute_s: float) -> float:
        return possible_tokens_per_s(
            missed_bytes_per_token=missed, disk_bytes_per_s=1000.0, compute_s=compute_s
        )

    assert possible(500.0, 0.1) == pytest.approx(2.0)
    assert possible(50.0, 0.1) == pytest.approx(10.0)
    assert a_comparison(ROUND).possible == pytest.approx(10.0)
    assert a_comparison(ROUND, compute_s=None).possible is None


def test_the_table_holds_figures_against_what_they_must_meet():
    text = "\n".join(comparison_lines(a_comparison(ROUND)))
    for wanted in (
        "logits of all runs equal: yes",
        "bytes of the process / of misses: 1.100",
        "rate while reading / of the disk: 1.00",
        "physically possible: 10.0 tokens/s, 6.00 times stock",
        "one expert alone at the disk's rate: 10.0 ms",
        "cache, lru: as ordered",
    ):
        assert wanted in text
    rows = {line[:44].strip(): line[44:].split() for line in text.splitlines()}
    assert rows["moerun: peak memory, % of the limit"] == ["101.00"] * 3
    assert rows["moerun: peak below full loading, %"] == ["75.00"] * 3
    assert rows["moerun: hit rate, %"] == ["75.00"] * 3
    assert rows["moerun: expert switch p99, ms"] == ["4.00"] * 3


def test_a_machine_that_did_other_things_is_told():
    assert "NOT QUIET" not in "\n".join(comparison_lines(a_comparison(ROUND)))
    busy = Round(disk_bytes_per_s=1.0, stock=a_run((1.0,), foreign=1.25), ours=OURS)
    assert "up to 1.25 processors" in "\n".join(comparison_lines(a_comparison(ROUND, busy)))


def test_the_profile_adds_up():
    (line,) = profile_lines(a_comparison(ROUND))
    assert line == (
        "  a token takes 275.0 ms: computing 100.0, waiting for reads 100.0, all else 75.0"
    )


def test_jobs_and_outcomes_travel_as_json():
    job = Job(
        side=Side.OURS,
        model_path="model.gguf",
        prompt=(1, 2),
        decoded=(3,),
        threads=2,
        context_tokens=64,
        ubatch_tokens=64,
        limit_bytes=100,
        streaming=Streaming(mode=StreamingMode.CACHE, policy=PolicyName.LRU),
        state_folder="state",
    )
    assert from_plain(Job, json.loads(json.dumps(to_plain(job)))) == job
    assert from_plain(Outcome, json.loads(json.dumps(to_plain(OURS.outcome)))) == OURS.outcome


def test_limits_are_percent_of_the_model_or_room_for_all():
    assert limit_bytes("40", 1000) == 400
    assert limit_bytes("fits", 1000) == 1000 + (1 << 30)
    for wrong in ("0", "-5", "half"):
        with pytest.raises(ValueError, match=r"limit|float"):
            limit_bytes(wrong, 1000)


def test_options_are_what_the_command_line_says():
    words = "--limits 40 --sides moerun --mode paging --policy lru --preload 4 --profile"
    options = read_options(words.split())
    assert (options.limits, options.sides) == (("40",), (Side.OURS,))
    assert options.streaming == Streaming(
        mode=StreamingMode.PAGING, policy=PolicyName.LRU, preload_experts=4
    )
    assert options.has_profile


def test_a_script_is_a_prompt_and_what_follows():
    model = BenchmarkModel(name="m", path=Path("m"), first_token=100, token_count=5)
    assert model.script(2, 3) == ((100, 101), (102, 103, 104))
    with pytest.raises(ValueError, match="script of 5 tokens, not 6"):
        model.script(3, 3)


def test_the_models_are_as_large_as_they_must_be():
    assert ROUTED_SHAPE.layers * ROUTED_SHAPE.experts * ROUTED_SHAPE.expert_bytes > 4e9
    sizes = [round(shape.expert_bytes / MIB, 1) for shape in LATENCY_SHAPES.values()]
    assert sizes == [2.7, 12.6, 25.1]
    prints = {fingerprint(shape) for shape in (ROUTED_SHAPE, *LATENCY_SHAPES.values())}
    assert len(prints) == 4


def test_counters_of_a_disk_are_told_from_an_earlier_look():
    before = DiskCounters(read_bytes=100, busy_s=1.0)
    assert DiskCounters(read_bytes=150, busy_s=1.5).since(before) == DiskCounters(
        read_bytes=50, busy_s=0.5
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark is of Linux")
def test_the_machine_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    disk = Disk.below(path)
    assert disk.counters().read_bytes >= 0
    assert process_read_bytes() >= 0
    look = resident(1)
    assert look is None or look.total_bytes == look.anonymous_bytes + look.mapped_bytes
    assert resident(2**22 + 1) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark is of Linux")
def test_what_the_page_cache_holds_of_a_file_is_told(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    assert cached_bytes(path) == MIB


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark is of Linux")
def test_two_measurements_do_not_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with alone(), pytest.raises(Unmeasurable, match="another measurement"), alone():
        pass
    with alone():
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark is of Linux")
def test_direct_reads_go_past_the_cache(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * MIB))
    try:
        rate = direct_rate(path, read_bytes=100_000, threads=2, span_s=0.05)
    except OSError:
        pytest.skip("this file system has no direct reads")
    assert rate > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark is of Linux")
def test_a_child_cannot_take_more_than_its_group():
    take = "import sys; block = b'x' * (int(sys.argv[1]) << 20); print(len(block))"
    try:
        with memory_group(64 * MIB) as group:
            codes = [
                subprocess.run(
                    [sys.executable, "-c", take, size],
                    preexec_fn=group.enter,
                    stdout=subprocess.DEVNULL,
                    check=False,
                ).returncode
                for size in ("8", "128")
            ]
            peak_bytes = group.peak_bytes()
    except NoControlGroup as error:
        pytest.skip(str(error))
    assert codes == [0, -9]
    assert 8 * MIB < peak_bytes <= 64 * MIB


def test_without_control_groups_it_is_said(tmp_path):
    with pytest.raises(NoControlGroup, match="no control groups"), memory_group(1, root=tmp_path):
        pass
