"""The tiny models are what tests believe of them: small, repeatable, of mixed encodings."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Encoding

from tests.tiny_models import ARCHITECTURES, MOE_ARCHITECTURES, write_tiny_model
from tests.tiny_models.draft import BLOCK_SPREAD, Draft, Shape


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_is_small_and_the_same_for_one_seed(tmp_path: Path, architecture: str):
    first = write_tiny_model(tmp_path / "first.gguf", architecture)
    second = write_tiny_model(tmp_path / "second.gguf", architecture)
    other = write_tiny_model(tmp_path / "other.gguf", architecture, seed=1)

    assert first.stat().st_size < 3_100_000
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("architecture", MOE_ARCHITECTURES)
def test_has_experts_of_realistic_encodings(tmp_path: Path, architecture: str):
    reader = gguf.GGUFReader(write_tiny_model(tmp_path / "model.gguf", architecture))
    encodings = {t.tensor_type for t in reader.tensors if "_exps.weight" in t.name}

    assert encodings <= {*BLOCK_SPREAD, *map(Encoding, (2, 7, 8, 39))}
    assert len(encodings) >= 3 or encodings == {Encoding.MXFP4}


def test_tied_output_leaves_the_matrix_out(tmp_path: Path):
    path = write_tiny_model(tmp_path / "model.gguf", "qwen3moe", tied_output=True)

    assert "output.weight" not in {t.name for t in gguf.GGUFReader(path).tensors}


def test_shards_hold_all_tensors_once(tmp_path: Path):
    whole = write_tiny_model(tmp_path / "whole.gguf", "qwen3moe")
    first = write_tiny_model(tmp_path / "split.gguf", "qwen3moe", shards=3)
    shards = sorted(tmp_path.glob("split-*.gguf"))

    assert [shard.name for shard in shards] == [f"split-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert first == shards[0]
    names = [t.name for shard in shards for t in gguf.GGUFReader(shard).tensors]
    assert sorted(names) == sorted(t.name for t in gguf.GGUFReader(whole).tensors)


@pytest.mark.parametrize("encoding", [*BLOCK_SPREAD, Encoding.Q8_0, Encoding.MXFP4])
def test_random_weights_keep_the_scale_of_their_input(encoding: Encoding):
    draft = Draft("test", Shape(), seed=0, tied_output=False)
    draft.matrix("weights", 256, 512, encoding=encoding)
    weights = gguf.quants.dequantize(draft.tensors[0].data, encoding)

    assert weights.shape == (512, 256)
    assert np.std(weights) * 256**0.5 == pytest.approx(1.0, rel=0.1)
    assert abs(np.mean(weights)) * 256**0.5 < 0.1
