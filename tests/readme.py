"""The parts of README.md that programs print; `python -m tests.readme` writes them anew.

A part stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`, in a fenced block.
"""

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from moerun.cli.app import main
from moerun.machine.document import read_machine
from moerun.model.gguf_header import read_model
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy
from moerun.report.console import Page
from moerun.report.plan_view import plan_lines
from tests.plan_pictures import drawn
from tests.real_shapes import write_sparse_gguf

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MACHINE = ROOT / "tests" / "fixtures" / "machines" / "rtx4090_24g_ram64g.json"
MODEL = "qwen3-235b-a22b-142gib"


def plan_part() -> str:
    """Return what `moerun plan` prints on a terminal of 80 columns, for a machine in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_sparse_gguf(Path(folder) / "model.gguf", MODEL, vocabulary=8)
        model = read_model(path)
    machine = read_machine(MACHINE)
    page = Page(columns=80)
    answer = drawn(
        plan_lines(model, machine, plan_placement(model, machine, Strategy()), page), page
    )
    return f"$ moerun plan Qwen3-235B-A22B-Q4_K_M.gguf\n{answer}"


def help_part() -> str:
    """Return what `moerun --help` prints at 80 columns."""
    output = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="80"), contextlib.redirect_stdout(output):
        assert main(["--help"]) == 0
    return f"$ moerun --help\n{output.getvalue()}"


PARTS: dict[str, Callable[[], str]] = {"plan": plan_part, "help": help_part}


def parts_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each part."""
    for match in re.finditer(_PART, text):
        yield match["name"], match["text"]


_PART = re.compile(
    r"<!-- (?P<name>\w+): begin -->\n```\w*\n(?P<text>.*?)```\n<!-- (?P=name): end -->", re.DOTALL
)


def rewritten(text: str) -> str:
    """Return the text with every part printed anew."""

    def anew(match: re.Match[str]) -> str:
        before = match[0][: match.start("text") - match.start()]
        after = match[0][match.end("text") - match.start() :]
        return before + PARTS[match["name"]]() + after

    return _PART.sub(anew, text)


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
