import pytest

from moerun.engine.interface import Thinking
from moerun.errors import UsageError
from moerun.repl import commands
from moerun.repl.commands import ROWS, completions, read_command
from moerun.repl.help import help_lines


def no_models():
    return ()


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/bye", commands.Leave()),
        ("/exit", commands.Leave()),
        ("/clear", commands.Clear()),
        ("/?", commands.Help()),
        ("/help", commands.Help()),
        ("/? set", commands.Help(topic="set")),
        ("/help /show", commands.Help(topic="show")),
        ("/? shortcut", commands.Help(topic="shortcuts")),
        ("/set", commands.Help(topic="set")),
        ("/show", commands.Help(topic="show")),
        ("/set parameter", commands.Help(topic="parameters")),
        ("/set parameter seed", commands.Help(topic="parameters")),
        ("/set parameter seed 7", commands.SetParameter(name="seed", value=7)),
        ("/set  parameter temperature 0.5", commands.SetParameter(name="temperature", value=0.5)),
        ("/set parameter stop a b", commands.SetParameter(name="stop", value=("a", "b"))),
        ("/set parameter num_predict -1", commands.SetParameter(name="num_predict", value=-1)),
        ("/set system be  brief", commands.SetSystem(text="be  brief")),
        ("/set system", commands.SetSystem(text="")),
        ("/set system two\nlines ", commands.SetSystem(text="two\nlines")),
        ("/set format json", commands.SetFormat(is_json=True)),
        ("/set noformat", commands.SetFormat(is_json=False)),
        ("/set history", commands.SetHistory(is_kept=True)),
        ("/set nohistory", commands.SetHistory(is_kept=False)),
        ("/set verbose", commands.SetVerbose(is_verbose=True)),
        ("/set quiet", commands.SetVerbose(is_verbose=False)),
        ("/set wordwrap", commands.SetWordwrap(wraps=True)),
        ("/set nowordwrap", commands.SetWordwrap(wraps=False)),
        ("/set think", commands.SetThinking(level=Thinking.ON)),
        ("/set think high", commands.SetThinking(level=Thinking.HIGH)),
        ("/set nothink", commands.SetThinking(level=Thinking.OFF)),
        ("/show template", commands.Show(part="template")),
        ("/memory", commands.ShowMemory()),
        ("/list", commands.ListModels()),
        ("/load demo", commands.Load(name="demo")),
        ("/save mine:1 ", commands.Save(name="mine:1")),
    ],
)
def test_a_line_becomes_a_command(line, command):
    assert read_command(line) == command


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/dance", "Unknown command '/dance'. Type /? for help"),
        ("/", "Unknown command '/'. Type /? for help"),
        ("/set dance", "Unknown command '/set dance'. Type /? for help"),
        ("/show everything", "Unknown command '/show everything'. Type /? for help"),
        ("/set format yaml", "/set format takes json: /set format json; /set noformat ends it"),
        ("/set format", "/set format takes json: /set format json; /set noformat ends it"),
        ("/load", "/load takes the name of one model: /load <model>"),
        ("/save a b", "/save takes the name of one model: /save <model>"),
        ("/? cooking", "There is no help on 'cooking'; /? lists what there is"),
    ],
)
def test_what_is_no_command_is_one_sentence(line, said):
    with pytest.raises(UsageError) as caught:
        read_command(line)
    assert caught.value.message == said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set parameter warmth 1", "there is no parameter 'warmth'"),
        ("/set parameter seed x", "seed takes a whole number"),
        ("/set parameter temperature -1", "at least 0"),
        ("/set parameter num_gpu 3", "num_gpu would have no effect"),
        ("/set think wildly", "/set think takes nothing, or one of low, medium, high, max"),
    ],
)
def test_values_are_checked(line, words):
    with pytest.raises(UsageError) as caught:
        read_command(line)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/lo", ("/load ",)),
        ("/s", ("/set ", "/show ", "/save ")),
        ("/set wo", ("wordwrap",)),
        ("/set parameter top", ("top_k ", "top_p ")),
        ("/show te", ("template",)),
        ("/set think m", ("medium", "max")),
        ("/? sh", ("show", "shortcuts")),
        ("/load q", ("qwen3",)),
        ("/set format ", ("json",)),
        ("/bye ", ()),
        ("hello", ()),
    ],
)
def test_a_begun_word_is_completed(line, words):
    assert completions(line, lambda: ("demo", "qwen3")) == words


def test_each_command_is_explained_and_completed():
    lines = "\n".join([*help_lines(""), *help_lines("set"), *help_lines("show")])
    for row in ROWS:
        assert row.usage in lines
        *before, last = row.words.split()
        offered = completions(" ".join([*before, last[:2]]), no_models)
        assert last in {word.strip() for word in offered}
    assert "Ctrl-D" in "\n".join(help_lines("shortcuts"))
    assert "/set parameter temperature" in "\n".join(help_lines("parameters"))
