import pytest
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType

from moerun.model.encodings import BY_NAME, ENCODINGS, FILE_TYPES, REMOVED_ENCODINGS, row_bytes

# ggml of the pinned engine has this one, and the gguf package of the day does not
ONLY_IN_GGML = {42: ("Q2_0", 64, 18)}


def test_every_encoding_has_the_sizes_that_gguf_knows():
    theirs = {
        kind.value: (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()
    } | ONLY_IN_GGML
    ours = {
        number: (encoding.name, encoding.block_values, encoding.block_bytes)
        for number, encoding in ENCODINGS.items()
    }
    assert ours == theirs


def test_every_file_type_has_the_label_that_gguf_knows():
    theirs = {
        kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")
        for kind in LlamaFileType
        if kind is not LlamaFileType.GUESSED
    }
    assert {**theirs, 41: "Q2_0"} == FILE_TYPES


def test_removed_encodings_are_no_encodings():
    assert not set(REMOVED_ENCODINGS) & set(ENCODINGS)


def test_a_row_is_whole_blocks():
    assert row_bytes("Q4_K", 512) == 288
    assert row_bytes("F32", 3) == 12
    assert row_bytes("Q8_0", 0) == 0
    with pytest.raises(ValueError, match="not whole blocks of 32"):
        row_bytes("Q8_0", 33)
    with pytest.raises(ValueError, match="not a tensor type"):
        row_bytes("Q9", 32)


def test_only_blocks_of_several_values_are_quantized():
    assert BY_NAME["MXFP4"].is_block_quantized
    assert not BY_NAME["BF16"].is_block_quantized
