"""What is said of a recording, by hand and as lines."""

import pytest

from moerun.experts.route_figures import RouteFigures, route_figures
from moerun.experts.routes import Phase
from moerun.experts.trace import read_trace
from moerun.report.console import Page
from moerun.report.trace_view import trace_document, trace_lines
from tests.plan_pictures import drawn
from tests.traces import a_pass, a_trace, recorded_trace


def test_figures_by_hand():
    figures = route_figures(
        a_trace(
            [
                a_pass((0, 1, 2), phase=Phase.PREFILL, tokens=2),
                a_pass((0, 1)),
                a_pass((0, 2)),
                a_pass((4, 5)),
            ]
        )
    )
    assert figures == RouteFigures(
        prompt_tokens=2,
        answer_tokens=3,
        turns=1,
        layer_count=1,
        used_fraction=5 / 8,
        top_tenth_fraction=0.0,  # a tenth of 8 experts is none
        repeated_fraction=1 / 4,
    )


def test_a_prompt_alone_has_no_figures_of_answers():
    figures = route_figures(a_trace([a_pass((0, 1), phase=Phase.PREFILL, tokens=2)]))
    assert (figures.answer_tokens, figures.repeated_fraction) == (0, None)
    assert figures.top_tenth_fraction is None


def test_figures_of_a_recorded_trace_are_those_that_are_known():
    figures = route_figures(read_trace(recorded_trace("qwen3-30b-a3b")))
    assert figures.repeated_fraction == pytest.approx(0.380, abs=0.001)
    assert figures.top_tenth_fraction is not None
    assert 0.3 < figures.top_tenth_fraction < 0.6


def test_the_lines_say_what_there_is():
    figures = RouteFigures(
        prompt_tokens=1234,
        answer_tokens=56,
        turns=1,
        layer_count=48,
        used_fraction=0.97,
        top_tenth_fraction=0.42,
        repeated_fraction=None,
    )
    text = drawn(trace_lines("a\x1b[31m.csv", figures, Page(columns=80)), Page(columns=80))
    assert text == (
        "written  a\\x1b[31m.csv: 1 prompt of 1,234 tokens, 56 tokens of answers, 48\n"
        "         layers\n"
        "experts  97% were used at all\n"
        "uneven   the tenth that was used most took 42% of the answers' requests\n"
    )
    assert trace_document("a.csv", figures)["used_fraction"] == 0.97
