import pytest

from moerun.model.description import LatentSpec, TensorUse
from moerun.model.gguf_header import read_model
from tests.fixtures.make_models import as_json, compact, sketches
from tests.real_shapes import FOLDER, REAL_MODELS, fixture, real_model, write_sparse_gguf


def test_the_fixtures_are_what_the_script_writes():
    written = {name: as_json(compact(sketch)) for name, sketch in sketches().items()}
    assert {p.stem: p.read_text(encoding="utf-8") for p in FOLDER.glob("*.json")} == written


@pytest.mark.parametrize("name", REAL_MODELS)
def test_a_shape_weighs_what_was_published(name: str):
    model = real_model(name)
    weighed = sum(tensor.size_bytes for tensor in model.tensors)
    assert weighed == pytest.approx(fixture(name)["published_bytes"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen3-30b-a3b-q4_k_m", 30.53),
        ("qwen3-235b-a22b-q4_k_m", 235.09),
        ("gpt-oss-20b-mxfp4", 20.91),
        ("gpt-oss-120b-mxfp4", 116.83),
        ("mixtral-8x7b-q4_k_m", 46.70),
        ("deepseek-v3-q4_k_m", 671.03),
        ("glm-4.5-air-q4_k_m", 110.47),
    ],
)
def test_a_shape_has_the_published_parameters(name: str, billions: float):
    assert round(real_model(name).parameter_count / 1e9, 2) == billions


def test_deepseek_keeps_latents_and_three_dense_layers():
    model = real_model("deepseek-v3-q4_k_m")
    assert {layer.attention for layer in model.layers} == {
        LatentSpec(latent_length=512, rope_length=64)
    }
    assert [layer.index for layer in model.layers if not layer.is_sparse] == [0, 1, 2]


def test_the_prediction_block_of_glm_is_skipped():
    last = real_model("glm-4.5-air-q4_k_m").layers[-1]
    assert {tensor.use for tensor in last.tensors} == {TensorUse.SKIPPED}
    assert last.attention is None
    assert last.expert_bytes == 0


def test_a_sparse_file_has_its_true_size_in_parts_too(tmp_path):
    whole = read_model(write_sparse_gguf(tmp_path / "a.gguf", "qwen3-30b-a3b-q4_k_m", vocabulary=9))
    part = write_sparse_gguf(tmp_path / "b.gguf", "qwen3-30b-a3b-q4_k_m", vocabulary=9, shards=4)
    split = read_model(part)
    assert len(split.files) == 4
    assert split.weight_bytes == whole.weight_bytes
    assert [t.name for t in split.tensors] == [t.name for t in whole.tensors]
    assert whole.file_bytes > whole.weight_bytes > 17 << 30
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert used < 1 << 20
