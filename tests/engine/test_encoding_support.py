"""The encodings that are let through are computed by the engine; those refused are not."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from moerun.errors import UnsupportedModel
from moerun.model.encodings import ENCODINGS
from moerun.model.gguf_header import read_header, read_model
from moerun.model.support import ALLOWED
from moerun.model.tensor_names import Operation
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.engine

COMPUTED = (Operation.MATRIX, Operation.EXPERT_MATRIX, Operation.LOOKUP, Operation.ELEMENTWISE)


def computed(operation: Operation, encodings: list[str]) -> list[str]:
    """Return the encodings with which a child decoded a token before it ended."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.engine.encoding_model", operation.name, *encodings],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        # ggml prints a trace through a debugger when it aborts, which takes seconds
        env={"PATH": "", "GGML_NO_BACKTRACE": "1"},
    )
    return child.stdout.split()


@pytest.mark.parametrize("operation", COMPUTED)
def test_what_is_let_through_is_computed(operation: Operation):
    allowed = sorted(ALLOWED[operation])
    assert computed(operation, allowed) == allowed


@pytest.mark.parametrize("operation", COMPUTED)
def test_what_is_refused_is_not_computed(operation: Operation):
    refused = sorted({e.name for e in ENCODINGS.values()} - ALLOWED[operation])
    if operation is Operation.ELEMENTWISE:
        # one of each kind: every abort costs a process
        refused = ["BF16", "F16", "F64", "I32", "Q8_0"]
    assert [e for e in refused if computed(operation, [e])] == []


@pytest.mark.parametrize("architecture", ["olmoe", "qwen2moe", "phimoe", "minimax-m2", "dbrx"])
def test_the_engine_refuses_what_lacks_an_output_too(architecture: str, tmp_path: Path):
    whole = write_tiny_model(tmp_path / "whole.gguf", architecture)
    assert load(whole) == ""
    raw = whole.read_bytes()
    name = struct.pack("<Q", len("output.weight")) + b"output.weight"
    assert raw.count(name) == 1
    # the same length, and a name that no architecture asks for
    path = tmp_path / "without.gguf"
    path.write_bytes(raw.replace(name, name.replace(b"output", b"outpux")))
    assert "tensor 'output.weight' not found" in load(path)
    with pytest.raises(UnsupportedModel):
        read_model(path)


def test_the_engine_refuses_draft_blocks_where_an_architecture_has_none(tmp_path: Path):
    path = write_tiny_model(tmp_path / "m.gguf", "qwen3moe")
    raw = path.read_bytes()
    # a key of the same length and type, which the engine does not need
    spare = b"qwen3moe.attention.value_length"
    wanted = b"qwen3moe.nextn_predict_layers"
    begin = raw.index(struct.pack("<Q", len(spare)) + spare)
    end = begin + 8 + len(spare) + 4 + 4
    key = struct.pack("<Q", len(wanted)) + wanted + struct.pack("<II", 4, 1)
    header_end = read_header(path).files[0].data_offset_bytes
    header = raw[:begin] + key + raw[end:header_end]
    path.write_bytes(header + bytes(header_end - len(header)) + raw[header_end:])
    assert "wrong number of tensors" in load(path)
    with pytest.raises(UnsupportedModel, match="for speculative decoding"):
        read_model(path)


def load(path: Path) -> str:
    """Load a file in a child; return what the engine says when it refuses, or nothing."""
    lines = (
        "import llama_cpp, sys",
        "parameters = llama_cpp.llama_model_default_params()",
        "parameters.no_alloc, parameters.load_mode = True, 0",
        "model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), parameters)",
        "sys.exit(0 if model else 3)",
    )
    child = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if child.returncode == 0 else child.stderr
