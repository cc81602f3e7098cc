import io
import stat

import pytest

from moerun.cli.conversation import Conversation
from moerun.cli.line_history import line_history
from moerun.engine.interface import GenerationResult, Message, Sampling, StopReason
from moerun.errors import EngineCrashed, UsageError, WorkerLost
from moerun.runner.carried import Carried


class FakeAnswering:
    """Answers with the count of turns it was given, or raises what it is told to."""

    def __init__(self, *failures, answer=None, notes=()):
        self.requests = []
        self._failures = list(failures)
        self._answer = answer
        self._notes = notes

    def answer(self, request, on_text):
        self.requests.append(request)
        if self._failures and (failure := self._failures.pop(0)) is not None:
            raise failure
        on_text(self._answer or f"{len(request.messages)} turns")
        return GenerationResult(
            stop_reason=StopReason.END,
            prompt_tokens=1,
            reused_tokens=0,
            answer_tokens=1,
            prompt_s=0.0,
            answer_s=0.0,
            seed=1,
            notes=self._notes,
        )

    def describe(self):
        return ("model  m\x1b[31m",)

    def parameters(self):
        return ("temperature 1",)


def hold(*lines, answering=None, **changes):
    """Type the lines, then Ctrl-D; an exception among them is raised at the prompt."""
    typed = iter([*lines, EOFError()])
    prompts = []

    def read_line(prompt):
        prompts.append(prompt)
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    answering = answering or FakeAnswering()
    output, notices = io.StringIO(), io.StringIO()
    conversation = Conversation(
        answering, read_line=read_line, output=output, notices=notices, **changes
    )
    conversation.hold()
    return answering, output.getvalue(), notices.getvalue(), prompts


def test_turns_add_up_with_the_system_message_in_front():
    answering, output, _, prompts = hold("one", "  ", "two", system="be brief")
    assert [len(request.messages) for request in answering.requests] == [2, 4]
    assert answering.requests[1].messages == (
        Message(role="system", content="be brief"),
        Message(role="user", content="one"),
        Message(role="assistant", content="2 turns"),
        Message(role="user", content="two"),
    )
    assert output == "2 turns\n\n4 turns\n\n\n"
    assert set(prompts) == {">>> "}


def test_sampling_and_limits_reach_the_model():
    sampling = Sampling(temperature=0.0)
    answering, *_ = hold("x", carried=Carried(sampling=sampling, maximum_tokens=7))
    assert answering.requests[0].sampling == sampling
    assert answering.requests[0].maximum_tokens == 7


def test_clear_forgets_turns_and_keeps_the_system_message():
    answering, _, notices, _ = hold("one", "/set system be kind", "/clear", "two")
    assert [m.role for m in answering.requests[1].messages] == ["system", "user"]
    assert "Cleared session context" in notices
    assert "Set system message." in notices


def test_bye_leaves_and_nothing_after_it_is_read():
    answering, output, _, prompts = hold("/bye", "never")
    assert answering.requests == []
    assert len(prompts) == 1
    assert output == ""


def test_ctrl_c_on_an_empty_line_tells_how_to_leave():
    _, output, _, prompts = hold(KeyboardInterrupt(), "/exit")
    assert "Use Ctrl + d or /bye to exit." in output
    assert len(prompts) == 2


def test_a_text_in_triple_quotes_takes_several_lines():
    answering, _, _, prompts = hold('"""first', "second", 'third""" dropped')
    assert answering.requests[0].messages[-1].content == "first\nsecond\nthird"
    assert prompts[:3] == [">>> ", "... ", "... "]


@pytest.mark.parametrize(
    ("line", "notice"),
    [
        ("/show info", "model  m"),
        ("/show system", "No system message"),
        ("/show parameters", "temperature 1"),
        ("/show everything", "not known here"),
        ("/set nothink", "not known here"),
        ("/dance", "Unknown command '/dance'"),
        ("/?", "/bye"),
        ("/set system", "Removed"),
    ],
)
def test_commands_answer_on_the_other_stream(line, notice):
    answering, output, notices, _ = hold(line)
    assert notice in notices
    assert "\x1b" not in notices
    assert output == "\n"
    assert answering.requests == []


def test_a_question_that_is_refused_is_dropped_and_the_conversation_goes_on():
    answering = FakeAnswering(UsageError("too long", hint="say less"))
    answering, _, notices, _ = hold("long", "short", answering=answering)
    assert "Error: too long" in notices
    assert "Hint: say less" in notices
    assert [m.content for m in answering.requests[1].messages] == ["short"]


def test_a_conversation_that_fills_the_context_can_be_begun_anew():
    answering = FakeAnswering(None, UsageError("too long"))
    _, _, notices, _ = hold("a", "b", answering=answering)
    assert "Type /clear" in notices


def test_what_was_changed_to_fit_the_template_is_told_once():
    answering = FakeAnswering(notes=("the system message went into the first turn",))
    _, _, notices, _ = hold("a", "b", answering=answering)
    assert notices.count("system message went") == 1


def test_a_crash_ends_the_conversation():
    with pytest.raises(EngineCrashed):
        hold("x", answering=FakeAnswering(EngineCrashed("died")))


def test_a_lost_worker_ends_one_answer_and_not_the_conversation():
    answering = FakeAnswering(WorkerLost("The worker at a:1 was lost.", hint="ask again"))
    _, output, notices, _ = hold("x", "y", answering=answering)
    assert "The worker at a:1 was lost" in notices
    assert "ask again" in notices
    assert "1 turns" in output  # the lost turn is not part of the next question


def test_control_characters_of_the_model_do_not_reach_the_terminal():
    _, output, _, _ = hold("x", answering=FakeAnswering(answer="a\x1b]52;c;x\x07\x9bb\n\tc\r"))
    assert output.startswith("a]52;c;xb\n\tc")


def test_the_history_is_kept_for_this_user_alone(tmp_path):
    readline = pytest.importorskip("readline")
    readline.clear_history()
    with line_history(tmp_path):
        readline.add_history("asked before")
    path = tmp_path / "history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "asked before" in path.read_text()
    readline.clear_history()
    with line_history(tmp_path):
        assert readline.get_history_item(1) == "asked before"
    readline.clear_history()


def test_no_history_is_kept_where_none_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("MOERUN_NOHISTORY", "1")
    with line_history(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
