"""That README.md prints what programs print, and names only what there is."""

import re
import shlex

import pytest
from typer.main import get_command

from moerun.cli.app import app
from moerun.cli.verbs import SUMMARIES, build_verb
from moerun.settings.nodes import read_yaml
from tests.readme import PARTS, README, ROOT, parts_of, rewritten

TEXT = README.read_text(encoding="utf-8")


def test_every_part_is_there_once():
    assert sorted(name for name, _ in parts_of(TEXT)) == sorted(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_as_printed(name: str):
    assert dict(parts_of(TEXT))[name] == PARTS[name](), "`make readme` prints them anew"


def test_writing_it_anew_changes_nothing():
    assert rewritten(TEXT) == TEXT


def command_lines() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    return [
        line[line.index("moerun ") :].strip() for line in lines if re.match(r"(moerun|cat) ", line)
    ]


def test_commands_in_it_can_be_parsed():
    lines = command_lines()
    assert len(lines) > 8
    for line in lines:
        _, verb, *arguments = shlex.split(line)
        assert verb in SUMMARIES
        with build_verb(verb).make_context(verb, arguments):
            pass


def test_verbs_and_make_targets_in_it_exist():
    assert get_command(app) is not None
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE)
    assert named
    assert set(named) <= targets
    assert set(re.findall(r"`moerun ([a-z]+)", TEXT)) <= set(SUMMARIES)


def test_settings_in_it_are_settings(tmp_path):
    from moerun.settings.load import read_settings_file

    (block,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert read_yaml(block, "README.md") is not None
    (tmp_path / "settings.yaml").write_text(block)
    strategy = read_settings_file(tmp_path / "settings.yaml").strategy
    assert (strategy.cpu_expert_layers, strategy.context_tokens) == (12, 32768)


def test_files_in_it_exist():
    for link in re.findall(r"\]\(([^):]+)\)", TEXT):
        assert (ROOT / link).exists(), link
    tree = TEXT.partition("## The files")[2]
    for line in re.findall(r"^((?:  )?\S+/)", tree, re.MULTILINE):
        folder = ROOT / "moerun" / line.strip() if line.startswith("  ") else ROOT / line
        assert folder.is_dir(), folder
