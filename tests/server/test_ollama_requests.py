"""What requests ask for, as values; options without effect are told in the log, once."""

import logging

import pytest

from moerun.engine.interface import Overflow
from moerun.server.bodies import Fields
from moerun.server.ollama_requests import read_chat, read_options, read_wishes
from moerun.server.option_notes import OptionNotes


def asked(**options):
    messages = [{"role": "user", "content": "hi"}]
    return Fields(values={"options": options, "messages": messages}, where="")


def told(notes: OptionNotes, caplog, model: str, **options) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        notes.tell(model, read_options(asked(**options)))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low_vram": True, "use_mmap": True}, "without effect here: low_vram, use_mmap"),
        ({"no_such": 1}, "unknown options are passed over: no_such"),
        ({"num_gpu": 20}, "passed over unless it is 0, since the plan places the layers: num_gpu"),
        ({"bad\nname": 1}, "passed over: bad\\nname"),
    ],
)
def test_what_has_no_effect_is_told_in_the_log(caplog, options, said):
    (line,) = told(OptionNotes(), caplog, "a:latest", **options)
    assert line.startswith("a:latest: ")
    assert line.endswith(said)


def test_it_is_told_once_for_each_model_and_option(caplog):
    notes = OptionNotes()
    assert len(told(notes, caplog, "a", no_such=1)) == 1
    assert told(notes, caplog, "a", no_such=2) == []
    assert len(told(notes, caplog, "a", no_such=2, other=1)) == 1
    assert len(told(notes, caplog, "b", no_such=1)) == 1


def test_a_client_cannot_fill_the_log_with_names(caplog):
    notes = OptionNotes()
    lines = [line for n in range(2000) for line in told(notes, caplog, "a", **{f"x{n}": 1})]
    assert len(lines) == 1000


def test_what_has_an_effect_is_not_told(caplog):
    options = {"num_ctx": 64, "num_gpu": 0, "temperature": 0, "num_keep": 4}
    assert told(OptionNotes(), caplog, "a", **options) == []
    read = read_wishes(read_options(asked(**options)))
    assert (read.context_tokens, read.gpu_layers) == (64, 0)


@pytest.mark.parametrize(
    ("options", "maximum", "overflow"),
    [
        ({}, None, Overflow.SHIFT),
        ({"num_predict": 7}, 7, Overflow.SHIFT),
        ({"num_predict": -1}, 2**31 - 1, Overflow.SHIFT),
        ({"num_predict": -2}, 2**31 - 1, Overflow.END),
    ],
)
def test_how_long_an_answer_may_be(options, maximum, overflow):
    request = read_chat(asked(**options))
    assert (request.maximum_tokens, request.overflow) == (maximum, overflow)


def test_num_keep_survives_a_shift():
    assert read_chat(asked(num_keep=-1)).keep_tokens == -1
    assert read_chat(asked()).keep_tokens is None
