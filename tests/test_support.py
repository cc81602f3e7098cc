from pathlib import Path

import pytest

from moerun.errors import UnsupportedModel
from moerun.model.gguf_header import read_model
from tests.model_files import EXPERTS, WIDTH, a_model_file
from tests.sparse_gguf import TensorShape


def row(name: str, *shape: int, encoding: str) -> dict[str, TensorShape | None]:
    return {name: (name, shape, encoding)}


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            row("blk.1.ffn_gate_inp.weight", WIDTH, EXPERTS, encoding="F64"),
            r"'blk\.1\.ffn_gate_inp\.weight' \(router\) as F64, which the engine cannot use for "
            "matrix multiplication",
        ),
        (row("token_embd.weight", WIDTH, 64, encoding="I32"), r"\(input\) as I32"),
        (row("output.weight", WIDTH, 64, encoding="Q8_K"), r"\(output\) as Q8_K"),
        (row("blk.0.attn_q.weight", WIDTH, 256, encoding="I8"), r"\(attention\) as I8"),
        (
            row("blk.0.ffn_up_exps.weight", WIDTH, 256, EXPERTS, encoding="Q8_1"),
            r"\(expert\) as Q8_1, which the engine cannot use for expert matrix multiplication",
        ),
        (row("blk.0.attn_norm.weight", WIDTH, encoding="Q4_K"), r"\(norm\) as Q4_K"),
        (row("blk.0.attn_norm.weight", WIDTH, encoding="F16"), r"\(norm\) as F16"),
        (row("blk.0.attn_q.bias", 256, encoding="BF16"), "for elementwise arithmetic"),
        (
            row("blk.0.ffn_gate_tid2eid.weight", 8, 8, encoding="F32"),
            r"\(router\) as F32, which the engine cannot use for index lookup",
        ),
    ],
)
def test_an_encoding_that_the_engine_cannot_compute_is_named(
    tensors: dict[str, TensorShape | None], sentence: str, tmp_path: Path
):
    with pytest.raises(UnsupportedModel, match=sentence):
        read_model(a_model_file(tmp_path, tensors=tensors))


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4"])
def test_what_the_engine_computes_is_read(encoding: str, tmp_path: Path):
    tensors = row("blk.0.ffn_up_exps.weight", WIDTH, 256, EXPERTS, encoding=encoding)
    assert read_model(a_model_file(tmp_path, tensors=tensors)).is_sparse


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"token_embd.weight": None}, "no token_embd.weight"),
        (
            row("blk.0.ffn_up_exps.weight", WIDTH, 256, 3, encoding="Q4_K"),
            "holds 3 experts in 'blk.0.ffn_up_exps.weight' and claims 4",
        ),
        (row("blk.2.attn_norm.weight", WIDTH, encoding="F32"), "layer 2 and only 2 layers"),
        (row("blk.0.cache.weight", 32, encoding="F32"), "'blk.0.cache.weight', which this engine"),
        ({"blk.1.ffn_down_exps.weight": None}, "layer 1 and has no ffn_down_exps there"),
        (row("blk.0.ffn_gate.0.weight", WIDTH, 256, encoding="Q4_K"), "one tensor for each exp"),
    ],
)
def test_tensors_that_do_not_make_a_model(
    tensors: dict[str, TensorShape | None], sentence: str, tmp_path: Path
):
    with pytest.raises(UnsupportedModel, match=sentence):
        read_model(a_model_file(tmp_path, tensors=tensors))


def test_a_missing_layer_is_counted(tmp_path: Path):
    path = a_model_file(tmp_path, keys={"qwen3moe.block_count": 4})
    with pytest.raises(UnsupportedModel, match=r"no tensors of layer 2 \(2 of 4 layers"):
        read_model(path)


def test_a_file_without_weights_is_a_vocabulary(tmp_path: Path):
    from tests.model_files import a_models_keys
    from tests.sparse_gguf import write_sparse

    path = write_sparse(tmp_path / "v.gguf", a_models_keys(), [])
    with pytest.raises(UnsupportedModel, match="a vocabulary and no weights"):
        read_model(path)


def test_some_architectures_need_an_output_matrix_of_their_own(tmp_path: Path):
    path = a_model_file(tmp_path, architecture="olmoe", tensors={"output.weight": None})
    with pytest.raises(UnsupportedModel, match=r"has no output\.weight"):
        read_model(path)


def test_draft_blocks_of_an_architecture_that_has_none(tmp_path: Path):
    path = a_model_file(tmp_path, keys={"qwen3moe.nextn_predict_layers": 1})
    with pytest.raises(UnsupportedModel, match=r"a block for speculative decoding \('blk\.1\."):
        read_model(path)
