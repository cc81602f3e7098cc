"""Options of a request that have no effect are told in the log, and are no error."""

import logging

import pytest

from moerun.server.bodies import Fields
from moerun.server.ollama_requests import read_options, read_wishes


def asked(**options):
    return Fields(values={"options": options}, where="")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_keep": 4, "use_mmap": True}, "options without effect here: num_keep, use_mmap"),
        ({"no_such": 1}, "unknown options are passed over: no_such"),
        ({"num_gpu": 20}, "num_gpu is passed over unless it is 0"),
    ],
)
def test_what_has_no_effect_is_told_in_the_log(caplog, options, said):
    with caplog.at_level(logging.WARNING):
        assert read_options(asked(**options)).values == options
    assert [said in record.getMessage() for record in caplog.records] == [True]


def test_what_has_an_effect_is_not_told(caplog):
    with caplog.at_level(logging.WARNING):
        read = read_options(asked(num_ctx=64, num_gpu=0, temperature=0))
    assert caplog.records == []
    assert (read_wishes(read).context_tokens, read_wishes(read).gpu_layers) == (64, 0)
