"""The catalogue against what was published: parameters, sizes, sources.

Knows: that published sizes stand in the entries, with where they were read.
Does not know: how sizes are derived.
"""

import re

import pytest

from moerun.errors import ModelNotFound, UsageError
from moerun.model.catalog import catalog_entry, catalog_names
from moerun.model.catalog_model import catalog_model, derived_model, quantization_of
from moerun.model.description import LatentSpec, RecurrentSpec, TensorRole, TensorUse
from moerun.model.encodings import row_bytes

LEAST_ENTRIES = 25
LEAST_WITH_PUBLISHED_SIZES = 15
TOLERANCE = 0.02
PUBLISHED = [
    (name, number)
    for name in catalog_names()
    for number in range(len(catalog_entry(name).published_sizes))
]


def test_there_are_enough_entries_and_published_sizes():
    assert len(catalog_names()) >= LEAST_ENTRIES
    assert len({name for name, _ in PUBLISHED}) >= LEAST_WITH_PUBLISHED_SIZES


@pytest.mark.parametrize(("name", "number"), PUBLISHED)
def test_a_derived_size_is_what_was_published(name: str, number: int):
    published = catalog_entry(name).published_sizes[number]
    model = derived_model(name, published.quantization)
    weights_bytes = sum(tensor.size_bytes for tensor in model.tensors)
    derived = model.file_bytes if published.counts_header else weights_bytes
    assert derived == pytest.approx(published.size_bytes, rel=TOLERANCE)


@pytest.mark.parametrize("name", catalog_names())
def test_an_entry_has_the_published_number_of_parameters(name: str):
    entry, model = catalog_entry(name), catalog_model(name)
    if entry.parameter_count_billions is not None:
        assert round(model.parameter_count / 1e9, 2) == entry.parameter_count_billions
    assert model.is_sparse
    assert model.generates_text
    assert model.experts_used < model.expert_count


@pytest.mark.parametrize("name", catalog_names())
def test_every_quantization_of_an_entry_makes_a_sound_model(name: str):
    entry = catalog_entry(name)
    assert entry.recommended in entry.quantizations
    sizes = []
    for quantization in entry.quantizations:
        model = catalog_model(name, quantization.lower())
        assert model.quantization == quantization
        sizes.append(model.file_bytes)
        for tensor in model.tensors:
            rows = 1
            for extent in tensor.shape[1:]:
                rows *= extent
            assert tensor.size_bytes == rows * row_bytes(tensor.encoding, tensor.shape[0])
            if tensor.use in (TensorUse.LOADED, TensorUse.DUPLICATED):
                assert tensor.role is not TensorRole.OTHER
    assert sizes == sorted(sizes, reverse=True), "the largest quantization comes first"


@pytest.mark.parametrize("name", catalog_names())
def test_what_an_entry_says_was_read_somewhere_on_some_day(name: str):
    entry = catalog_entry(name)
    assert entry.repositories
    for repository in entry.repositories:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+-GGUF", repository)
    for source in (entry.numbers, *(size.source for size in entry.published_sizes)):
        assert len(source.text) > 20
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", source.read_on)


def test_a_quantization_is_known_in_any_case_and_the_recommended_one_is_meant_without():
    entry = catalog_entry("Qwen3-30B-A3B")
    assert quantization_of(entry, None) == "Q4_K_M"
    assert quantization_of(entry, "q8_0") == "Q8_0"
    with pytest.raises(UsageError, match="does not know qwen3-30b-a3b in UD-Q4_K_XL") as error:
        quantization_of(entry, "UD-Q4_K_XL")
    assert "hf.co/Qwen/Qwen3-30B-A3B-GGUF:UD-Q4_K_XL" in (error.value.hint or "")
    with pytest.raises(ModelNotFound, match="no 'nothing'"):
        catalog_entry("nothing")


def test_layers_keep_what_their_architecture_keeps():
    assert {layer.attention for layer in catalog_model("deepseek-v3").layers} == {
        LatentSpec(latent_length=512, rope_length=64)
    }
    hybrid = catalog_model("qwen3-next-80b-a3b").layers
    assert [isinstance(layer.recurrent, RecurrentSpec) for layer in hybrid[:4]] == [
        True, True, True, False,
    ]  # fmt: skip
    assert {t.use for t in catalog_model("glm-4.5-air").layers[-1].tensors} == {TensorUse.SKIPPED}
    assert [layer.is_sparse for layer in catalog_model("llama-4-maverick").layers[:2]] == [
        False,
        True,
    ]


def test_the_catalogue_agrees_with_headers_of_the_same_models():
    from tests.real_shapes import real_model

    for name, quantization, fixture in (
        ("qwen3-30b-a3b", "Q4_K_M", "qwen3-30b-a3b-q4_k_m"),
        ("gpt-oss-20b", "MXFP4", "gpt-oss-20b-mxfp4"),
        ("glm-4.5-air", "Q4_K_M", "glm-4.5-air-q4_k_m"),
    ):
        ours, header = catalog_model(name, quantization), real_model(fixture)
        assert {t.name: t.shape for t in ours.tensors} == {t.name: t.shape for t in header.tensors}
        assert ours.expert_bytes == header.expert_bytes
        assert [layer.attention for layer in ours.layers] == [
            layer.attention for layer in header.layers
        ]
