"""The shipped demo model, asked through llama.cpp with its own chat template, greedily."""

import hashlib
import json
from pathlib import Path

import llama_cpp
import pytest
from gguf import GGUFReader
from jinja2 import Environment

from moerun import data

pytestmark = pytest.mark.engine

FOLDER = Path(data.__file__).parent / "demo"
GGUF = FOLDER / "demo.gguf"
LARGEST_BYTES = 24_000_000
FIXTURES = Path(__file__).parent.parent / "fixtures" / "demo_questions.json"


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "demo.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def header():
    return GGUFReader(GGUF)


@pytest.fixture(scope="module")
def fixtures():
    return json.loads(FIXTURES.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model():
    loaded = llama_cpp.Llama(str(GGUF), n_gpu_layers=0, n_ctx=512, n_threads=2, verbose=False)
    yield loaded
    loaded.close()


def test_record_describes_the_file(record):
    content = GGUF.read_bytes()
    assert hashlib.sha256(content).hexdigest() == record["sha256"]
    assert len(content) == record["size_bytes"] <= LARGEST_BYTES


def test_architecture_is_a_real_mixture_of_experts(header):
    assert header.get_field("general.architecture").contents() == "qwen3moe"
    assert header.get_field("qwen3moe.block_count").contents() >= 6
    assert header.get_field("qwen3moe.expert_count").contents() >= 16
    assert header.get_field("qwen3moe.expert_used_count").contents() >= 2
    assert header.get_field("qwen3moe.context_length").contents() >= 1024


def test_the_header_ends_turns_and_asks_for_greedy_answers(header):
    tokens = header.get_field("tokenizer.ggml.tokens").contents()
    end = header.get_field("tokenizer.ggml.eos_token_id").contents()
    assert tokens[end] == "<|im_end|>"
    assert header.get_field("general.sampling.temp").contents() == 0.0
    assert header.get_field("general.license").contents() == "mit"


def test_every_expert_of_every_layer_was_used(record, header):
    layers = header.get_field("qwen3moe.block_count").contents()
    experts = header.get_field("qwen3moe.expert_count").contents()
    loads = record["expert_load_percent"]
    assert [load["layer"] for load in loads] == list(range(layers))
    for load in loads:
        assert len(load["each"]) == experts
        assert sum(load["each"]) == pytest.approx(100, abs=0.5)
        # An even load would be 100 / experts; a tenth of that still means thousands of tokens.
        assert min(load["each"]) > 10 / experts


def test_questions_of_the_training_text_are_answered(model, header, fixtures):
    wrong = _wrongly_answered(model, header, fixtures["questions"])
    assert len(wrong) <= 4, wrong


def test_paraphrases_are_answered(model, header, fixtures):
    wrong = _wrongly_answered(model, header, fixtures["paraphrases"])
    assert len(wrong) <= 12, wrong


def test_a_second_turn_is_answered(model, header):
    first = [{"role": "user", "content": "What is a GGUF file?"}]
    answer = _answer(model, header, first)
    second = [
        *first,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "How do I turn off colors?"},
    ]
    assert "NO_COLOR" in _answer(model, header, second)


def _wrongly_answered(model, header, entries):
    answers = {
        entry["question"]: _answer(model, header, [{"role": "user", "content": entry["question"]}])
        for entry in entries
    }
    return {
        entry["question"]: answers[entry["question"]]
        for entry in entries
        if not all(
            words.lower() in answers[entry["question"]].lower() for words in entry["required"]
        )
    }


def _answer(model, header, messages):
    template = Environment().from_string(header.get_field("tokenizer.chat_template").contents())
    prompt = template.render(messages=messages, add_generation_prompt=True)
    tokens = model.tokenize(prompt.encode(), add_bos=False, special=True)
    answer: list[int] = []
    for token in model.generate(tokens, temp=0.0, top_k=1, repeat_penalty=1.0):
        if token == model.token_eos() or len(answer) == 96:
            break
        answer.append(token)
    return model.detokenize(answer).decode()
