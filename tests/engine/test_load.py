"""Loading: what the arguments do, what comes out equal to the bit, and how it fails."""

import ctypes
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from moerun.engine.abi import LogLevel
from moerun.engine.arguments import Override
from moerun.engine.engine_log import engine_log
from moerun.engine.interface import Engine, EngineSession
from moerun.engine.llama import LlamaEngine, evaluate
from moerun.engine.rpc_worker import loopback_worker
from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe
from moerun.errors import (
    EngineOutOfMemory,
    EngineRefused,
    ModelNotFound,
    MoerunError,
    UsageError,
)
from moerun.machine.description import HOST, DeviceId
from moerun.planning.strategy import LoadMode, Toggle
from moerun.units import MIB
from tests.engine.builders import ENGINE, arguments, device_references
from tests.engine.plain import Script, Settings, plain_logits

pytestmark = pytest.mark.engine

TOKENS = tuple(range(260, 300)) * 2
EXPERTS = Override(pattern=r"\.ffn_(gate|up|down)_exps\.", device=HOST)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "tiny.gguf"
    write_tiny_moe(path)
    return path


def logits(args) -> bytes:
    session = ENGINE.load(args)
    try:
        return evaluate(session, TOKENS).tobytes()
    finally:
        session.close()


@pytest.fixture(scope="module")
def reference(model: Path) -> bytes:
    settings = Settings(ubatch_tokens=32, context_tokens=512)
    return plain_logits(model, settings, Script(prompt=TOKENS, steps=())).tobytes()


def on_the_settings(model: Path, **changes):
    return arguments(model, batch_tokens=2048, flash_attention=Toggle.ON, **changes)


@pytest.mark.parametrize("mode", [m for m in LoadMode if m is not LoadMode.STREAM])
def test_every_load_mode_gives_plain_llamas_logits(model: Path, reference: bytes, mode: LoadMode):
    assert logits(on_the_settings(model, load_mode=mode)) == reference


def test_overrides_on_the_processor_change_nothing(model: Path, reference: bytes):
    assert logits(on_the_settings(model, overrides=(EXPERTS,))) == reference


def test_devices_give_the_same_logits_and_hold_what_they_should(model: Path, reference: bytes):
    with loopback_worker() as first, loopback_worker() as second:
        both = device_references((first, second))
        placed = on_the_settings(
            model, devices=both[:1], n_gpu_layers=99, overrides=(EXPERTS,), workers=(first,)
        )
        assert logits(placed) == reference
        session = ENGINE.load(placed)
        kinds = {(b.kind, b.device) for b in session.report.buffers}
        moved = [line for line in session.load_log if "overridden to CPU" in line]
        session.close()
        assert {("model", both[0].id), ("kv", both[0].id), ("model", HOST)} <= kinds
        assert ("kv", HOST) not in kinds
        assert len(moved) == 9

        split = on_the_settings(model, devices=both, n_gpu_layers=99, tensor_split=(1.0, 1.0))
        assert logits(split) == reference
        session = ENGINE.load(split)
        assert {b.device for b in session.report.buffers if b.kind == "kv"} == {
            reference.id for reference in both
        }
        session.close()

        to_second = replace(
            placed,
            devices=both,
            tensor_split=(1.0, 0.0),
            overrides=(Override(pattern=r"blk\.1\.ffn_up_exps", device=both[1].id), EXPERTS),
        )
        assert logits(to_second) == reference
        session = ENGINE.load(to_second)
        weights = [b.device for b in session.report.buffers if b.kind == "model"]
        session.close()
        assert both[1].id in weights


def test_it_is_what_runners_ask_for(model: Path):
    engine: Engine = LlamaEngine(log_sink=None)
    session: EngineSession = engine.load(arguments(model))
    assert session.report.notes == ()
    assert session.model_defaults == {}
    session.close()


def test_no_devices_means_none_even_when_workers_are_known(model: Path):
    with loopback_worker() as worker:
        device_references((worker,))
        session = ENGINE.load(arguments(model, n_gpu_layers=99))
        assert {b.device for b in session.report.buffers} == {HOST}
        session.close()


def test_paths_with_any_characters(tmp_path: Path):
    path = tmp_path / "Modèle 模型 🦙.gguf"
    write_tiny_moe(path)
    ENGINE.load(arguments(path)).close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems want text in names")
def test_paths_that_are_no_text(tmp_path: Path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff\xfe.gguf")
    write_tiny_moe(tmp_path / "sound.gguf")
    os.rename(tmp_path / "sound.gguf", path)
    ENGINE.load(arguments(Path(os.fsdecode(path)))).close()


def test_settings_reach_the_context(model: Path):
    session = ENGINE.load(
        arguments(
            model,
            context_tokens=1000,
            kv_encoding_k="Q8_0",
            kv_encoding_v="q8_0",
            flash_attention=Toggle.ON,
        )
    )
    log = "\n".join(session.load_log)
    assert session.report.context_tokens == 1024  # padded to 256
    assert "K (q8_0)" in log
    assert "V (q8_0)" in log
    assert "n_ubatch              = 32" in log
    assert "n_batch               = 64" in log
    assert "flash_attn            = enabled" in log
    assert session.report.engine_version == "0.3.36"
    session.close()


@pytest.mark.parametrize(
    ("asked", "is_on"), [(Toggle.AUTO, True), (Toggle.ON, True), (Toggle.OFF, False)]
)
def test_the_report_says_whether_flash_attention_is_on(model: Path, asked: Toggle, is_on: bool):
    session = ENGINE.load(arguments(model, flash_attention=asked))
    assert session.report.flash_attention is is_on
    session.close()


def test_progress_comes_and_may_stop_the_load(tmp_path: Path):
    path = tmp_path / "larger.gguf"
    write_tiny_moe(path, shape=TinyShape(layers=8, width=256))
    seen: list[float] = []
    ENGINE.load(arguments(path, load_mode=LoadMode.COPY), on_progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    class Enough(Exception):
        pass

    def stop(_: float) -> None:
        raise Enough

    with pytest.raises(Enough):
        ENGINE.load(arguments(path), on_progress=stop)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"load_mode": LoadMode.STREAM}, EngineRefused, "stream"),
        ({"kv_encoding_k": "Q3_K"}, UsageError, "Q3_K"),
        ({"context_tokens": 0}, UsageError, "context"),
        ({"threads": -1}, UsageError, "thread count"),
        ({"tensor_split": (1.0,)}, EngineRefused, "1 devices"),
        ({"overrides": (Override(pattern="", device=HOST),)}, EngineRefused, "empty pattern"),
        ({"overrides": (Override(pattern="(", device=HOST),)}, EngineRefused, "load the model"),
        (
            {"overrides": (Override(pattern="x", device=DeviceId("gpu:none")),)},
            EngineRefused,
            "gpu:none",
        ),
        ({"flash_attention": Toggle.OFF, "kv_encoding_v": "Q8_0"}, EngineRefused, "flash_attn"),
        ({"workers": ("127.0.0.1:1",)}, EngineRefused, "cannot be reached"),
    ],
)
def test_arguments_that_cannot_be(model: Path, changes, kind, words):
    with pytest.raises(kind, match=words):
        ENGINE.load(arguments(model, **changes))


def test_files_that_cannot_be_loaded(model: Path, tmp_path: Path):
    with pytest.raises(ModelNotFound, match="no model file"):
        ENGINE.load(arguments(tmp_path / "absent.gguf"))
    with pytest.raises(ModelNotFound):
        ENGINE.load(arguments(tmp_path))
    data = model.read_bytes()
    for name, content, words in (
        ("truncated", data[:-1000], "file bounds"),
        ("empty", b"", "could not load"),
        ("text", b"not a model at all", "could not load"),
        ("other architecture", data.replace(b"qwen3moe", b"qwen9moe"), "qwen9moe"),
    ):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(EngineRefused, match=words) as caught:
            ENGINE.load(arguments(path))
        assert "\n" not in caught.value.message
        assert caught.value.log_tail


def test_too_little_memory_names_the_device_and_the_bytes(model: Path):
    with loopback_worker(64 * MIB) as worker:
        (device,) = device_references((worker,))
        with pytest.raises(EngineOutOfMemory) as caught:
            ENGINE.load(arguments(model, devices=(device,), n_gpu_layers=99, context_tokens=2**20))
        assert caught.value.device == device.id
        # 3 layers, K and V, 2 heads of 32 numbers of 2 bytes, 2^20 tokens
        assert caught.value.requested_bytes == 3 * 2 * 64 * 2 * 2**20
        assert "768.0 MiB" in caught.value.message or "0.8 GiB" in caught.value.message
        ENGINE.load(arguments(model, devices=(device,), n_gpu_layers=99)).close()


def test_a_failed_load_leaves_the_engine_usable(model: Path, tmp_path: Path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    for _ in range(3):
        with pytest.raises(MoerunError):
            ENGINE.load(arguments(bad))
    ENGINE.load(arguments(model)).close()


def test_a_closed_session_says_so(model: Path):
    session = ENGINE.load(arguments(model))
    session.close()
    session.close()
    with pytest.raises(EngineRefused, match="closed"):
        session.evaluate((260,))


def test_the_log_is_handed_on_and_bounded(model: Path):
    lines: list[str] = []
    LlamaEngine(log_sink=lines.append).load(arguments(model)).close()
    assert any("model buffer size" in line for line in lines)
    assert all(line.endswith("\n") for line in lines)
    log = engine_log()
    log.sink = None
    mark = log.mark()
    for _ in range(25_000):
        log.receive(2, "line\n")
    assert len(log.since(0)) == 20_000
    assert log.mark() == mark + 25_000


def test_pieces_of_lines_become_one(model: Path):
    log = engine_log()
    log.sink = None
    mark = log.mark()
    log.receive(2, "one ")
    log.receive(5, "line\n")
    log.receive(4, "a bad one\nand more\n")
    assert log.since(mark) == ("one line", "a bad one", "and more")
    assert log.since(mark, least=LogLevel.ERROR) == ("a bad one", "and more")


def test_logits_are_real_numbers_of_every_token(model: Path):
    session = ENGINE.load(arguments(model))
    rows = evaluate(session, TOKENS)
    session.close()
    assert rows.shape == (len(TOKENS), 320)
    assert rows.dtype == numpy.float32
    assert numpy.isfinite(rows).all()
    assert ctypes.sizeof(ctypes.c_float) == rows.itemsize
