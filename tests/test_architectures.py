import pytest

from moerun.errors import UnsupportedModel
from moerun.model import architectures
from moerun.model.gguf_header import read_model
from tests.model_files import a_model_file


def test_every_name_is_in_one_set():
    assert not architectures.SPARSE & architectures.DENSE
    assert not architectures.KNOWN & set(architectures.NOT_A_MODEL)
    assert len(architectures.SPARSE) >= 55


@pytest.mark.parametrize(
    "subset",
    [
        architectures.ENCODERS,
        architectures.DIFFUSION,
        architectures.RECURRENT,
        architectures.RECURRENT_WITHOUT_KV_HEADS,
        architectures.RECURRENT_AND_ATTENTION,
        architectures.NEMOTRON_HYBRIDS,
        architectures.READS_LATENT_KEYS,
        architectures.READS_KDA,
        architectures.READS_WKV,
        architectures.READS_SHORT_CONVOLUTION,
        architectures.INDEXED,
        architectures.SKIPS_PREDICTION_BLOCKS,
        architectures.LAYERS_WITHOUT_TENSORS,
        architectures.NEEDS_OUTPUT,
        architectures.HAS_NO_OUTPUT,
        architectures.WINDOW_ON_ALL_ATTENTION,
        frozenset(architectures.WINDOWS),
        frozenset(architectures.RECURRENT_BY_INTERVAL),
    ],
)
def test_rules_speak_of_known_architectures(subset: frozenset[str]):
    assert subset <= architectures.KNOWN


def test_an_unknown_architecture_is_named_with_a_way_out(tmp_path):
    path = a_model_file(tmp_path, keys={"general.architecture": "qwen99moe"})
    with pytest.raises(UnsupportedModel, match=r"'qwen99moe'.* a newer moerun may know it"):
        read_model(path)


@pytest.mark.parametrize("name", sorted(architectures.NOT_A_MODEL))
def test_what_is_no_model_is_refused_by_name(name: str, tmp_path):
    path = a_model_file(tmp_path, keys={"general.architecture": name})
    with pytest.raises(UnsupportedModel, match="name the file of the model itself"):
        read_model(path)


@pytest.mark.parametrize("kind", ["mmproj", "adapter", "imatrix", "vocab"])
def test_files_of_another_type_are_refused_by_name(kind: str, tmp_path):
    path = a_model_file(tmp_path, keys={"general.type": kind})
    with pytest.raises(UnsupportedModel, match=f"of the type '{kind}'"):
        read_model(path)
