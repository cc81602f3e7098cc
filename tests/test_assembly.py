from pathlib import Path

import pytest

from moerun.model.description import ExpertPart, Model, TensorRole, TensorUse
from moerun.model.gguf_header import read_model
from tests.model_files import EXPERTS, LAYERS, VOCABULARY, WIDTH, a_model_file
from tests.tiny_models import write_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return read_model(a_model_file(tmp_path))


def test_the_facts_of_a_model(model: Model):
    assert (model.name, model.architecture, model.quantization) == ("a model", "qwen3moe", "Q4_K_M")
    assert (model.expert_count, model.experts_used) == (EXPERTS, 2)
    assert (model.train_context_tokens, model.embedding_length) == (4096, WIDTH)
    assert model.vocabulary_size == VOCABULARY
    assert not model.has_tied_output
    assert model.generates_text
    assert model.cautions == ()


def test_layers_hold_what_their_tensors_weigh(model: Model):
    assert [layer.index for layer in model.layers] == list(range(LAYERS))
    first = model.layers[0]
    assert first.expert_parts == (ExpertPart.GATE, ExpertPart.UP, ExpertPart.DOWN)
    one_q4, one_q6 = 256 * 144 * EXPERTS, 256 * 210 * EXPERTS
    assert first.expert_part_bytes(ExpertPart.GATE) == one_q4
    assert first.expert_part_bytes(ExpertPart.DOWN) == one_q6
    assert first.expert_bytes == 2 * one_q4 + one_q6
    assert model.expert_bytes_per_token == model.expert_bytes // 2


def test_every_byte_is_in_one_place(model: Model):
    assert sum(t.size_bytes for t in model.tensors) == model.weight_bytes
    assert {t.role for t in model.shared} == {
        TensorRole.INPUT,
        TensorRole.NORM,
        TensorRole.OUTPUT,
    }
    file = model.files[0]
    assert file.size_bytes == file.data_offset_bytes + model.weight_bytes
    ends = [t.offset_bytes + t.size_bytes for t in model.tensors]
    assert max(ends) == file.size_bytes


def test_parameters_are_counted_from_shapes(model: Model):
    values = 0
    for tensor in model.tensors:
        count = 1
        for extent in tensor.shape:
            count *= extent
        values += count
    assert model.parameter_count == values


def test_a_missing_output_matrix_means_that_the_embedding_is_loaded_twice(tmp_path: Path):
    model = read_model(a_model_file(tmp_path, tensors={"output.weight": None}))
    assert model.has_tied_output
    uses = {t.name: t.use for t in model.shared}
    assert uses["token_embd.weight"] is TensorUse.DUPLICATED


def test_rotary_factors_lie_on_every_device_with_layers(tmp_path: Path):
    tensors = {"rope_freqs.weight": ("rope_freqs.weight", (32,), "F32")}
    model = read_model(a_model_file(tmp_path, tensors=tensors))
    (factors,) = [t for t in model.tensors if t.name == "rope_freqs.weight"]
    assert (factors.layer, factors.use) == (0, TensorUse.REPEATED)


def test_skipped_blocks_weigh_nothing(tmp_path: Path):
    model = read_model(write_tiny_model(tmp_path / "g.gguf", "glm4moe"))
    last = model.layers[-1]
    assert last.tensors
    assert {t.use for t in last.tensors} == {TensorUse.SKIPPED}
    assert (last.attention, last.expert_bytes, last.dense_bytes) == (None, 0, 0)
    assert "the engine does not run them" in model.cautions[0]


def test_the_same_header_has_the_same_digest_and_another_has_another(tmp_path: Path):
    first = read_model(a_model_file(tmp_path, name="a.gguf"))
    again = read_model(a_model_file(tmp_path, name="b.gguf"))
    other = read_model(
        a_model_file(tmp_path, keys={"qwen3moe.context_length": 8192}, name="c.gguf")
    )
    retyped = read_model(
        a_model_file(
            tmp_path,
            tensors={"output.weight": ("output.weight", (WIDTH, VOCABULARY), "F16")},
            name="d.gguf",
        )
    )
    assert first.digest == again.digest
    assert len({first.digest, other.digest, retyped.digest}) == 3


def test_without_a_file_type_the_heaviest_encoding_names_the_model(tmp_path: Path):
    model = read_model(a_model_file(tmp_path, keys={"general.file_type": None}))
    assert model.quantization == "Q4_K"
    guessed = read_model(a_model_file(tmp_path, keys={"general.file_type": 1024 + 7}))
    assert guessed.quantization == "Q8_0"


def test_a_model_without_a_name_is_called_after_its_file(tmp_path: Path):
    model = read_model(a_model_file(tmp_path, keys={"general.name": None}, name="tom.gguf"))
    assert model.name == "tom"
