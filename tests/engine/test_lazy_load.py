"""The load mode `stream`: the file is mapped where it is, and no more of it is read than asked."""

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moerun.engine import abi
from moerun.engine.interface import MappedFile
from moerun.engine.lazy_load import advise_normal, mapped_files, model_files, without_reading
from moerun.errors import EngineRefused
from moerun.planning.strategy import LoadMode
from tests.engine.builders import ENGINE, arguments, device_references
from tests.engine.lossless_child import SHORT, run_script
from tests.engine.suppliers import Recording, host_layout
from tests.tiny_models import MOE_ARCHITECTURES, Shape, write_tiny_model

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux", reason="streaming is there on Linux only"),
]

LARGE = Shape(layers=6, width=512, expert_ff=512, experts=32)


class Looking(Recording):
    """Looks at the mapping as soon as it is handed over."""

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        super().attach(mapped)
        self.resident_bytes = sum(_field(part, "Rss:") for part in mapped)
        self.flags = {flag for part in mapped for flag in _flags(part)}


def _lines(part: MappedFile) -> list[str]:
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
        lines = smaps.read().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"{part.address:x}-"))
    last = next(i for i in range(first, len(lines)) if lines[i].startswith("VmFlags:"))
    return lines[first : last + 1]


def _field(part: MappedFile, name: str) -> int:
    """Return what a line of the mapping says, in bytes: `Rss` counts pages that it has mapped."""
    return next(int(line.split()[1]) * 1024 for line in _lines(part) if line.startswith(name))


def _flags(part: MappedFile) -> list[str]:
    return _lines(part)[-1].split()[1:]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("m") / "large.gguf", "qwen3moe", shape=LARGE)


def test_nothing_is_read_and_faults_read_ahead_again(large: Path):
    """`rr` in the flags of a mapping is MADV_RANDOM, which the engine leaves there."""
    supplier = Looking(host_layout(large))
    ENGINE.load(arguments(large, load_mode=LoadMode.STREAM), supplier=supplier).close()
    stock = Looking(host_layout(large))
    ENGINE.load(arguments(large), supplier=stock).close()

    assert stock.resident_bytes > 0.99 * large.stat().st_size > 20_000_000
    assert supplier.resident_bytes < 0.05 * stock.resident_bytes
    assert "rr" not in supplier.flags
    assert supplier.closed == 1


def test_the_engine_itself_would_leave_the_mapping_to_random_faults(large: Path):
    """If this changes, `advise_normal` has nothing to do."""
    opened = abi.open_engine()
    with without_reading(opened):
        session = ENGINE.load(arguments(large))
    mapped = mapped_files(str(large))
    assert all("rr" in _flags(part) for part in mapped)
    advise_normal(mapped)
    assert not any("rr" in _flags(part) for part in mapped)
    session.close()
    assert mapped_files(str(large)) == ()


def test_what_a_device_gets_is_read_with_read_ahead(large: Path, two_workers: tuple[str, str]):
    """The flag is gone before the first tensor is copied to the device."""
    flags: list[set[str]] = []

    def look(_: float) -> None:
        flags.append({flag for part in mapped_files(str(large)) for flag in _flags(part)})

    layout = host_layout(large, on_device=lambda name: "exps" not in name)
    args = arguments(
        large,
        devices=device_references(two_workers[:1]),
        workers=two_workers[:1],
        n_gpu_layers=2,
        load_mode=LoadMode.STREAM,
    )
    ENGINE.load(args, supplier=Recording(layout), on_progress=look).close()
    assert len(flags) > 10
    assert not any("rr" in seen for seen in flags)


def test_the_registry_is_as_it_was(large: Path, tmp_path: Path):
    opened = abi.open_engine()
    processor = opened.device_by_type(0)
    assert processor is not None
    address = opened.device_registration(processor)
    registration = abi.BackendRegistration.from_address(address)
    before = registration.get_proc_address
    with without_reading(opened):
        assert registration.get_proc_address != before
        ask = abi.GetProcedure(registration.get_proc_address)
        found = ask(address, b"ggml_backend_cpu_is_numa")
        assert abi.IsNuma(found)() is True
        ours = ask(address, b"ggml_backend_set_n_threads")
    assert registration.get_proc_address == before
    ask = abi.GetProcedure(before)
    assert ours == ask(address, b"ggml_backend_set_n_threads") != 0
    assert abi.IsNuma(ask(address, b"ggml_backend_cpu_is_numa"))() is False
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineRefused, match="could not load"):
        ENGINE.load(
            arguments(bad, load_mode=LoadMode.STREAM), supplier=Recording(host_layout(large))
        )
    assert registration.get_proc_address == before


def test_mappings_are_those_of_this_model_alone(tmp_path: Path):
    """All parts of a split model; not what another session has mapped of the same files."""
    first = write_tiny_model(tmp_path / "split.gguf", "mixtral", shards=3)
    other = write_tiny_model(tmp_path / "other.gguf", "mixtral")
    args = arguments(first, load_mode=LoadMode.STREAM)
    suppliers = [Recording(host_layout(first)) for _ in range(2)]
    stranger = ENGINE.load(arguments(other))
    sessions = [ENGINE.load(args, supplier=supplier) for supplier in suppliers]

    mine, theirs = ({part.address for part in supplier.mapped} for supplier in suppliers)
    assert mine
    assert not mine & theirs
    for supplier in suppliers:
        assert {part.path for part in supplier.mapped} == set(model_files(str(first)))
        for part in supplier.mapped:
            size = min(part.size_bytes, os.path.getsize(part.path) - part.offset_bytes)
            with open(part.path, "rb") as file:
                file.seek(part.offset_bytes)
                assert ctypes.string_at(part.address, size) == file.read(size)
    for session in (*sessions, stranger):
        session.close()


def test_files_are_found_through_links_and_odd_names(tmp_path: Path):
    folder = tmp_path / "a folder\nof two lines"
    folder.mkdir()
    target = write_tiny_model(tmp_path / "blob", "mixtral")
    link = folder / "model.gguf"
    link.symlink_to(target)
    supplier = Recording(host_layout(link))
    ENGINE.load(arguments(link, load_mode=LoadMode.STREAM), supplier=supplier).close()
    assert {part.path for part in supplier.mapped} == {str(link)}


def test_parts_of_a_split_model_by_name():
    assert model_files("/m/x.gguf") == ("/m/x.gguf",)
    assert model_files("/m/x-00002-of-00003.gguf") == tuple(
        f"/m/x-0000{number}-of-00003.gguf" for number in (1, 2, 3)
    )


@pytest.mark.parametrize("architecture", MOE_ARCHITECTURES)
def test_page_faults_alone_give_the_same_logits(
    architecture: str, tiny_model: Callable[[str], Path]
):
    path = tiny_model(architecture)
    rows = []
    for mode in (LoadMode.COPY, LoadMode.STREAM):
        supplier = Recording(host_layout(path)) if mode is LoadMode.STREAM else None
        session = ENGINE.load(arguments(path, load_mode=mode), supplier=supplier)
        rows.append(run_script(session, SHORT))
        session.close()
    assert np.array_equal(rows[0], rows[1])


def test_what_cannot_be_streamed_is_refused(large: Path):
    args = arguments(large, load_mode=LoadMode.STREAM)
    with pytest.raises(EngineRefused, match="supplies the experts"):
        ENGINE.load(args)
    with pytest.raises(EngineRefused, match="repacked") as caught:
        ENGINE.load(replace(args, extra_buffers=True), supplier=Recording(host_layout(large)))
    assert "--streaming off" in (caught.value.hint or "")


class Unwilling(Recording):
    """Does not take the mappings."""

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        super().attach(mapped)
        raise EngineRefused("The limit is below one token's experts.")


def test_a_supplier_that_declines_leaves_nothing_loaded(large: Path):
    supplier = Unwilling(host_layout(large))
    with pytest.raises(EngineRefused, match="below one token"):
        ENGINE.load(arguments(large, load_mode=LoadMode.STREAM), supplier=supplier)
    assert supplier.closed == 1
    assert mapped_files(str(large)) == ()


class StillMapped(Recording):
    """Looks whether its mappings are there when it is closed."""

    def close(self) -> None:
        super().close()
        self.last_byte = ctypes.string_at(self.mapped[0].address + 16, 1)


def test_a_supplier_is_closed_before_the_model_is_freed(large: Path):
    supplier = StillMapped(host_layout(large))
    session = ENGINE.load(arguments(large, load_mode=LoadMode.STREAM), supplier=supplier)
    session.close()
    session.close()
    assert supplier.closed == 1
    assert len(supplier.last_byte) == 1
