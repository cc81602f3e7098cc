"""Headers of real files, damaged in seeded ways: nothing but one clear sentence may come out.

A failing case prints its number; `mutate(case)` and `reshape(case)` make it again.
"""

import random
import tracemalloc
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from moerun.errors import ModelError
from moerun.model.architectures import KNOWN, SPARSE
from moerun.model.gguf_header import read_header, read_model
from moerun.model.state import kv_bytes, recurrent_bytes
from tests.model_keys import KeyValue, model_keys
from tests.sparse_gguf import TensorShape, header_bytes
from tests.tiny_models import write_tiny_model

SEEDS = ("qwen3moe", "deepseek2", "gpt-oss", "granitehybrid", "llama")
BYTE_CASES = 5_000
KEY_CASES = 3_000
CHUNKS = 10
LONGEST_SENTENCE = 700
EXTREMES = (0, 1, 2, 3, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 40)
EXTREMES_64 = (*EXTREMES, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


in_chunks = pytest.mark.parametrize(
    "chunk",
    [0, *(pytest.param(chunk, marks=pytest.mark.many) for chunk in range(1, CHUNKS))],
)


@cache
def seeds() -> tuple[tuple[bytes, int], ...]:
    """Return the header of each seed with the size of its file; the last are parts of one."""
    found: list[tuple[bytes, int]] = []
    with TemporaryDirectory() as folder:
        paths = [write_tiny_model(Path(folder) / f"{name}.gguf", name) for name in SEEDS]
        first = write_tiny_model(Path(folder) / "s.gguf", "qwen3moe", shards=2, vocabulary=280)
        paths += [first, first.with_name("s-00002-of-00002.gguf")]
        for path in paths:
            file = next(f for f in read_header(path).files if f.path == str(path))
            found.append((path.read_bytes()[: file.data_offset_bytes], file.size_bytes))
    return tuple(found)


def mutate(case: int) -> tuple[bytes, int]:
    """Return a damaged header and the size that its file is given."""
    rng = random.Random(case)
    header, size_bytes = rng.choice(seeds())
    raw = bytearray(header)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        damage(raw, rng)
    if rng.random() < 0.1:
        size_bytes = rng.randrange(size_bytes + 1)
    return bytes(raw), max(size_bytes, len(raw))


def damage(raw: bytearray, rng: random.Random) -> None:
    """Change a header in one of the ways that files break, or are broken."""
    if not raw:
        return
    at = rng.randrange(len(raw))
    span = rng.randrange(1, 64)
    match rng.randrange(9):
        case 0:
            del raw[at:]
        case 1:
            raw[at] ^= 1 << rng.randrange(8)
        case 2:
            raw[at : at + 8] = rng.choice(EXTREMES_64).to_bytes(8, "little")
        case 3:
            raw[at : at + 4] = (rng.choice(EXTREMES) & 0xFFFF_FFFF).to_bytes(4, "little")
        case 4:
            raw[at:at] = raw[at : at + span]
        case 5:
            del raw[at : at + span]
        case 6:
            other, _ = rng.choice(seeds())
            begin = rng.randrange(len(other))
            raw[at : at + span] = other[begin : begin + span]
        case 7:
            raw[at : at + span] = rng.randbytes(span)
        case _:
            # the counts of tensors and keys decide most, and are seldom hit by chance
            begin = rng.choice((4, 8, 16))
            raw[begin : begin + 8] = rng.choice(EXTREMES_64).to_bytes(8, "little")


def reshape(case: int) -> bytes:
    """Return a sound header whose keys and tensors do not go together."""
    rng = random.Random(case)
    name = rng.choice(sorted(KNOWN))
    keys: dict[str, KeyValue] = {"general.architecture": name}
    for key, value in model_keys(name, sparse=name in SPARSE).items():
        keys[f"{name}.{key}"] = value
    for key in rng.sample(sorted(keys), rng.choice((0, 1, 1, 2, 3))):
        strange = strange_value(keys[key], rng)
        if strange is None:
            del keys[key]
        else:
            keys[key] = strange
    rows: list[TensorShape] = [("token_embd.weight", (64, 8), "F16")]
    for layer in range(rng.choice((4, 4, 4, 3, 22, 64))):
        rows.append((f"blk.{layer}.attn_norm.weight", (64,), "F32"))
        if rng.random() < 0.1:
            part = rng.choice(("gate_exps", "gate_inp", "down_exps", "up", "down.3"))
            encoding = rng.choice(("F32", "F64", "I8", "Q8_0", "Q8_K", "BF16"))
            rows.append((f"blk.{layer}.ffn_{part}.weight", (256, 2, 4), encoding))
    return header_bytes(keys, rows)


def strange_value(value: KeyValue, rng: random.Random) -> KeyValue | None:
    match rng.randrange(6):
        case 0:
            return None
        case 1:
            return "text"
        case 2:
            return [rng.choice(EXTREMES[:7]) for _ in range(rng.choice((1, 4, 513)))]
        case 3:
            return [-1, 2, 3, 4]
        case 4 if isinstance(value, list) and value:
            return value[: rng.randrange(1, len(value) + 1)]
        case _:
            return min(rng.choice(EXTREMES), 0xFFFF_FFFF)


def read_all(path: Path) -> str:
    """Read everything that a plan reads; return the sentence of a refusal, or nothing."""
    try:
        model = read_model(path)
    except ModelError as error:
        return error.message
    for layer in model.layers:
        for context_tokens in (1, 4096):
            assert kv_bytes(layer, context_tokens=context_tokens, ubatch_tokens=512) >= 0
        assert recurrent_bytes(layer, sequences=2) >= 0
        assert layer.expert_bytes + layer.dense_bytes <= model.weight_bytes
    assert model.weight_bytes <= model.file_bytes
    assert model.expert_bytes_per_token >= 0
    return ""


def check_sentence(sentence: str, case: int) -> None:
    assert sentence == "" or (sentence.isprintable() and len(sentence) < LONGEST_SENTENCE), case


@in_chunks
def test_damaged_headers_are_sentences(chunk: int, tmp_path: Path):
    path = tmp_path / "s-00001-of-00002.gguf"
    # the other part lies beside it, so that a split header that survives can be read whole
    part, part_size = seeds()[-1]
    with path.with_name("s-00002-of-00002.gguf").open("wb") as file:
        file.write(part)
        file.truncate(part_size)
    refused = 0
    for case in range(chunk, BYTE_CASES, CHUNKS):
        raw, size_bytes = mutate(case)
        with path.open("wb") as file:
            file.write(raw)
            file.truncate(size_bytes)
        sentence = read_all(path)
        check_sentence(sentence, case)
        refused += bool(sentence)
    assert refused > BYTE_CASES // CHUNKS // 3


@in_chunks
def test_keys_that_do_not_go_together_are_sentences(chunk: int, tmp_path: Path):
    path = tmp_path / "x.gguf"
    refused = 0
    for case in range(chunk, KEY_CASES, CHUNKS):
        header = reshape(case)
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + (1 << 20))
        sentence = read_all(path)
        check_sentence(sentence, case)
        refused += bool(sentence)
    assert 0 < refused < KEY_CASES // CHUNKS


def test_no_damage_makes_the_reader_take_more_than_a_header_can_hold(tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"")
    read_all(path)
    for case in range(BYTE_CASES, BYTE_CASES + 300):
        raw, size_bytes = mutate(case)
        with path.open("wb") as file:
            file.write(raw)
            file.truncate(size_bytes)
        tracemalloc.start()
        read_all(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 40 * len(raw) + size_bytes + (1 << 20), case


def test_the_cases_are_the_same_every_time():
    assert mutate(17) == mutate(17)
    assert reshape(17) == reshape(17)
    assert len({mutate(case)[0] for case in range(200)}) > 190
