import mmap
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

from moerun.engine.arguments import BufferReport
from moerun.machine.description import HOST, SSD, DeviceId
from moerun.machine.probe_processes import read_process_cards
from moerun.planning.plan import Charge, ChargeKind, Confidence, Ledger
from moerun.runner.memory_report import RowKind, compare
from moerun.runner.statistics import GpuSample, MemorySample, sample_process, sum_mappings
from tests.streaming_samples import a_sample

CARD = DeviceId("gpu:0000:01:00.0")
SMAPS = """\
00400000-00500000 r-xp 00000000 08:01 11 /usr/bin/python3.11
Size:               1024 kB
Rss:                 100 kB
Pss:                  50 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
7f00000000-7f10000000 r--s 00000000 08:01 12 {model}
Rss:                4000 kB
Pss:                2000 kB
Anonymous:             8 kB
Swap:                  0 kB
7f20000000-7f30000000 rw-p 00000000 00:00 0
Rss:                 300 kB
Pss:                 300 kB
Anonymous:           300 kB
Swap:                 20 kB
7f40000000-7f50000000 rw-p 00000000 00:00 0 [heap]
Rss:                  10 kB
Pss:                  10 kB
Anonymous:            10 kB
Swap:                  0 kB
"""


def test_mappings_are_summed_and_the_models_pages_told_apart(tmp_path):
    model = tmp_path / "a model: of spaces.gguf"
    sums = sum_mappings(SMAPS.format(model=model), model_paths=(str(model),))
    assert sums.resident_bytes == 4410 * 1024
    assert sums.anonymous_bytes == 318 * 1024
    assert sums.proportional_bytes == 2360 * 1024
    assert sums.swapped_bytes == 20 * 1024
    assert sums.model_resident_bytes == 3992 * 1024


def test_a_model_behind_a_link_and_one_that_was_deleted_are_found(tmp_path):
    model = tmp_path / "blob"
    model.touch()
    link = tmp_path / "model.gguf"
    link.symlink_to(model)
    text = SMAPS.format(model=f"{model} (deleted)")
    assert sum_mappings(text, model_paths=(str(link),)).model_resident_bytes == 3992 * 1024


def test_a_sample_of_this_process_sees_pages_of_a_file_that_were_touched(tmp_path):
    path = tmp_path / "weights"
    size = 4 << 20
    path.write_bytes(os.urandom(size))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert sum(mapping[offset] for offset in range(0, size, 4096)) > 0
        sample = sample_process(model_paths=(str(path),), with_gpus=False)
        assert sample is not None
        assert sample.model_resident_bytes == size
        assert sample.private_bytes is not None
        assert sample.file_backed_bytes is not None
        assert sample.resident_bytes == sample.private_bytes + sample.file_backed_bytes
        assert sample.host_available_bytes


def test_a_process_that_is_gone_gives_nothing():
    assert sample_process(2**22 + 1, with_gpus=False) is None


def test_elsewhere_psutil_answers(tmp_path):
    sample = sample_process(with_gpus=False, proc=tmp_path)
    assert sample is not None
    assert sample.resident_bytes > 1 << 20
    assert sample.model_resident_bytes is None


def charge(device, kind, size_bytes):
    return Charge(device=device, kind=kind, size_bytes=size_bytes, confidence=Confidence.EXACT)


def buffer(device, kind, size_bytes, name="CPU"):
    return BufferReport(component="x", buffer=name, device=device, kind=kind, size_bytes=size_bytes)


LEDGER = Ledger(
    charges=(
        charge(CARD, ChargeKind.DENSE_WEIGHTS, 100),
        charge(CARD, ChargeKind.EXPERT_WEIGHTS, 200),
        charge(CARD, ChargeKind.KV_CACHE, 50),
        charge(CARD, ChargeKind.RUNTIME, 40),
        charge(CARD, ChargeKind.MARGIN, 999),
        charge(HOST, ChargeKind.DENSE_WEIGHTS, 10),
        charge(HOST, ChargeKind.EXPERT_WEIGHTS, 300),
        charge(HOST, ChargeKind.COMPUTE, 30),
        charge(HOST, ChargeKind.RUNTIME, 60),
        charge(SSD, ChargeKind.EXPERT_WEIGHTS, 500),
    )
)
BUFFERS = (
    buffer(CARD, "model", 303, "CUDA0"),
    buffer(CARD, "kv", 50, "CUDA0"),
    buffer(HOST, "model", 812, "CPU_Mapped"),
    buffer(HOST, "compute", 20),
    buffer(HOST, "output", 10),
)
SAMPLE = MemorySample(
    at_s=1.0,
    resident_bytes=800,
    private_bytes=120,
    file_backed_bytes=680,
    model_resident_bytes=600,
    gpus=(GpuSample(device=CARD, process_bytes=420, used_bytes=1000),),
)


def rows_of(report, device):
    [found] = [memory for memory in report.devices if memory.device == device]
    return found, {row.kind: (row.planned_bytes, row.reported_bytes) for row in found.rows}


def test_every_device_shows_plan_and_report_by_use():
    report = compare(LEDGER, BUFFERS, (SAMPLE,))
    assert [memory.device for memory in report.devices] == [CARD, HOST, SSD]
    card, rows = rows_of(report, CARD)
    assert rows == {
        RowKind.DENSE: (100, 103),
        RowKind.EXPERTS: (200, 200),
        RowKind.KV: (50, 50),
        RowKind.RUNTIME: (40, None),
    }
    assert (card.planned_bytes, card.reported_bytes) == (390, 353)
    _, rows = rows_of(report, HOST)
    assert rows == {
        RowKind.DENSE: (10, 10),
        RowKind.EXPERTS: (300, 300),
        RowKind.COMPUTE: (30, 30),
        RowKind.RUNTIME: (60, None),
    }
    _, rows = rows_of(report, SSD)
    assert rows == {RowKind.EXPERTS: (500, 500)}
    assert report.drift_fraction == pytest.approx(0.03)


def test_what_is_observed_and_not_explained_is_said():
    report = compare(LEDGER, BUFFERS, (SAMPLE,))
    card, _ = rows_of(report, CARD)
    assert card.observed_bytes == 420
    assert card.unaccounted_bytes == 420 - (103 + 200 + 50 + 40)
    assert card.rows[-1].observed_bytes == 40
    host, _ = rows_of(report, HOST)
    # 310 bytes of the model's 600 in memory are the host's own, 290 are experts left on SSD.
    assert host.observed_bytes == 800 - 290
    assert host.unaccounted_bytes == 120 - 30 - 60
    ssd, _ = rows_of(report, SSD)
    assert ssd.observed_bytes == 290
    assert ssd.rows[0].observed_bytes == 290
    assert report.host is not None
    assert (report.host.private_bytes, report.host.file_backed_bytes) == (120, 680)


def test_the_runtime_is_given_no_more_than_is_there_and_untouched_buffers_are_negative():
    for private, runtime, unaccounted in ((50, 20, 0), (10, 0, -20)):
        sample = replace(SAMPLE, private_bytes=private)
        host, _ = rows_of(compare(LEDGER, BUFFERS, (sample,)), HOST)
        assert host.rows[-1].kind is RowKind.RUNTIME
        assert host.rows[-1].observed_bytes == runtime
        assert host.unaccounted_bytes == unaccounted


def test_an_earlier_peak_counts_for_the_peak_alone():
    earlier = replace(SAMPLE, resident_bytes=5000)
    report = compare(LEDGER, BUFFERS, (SAMPLE,), earlier_peak=earlier)
    host, _ = rows_of(report, HOST)
    assert (host.peak_bytes, host.mean_bytes) == (5000 - 290, 800 - 290)


def test_copied_weights_are_private_memory():
    copied = (buffer(HOST, "model", 310), buffer(HOST, "compute", 30))
    sample = MemorySample(
        at_s=0,
        resident_bytes=460,
        private_bytes=450,
        file_backed_bytes=10,
        model_resident_bytes=0,
    )
    host, _ = rows_of(compare(LEDGER, copied, (sample,)), HOST)
    assert host.observed_bytes == 460
    assert host.unaccounted_bytes == 450 - (310 + 30 + 60)


def test_peak_and_mean_are_over_all_samples():
    first = MemorySample(at_s=0, resident_bytes=900, model_resident_bytes=310)
    second = MemorySample(at_s=1, resident_bytes=500, model_resident_bytes=310)
    host, _ = rows_of(compare(LEDGER, BUFFERS, (first, second)), HOST)
    assert (host.peak_bytes, host.mean_bytes, host.observed_bytes) == (900, 700.0, 500)


def test_without_report_or_sample_the_columns_are_empty():
    report = compare(LEDGER, (), ())
    host, rows = rows_of(report, HOST)
    assert rows[RowKind.DENSE] == (10, None)
    assert host.observed_bytes is None
    assert host.unaccounted_bytes is None
    assert report.host is None
    assert report.drift_fraction is None


class FakeNvml:
    """A driver with one card; `processes` are (pid, bytes)."""

    class NVMLError(Exception):
        pass

    def __init__(self, processes, *, is_broken=False):
        self._processes = processes
        self._is_broken = is_broken

    def nvmlInit(self):  # noqa: N802 - the driver's spelling
        if self._is_broken:
            raise self.NVMLError

    def nvmlShutdown(self):  # noqa: N802
        pass

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetPciInfo(self, handle):  # noqa: N802
        return SimpleNamespace(busId=b"00000000:01:00.0")

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used=1000)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self._processes]


@pytest.mark.parametrize(
    ("processes", "expected"),
    [([(7, 300), (8, 1)], 300), ([(8, 1)], None), ([], 0), ([(7, None)], None)],
)
def test_the_driver_tells_what_a_process_holds(processes, expected):
    [card] = read_process_cards(7, nvml=FakeNvml(processes))
    assert card.process_bytes == expected
    assert (card.pci_address, card.used_bytes) == ("0000:01:00.0", 1000)


def test_without_a_driver_there_is_no_card():
    assert read_process_cards(7, nvml=FakeNvml([], is_broken=True)) == ()


def test_private_memory_laid_over_the_mapping_is_counted_once():
    ledger = Ledger(
        charges=(
            charge(HOST, ChargeKind.DENSE_WEIGHTS, 100),
            charge(HOST, ChargeKind.EXPERT_CACHE, 300),
            charge(HOST, ChargeKind.KV_CACHE, 50),
            charge(SSD, ChargeKind.EXPERT_WEIGHTS, 800),
        )
    )
    buffers = (
        buffer(HOST, "model", 900, "CPU_Mapped"),
        buffer(HOST, "kv", 50, "CPU"),
    )
    sample = MemorySample(
        at_s=1.0,
        resident_bytes=440,
        private_bytes=430,  # 100 of dense weights, 250 of experts, the KV cache, 30 of Python
        file_backed_bytes=10,
        model_resident_bytes=0,
    )
    streaming = a_sample(mechanism="cache", held_bytes=260, resident_bytes=250)
    host, ssd = compare(ledger, buffers, (sample,), streaming=streaming).devices
    assert host.observed_bytes == 440
    assert host.unaccounted_bytes == 30
    experts = next(row for row in host.rows if row.kind is RowKind.EXPERTS)
    assert (experts.planned_bytes, experts.reported_bytes, experts.observed_bytes) == (
        300,
        None,
        250,
    )
    assert ssd.rows[0].reported_bytes == 800
    assert ssd.rows[0].observed_bytes == 0
    # the page cache is the store: all experts in memory are pages of the file
    paging = a_sample(mechanism="paging", held_bytes=260, resident_bytes=250)
    sample = replace(sample, private_bytes=180, file_backed_bytes=260, model_resident_bytes=250)
    host, _ = compare(ledger, buffers, (sample,), streaming=paging).devices
    assert host.unaccounted_bytes == 30
    assert host.observed_bytes == 440
