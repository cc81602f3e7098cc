"""Answers: their text, their end, their seeds, and what of the memory is used again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from moerun.engine.decode import Decoder
from moerun.engine.interface import GenerationRequest, Message, Sampling, StopReason
from moerun.engine.llama import LlamaSession
from moerun.engine.sampling import ENGINE_DEFAULTS, choose_sampling
from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe
from moerun.engine.vocabulary import Vocabulary
from moerun.errors import EngineRefused, UnsupportedModel, UsageError
from tests.engine.builders import ENGINE, answer, arguments
from tests.tiny_models import MOE_ARCHITECTURES

pytestmark = pytest.mark.engine

GREEDY = Sampling(temperature=0.0)
LONG_TOKEN = ("─" * 40).encode()  # 120 bytes; the package's own reader stops at 32
EURO_HEAD, EURO_TAIL = "€".encode()[:2], "€".encode()[2:]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[answer]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generate")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    path = folder / "tiny.gguf"
    write_tiny_moe(path, chat_template=TEMPLATE, extra_tokens=(LONG_TOKEN,))
    return path


@pytest.fixture
def session(model: Path) -> Iterator[LlamaSession]:
    opened = ENGINE.load(arguments(model))
    yield opened
    opened.close()


def raw(prompt: str, **changes) -> GenerationRequest:
    values: dict[str, Any] = {"prompt": prompt, "sampling": GREEDY, "maximum_tokens": 12}
    return GenerationRequest(**values | changes)


def greedy_tokens(session: LlamaSession, prompt: tuple[int, ...], count: int) -> list[int]:
    """Choose the largest logit by hand, from a decoder of its own."""
    decoder = Decoder(session.loaded)
    tokens = list(prompt)
    for _ in range(count):
        rows = decoder.evaluate(tokens)
        tokens.append(int(numpy.argmax(rows[-1])))
    return tokens[len(prompt) :]


def test_greedy_answers_are_the_largest_logits(session: LlamaSession):
    prompt = session.tokenize("Hello w300 w301")
    expected = greedy_tokens(session, prompt, 8)
    vocabulary = Vocabulary(session.loaded)
    text = b"".join(vocabulary.piece(token) for token in expected).decode("utf-8", "replace")
    fresh = ENGINE.load(session.loaded.args)
    got, result = answer(fresh, raw("Hello w300 w301", maximum_tokens=8))
    fresh.close()
    assert got == text
    assert result.stop_reason is StopReason.LENGTH
    assert (result.prompt_tokens, result.answer_tokens) == (len(prompt), 8)
    assert result.reused_tokens == 0


def test_the_beginning_stands_once(session: LlamaSession):
    assert session.tokenize("w300")[0] == 1
    assert session.tokenize("<s>w300").count(1) == 1
    assert session.tokenize("") == (1,)
    assert session.tokenize("a</s>b").count(2) == 1


def test_text_of_any_bytes_can_be_asked(session: LlamaSession):
    text = "naïve 模型 🦙 \ud800 \0 end"
    pieces = Vocabulary(session.loaded)
    tokens = session.tokenize(text)[1:]
    said = b"".join(pieces.piece(token) for token in tokens).decode()
    assert said.strip() == text.encode("utf-8", "replace").decode()


def test_long_tokens_are_whole(session: LlamaSession):
    vocabulary = Vocabulary(session.loaded)
    longest = session.loaded.vocabulary_size - 1
    assert vocabulary.piece(longest) == LONG_TOKEN
    assert vocabulary.piece(1) == b""
    assert vocabulary.text_of(1) == "<s>"
    assert vocabulary.text_of(-1) == ""


def test_one_seed_gives_one_answer(model: Path):
    def run(seed: int) -> str:
        opened = ENGINE.load(arguments(model))
        text, result = answer(opened, raw("w300", sampling=Sampling(seed=seed), maximum_tokens=40))
        opened.close()
        assert result.seed == seed
        return text

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_without_a_seed_one_is_drawn_and_told(session: LlamaSession):
    seeds = {answer(session, raw("w300", sampling=Sampling()))[1].seed for _ in range(3)}
    assert len(seeds) == 3


def test_what_agrees_is_not_run_again(session: LlamaSession):
    prompt = "w300 w301 w302 w303"
    first, before = answer(session, raw(prompt))
    again, after = answer(session, raw(prompt))
    assert before.reused_tokens == 0
    assert after.reused_tokens == after.prompt_tokens - 1
    assert again == first
    _, longer = answer(session, raw(prompt + first + " w304"))
    assert longer.reused_tokens >= before.prompt_tokens
    _, other = answer(session, raw("quite another"))
    # The token of the beginning and the space that the tokenizer puts in front.
    assert session.tokenize(prompt)[:2] == session.tokenize("quite another")[:2]
    assert other.reused_tokens == 2


@pytest.mark.parametrize("architecture", ["granitehybrid", "gpt-oss", "deepseek2"])
def test_memories_that_cannot_go_back_are_built_again(tiny_model, architecture: str):
    """The second answer must be that of a fresh session, whatever the memory allows."""
    args = arguments(tiny_model(architecture), context_tokens=1024)
    opened = ENGINE.load(args)
    decoder = Decoder(opened.loaded)
    history = [65 + (i * 7) % 50 for i in range(400)]
    decoder.prefill(history, is_cancelled=lambda: False)
    branch = [*history[:100], 70, 71, 72]
    reused, _ = decoder.prefill(branch, is_cancelled=lambda: False)
    assert reused in ((0,) if architecture == "granitehybrid" else (0, 100))
    continued = last_row(opened)
    opened.close()
    fresh = ENGINE.load(args)
    Decoder(fresh.loaded).prefill(branch, is_cancelled=lambda: False)
    expected = last_row(fresh)
    fresh.close()
    numpy.testing.assert_allclose(continued, expected, rtol=0, atol=2e-2)
    assert int(numpy.argmax(continued)) == int(numpy.argmax(expected))


@pytest.mark.parametrize("architecture", MOE_ARCHITECTURES)
def test_a_cleared_memory_leaves_no_trace(tiny_model, architecture: str):
    opened = ENGINE.load(arguments(tiny_model(architecture)))
    tokens = [65 + (i * 5) % 50 for i in range(60)]
    fresh = opened.evaluate(tokens)
    opened.evaluate([66 + (i * 3) % 40 for i in range(200)])
    again = opened.evaluate(tokens)
    opened.close()
    assert fresh.tobytes() == again.tobytes()


def last_row(session: LlamaSession):
    pointer = session.loaded.abi.llama.llama_get_logits_ith(session.loaded.context, -1)
    size = session.loaded.vocabulary_size
    return numpy.array(numpy.ctypeslib.as_array(pointer, shape=(size,)))


def test_conversations_go_through_the_models_template(session: LlamaSession):
    messages = (Message(role="user", content="w300"),)
    text, result = answer(
        session, GenerationRequest(messages=messages, sampling=GREEDY, maximum_tokens=5)
    )
    fresh = ENGINE.load(session.loaded.args)
    expected, plain = answer(fresh, raw("[user]w300[answer]", maximum_tokens=5))
    fresh.close()
    assert text == expected
    assert result.prompt_tokens == plain.prompt_tokens
    assert result.notes == ()


def test_a_model_without_a_template_says_so(folder: Path):
    path = folder / "bare.gguf"
    write_tiny_moe(path)
    opened = ENGINE.load(arguments(path))
    request = GenerationRequest(messages=(Message(role="user", content="w300"),), maximum_tokens=2)
    assert "no chat template" in answer(opened, request)[1].notes[0]
    assert answer(opened, raw("w300"))[1].notes == ()
    opened.close()


def test_a_broken_template_is_one_sentence(folder: Path):
    path = folder / "broken.gguf"
    write_tiny_moe(path, chat_template="{% for %}")
    opened = ENGINE.load(arguments(path))
    request = GenerationRequest(messages=(Message(role="user", content="w300"),))
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        answer(opened, request)
    assert answer(opened, raw("w300"))[1].answer_tokens > 0
    opened.close()


def test_stop_strings_end_the_answer_and_do_not_show(session: LlamaSession):
    whole, _ = answer(session, raw("w300 w301", maximum_tokens=30))
    stop = whole[10:14]
    text, result = answer(session, raw("w300 w301", maximum_tokens=30, stop=(stop,)))
    assert text == whole[: whole.index(stop)]
    assert result.stop_reason is StopReason.END
    assert result.answer_tokens <= 30


def test_a_token_of_the_end_ends_the_answer(folder: Path):
    """Every token is an end here: the answer is empty, and that is no error."""
    path = folder / "ending.gguf"
    write_tiny_moe(path, shape=TinyShape(seed=5))
    data = path.read_bytes()
    opened = ENGINE.load(arguments(path))
    first = greedy_tokens(opened, opened.tokenize("w300"), 1)[0]
    opened.close()
    key = b"tokenizer.ggml.eos_token_id" + (4).to_bytes(4, "little")
    assert data.count(key + (2).to_bytes(4, "little")) == 1
    path.write_bytes(
        data.replace(key + (2).to_bytes(4, "little"), key + first.to_bytes(4, "little"))
    )
    opened = ENGINE.load(arguments(path))
    text, result = answer(opened, raw("w300"))
    opened.close()
    assert (text, result.stop_reason, result.answer_tokens) == ("", StopReason.END, 1)


def test_the_context_bounds_prompt_and_answer(model: Path):
    opened = ENGINE.load(arguments(model, context_tokens=256))
    tokens = len(opened.tokenize("x" * 299))
    assert tokens == 301  # the beginning and a space before it
    with pytest.raises(UsageError, match=r"301 tokens and the context holds 256") as caught:
        answer(opened, raw("x" * 299))
    assert "--ctx 768" in (caught.value.hint or "")
    text, result = answer(opened, raw("x" * 200, maximum_tokens=None))
    assert result.prompt_tokens == 202
    assert result.answer_tokens <= 54
    assert result.stop_reason is StopReason.END or result.answer_tokens == 54
    assert text
    opened.close()


def test_requests_that_make_no_sense(session: LlamaSession):
    for sampling in (
        Sampling(temperature=-1.0),
        Sampling(top_p=1.5),
        Sampling(min_p=float("nan")),
        Sampling(repeat_penalty=0.0),
        Sampling(seed=-1),
        Sampling(seed=2**32 - 1),
    ):
        with pytest.raises(UsageError):
            answer(session, raw("w300", sampling=sampling))
    with pytest.raises(UsageError, match="At least one"):
        answer(session, raw("w300", maximum_tokens=0))
    assert answer(session, raw("w300"))[1].answer_tokens > 0


def test_cancelling_between_tokens_and_before(session: LlamaSession):
    parts: list[str] = []
    result = session.generate(
        raw("w300", maximum_tokens=100),
        on_text=parts.append,
        is_cancelled=lambda: len(parts) >= 3,
    )
    assert result.stop_reason is StopReason.CANCELLED
    assert 3 <= result.answer_tokens < 100
    early = session.generate(raw("w305 w306"), on_text=parts.append, is_cancelled=lambda: True)
    assert (early.stop_reason, early.answer_tokens) == (StopReason.CANCELLED, 0)
    assert answer(session, raw("w305 w306"))[1].stop_reason is StopReason.LENGTH


def test_cancelling_in_the_middle_of_a_batch(folder: Path):
    path = folder / "slow.gguf"
    write_tiny_moe(path, shape=TinyShape(layers=12, width=256, expert_width=256))
    args = arguments(path, context_tokens=4096, batch_tokens=4096, ubatch_tokens=256)
    opened = ENGINE.load(args)
    decoder = Decoder(opened.loaded)
    asked = iter(range(10**9))
    # Not before the batch, but at the first question from within it.
    reused, is_done = decoder.prefill(
        [260 + i % 40 for i in range(4000)], is_cancelled=lambda: next(asked) >= 1
    )
    assert (reused, is_done) == (0, False)
    assert len(decoder.tokens) < 4000
    assert len(decoder.tokens) % 256 == 0
    _, is_done = decoder.prefill(list(range(260, 300)), is_cancelled=lambda: False)
    assert is_done
    opened.close()


def test_what_goes_wrong_while_it_asks_comes_out(session: LlamaSession):
    class Gone(Exception):
        pass

    def fail() -> bool:
        raise Gone

    shown: list[str] = []
    asked = iter(range(10**9))
    for cancelled in (fail, lambda: next(asked) >= 1 and fail()):
        with pytest.raises(Gone):
            session.generate(raw("w307"), on_text=shown.append, is_cancelled=cancelled)
    assert shown == []

    def fail_to_show(_: str) -> None:
        raise Gone

    with pytest.raises(Gone):
        session.generate(raw("w308"), on_text=fail_to_show, is_cancelled=lambda: False)
    fresh = ENGINE.load(session.loaded.args)
    assert answer(session, raw("w309"))[0] == answer(fresh, raw("w309"))[0]
    fresh.close()


def test_penalties_change_the_answer(session: LlamaSession):
    plain, _ = answer(session, raw("w300 w300", maximum_tokens=40))
    penalised, _ = answer(
        session,
        raw(
            "w300 w300",
            maximum_tokens=40,
            sampling=Sampling(temperature=0.0, repeat_penalty=5.0, repeat_last_tokens=64),
        ),
    )
    assert penalised != plain


def test_top_k_of_one_is_greedy(session: LlamaSession):
    greedy, _ = answer(session, raw("w300", maximum_tokens=20))
    narrow, _ = answer(session, raw("w300", maximum_tokens=20, sampling=Sampling(top_k=1, seed=9)))
    assert narrow == greedy


def test_defaults_come_from_the_model_then_from_llama(folder: Path):
    path = folder / "defaults.gguf"
    write_tiny_moe(
        path,
        metadata=(
            ("general.sampling.temp", 0.25),
            ("general.sampling.top_k", 7),
            ("general.sampling.penalty_last_n", 32),
            ("general.sampling.top_p", 9.5),  # out of range: llama.cpp's own counts
        ),
    )
    opened = ENGINE.load(arguments(path))
    defaults = opened.model_defaults
    opened.close()
    assert defaults == {"temperature": 0.25, "top_k": 7, "repeat_last_tokens": 32, "top_p": 9.5}
    choice = choose_sampling(Sampling(top_k=3), defaults)
    assert (choice.temperature, choice.top_k, choice.repeat_last_tokens) == (0.25, 3, 32)
    assert choice.top_p == ENGINE_DEFAULTS["top_p"]
    assert choice.min_p == ENGINE_DEFAULTS["min_p"]


def test_a_full_context_is_refused_and_survived(model: Path):
    opened = ENGINE.load(arguments(model, context_tokens=256))
    decoder = Decoder(opened.loaded)
    decoder.prefill([260] * 256, is_cancelled=lambda: False)
    with pytest.raises(EngineRefused, match="256 tokens is full"):
        decoder.advance(260)
    assert decoder.prefill([261] * 10, is_cancelled=lambda: False) == (0, True)
    opened.close()
