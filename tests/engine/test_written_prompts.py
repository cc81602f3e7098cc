"""Prompts that a template beside the model's file wrote: when they are used, how they are read."""

from pathlib import Path

import pytest

from moerun.engine.chat import FALLBACK_NOTE
from moerun.engine.interface import GenerationRequest, Message, Sampling
from moerun.engine.tiny_gguf import write_tiny_moe
from tests.engine.builders import ENGINE, answer, arguments

pytestmark = pytest.mark.engine

WRITTEN = "[INST] Hello there, this is longer [/INST]"
GGUF_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def asked(path: Path, **changes):
    request = GenerationRequest(
        messages=(Message(role="user", content="Hi"),),
        sampling=Sampling(temperature=0.0),
        maximum_tokens=2,
        **changes,
    )
    session = ENGINE.load(arguments(path))
    try:
        counts = {text: len(session.tokenize(text)) for text in (WRITTEN, "Hi")}
        _, result = answer(session, request)
    finally:
        session.close()
    return counts, result


@pytest.mark.parametrize("has_template", [True, False])
@pytest.mark.parametrize("replaces", [True, False])
def test_it_replaces_the_files_template_or_stands_in_for_none(
    tmp_path: Path, has_template: bool, replaces: bool
):
    path = tmp_path / "model.gguf"
    write_tiny_moe(path, chat_template=GGUF_TEMPLATE if has_template else None)
    counts, result = asked(path, template_prompt=WRITTEN, replaces_template=replaces)
    is_used = replaces or not has_template
    assert result.prompt_tokens == counts[WRITTEN if is_used else "Hi"]
    assert FALLBACK_NOTE not in result.notes


def test_without_either_the_form_of_most_models_is_used_and_told(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_tiny_moe(path)
    assert FALLBACK_NOTE in asked(path)[1].notes


def test_a_broken_template_of_the_file_does_not_matter_where_another_is_used(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_tiny_moe(path, chat_template="{% for %}")
    counts, result = asked(path, template_prompt=WRITTEN)
    assert result.prompt_tokens == counts[WRITTEN]
