"""What the engine allocates and loads, against what the header says it will."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moerun.model.architectures import DIFFUSION, SPARSE, WITHOUT_MEMORY
from moerun.model.description import Model, TensorRole
from moerun.model.gguf_header import read_model
from moerun.model.state import kv_bytes, kv_encoding_problem, recurrent_bytes
from tests.engine.reports import FROM_KEYS, file_keys, reports, rows
from tests.model_keys import VOCABULARY
from tests.sparse_gguf import write_sparse
from tests.tiny_models import ARCHITECTURES, write_tiny_model

pytestmark = pytest.mark.engine

MIB = 1 << 20


def described(report: dict[str, Any], folder: Path) -> Model:
    """Return what moerun reads from a file with the keys and tensors that the engine uses."""
    name = report["architecture"]
    return read_model(
        write_sparse(folder / f"{name}.gguf", file_keys(name), list(rows(report).values()))
    )


@pytest.mark.parametrize("architecture", FROM_KEYS)
def test_every_architecture_keeps_what_the_engine_reports(architecture: str, tmp_path: Path):
    report = reports().get(architecture)
    assert report is not None, "the engine aborted on these keys"
    assert "error" not in report, report["error"]
    model = described(report, tmp_path)
    for context in report["contexts"]:
        if architecture == "grok" or context["made"]:
            assert_same_state(model, context)


def assert_same_state(model: Model, context: dict[str, Any]) -> None:
    setting = context["setting"]
    # grok has no flash attention in the engine, whatever is asked for
    flash = setting["flash_attention"] and model.architecture != "grok"
    kept = sum(
        kv_bytes(
            layer,
            context_tokens=setting["context_tokens"],
            ubatch_tokens=setting["ubatch_tokens"],
            sequences=setting["sequences"],
            unified=setting["unified"],
            swa_full=setting["swa_full"],
            flash_attention=flash,
            key_encoding=setting.get("key_encoding", "F16"),
            value_encoding=setting.get("value_encoding", "F16"),
        )
        for layer in model.layers
    )
    state = sum(recurrent_bytes(layer, sequences=setting["sequences"]) for layer in model.layers)
    assert kept == pytest.approx(*mib(context["cache_mib"])), setting
    assert state == pytest.approx(*mib(context["recurrent_mib"])), setting


def mib(printed: list[str]) -> tuple[float, float, float]:
    """Return printed sizes as bytes, no relative tolerance, and the rounding of the log."""
    return sum(map(float, printed)) * MIB, 0.0, (0.005 * len(printed) + 1e-6) * MIB


def test_every_sparse_architecture_is_covered():
    assert SPARSE - set(FROM_KEYS) == {"nomic-bert-moe"}
    assert len(SPARSE) >= 55


@pytest.mark.parametrize("architecture", sorted(SPARSE & set(FROM_KEYS)))
def test_the_engines_own_tensors_have_roles(architecture: str, tmp_path: Path):
    model = described(reports()[architecture], tmp_path)
    roles = {tensor.role for tensor in model.tensors}
    assert {TensorRole.INPUT, TensorRole.NORM, TensorRole.EXPERT, TensorRole.ROUTER} <= roles
    assert model.is_sparse
    for layer in model.layers:
        if layer.is_sparse:
            assert len(layer.expert_parts) >= 2
    if architecture not in DIFFUSION | WITHOUT_MEMORY:
        assert any(layer.attention or layer.recurrent for layer in model.layers)
    assert model.vocabulary_size == VOCABULARY


@pytest.fixture(scope="module")
def engine_sizes() -> Iterator[Any]:
    """Yield a function that loads a file without weights and returns the printed sizes."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from tests.engine.header_model import CACHE, RECURRENT, Probe, without_devices

    probe = Probe()

    def sizes(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
        probe.lines.clear()
        parameters = without_devices()
        parameters.no_alloc = True
        parameters.load_mode = 0
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert model, "".join(probe.lines[-3:])
        log = probe.context_log(model, setting)
        llama_cpp.llama_model_free(model)
        return {
            "setting": setting,
            "cache_mib": CACHE.findall(log),
            "recurrent_mib": RECURRENT.findall(log),
        }

    yield sizes
    # the callback dies with the probe: give the log back first
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), None)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("shards", [1, 3])
def test_tiny_files_keep_what_the_engine_reports(
    architecture: str, shards: int, tmp_path: Path, engine_sizes: Any
):
    path = write_tiny_model(tmp_path / "tiny.gguf", architecture, shards=shards)
    model = read_model(path)
    for context_tokens, ubatch_tokens in ((300, 64), (65536, 512)):
        setting = {
            "context_tokens": context_tokens,
            "ubatch_tokens": ubatch_tokens,
            "sequences": 1,
            "unified": False,
            "swa_full": False,
            "flash_attention": True,
        }
        assert_same_state(model, engine_sizes(path, setting))


@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2", "gpt-oss", "gemma2", "jamba"])
@pytest.mark.parametrize(
    ("key_encoding", "value_encoding"),
    [("F16", "F16"), ("F32", "F16"), ("Q8_0", "Q8_0"), ("Q4_0", "Q8_0"), ("BF16", "Q5_1")],
)
@pytest.mark.parametrize("flash_attention", [True, False])
def test_encodings_of_the_cache_are_taken_and_refused_as_told(
    architecture: str,
    key_encoding: str,
    value_encoding: str,
    flash_attention: bool,
    tmp_path: Path,
    engine_sizes: Any,
):
    model = read_model(write_tiny_model(tmp_path / "tiny.gguf", architecture))
    problem = kv_encoding_problem(
        model,
        key_encoding=key_encoding,
        value_encoding=value_encoding,
        flash_attention=flash_attention,
    )
    setting = {
        "context_tokens": 4096,
        "ubatch_tokens": 256,
        "sequences": 1,
        "unified": False,
        "swa_full": False,
        "flash_attention": flash_attention,
        "key_encoding": key_encoding,
        "value_encoding": value_encoding,
    }
    found = engine_sizes(Path(model.files[0].path), setting)
    assert bool(found["cache_mib"]) is (problem is None), problem
    if problem is None:
        assert_same_state(model, found)
