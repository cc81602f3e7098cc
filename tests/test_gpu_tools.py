"""The tools of the GPU check, as far as they can be tried without a card."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from moerun.machine.description import HOST
from moerun.planning.strategy import ExpertResidency, StreamingMode
from tests.builders import GIB, a_gpu, a_machine, a_model
from tools.gpu import build, bundle, measure, slots
from tools.gpu.cuda import ballast
from tools.gpu.table import BEGIN, END, Report, Row, Transfers, table_lines, write_table

ENGINE = "vendor/llama.cpp"


def a_distribution(path: Path, names: list[str], content: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def complete_names() -> list[str]:
    return [
        taken if "." in Path(taken).name and Path(taken).suffix else f"{taken}/file.txt"
        for taken in bundle.TAKEN
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{ENGINE}/ggml/src/ggml-cuda/mmq.cu", True),
        (f"{ENGINE}/ggml/src/ggml-cpu/ggml-cpu.c", True),
        (f"{ENGINE}/ggml/src/ggml-rpc/ggml-rpc.cpp", True),
        (f"{ENGINE}/ggml/src/ggml-vulkan/ggml-vulkan.cpp", False),
        (f"{ENGINE}/models/ggml-vocab-bert-bge.gguf", False),
        (f"{ENGINE}/tools/server/server.cpp", False),
        (f"{ENGINE}/tools/fit-params/main.cpp", True),
        ("llama_cpp/llama_cpp.py", True),
        ("llama_cppx/other.py", False),
    ],
)
def test_the_bundle_takes_what_a_cuda_build_reads(path: str, expected: bool):
    assert bundle.is_taken(path) is expected


def test_a_bundle_holds_the_sources_and_the_wheels(tmp_path: Path):
    names = [*complete_names(), f"{ENGINE}/models/large.gguf"]
    source = a_distribution(tmp_path / "sdist.tar.gz", names)
    wheel = tmp_path / "rich-1.whl"
    wheel.write_bytes(b"wheel")
    out = tmp_path / "bundle.tar.xz"
    assert bundle.write_bundle(source, out, [wheel]) == out.stat().st_size
    with tarfile.open(out) as archive:
        held = set(archive.getnames())
    assert held == {"wheels/rich-1.whl", *(f"engine/{name}" for name in complete_names())}


def test_a_distribution_that_lacks_something_is_refused(tmp_path: Path):
    source = a_distribution(tmp_path / "sdist.tar.gz", ["llama_cpp/a.py"])
    with pytest.raises(bundle.BundleError, match=r"ggml/src"):
        bundle.write_bundle(source, tmp_path / "bundle.tar.xz")
    assert not (tmp_path / "bundle.tar.xz").exists()


def test_a_file_that_is_no_distribution_is_refused(tmp_path: Path, capsys):
    (tmp_path / "x").write_bytes(b"no")
    assert bundle.main([str(tmp_path / "x"), "--out", str(tmp_path / "b.tar.xz")]) == 1
    assert "source distribution" in capsys.readouterr().err


def test_a_build_is_saved_in_pieces_and_brought_back_elsewhere(tmp_path: Path):
    here = tmp_path / "here" / "build"
    here.mkdir(parents=True)
    (here / "a.o").write_bytes(b"object")
    (here / ".ninja_log").write_text("log")
    written_ns = (here / "a.o").stat().st_mtime_ns
    saved = tmp_path / "saved"
    count, size = build.save(here, saved)
    assert count == 1
    assert size == (saved / "build.000").stat().st_size
    assert build.restore(saved, tmp_path / "there")
    back = tmp_path / "there" / "build" / "a.o"
    assert back.read_bytes() == b"object"
    # never newer than it was, or ninja would build it again
    assert back.stat().st_mtime_ns == written_ns // 1_000_000_000 * 1_000_000_000
    assert build.save(here, saved)[0] == 1  # the older save gives way


def test_a_save_that_is_not_whole_is_not_used(tmp_path: Path):
    here = tmp_path / "build"
    here.mkdir()
    build.save(here, tmp_path / "saved")
    (tmp_path / "saved" / "build.000").unlink()
    assert not build.restore(tmp_path / "saved", tmp_path / "there")
    assert not build.restore(tmp_path / "nothing", tmp_path / "there")


def test_a_build_without_a_bundle_says_so(tmp_path: Path, capsys):
    assert build.main(["--cpu", "--bundle", str(tmp_path / "none")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err


class FakeMemory:
    """A card that rounds every allocation up to 2 MiB."""

    def __init__(self, free: int):
        self.free = free
        self.held: dict[int, int] = {}

    def free_bytes(self) -> int:
        return self.free

    def allocate(self, size_bytes: int) -> int:
        taken = -(-size_bytes // (2 << 20)) * (2 << 20)
        self.free -= taken
        self.held[len(self.held) + 1] = taken
        return len(self.held)

    def release(self, address: int) -> None:
        self.free += self.held[address]


def test_ballast_leaves_what_was_asked_for_and_is_given_back():
    memory = FakeMemory(139 * GIB)
    with ballast(memory, leaving_bytes=8 * GIB) as free:
        assert abs(free - 8 * GIB) <= 64 << 20
        assert len(memory.held) > 1
    assert memory.free == 139 * GIB


def test_ballast_of_a_card_that_has_less_takes_nothing():
    memory = FakeMemory(6 * GIB)
    with ballast(memory, leaving_bytes=8 * GIB) as free:
        assert free == 6 * GIB
    assert not memory.held


def test_the_engines_own_fit_is_understood():
    machine = a_machine(gpus=[a_gpu(0), a_gpu(1)])
    said = (
        "some log\n"
        "-c 4096 -ngl 5 -ts 3,2 "
        '-ot "blk\\.(1|2)\\.ffn_(up|down)_(ch|)exps=CPU,blk\\.3\\.x{1,2}=CUDA1"'
    )
    args = measure.fitted(said, a_model(), machine)
    assert args.n_gpu_layers == 5
    assert args.tensor_split == (3.0, 2.0)
    assert [device.engine_name for device in args.devices] == ["CUDA0", "CUDA1"]
    assert [(override.pattern, override.device) for override in args.overrides] == [
        ("blk\\.(1|2)\\.ffn_(up|down)_(ch|)exps", HOST),
        ("blk\\.3\\.x{1,2}", machine.gpus[1].id),
    ]


@pytest.mark.parametrize("said", ["", "failed to fit", "-c 4096"])
def test_what_the_fit_did_not_say_is_no_placement(said: str):
    with pytest.raises(ValueError, match="fit said"):
        measure.fitted(said, a_model(), a_machine(gpus=[a_gpu(0)]))


def test_every_residency_is_planned_or_says_why_not():
    machine = a_machine(gpus=[8 * GIB])
    found = list(measure.ways(a_model(), machine, lambda: "-c 4096 -ngl -1"))
    names = [way.name if isinstance(way, measure.Way) else way.placement for way in found]
    assert len(names) == len(set(names)) == 7
    assert isinstance(found[-1], measure.Way)
    assert found[-1].args.n_gpu_layers == 5  # four layers and the output

    def fails() -> str:
        raise OSError("no such program")

    *_, last = measure.ways(a_model(), machine, fails)
    assert isinstance(last, Row)
    assert last.failure == "no such program"


def a_report(*rows: Row) -> Report:
    return Report(
        hardware="a card", command="run it", model="m.gguf", rows=rows, transfers=a_transfer()
    )


def a_transfer() -> Transfers:
    return Transfers(expert_bytes=5_000_000, pinned_bytes_per_s=25e9, storage_to_card_s=0.0012)


def test_the_table_is_written_between_its_markers_again_and_again(tmp_path: Path):
    path = tmp_path / "gpu.md"
    path.write_text(f"before\n{BEGIN}\nnothing yet\n{END}\nafter\n")
    row = Row(
        placement="experts on the processor",
        free_bytes=8 * GIB,
        expert_fraction=0.25,
        planned_bytes=GIB,
        seen_bytes=2 * GIB,
        prefill_tokens_per_s=100.0,
        decode_tokens_per_s=12.34,
    )
    for _ in range(2):
        write_table(path, a_report(row, Row(placement="own fit", failure="did | not\nfit")))
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert text.count("experts on the processor") == 1
    line = "| 8.00 GiB | experts on the processor | 25% | 1.00 GiB | 2.00 GiB | 100.0 tok/s |"
    assert line in text
    assert "| - | own fit | - | - | - | did / not fit | - |" in text
    assert "25.0 GB/s" in text
    assert "1.20 ms for an expert of 5.00 MB" in text


def test_a_document_without_a_place_for_the_table_is_refused(tmp_path: Path):
    path = tmp_path / "gpu.md"
    path.write_text("nothing here\n")
    with pytest.raises(ValueError, match="no place"):
        write_table(path, a_report())
    assert path.read_text() == "nothing here\n"


def test_the_lines_of_a_table_have_as_many_cells_as_its_head():
    lines = [line for line in table_lines(a_report(Row(placement="x"))) if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def a_slot_row(share: float, way: str, rate: float | None, **changes) -> slots.SlotRow:
    values: dict[str, Any] = {
        "share": share,
        "way": way,
        "decode_tokens_per_s": rate,
        "expert_fraction": share,
    }
    return slots.SlotRow(**values | changes)


def test_slots_are_held_against_whole_layers_share_by_share():
    rows = [
        a_slot_row(0.25, slots.STATIC, 40.0, planned_bytes=8 * GIB, seen_bytes=9 * GIB),
        a_slot_row(0.25, slots.SLOTS, 44.0, hit_fraction=0.8, uploads_per_token=76.8),
        a_slot_row(0.5, slots.STATIC, 50.0),
        a_slot_row(0.5, slots.SLOTS, 70.0, upload_ms_per_token=2.5, uploads_per_token=9.0),
        a_slot_row(0.75, slots.STATIC, 60.0),
        a_slot_row(0.75, slots.SLOTS, None, failure="no | room"),
    ]
    found = slots.lines(rows, hardware="a card", command="run it", model="m.gguf")
    table = [line for line in found if line.startswith("|")]

    assert len({line.count("|") for line in table}) == 1
    assert "| 25% | whole layers | 25% | 8.00 GiB | 9.00 GiB | 40.0 tok/s | - | - |" in table
    assert "| 25% | slots | 25% | - | - | 44.0 tok/s | 80.0% | 76.8 |" in table
    assert table[5].endswith("| 70.0 tok/s | - | 9.0, 2.50 ms |")
    assert table[7].endswith("| no / room | - | - |")
    assert found[-2:] == [
        "At 25% slots decode 1.10 times as fast as whole layers.",
        "At 50% slots decode 1.40 times as fast as whole layers (the aim is 1.3).",
    ]


def test_both_sides_are_asked_for_the_same_share():
    asked = slots.strategies(0.5)
    assert {wish.expert_residency for wish in asked.values()} == {
        ExpertResidency(vram_fraction=0.5)
    }
    assert asked[slots.STATIC].streaming is StreamingMode.OFF
    assert asked[slots.SLOTS].streaming is StreamingMode.SLOTS


def test_the_script_of_slots_is_one_run_of_tokens():
    script = slots.a_script(is_small=False)
    tokens = (*script.prompt, *script.filling, *script.timed)
    assert tokens == tuple(range(tokens[0], tokens[0] + len(tokens)))


def test_the_document_has_a_place_for_both_tables():
    text = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8")
    for marker in (BEGIN, END, slots.BEGIN, slots.END):
        assert text.count(marker) == 1
