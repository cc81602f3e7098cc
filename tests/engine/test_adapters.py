"""LoRA adapters in the real engine: what they change, what they take, and streaming with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import Llama

from moerun.engine.arguments import predicted_buffers
from moerun.engine.interface import AnswerPart, GenerationRequest, Sampling
from moerun.engine.llama import evaluate
from moerun.engine.load_log import COMPUTE
from moerun.engine.tiny_gguf import write_tiny_moe
from moerun.errors import EngineRefused, UnsupportedModel
from moerun.model.adapters import with_adapters
from moerun.model.gguf_file import read_file
from moerun.model.gguf_header import read_model
from moerun.planning.strategy import LoadMode, StreamingMode, Toggle
from moerun.runner.parent import Runner
from tests.adapters import TINY, write_adapter
from tests.engine.builders import ENGINE, arguments
from tests.engine.streaming import an_order, write_model

pytestmark = pytest.mark.engine

TOKENS = tuple(range(260, 300))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "tiny.gguf"
    write_tiny_moe(path)
    return path


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    return write_adapter(model.parent / "adapter.gguf", TINY)


def logits(args) -> np.ndarray:
    session = ENGINE.load(args)
    try:
        return evaluate(session, TOKENS)
    finally:
        session.close()


def on_the_settings(model: Path, **changes):
    return arguments(
        model, batch_tokens=64, ubatch_tokens=64, flash_attention=Toggle.OFF, **changes
    )


def plain(model: Path, adapter: Path | None) -> np.ndarray:
    """Return the logits of llama-cpp-python itself, with its own way to apply an adapter."""
    llama = Llama(
        str(model),
        n_ctx=512,
        n_batch=64,
        n_ubatch=64,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        flash_attn=False,
        lora_path=None if adapter is None else str(adapter),
        verbose=False,
    )
    try:
        llama.eval(list(TOKENS))
        return np.array(llama.scores[: len(TOKENS)], dtype=np.float32)
    finally:
        llama.close()


def test_logits_are_those_of_llama_cpp_python_with_the_same_adapter(model: Path, adapter: Path):
    bare, applied = plain(model, None), plain(model, adapter)
    assert not np.array_equal(bare, applied)
    args = on_the_settings(model, extra_buffers=True)
    assert logits(args).tobytes() == bare.tobytes()
    with_adapter = on_the_settings(model, extra_buffers=True, adapters=(str(adapter),))
    assert logits(with_adapter).tobytes() == applied.tobytes()


@pytest.mark.parametrize("mode", [LoadMode.MMAP, LoadMode.COPY])
@pytest.mark.parametrize("extra_buffers", [False, True])
def test_it_takes_what_is_planned(model: Path, adapter: Path, mode: LoadMode, extra_buffers: bool):
    described = with_adapters(read_model(model), (read_file(adapter),))
    args = on_the_settings(
        model, load_mode=mode, extra_buffers=extra_buffers, adapters=(str(adapter),)
    )
    predicted = [b for b in predicted_buffers(args, described) if b.kind == "adapter"]
    session = ENGINE.load(args)
    reported = [b for b in session.report.buffers if b.kind == "adapter"]
    compute = [b.size_bytes for b in session.report.buffers if b.kind == COMPUTE]
    session.close()
    (planned,), (found,) = predicted, reported
    assert planned.device == found.device
    assert abs(planned.size_bytes - found.size_bytes) <= 5243  # the log's rounding
    bare = ENGINE.load(on_the_settings(model, load_mode=mode, extra_buffers=extra_buffers))
    assert [b.size_bytes for b in bare.report.buffers if b.kind == COMPUTE] == compute
    bare.close()


def test_two_adapters_add_up(model: Path, adapter: Path):
    other = write_adapter(model.parent / "other.gguf", TINY, seed=9)
    described = with_adapters(read_model(model), (read_file(adapter), read_file(other)))
    added = sum(entry.size_bytes for path in (adapter, other) for entry in read_file(path).tensors)
    assert described.weight_bytes == read_model(model).weight_bytes + added
    one = logits(on_the_settings(model, adapters=(str(adapter),)))
    both = logits(on_the_settings(model, adapters=(str(adapter), str(other))))
    assert not np.array_equal(one, both)


@pytest.mark.parametrize("mode", [StreamingMode.CACHE, StreamingMode.PAGING])
def test_streaming_with_an_adapter_is_bit_equal(tmp_path: Path, mode: StreamingMode):
    path = write_model(tmp_path / "streams.gguf")
    shapes = {tensor.name: tensor.shape for tensor in read_model(path).tensors}
    changed = ("attn_q.weight", "attn_output.weight", "ffn_gate_inp.weight")
    matrices = {name: shapes[name] for name in shapes if name.endswith(changed)}
    adapter = write_adapter(tmp_path / "adapter.gguf", matrices)
    assert said(tmp_path, path, None, ()) != said(tmp_path, path, None, (str(adapter),))
    whole = said(tmp_path, path, None, (str(adapter),))
    assert said(tmp_path, path, an_order(path, mode=mode), (str(adapter),)) == whole


def said(folder: Path, path: Path, order, adapters: tuple[str, ...]) -> list[tuple[int, float]]:
    """Return the tokens of an answer and the logarithms of their probabilities."""
    request = GenerationRequest(
        prompt="w300 w301 w302",
        sampling=Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=7),
        maximum_tokens=40,
        top_logprobs=0,
    )
    found: list[tuple[int, float]] = []

    def receive(part: AnswerPart) -> None:
        found.extend((entry.token, entry.logprob) for entry in part.logprobs)

    mode = LoadMode.MMAP if order is None else LoadMode.STREAM
    with Runner(log_folder=folder) as runner:
        runner.load(arguments(path, load_mode=mode, adapters=adapters), streaming=order)
        runner.generate(request, on_part=receive)
    assert len(found) == 40
    return found


def test_what_the_engine_does_not_take_is_refused_and_freed(model: Path):
    with pytest.raises(EngineRefused, match="does not take the adapter"):
        ENGINE.load(on_the_settings(model, adapters=(str(model),)))
    ENGINE.load(on_the_settings(model)).close()


@pytest.mark.parametrize(
    ("matrices", "changes", "message"),
    [
        (TINY, {"architecture": "llama"}, "is an adapter for models of llama"),
        (TINY, {"kind": "model"}, "only LoRA adapters can be applied"),
        (TINY, {"form": "control_vector"}, "only LoRA adapters can be applied"),
        ({"blk.9.attn_q.weight": (128, 128)}, {}, "does not have; it was made for another model"),
        ({"blk.0.attn_q.weight": (96, 128)}, {}, "do not make one of"),
        ({"blk.0.ffn_up_exps.weight": (128, 64, 8)}, {}, "changes experts"),
        ({"token_embd.weight": (128, 320)}, {}, "changes the input embedding"),
        ({}, {}, "holds an adapter without matrices"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_its_header(
    model: Path, tmp_path: Path, matrices, changes, message: str
):
    path = write_adapter(tmp_path / "odd.gguf", matrices, **changes)
    with pytest.raises(UnsupportedModel, match=message):
        with_adapters(read_model(model), (read_file(path),))


def test_a_model_with_an_adapter_answers_by_its_name(model: Path, adapter: Path, tmp_path: Path):
    (tmp_path / "Modelfile").write_text(
        f"FROM {model}\nADAPTER {adapter}\nPARAMETER temperature 0\nPARAMETER num_predict 16\n"
    )
    (tmp_path / "Plainfile").write_text(
        f"FROM {model}\nPARAMETER temperature 0\nPARAMETER num_predict 16\n"
    )
    moerun(["create", "changed"], tmp_path)
    moerun(["create", "plain", "-f", "Plainfile"], tmp_path)
    said = {
        name: json.loads(moerun(["run", name, "--json", "Hello"], tmp_path))
        for name in ("changed", "plain")
    }
    assert said["changed"]["answer"] != said["plain"]["answer"]
    rows = {row["name"] for row in said["changed"]["plan"]["buffers"]}
    assert "adapters" in rows
    assert "adapters" not in {row["name"] for row in said["plain"]["plan"]["buffers"]}


def moerun(arguments: list[str], folder: Path) -> str:
    """Run the program with places of its own, and return what it answers."""
    names = {
        "MOERUN_MODELS": "models",
        "MOERUN_CONFIG_DIR": "config",
        "MOERUN_STATE_DIR": "state",
    }
    environment = os.environ | {name: str(folder / place) for name, place in names.items()}
    command = [sys.executable, "-m", "moerun", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
