"""The door of the program: what every failure looks like, and what each verb's help holds."""

import errno
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from moerun.cli.app import main
from moerun.cli.options import with_placement_flags
from moerun.cli.verbs import GENERAL_VARIABLES, MODULES, SUMMARIES, build_verb
from moerun.errors import EngineCrashed, ModelNotFound, MoerunError
from moerun.report.plain import error_lines, printable
from moerun.settings.keys import KEYS


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in list(os.environ):
        if name.startswith("MOERUN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MOERUN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MOERUN_REGISTRY", "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.chdir(tmp_path)


def failing(error: BaseException) -> typer.Typer:
    """Return a program whose only command raises."""
    program = typer.Typer(add_completion=False, rich_markup_mode=None)

    @program.command()
    def fail() -> None:
        raise error

    return program


def stderr_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plam"], 2, "Did you mean 'plan'"),
        (["plan", "--vrma", "8G"], 2, "No such option: --vrma"),
        (["plan", "--vram"], 2, "requires an argument"),
        (["plan", "one", "two"], 2, "unexpected extra argument"),
        (["plan", "x", "--vram", "8GG"], 2, "--vram: memory_strategy.vram_limit: '8GG'"),
        (["plan", "x", "--ctx", ""], 2, "--ctx: context: there is no value"),
        (["plan", "x", "--config", "absent.yaml"], 2, "absent.yaml: there is no such file"),
        (["plan", "x", "--config", ""], 2, "--config: '' is not the path"),
        (["plan", "absent"], 3, "No model at hand is called 'absent'"),
        (["plan", "x" * 5000], 3, "too long"),
        (["plan", "nul\0l"], 3, "nul\\x00l"),
        (["plan", os.devnull], 3, os.devnull),
        (["plan", "--machine", "~nobody-here/x"], 2, "--machine: '~nobody-here/x' is not"),
        (["plan", "--machine", "x" * 5000], 5, "does not describe a machine: File name too long"),
        (["plan", "--config", "x" * 5000], 2, "cannot be read: File name too long"),
        (["plan", "--machine", "absent.json"], 5, "absent.json does not describe a machine"),
        (["plan", "--machine", os.devnull], 5, "does not describe a machine"),
    ],
)
def test_bad_input_is_one_sentence_with_the_code_of_its_family(arguments, code, words, capsys):
    assert main(arguments) == code
    first, *hints = stderr_of(capsys)
    assert first.startswith("Error: ")
    assert words in first
    assert len(hints) <= 1
    assert all(hint.startswith("Hint: ") for hint in hints)


def test_bare_it_prints_its_help(capsys):
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    assert all(name in bare for name in SUMMARIES)


def test_versions(capsys):
    assert main(["--version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("moerun ")
    assert second.startswith("engine: llama-cpp-python ")


def test_a_fault_of_our_own_is_one_sentence_and_a_log(capsys, tmp_path: Path):
    assert main([], program=failing(TypeError("a bug\x1b[2J"))) == 70
    (line,) = stderr_of(capsys)
    assert line.startswith(r"Error: moerun met a fault of its own (TypeError: a bug\x1b[2J)")
    (log,) = (tmp_path / "state" / "logs").glob("fault-*.log")
    assert str(log) in line
    assert "Traceback" in log.read_text()
    assert os.name == "nt" or log.stat().st_mode & 0o077 == 0


def test_a_fault_whose_log_cannot_be_written_is_still_one_sentence(
    capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path / "file" / "state"))
    assert main([], program=failing(ValueError("a bug"))) == 70
    (line,) = stderr_of(capsys)
    assert "MOERUN_DEBUG=1 shows the details" in line


@pytest.mark.parametrize(("value", "is_shown"), [("1", True), ("0", False), ("", False)])
def test_the_traceback_is_shown_when_asked(value, is_shown, capsys, monkeypatch):
    monkeypatch.setenv("MOERUN_DEBUG", value)
    assert main([], program=failing(ModelNotFound("none"))) == 3
    lines = stderr_of(capsys)
    assert lines[-1] == "Error: none"
    assert (lines[0] == "Traceback (most recent call last):") is is_shown


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (BrokenPipeError(), 0, ""),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, ""),
        (typer.Exit(5), 5, ""),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), 1, "Error: /x/y could not be written"),
        (PermissionError(errno.EACCES, "no"), 70, "Error: moerun met a fault of its own"),
        (MoerunError("m", hint="h"), 1, "Error: m\nHint: h"),
    ],
)
def test_ends(error, code, says, capsys):
    assert main([], program=failing(error)) == code
    assert capsys.readouterr().err.startswith(says)


def test_errors_never_carry_control_characters():
    lines = error_lines(
        EngineCrashed(
            "died\r\nof \x1b]0;title\x07 \u202e\ud800",
            log_tail="one\x9b31m\n\n" + "line\n" * 20 + "last",
            hint="try\x00 again",
        )
    )
    assert lines[0] == r"Error: died of \x1b]0;title\x07 \u202e\ud800"
    assert lines[-2:] == ("  | last", r"Hint: try\x00 again")
    assert len(lines) == 14
    assert all(line.isprintable() for line in lines)


def test_printable_text_stays():
    assert printable("Größe: 8 GiB\tmore") == "Größe: 8 GiB more"


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"]])
def test_a_reader_that_leaves_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = run_moerun(arguments, stdout=closed.fileno())
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_a_full_disk_is_one_sentence():
    with open("/dev/full", "wb") as full:
        done = run_moerun(["--help"], stdout=full.fileno())
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: the output could not be written: No space left")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_what_standard_error_does_not_take_changes_no_exit_code():
    with open("/dev/full", "wb") as full:
        done = run_moerun(["show-me"], stdout=subprocess.DEVNULL, stderr=full.fileno())
    assert done.returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a POSIX shell does")
def test_closed_streams_are_empty_ones():
    command = ("sh", "-c", 'exec "$@" <&- >&-', "sh")
    done = run_moerun(["run", "absent"], stdout=subprocess.DEVNULL, command=command)
    assert done.returncode == 3
    assert done.stderr.startswith(b"Error: No model at hand is called 'absent'")


def run_moerun(
    arguments: list[str],
    *,
    stdout: int,
    stderr: int = subprocess.PIPE,
    command: tuple[str, ...] = (),
) -> "subprocess.CompletedProcess[bytes]":
    code = "import sys; from moerun.cli.app import main; sys.exit(main())"
    return subprocess.run(
        [*command, sys.executable, "-c", code, *arguments],
        stdout=stdout,
        stderr=stderr,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


@pytest.mark.parametrize("name", SUMMARIES)
def test_rows_of_the_help_are_the_first_words_of_the_verbs(name, capsys):
    stem = MODULES.get(name, name)
    function = getattr(importlib.import_module(f"moerun.cli.{stem}"), stem)
    docstring = inspect.getdoc(function) or ""
    assert docstring.startswith(SUMMARIES[name].rstrip("."))
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Usage: moerun {name} ")
    environment = printed.partition("\nEnvironment:\n")[2]
    assert all(variable in environment for variable in GENERAL_VARIABLES)


def test_every_setting_has_the_flag_that_it_names():
    options = {name for parameter in build_verb("plan").params for name in parameter.opts}
    assert {key.flag for key in KEYS} <= options


def test_a_flag_reaches_its_setting_as_it_was_typed():
    seen = {}

    @with_placement_flags()
    def verb(*, flags):
        seen["flags"] = flags

    program = typer.Typer(add_completion=False, rich_markup_mode=None)
    program.command()(verb)
    pins = ["--pin", "a=cpu", "--pin", "b=ssd"]
    arguments = ["--vram", " 8G ", *pins, "--kv-type", "q8_0", "--kv-type-v", "f16"]
    assert main(arguments, program=program) == 0
    assert dict(seen["flags"].settings) == {
        "vram_limit": " 8G ",
        "pins": ("a=cpu", "b=ssd"),
        "kv_type_k": "q8_0",
        "kv_type_v": "f16",
    }
    assert seen["flags"].given("ram_limit") is None
    assert main(["--machine", "x"], program=program) == 2  # only where nothing is loaded
