import io

import pytest

from moerun.engine.interface import (
    AnswerPart,
    FormatKind,
    GenerationResult,
    Message,
    Overflow,
    StopReason,
    Thinking,
)
from moerun.errors import EngineCrashed, ModelNotFound, ServeError, UsageError, WorkerLost
from moerun.repl.conversation import Conversation, Screen, Showing
from moerun.repl.history import OFF_VARIABLE, TypedLines, typed_lines
from moerun.repl.partner import ModelCard, Spoken
from moerun.repl.settings import ENDLESS_TOKENS, ChatSettings


class FakePartner:
    """Answers with the count of messages it was given, or raises what it is told to."""

    def __init__(self, *failures, parts=None, notes=(), card=None):
        self.name = "fake"
        self.requests = []
        self.settings = []
        self.saved = []
        self.memory_shown = 0
        self._failures = list(failures)
        self._parts = parts
        self._notes = notes
        self._card = card or ModelCard(info=("model  m\x1b[31m",), parameters=("top_k 20",))

    def answer(self, settings, turns, on_part):
        request = settings.request(turns)
        self.requests.append(request)
        if self._failures and (failure := self._failures.pop(0)) is not None:
            on_part(AnswerPart(text="beg"))
            raise failure
        for part in self._parts or (AnswerPart(text=f"{len(request.messages)} turns"),):
            on_part(part)
        result = GenerationResult(
            stop_reason=StopReason.END,
            prompt_tokens=1,
            reused_tokens=0,
            answer_tokens=1,
            prompt_s=0.0,
            answer_s=0.0,
            seed=1,
            notes=self._notes,
        )
        return Spoken(result=result, load_s=0.0, total_s=0.1)

    def figures(self, spoken):
        return (f"total {spoken.total_s}",)

    def card(self):
        return self._card

    def check_parameter(self, name, value):
        if name == "num_ctx":
            raise UsageError("no other context here")

    def load(self, name, settings):
        if name != "other":
            raise ModelNotFound(f"Couldn't find model '{name}'")
        self.name = name
        self.settings.append(settings)

    def save(self, name, settings, turns):
        self.saved.append((name, settings, tuple(turns)))

    def model_names(self):
        return ("fake", "other")

    def show_memory(self):
        self.memory_shown += 1


def hold(*lines, partner=None, settings=None, showing=None, typed=None):
    """Type the lines, then Ctrl-D; an exception among them is raised at the prompt."""
    waiting = iter([*lines, EOFError()])
    prompts = []

    def read_line(prompt):
        prompts.append(prompt)
        line = next(waiting)
        if isinstance(line, BaseException):
            raise line
        return line

    partner = partner or FakePartner()
    output, notices = io.StringIO(), io.StringIO()
    screen = Screen(
        read_line=read_line,
        output=output,
        notices=notices,
        typed=typed,
        columns=lambda: 30,
    )
    Conversation(partner, screen, settings or ChatSettings(), showing or Showing()).hold()
    return partner, output.getvalue(), notices.getvalue(), prompts


def test_turns_add_up_with_the_system_message_in_front():
    partner, output, _, prompts = hold("one", "  ", "two", settings=ChatSettings(system="be brief"))
    assert [len(request.messages) for request in partner.requests] == [2, 4]
    assert partner.requests[1].messages == (
        Message(role="system", content="be brief"),
        Message(role="user", content="one"),
        Message(role="assistant", content="2 turns"),
        Message(role="user", content="two"),
    )
    assert output == "2 turns\n\n4 turns\n\n\n"
    assert set(prompts) == {">>> "}


def test_parameters_become_fields_of_the_request():
    partner, _, notices, _ = hold(
        "/set parameter temperature 0",
        "/set parameter stop END",
        "/set parameter num_predict -1",
        "/set parameter num_ctx 4096",
        "/set format json",
        "x",
        "/set noformat",
        "y",
    )
    first, second = partner.requests
    assert first.sampling.temperature == 0
    assert first.stop == ("END",)
    assert first.maximum_tokens == ENDLESS_TOKENS
    assert first.format.kind is FormatKind.JSON
    assert second.format.kind is FormatKind.TEXT
    assert first.overflow is Overflow.SHIFT
    assert "Set parameter 'temperature' to '0.0'" in notices
    assert "no other context here" in notices


def test_a_request_alone_ends_at_a_full_context():
    request = ChatSettings().request((Message(role="user", content="x"),))
    assert request.overflow is Overflow.END
    assert not request.truncates


def test_clear_forgets_turns_and_keeps_the_settings():
    partner, _, notices, _ = hold("one", "/set system be kind", "/clear", "two")
    assert [m.role for m in partner.requests[1].messages] == ["system", "user"]
    assert "Cleared session context" in notices
    assert "Set system message." in notices


def test_another_model_begins_anew_under_the_same_settings():
    card = ModelCard(info=(), turns=(("user", "before"), ("assistant", "after")))
    partner, output, notices, _ = hold(
        "/set parameter seed 4", "one", "/load other", "two", partner=FakePartner(card=card)
    )
    assert partner.name == "other"
    assert dict(partner.settings[0].parameters) == {"seed": 4}
    assert [len(request.messages) for request in partner.requests] == [1, 1]
    assert "Loading model 'other'" in notices
    assert output.count(">>> before\nafter\n") == 2


def test_a_model_that_is_not_found_leaves_the_conversation_as_it_was():
    partner, _, notices, _ = hold("one", "/load nothing", "two")
    assert partner.name == "fake"
    assert "Couldn't find model 'nothing'" in notices
    assert len(partner.requests[1].messages) == 3


def test_a_conversation_is_saved_whole():
    partner, _, notices, _ = hold("/set system s", "one", "/save mine")
    [(name, settings, turns)] = partner.saved
    assert (name, settings.system) == ("mine", "s")
    assert [(turn.role, turn.content) for turn in turns] == [
        ("user", "one"),
        ("assistant", "2 turns"),
    ]
    assert "Created new model 'mine'" in notices


def test_thinking_is_set_apart_and_kept_with_the_turn():
    parts = (AnswerPart(thinking="\nhm"), AnswerPart(thinking="m"), AnswerPart(text="yes"))
    partner, output, _, _ = hold("a", "b", partner=FakePartner(parts=parts))
    assert output.startswith("Thinking...\nhmm\n...done thinking.\n\nyes\n\n")
    assert partner.requests[1].messages[1].thinking == "hmm"
    _, output, _, _ = hold(
        "a", partner=FakePartner(parts=parts), showing=Showing(shows_thinking=False)
    )
    assert output == "yes\n\n\n"


def test_a_model_that_cannot_think_is_not_told_to():
    partner, _, notices, _ = hold("/set think", "a", "/set nothink", "b")
    assert "fake does not think" in notices
    assert [request.think for request in partner.requests] == [None, Thinking.OFF]
    card = ModelCard(info=(), can_think=True)
    partner, _, _, _ = hold("/set think high", "a", partner=FakePartner(card=card))
    assert partner.requests[0].think is Thinking.HIGH


def test_lines_are_broken_between_words_until_told_otherwise():
    said = (AnswerPart(text="one two three four "), AnswerPart(text="five six seven eight"))
    _, output, _, _ = hold("a", "/set nowordwrap", "b", partner=FakePartner(parts=said))
    assert "one two three four five six\nseven eight\n" in output
    assert "one two three four five six seven eight\n" in output


def test_timings_follow_an_answer_when_asked_for():
    _, _, notices, _ = hold("a", "/set verbose", "b", "/set quiet", "c")
    assert notices.count("total 0.1") == 1


def test_bye_leaves_and_nothing_after_it_is_read():
    partner, output, _, prompts = hold("/bye", "never")
    assert partner.requests == []
    assert len(prompts) == 1
    assert output == ""


def test_ctrl_c_on_an_empty_line_tells_how_to_leave():
    _, output, _, prompts = hold(KeyboardInterrupt(""), KeyboardInterrupt("half a"), "/exit")
    assert output.count("Use Ctrl + d or /bye to exit.") == 1
    assert len(prompts) == 3


def test_a_text_in_triple_quotes_takes_several_lines():
    partner, _, _, prompts = hold('"""first', "second", 'third""" dropped', 'say """x')
    assert partner.requests[0].messages[-1].content == "first\nsecond\nthird"
    assert partner.requests[1].messages[-1].content == 'say """x'
    assert prompts[:3] == [">>> ", "... ", "... "]
    partner, _, _, _ = hold('/set system """a', 'b"""', "x")
    assert partner.requests[0].messages[0].content == "a\nb"


@pytest.mark.parametrize(
    ("line", "notice"),
    [
        ("/show info", "model  m"),
        ("/show system", "No system message"),
        ("/show parameters", "top_k 20"),
        ("/show license", "No license"),
        ("/show everything", "Unknown command '/show everything'"),
        ("/dance", "Unknown command '/dance'"),
        ("/list", "other"),
        ("/?", "/bye"),
        ("/set system", "Removed"),
    ],
)
def test_commands_answer_on_the_other_stream(line, notice):
    partner, output, notices, _ = hold(line)
    assert notice in notices
    assert "\x1b" not in notices
    assert output == "\n"
    assert partner.requests == []


def test_memory_is_shown_by_whoever_holds_it():
    partner, *_ = hold("/memory")
    assert partner.memory_shown == 1


@pytest.mark.parametrize("failure", [UsageError, ServeError])
def test_a_question_that_fails_is_dropped_and_the_conversation_goes_on(failure):
    partner = FakePartner(failure("too long", hint="say less"))
    partner, output, notices, _ = hold("long", "short", partner=partner)
    assert "Error: too long" in notices
    assert "Hint: say less" in notices
    assert output.startswith("beg\n")
    assert [m.content for m in partner.requests[1].messages] == ["short"]


def test_a_conversation_that_fills_the_context_can_be_begun_anew():
    _, _, notices, _ = hold("a", "b", partner=FakePartner(None, UsageError("too long")))
    assert "Type /clear" in notices


def test_what_was_changed_to_fit_the_template_is_told_once():
    partner = FakePartner(notes=("the system message went into the first turn",))
    _, _, notices, _ = hold("a", "b", partner=partner)
    assert notices.count("system message went") == 1


@pytest.mark.parametrize("failure", [WorkerLost, EngineCrashed])
def test_what_kills_the_runner_ends_one_answer_and_not_the_conversation(failure):
    partner = FakePartner(failure("The worker at a:1 was lost.", hint="ask again"))
    _, output, notices, _ = hold("x", "y", partner=partner)
    assert "The worker at a:1 was lost" in notices
    assert "ask again" in notices
    assert "1 turns" in output  # the lost turn is not part of the next question


def test_control_characters_of_the_model_do_not_reach_the_terminal():
    said = (AnswerPart(thinking="\x1b[2J"), AnswerPart(text="a\x1b]52;c;x\x07\x9bb\n\tc\r"))
    _, output, _, _ = hold("x", partner=FakePartner(parts=said))
    assert "a]52;c;xb\n\tc" in output
    assert "\x1b" not in output


def test_the_history_is_kept_for_this_user_alone(tmp_path):
    path = tmp_path / "history"
    told: list[str] = []
    typed = TypedLines(path, told.append, is_kept=True)
    for entry in ("asked before", "two\nlines", "a \\n b"):
        typed.add(entry)
    assert typed.entries() == ("asked before", "two\nlines", "a \\n b")
    assert path.stat().st_mode & 0o077 == 0
    for count in range(120):
        typed.add(str(count))
    assert len(typed.entries()) == 100
    assert typed.entries()[-1] == "119"
    assert told == []


def test_a_history_that_cannot_be_written_is_told_of_once(tmp_path):
    told: list[str] = []
    typed = TypedLines(tmp_path / "absent" / "history", told.append, is_kept=True)
    typed.add("a")
    typed.add("b")
    assert len(told) == 1


def test_nothing_is_kept_where_no_history_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    off = typed_lines(lambda _: None, {OFF_VARIABLE: "1"})
    off.add("secret")
    assert off.entries() == ()
    assert list(tmp_path.iterdir()) == []
    on = typed_lines(lambda _: None, {})
    hold("/set nohistory", typed=on)
    on.add("secret")
    assert list(tmp_path.iterdir()) == []
