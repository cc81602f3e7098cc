"""Thoughts and answers parted, wherever the tokens are cut."""

import pytest

from moerun.engine.thinking import (
    KNOWN_TAGS,
    ChannelSplitter,
    Splitter,
    TagSplitter,
    TextKind,
    has_channels,
    tags_of,
)

THINK = KNOWN_TAGS[0]


def read(splitter: Splitter, text: str, size: int) -> tuple[str, str, str]:
    parts = [p for i in range(0, len(text), size) for p in splitter.feed(text[i : i + size])]
    parts += splitter.finish()
    thinking, content, call = (
        "".join(t for k, t in parts if k is kind)
        for kind in (TextKind.THINKING, TextKind.CONTENT, TextKind.CALL)
    )
    return thinking, content, call


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("prompt", "text", "thinking", "content"),
    [
        ("", "<think>\n\nI see. </thin \n</think>\n\nYes <b>", "I see. </thin", "Yes <b>"),
        ("...<think>\n", "so it is\n</think>\nYes", "so it is", "Yes"),
        ("...<think>\n\n</think>\n\n", "Yes", "", "Yes"),
        ("", "  Yes <think>no</think>", "", "  Yes <think>no</think>"),
        ("", "<think>cut off ", "cut off", ""),
        ("", "<thi", "", "<thi"),
        ("", "<think></think>Yes", "", "Yes"),
        ("", "", "", ""),
    ],
)
def test_tags(prompt, text, thinking, content, size):
    splitter = TagSplitter(THINK, prompt=prompt)
    assert read(splitter, text, size) == (thinking, content, "")


@pytest.mark.parametrize("size", [1, 4, 500])
def test_channels(size):
    text = (
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.sum <|constrain|>json<|message|>{"a": 1}<|call|>'
    )
    assert read(ChannelSplitter(), text, size) == ("Let me see.", "", 'sum\n{"a": 1}')
    text = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>4"
    assert read(ChannelSplitter(), text, size) == ("Hm", "4", "")
    recipient_first = ' to=functions.sum<|channel|>commentary json<|message|>{"a": 1}'
    assert read(ChannelSplitter(), recipient_first, size) == ("", "", 'sum\n{"a": 1}')
    assert read(ChannelSplitter(), "no channels at all", size) == ("", "no channels at all", "")


def test_content_is_told_where_it_begins():
    splitter = TagSplitter(THINK, prompt="")
    is_content_before = splitter.is_content
    assert not is_content_before
    assert splitter.may_open("<th")
    assert splitter.may_open("\n")
    assert not splitter.may_open("{")
    splitter.feed("<think>x")
    assert splitter.may_open("{")
    splitter.feed("</think>")
    assert splitter.is_content
    assert not splitter.may_open("<think>")


def test_templates_tell_their_marks():
    assert tags_of("{{ x.split('</think>')[-1] }}") == THINK
    assert tags_of("plain") is None
    assert has_channels("<|channel|>final<|message|>")
    assert not has_channels("<|message|>")
