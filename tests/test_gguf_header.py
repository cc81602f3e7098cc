import os
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import quantize

from moerun.errors import MissingShard, ModelError, ModelNotFound, NotGguf, UnsupportedModel
from moerun.model.gguf_file import HeaderEndsEarly, read_file, read_prefix
from moerun.model.gguf_header import read_header, read_model
from moerun.model.gguf_values import ArrayValue, ValueType, shown
from tests.model_files import a_model_file, a_models_keys, a_models_tensors
from tests.model_keys import U16, KeyValue
from tests.sparse_gguf import header_bytes, text_bytes, value_bytes, write_sparse


def write_with_gguf(path: Path, tokens: int = 300, endian: GGUFEndian = GGUFEndian.LITTLE):
    """Write every type of value and several encodings with the gguf package's own writer."""
    writer = GGUFWriter(path, "qwen3moe", endianess=endian)
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -100)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_uint64("a.u64", 1 << 60)
    writer.add_int64("a.i64", -(1 << 60))
    writer.add_float32("a.f32", 1.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "grüße\n")
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [0.5, 0.25])
    writer.add_key_value(
        "a.long", list(range(5000)), GGUFValueType.ARRAY, sub_type=GGUFValueType.INT32
    )
    writer.add_token_list([f"tök{i}" for i in range(tokens)])
    rng = np.random.default_rng(7)
    for name, shape, kind in (
        ("token_embd.weight", (6, 256), GGMLQuantizationType.Q8_0),
        ("blk.0.attn_norm.weight", (256,), GGMLQuantizationType.F32),
        ("blk.0.ffn_up_exps.weight", (3, 5, 64), GGMLQuantizationType.Q4_0),
        ("output_norm.weight", (33,), GGMLQuantizationType.F32),
        ("output.weight", (2, 96), GGMLQuantizationType.F16),
    ):
        data = rng.standard_normal(shape, dtype=np.float32)
        writer.add_tensor(name, quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_reads_what_gguf_reads(tmp_path: Path):
    path = write_with_gguf(tmp_path / "a.gguf")
    ours, theirs = read_header(path), GGUFReader(path)
    assert [(t.name, t.shape, t.encoding, t.size_bytes, t.offset_bytes) for t in ours.tensors] == [
        (t.name, tuple(map(int, t.shape)), t.tensor_type.name, t.n_bytes, t.data_offset)
        for t in theirs.tensors
    ]
    for key, value in ours.metadata.items():
        contents = theirs.fields[key].contents()
        if isinstance(value, ArrayValue):
            assert list(value) == contents
        else:
            assert value == contents
    # gguf lists the three numbers of the preamble as fields too
    named = {key for key in theirs.fields if not key.startswith("GGUF.")}
    assert set(ours.metadata) == named
    assert ours.files[0].data_offset_bytes == theirs.data_offset


def test_long_arrays_are_located_and_decoded_only_when_iterated(tmp_path: Path):
    header = read_header(write_with_gguf(tmp_path / "a.gguf", tokens=3000))
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, ArrayValue)
    assert (tokens.item_type, len(tokens), tokens.values) == (ValueType.STRING, 3000, None)
    assert list(header.texts("tokenizer.ggml.tokens"))[2999] == "tök2999"
    numbers = header.metadata["a.long"]
    assert isinstance(numbers, ArrayValue)
    assert numbers.values is None
    assert list(numbers) == list(range(5000))
    short = header.metadata["a.numbers"]
    assert isinstance(short, ArrayValue)
    assert short.values == (1, 2, 3)


def test_a_text_of_megabytes_is_located_and_not_decoded(tmp_path: Path):
    keys: dict[str, KeyValue] = {"big": "x" * (5 << 20), "after": 7}
    header = read_header(write_sparse(tmp_path / "a.gguf", keys, []))
    big = header.metadata["big"]
    assert isinstance(big, ArrayValue)
    assert (big.item_type, len(big), big.values) == (ValueType.UINT8, 5 << 20, None)
    assert header.text("big") is None
    assert header.number("after") == 7


def test_typed_access(tmp_path: Path):
    header = read_header(write_with_gguf(tmp_path / "a.gguf"))
    assert header.number("a.u32") == 4_000_000_000
    assert header.number("a.bool") is None
    assert header.number("a.text") is None
    assert header.text("a.text") == "grüße\n"
    assert header.text("a.u8") is None
    assert list(header.texts("absent")) == []


def test_an_array_of_a_file_that_went_away_is_a_sentence(tmp_path: Path):
    path = write_with_gguf(tmp_path / "a.gguf", tokens=3000)
    header = read_header(path)
    os.truncate(path, 100)
    with pytest.raises(NotGguf, match="became shorter"):
        list(header.texts("tokenizer.ggml.tokens"))
    path.unlink()
    with pytest.raises(ModelNotFound, match="can no longer be read"):
        list(header.texts("tokenizer.ggml.tokens"))


def test_version_2_is_read_too(tmp_path: Path):
    raw = bytearray(write_with_gguf(tmp_path / "a.gguf").read_bytes())
    raw[4] = 2
    (tmp_path / "b.gguf").write_bytes(raw)
    assert read_header(tmp_path / "b.gguf").files[0].version == 2


def write_shards(folder: Path, *, count: int = 3, total: int | None = None) -> list[Path]:
    rows = a_models_tensors()
    share = -(-len(rows) // count)
    paths = []
    for part in range(count):
        keys: dict[str, KeyValue] = dict(a_models_keys()) if part == 0 else {}
        keys |= {"split.no": U16(part), "split.count": U16(count)}
        keys["split.tensors.count"] = len(rows) if total is None else total
        path = folder / f"m-{part + 1:05d}-of-{count:05d}.gguf"
        paths.append(write_sparse(path, keys, rows[part * share : (part + 1) * share]))
    return paths


def test_any_part_of_a_split_model_finds_all(tmp_path: Path):
    paths = write_shards(tmp_path)
    whole = read_model(a_model_file(tmp_path))
    for path in paths:
        model = read_model(path)
        assert [file.path for file in model.files] == [str(each) for each in paths]
        assert model.weight_bytes == whole.weight_bytes
        assert {t.file_index for t in model.tensors} == {0, 1, 2}
        for tensor in model.tensors:
            file = model.files[tensor.file_index]
            assert file.data_offset_bytes <= tensor.offset_bytes
            assert tensor.offset_bytes + tensor.size_bytes <= file.size_bytes


def test_gguf_writes_parts_that_are_read(tmp_path: Path):
    writer = GGUFWriter(tmp_path / "s.gguf", "qwen3moe", split_max_tensors=2)
    for index in range(5):
        writer.add_tensor(f"blk.{index}.attn_norm.weight", np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "s-00002-of-00003.gguf")
    assert [len(file.tensors) for file in header.files] == [2, 2, 1]


def test_a_missing_part_is_named(tmp_path: Path):
    paths = write_shards(tmp_path)
    paths[1].unlink()
    with pytest.raises(MissingShard, match=r"m-00002-of-00003\.gguf .*is missing.*same folder"):
        read_model(paths[0])


def test_a_renamed_part_is_told_what_names_must_be(tmp_path: Path):
    path = write_shards(tmp_path)[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(MissingShard, match="one of 3 parts, and its name does not end in"):
        read_model(path)


def test_parts_of_two_models_are_not_mixed(tmp_path: Path):
    paths = write_shards(tmp_path)
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(MissingShard, match="calls itself part 1 of 3"):
        read_model(paths[0])


def test_a_wrong_count_of_tensors_is_told(tmp_path: Path):
    with pytest.raises(MissingShard, match="hold 23 tensors and should hold 99"):
        read_model(write_shards(tmp_path, total=99)[0])


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"no file .*gone\.gguf; check the path"):
        read_model(tmp_path / "gone.gguf")


def test_a_path_with_a_zero_byte():
    with pytest.raises(ModelNotFound, match="cannot be read"):
        read_model("a\0b.gguf")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="rights do not bind this user")
def test_a_file_without_rights(tmp_path: Path):
    path = a_model_file(tmp_path)
    path.chmod(0)
    with pytest.raises(ModelNotFound, match="Permission denied"):
        read_model(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelNotFound, match="is no file"):
        read_model(tmp_path / "pipe.gguf")


def test_a_folder_names_the_files_in_it(tmp_path: Path):
    with pytest.raises(ModelNotFound, match="a folder without GGUF files"):
        read_model(tmp_path)
    a_model_file(tmp_path)
    with pytest.raises(ModelNotFound, match=r"a folder with 1 GGUF files.*: model\.gguf"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "has 0 bytes"),
        (b"GGUF", "has 4 bytes"),
        (b"PK\3\4" + bytes(64), "is not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1, and versions 2 and 3 are read"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0), "claims 9,223,372,036,854,775,808 ten"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 65_537), "claims 65,537 keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 7, 0) + bytes(64), "7 tensors in the 64 bytes"),
    ],
)
def test_what_is_no_header(raw: bytes, sentence: str, tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    with pytest.raises(NotGguf, match=sentence):
        read_model(path)


def test_a_big_endian_file_of_the_gguf_package(tmp_path: Path):
    with pytest.raises(NotGguf, match="only little-endian files are read"):
        read_header(write_with_gguf(tmp_path / "b.gguf", endian=GGUFEndian.BIG))


def raw_header(*keys: bytes, tensors: tuple[bytes, ...] = ()) -> bytes:
    preamble = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    return preamble + b"".join(keys) + b"".join(tensors) + bytes(64)


def raw_tensor(name: str, dims: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    return (
        text_bytes(name)
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<IQ", kind, offset)
    )


U32, TEXT, ARRAY, HUGE = 4, 8, 9, (1 << 64) - 1


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (raw_header(struct.pack("<Q", HUGE) + b"key"), "the name of key 0 claims"),
        (raw_header(struct.pack("<Q", 0) + bytes(20)), "key 0 has no name"),
        (raw_header(struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20)), "key 0 is not UTF-8"),
        (raw_header(text_bytes("k") + struct.pack("<I", 13)), "value type 13, not 0 to 12"),
        (
            raw_header(text_bytes("k") + value_bytes(1), text_bytes("k") + value_bytes(1)),
            "key 'k' is there twice",
        ),
        (raw_header(text_bytes("k") + struct.pack("<IQ", TEXT, HUGE)), "key 'k' claims"),
        (
            raw_header(text_bytes("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1)),
            "an array of arrays",
        ),
        (
            raw_header(text_bytes("k") + struct.pack("<IIQ", ARRAY, U32, HUGE)),
            "claims 18,446,744,073,709,551,615 items",
        ),
        (
            raw_header(text_bytes("k") + struct.pack("<IIQQ", ARRAY, TEXT, 2, HUGE)),
            "run past the end of the file",
        ),
        (
            raw_header(text_bytes("general.alignment") + value_bytes(48)),
            "alignment is 48, and only powers of two",
        ),
        (
            raw_header(text_bytes("general.alignment") + value_bytes(1 << 30)),
            "alignment is 1073741824",
        ),
        (
            raw_header(text_bytes("general.alignment") + value_bytes("32")),
            "alignment is not an unsigned 32-bit number",
        ),
    ],
)
def test_hostile_keys(raw: bytes, sentence: str, tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    with pytest.raises(NotGguf, match=sentence):
        read_model(path)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ((raw_tensor("a" * 64, (1,), 0),), "the name of tensor 0 claims 64 bytes"),
        ((raw_tensor("", (1,), 0),), "tensor 0 has no name"),
        ((raw_tensor("a", (1, 1, 1, 1, 1), 0),), "5 dimensions, not 1 to 4"),
        ((raw_tensor("a", (), 0),), "0 dimensions"),
        ((raw_tensor("a", (4, 0), 0),), "impossible shape"),
        ((raw_tensor("a", (HUGE,), 0),), "impossible shape"),
        ((raw_tensor("a", (33,), 8),), "33 values, not whole blocks of 32"),
        ((raw_tensor("a", (1,), 99),), "type number 99"),
        ((raw_tensor("a", (1,), 0, 32),), "said to lie at 32"),
        ((raw_tensor("a", (1,), 0), raw_tensor("a", (1,), 0, 32)), "'a' is there twice"),
        ((raw_tensor("a", (1 << 40,), 0),), "is truncated"),
        ((raw_tensor("a", (1 << 62, 1 << 62, 1 << 62, 1 << 62), 0),), "is truncated"),
    ],
)
def test_hostile_tensors(tensors: tuple[bytes, ...], sentence: str, tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_header(tensors=tensors))
    with pytest.raises(NotGguf, match=sentence):
        read_model(path)


def test_removed_types_have_a_way_out(tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_header(tensors=(raw_tensor("blk.0.w", (32,), 31),)))
    with pytest.raises(UnsupportedModel, match=r"Q4_0_4_4, which llama\.cpp no longer reads"):
        read_model(path)


def test_an_alignment_that_the_engine_aborts_on(tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_header(text_bytes("general.alignment") + value_bytes(8)))
    with pytest.raises(UnsupportedModel, match="aligns its tensors to 8 bytes"):
        read_model(path)


def test_a_truncated_download_says_what_is_missing(tmp_path: Path):
    path = a_model_file(tmp_path)
    needed = path.stat().st_size
    os.truncate(path, needed - 5000)
    with pytest.raises(NotGguf) as caught:
        read_model(path)
    assert f"{needed - 5000:,} bytes are present and {needed:,} are needed" in caught.value.message
    assert "download it again" in caught.value.message


def test_every_cut_of_a_header_is_a_sentence(tmp_path: Path):
    raw = header_bytes(a_models_keys(), a_models_tensors())
    path = tmp_path / "x.gguf"
    for size in range(0, len(raw), 7):
        path.write_bytes(raw[:size])
        with pytest.raises(ModelError):
            read_model(path)


def test_names_from_outside_are_shown_on_one_line():
    assert shown("a\nb\x1b[31m") == "a?b?[31m"
    assert shown("x" * 300, limit=10) == "xxxxxxxxxx..."


def test_a_prefix_is_read_as_the_whole_once_it_is_long_enough(tmp_path: Path):
    path = a_model_file(tmp_path)
    whole = read_file(path)
    data = path.read_bytes()[: whole.data_offset_bytes]
    size = path.stat().st_size
    for length in range(24, len(data) - 31, 7):
        with pytest.raises(HeaderEndsEarly):
            read_prefix(data[:length], path=str(path), size_bytes=size)
    assert read_prefix(data, path=str(path), size_bytes=size) == whole
