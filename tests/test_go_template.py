"""Templates of Modelfiles against prompts written by hand."""

import pytest

from moerun.errors import UsageError
from moerun.store.go_template import parse_template

CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
MESSAGES = """{{- if .System }}S:{{ .System }}
{{ end }}{{- range .Messages }}
{{- if eq .Role "user" }}U:{{ .Content }}
{{ else if eq .Role "assistant" }}A:{{ .Content }}
{{ end }}
{{- end }}A:"""


def test_a_turn_ends_where_the_answer_begins():
    prompt = parse_template(CHATML).render([("system", "Be brief."), ("user", "Hi")])
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_earlier_turns_hold_their_answers():
    turns = [("user", "1"), ("assistant", "one"), ("user", "2")]
    assert parse_template(CHATML).render(turns) == (
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
        "<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_without_a_response_has_it_behind():
    template = parse_template("[INST] {{ .System }} {{ .Prompt }} [/INST]")
    turns = [("system", "s"), ("user", "1"), ("assistant", "one"), ("user", "2")]
    assert template.render(turns) == "[INST] s 1 [/INST]one[INST]  2 [/INST]"


def test_messages_are_gone_through_and_white_space_is_trimmed():
    turns = [("system", "s"), ("user", "1"), ("assistant", "one"), ("user", "2")]
    assert parse_template(MESSAGES).render(turns) == "S:s\nU:1\nA:one\nU:2\nA:"


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ('eq .Prompt "x"', True),
        ('ne .Prompt "x"', False),
        ("and .Prompt .System", False),
        ("or .System .Prompt", True),
        ("not .System", True),
        ('and (eq .Prompt "x") (not .System)', True),
        ('eq .Prompt "a" "x"', True),
    ],
)
def test_conditions(condition, holds):
    template = parse_template(
        f"{{{{ if {condition} }}}}yes{{{{ else }}}}no{{{{ end }}}}{{{{ .Prompt }}}}"
    )
    assert template.render([("user", "x")]) == ("yesx" if holds else "nox")


def test_what_was_said_is_never_a_template():
    said = "{{ .System }}{{ end }}"
    assert parse_template("{{ .Prompt }}").render([("user", said)]) == said


def test_comments_say_nothing():
    assert parse_template("{{/* a note */}}{{ .Prompt }}").render([("user", "x")]) == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}{% endfor %}", "written in Jinja"),
        ("no fields", "neither .Prompt nor .Messages"),
        ("{{ .Prompt }}{{ if .System }}", "no end"),
        ("{{ .Prompt }}{{ end }}", "without its beginning"),
        ("{{ .Nothing }}{{ .Prompt }}", r"\{\{ \.Nothing \}\}' is not understood"),
        ("{{ $x = .Prompt }}{{ .Prompt }}", "not understood"),
        ("{{ $x }}{{ .Prompt }}", "not understood"),
        ("{{ range $i, 5 := .Messages }}{{ end }}", "not understood"),
        ("{{ range $a, $b, $c := .Messages }}{{ end }}", "not understood"),
        ("{{ range len .Messages }}{{ end }}", "not understood"),
        ("{{ range .Messages }}{{ .Prompt }}{{ end }}", "not understood"),
        ("{{ range .Messages }}{{ . }}{{ end }}", "not understood"),
        ("{{ call .Prompt }}", "not understood"),
        ("{{ slice .Prompt }}", "not understood"),
        ("{{ }}{{ .Prompt }}", "not understood"),
        ("{{ if (eq .Prompt }}x{{ end }}", "not understood"),
        ("{{ if not }}x{{ end }}{{ .Prompt }}", "not understood"),
        ("{{ if .Prompt }}" * 100 + "{{ end }}" * 100, "nested more than"),
    ],
)
def test_what_is_not_understood_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_template(text)


@pytest.mark.parametrize("text", ["{{ .Prompt", "{{ .Prompt }} and {{ .System"])
def test_an_action_without_an_end_is_told(text):
    with pytest.raises(UsageError, match="has no }}"):
        parse_template(text)


# As those of ollama's library are written: the last question is found by index, and tools are
# asked for that no conversation here has.
LIBRARY = """{{- range $index, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $index)) 1 }}
{{- if eq .Role "user" }}
{{- if and $last $.Tools }}[TOOLS] {{ range $.Tools }}{{ .Function.Name }}{{ end }}
{{- end }}[INST] {{ if and $.System $last }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }}
{{- if .ToolCalls }}[CALLS]{{ range .ToolCalls }}{{ .Function.Arguments }}{{ end }}
{{- else }} {{ .Content }}</s>
{{- end }}
{{- end }}
{{- end }}"""


def test_a_template_of_the_library_finds_the_last_question():
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    prompt = parse_template(LIBRARY).render(turns)
    assert prompt == "[INST] Hi[/INST] Hello</s>[INST] Be brief.\n\nBye[/INST]"


def test_a_variable_that_is_set_in_a_loop_is_known_behind_it():
    text = (
        "{{ $at := -1 }}{{ range $i, $m := .Messages }}"
        '{{ if eq $m.Role "user" }}{{ $at = $i }}{{ end }}{{ end }}'
        "{{ range $i, $m := .Messages }}{{ if eq $i $at }}>{{ end }}{{ $m.Content }};{{ end }}"
    )
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert parse_template(text).render(turns) == "a;b;>c;"


def test_a_template_without_end_is_stopped():
    text = "{{ range .Messages }}" * 12 + "x" + "{{ end }}" * 12
    text = text.replace("{{ range .Messages }}", "{{ range $.Messages }}")
    with pytest.raises(UsageError, match="without end"):
        parse_template(text).render([("user", "a")] * 10)
