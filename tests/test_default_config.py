"""The default file is documentation: it says what the code does, for every key."""

from pathlib import Path

from moerun.settings.description import Settings
from moerun.settings.keys import KEYS
from moerun.settings.load import read_settings_file
from moerun.settings.nodes import Entries, Node, read_yaml

FILE = Path(__file__).parents[1] / "configs/default.yaml"


def lines_of_keys(node: Node, prefix: str = "") -> dict[str, int]:
    """Return the line of every key that holds a value, sections left out."""
    assert isinstance(node, Entries)
    lines = {}
    names = {key.name for key in KEYS}
    for name, value in node.entries:
        path = prefix + name.text
        if path in names:
            lines[path] = int(name.origin.rpartition(":")[2])
        else:
            lines.update(lines_of_keys(value, path + "."))
    return lines


def test_it_holds_exactly_the_defaults():
    assert read_settings_file(FILE) == Settings()


def test_every_key_is_there_in_order_with_a_comment_above():
    text = FILE.read_text()
    root = read_yaml(text, str(FILE))
    assert root is not None
    found = lines_of_keys(root)
    assert list(found) == [key.name for key in KEYS]
    written = text.splitlines()
    for name, line in found.items():
        assert written[line - 2].strip().startswith("#"), f"{name} has no comment above it"
