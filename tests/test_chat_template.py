"""Chat templates: what published ones expect, and what hostile ones get."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from moerun.engine.chat import FALLBACK_STOP, ChatTemplate
from moerun.engine.interface import Message
from moerun.errors import MoerunError, UnsupportedModel, UsageError

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
QUESTION = (Message(role="user", content="Hello"),)
WITH_SYSTEM = (Message(role="system", content="Be brief."), *QUESTION)


def template(
    source: str | None,
    *,
    begin_text: str = "<s>",
    end_text: str = "</s>",
    monotonic_s: Callable[[], float] = lambda: 0.0,
) -> ChatTemplate:
    return ChatTemplate(
        source,
        begin_text=begin_text,
        end_text=end_text,
        now=lambda: NOW,
        monotonic_s=monotonic_s,
    )


def rendered(source: str, messages: tuple[Message, ...] = QUESTION) -> str:
    return template(source).render(messages).text


def test_the_usual_form():
    source = (
        "{{ bos_token }}{% for message in messages %}\n"
        "    {% if message['role'] == 'user' %}\n"
        "[INST] {{ message['content'] | trim }} [/INST]\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}{{ '>>' }}{% endif %}{{ eos_token }}"
    )
    assert rendered(source) == "<s>[INST] Hello [/INST]\n>></s>"


def test_variables_that_are_not_there_are_undefined():
    source = "{{ tools is defined }} {{ bos_token is defined }} {{ enable_thinking is defined }}"
    made = template(source, begin_text="")
    assert made.render(QUESTION).text == "False False False"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
         "{{ ns.n }}", "1"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% for i in [0, 1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
         "02"),
        ("{{ {'ä': '<b>'} | tojson }}", '{"ä": "<b>"}'),
        ("{{ {'b': 1, 'a': [1]} | tojson(indent=2) }}", '{\n  "b": 1,\n  "a": [\n    1\n  ]\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "21 Nov 2026"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "Hello"),
        ("{% macro greet(who) %}Hi {{ who }}{% endmacro %}{{ greet('you') ~ '!' }}", "Hi you!"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content')"
         " | join(',') }}", "Hello"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}",
         "1/1True"),
        ("{% for m in missing %}{{ m }}{% else %}none{% endfor %}", "none"),
        ("{{ messages[0].content.split('l') | length }}{{ 'ab'.replace('a', 'c') }}", "3cb"),
        ("{{ '%05d|%s' % (7, 'x') }}{{ 7 % 4 }}", "00007|x3"),
        ("{{ '20260101 {:>4} {{{}}}'.format(7, 'x') }}", "20260101    7 {x}"),
    ],
)  # fmt: skip
def test_helpers_that_templates_expect(source: str, text: str):
    assert rendered(source) == text


def test_without_a_template_the_common_form_is_used_and_said():
    prompt = template(None).render(WITH_SYSTEM)
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt.stop == (FALLBACK_STOP,)
    assert len(prompt.notes) == 1
    assert "no chat template" in prompt.notes[0]


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m.role }}: {{ m.content }};{% endfor %}"
)


def test_a_system_message_that_is_refused_joins_the_first_question():
    prompt = template(NO_SYSTEM).render(WITH_SYSTEM)
    assert prompt.text == "user: Be brief.\n\nHello;"
    assert "no system message" in prompt.notes[0]
    assert template(NO_SYSTEM).render(QUESTION).notes == ()


def test_a_refusal_is_told_in_the_templates_words():
    source = "{{ raise_exception('Roles must alternate.') }}"
    with pytest.raises(UsageError, match="does not take this conversation: Roles must alternate"):
        rendered(source, WITH_SYSTEM)
    with pytest.raises(UsageError, match="empty"):
        rendered(source, ())


HOSTILE = {
    "python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "formatting into insides": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "changing the messages": "{{ messages.append(1) }}",
    "a long text by times": "{{ 'x' * 10**9 }}",
    "a long text by doubling": "{% set ns = namespace(t='x') %}{% for i in range(99) %}"
    "{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "a long text by joining": "{% set ns = namespace(t='x') %}{% for i in range(99) %}"
    "{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "a long text by blocks": "{% set ns = namespace(t='x') %}{% for i in range(99) %}"
    "{% set t %}{{ ns.t }}{{ ns.t }}{% endset %}{% set ns.t = t %}{% endfor %}",
    "a long text by macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% else %}x"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "a long text by replacing": "{% set ns = namespace(t='xx') %}{% for i in range(99) %}"
    "{% set ns.t = ns.t.replace('x', ns.t) %}{% endfor %}",
    "a long text by the filter": "{% set ns = namespace(t='xx') %}{% for i in range(99) %}"
    "{% set ns.t = ns.t | replace('x', ns.t) %}{% endfor %}",
    "a long text by join": "{% set ns = namespace(t='xx') %}{% for i in range(99) %}"
    "{% set ns.t = ns.t.join(ns.t) %}{% endfor %}",
    "a long text by centring": "{{ 'x'.center(10000000000) }}",
    "a long text by the filter centring": "{{ 'x' | center(10000000000) }}",
    "a long text by padding": "{{ '%10000000000d' % 1 }}",
    "a long text by a starred width": "{{ '%*d' % (10000000000, 1) }}",
    "a long text by format": "{{ '{:10000000000}'.format(1) }}",
    "a long text by a nested width": "{{ '{:{}}'.format(1, 10000000000) }}",
    "a long text by format_map": "{{ '{a:10000000000}'.format_map({'a': 1}) }}",
    "a long text by the filter format": "{{ '%10000000000d' | format(1) }}",
    "a long list by batches": "{{ [1] | batch(10000000000, 'x') | list }}",
    "many slices": "{{ [1] | slice(10000000000) | list }}",
    "a large range": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for a in range(9999) %}{% for b in range(9999) %}"
    "{% endfor %}{% endfor %}",
    "endless macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "large numbers": "{{ 10 ** (10 ** 10) }}",
    "numbers by squaring": "{% set ns = namespace(n=9) %}{% for i in range(99) %}"
    "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "many blocks": "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "not closed": "{% for m in messages %}",
    "an unknown filter": "{{ messages | nothing }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
    "division by zero": "{{ 1 // 0 }}",
    "words of its own": "{{ lipsum(100000) }}",
    "a wide date": "{{ strftime_now('%9999999999d') }}",
    "too long": "x" * 1_000_001,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_one_sentence(name: str):
    with pytest.raises(MoerunError) as caught:
        rendered(HOSTILE[name])
    assert isinstance(caught.value, UnsupportedModel)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_insides_asked_for_by_filter_are_undefined():
    assert rendered("{{ ''|attr('__class__')|attr('__mro__') }}.") == "."


def test_a_template_that_takes_too_long_is_stopped():
    ticks = iter(range(1000))
    slow = template(
        "{% for i in range(500) %}{{ i }}{% endfor %}", monotonic_s=lambda: float(next(ticks))
    )
    with pytest.raises(UnsupportedModel, match="takes longer than 10 s"):
        slow.render(QUESTION)


def test_meters_start_anew_with_each_rendering():
    made = template("{% for i in range(90000) %}{% endfor %}{{ messages[0].content }}")
    assert [made.render(QUESTION).text for _ in range(30)] == ["Hello"] * 30


def test_thinking_is_split_from_an_answer_whose_prompt_another_template_wrote():
    made = template("{{ messages[0].content }}<think></think>")
    splitter = made.read_written("[INST] Hello [/INST]").splitter
    assert splitter is not None
    parts = (*splitter.feed("<think>So.</think>Yes"), *splitter.finish())
    assert [(kind.value, text) for kind, text in parts] == [("thinking", "So."), ("content", "Yes")]
    opened = made.read_written("[INST] Hello [/INST]<think>").splitter
    assert opened is not None
    assert [kind.value for kind, _ in opened.feed("So.</think>Yes")] == ["thinking", "content"]
    assert template("{{ messages[0].content }}").read_written("Hello").splitter is None
