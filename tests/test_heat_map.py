import io

from rich.console import Console

from moerun.experts.counters import LayerHeat
from moerun.report.console import ASCII, Page
from moerun.report.heat_map import group_starts, heat_lines


def a_layer(layer, *, uses, held=()):
    return LayerHeat(
        layer=layer, uses=tuple(uses), is_held=tuple(e in held for e in range(len(uses)))
    )


def plain(heat, *, columns=80, glyphs=None, is_coloured=False):
    page = Page(columns=columns) if glyphs is None else Page(columns=columns, glyphs=glyphs)
    return [line.plain for line in heat_lines(heat, page, is_coloured=is_coloured)]


HEAT = (
    a_layer(0, uses=(0, 1, 4, 16), held=(2, 3)),
    a_layer(1, uses=(0, 0, 0, 0)),
    a_layer(2, uses=(16, 16, 16, 16), held=(0, 1, 2, 3)),
)


def test_shades_show_what_is_held_and_used_without_colour():
    lines = plain(HEAT)
    assert lines[0].split() == ["held", "in", "RAM", "uses"]
    assert lines[1] == " 0   ██   ░▒█"
    assert lines[2].rstrip() == " 1"
    assert lines[3] == " 2 ████  ████"
    assert "one cell is 1 expert of 1 layer of 3" in lines[4]


def test_wide_layers_are_grouped_to_fit():
    heat = tuple(a_layer(n, uses=range(128), held=range(64)) for n in range(48))
    for columns in (40, 60, 80, 200):
        lines = plain(heat, columns=columns)
        assert max(map(len, lines[:-1])) <= columns
        assert len(lines) == 24 + 2
    assert "one cell is 4 experts of 2 layers of 48" in plain(heat, columns=80)[-1]
    row = plain(heat, columns=80)[1]
    assert row[4:36] == "█" * 16 + " " * 16


def test_half_blocks_show_two_layers_in_one_row_of_colour():
    [_, first, second, _] = heat_lines(HEAT, Page(columns=80), is_coloured=True)
    assert first.plain == " 0 ▀▀▀▀  ▀▀▀▀"
    assert second.plain.startswith(" 2 ▀▀▀▀")
    styles = {span.style for span in first.spans}
    assert "#5cf29b on #1c1c1c" in styles  # held above, not held below
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="truecolor", width=80)
    console.print(first)
    assert "\x1b[38;2;92;242;155;48;2;28;28;28m" in stream.getvalue()  # and not dimmed


def test_a_page_of_ascii_has_shades_of_ascii():
    lines = plain(HEAT, glyphs=ASCII)
    assert "".join(lines).isascii()
    assert "####" in lines[3]


def test_every_expert_is_in_one_group():
    for count in (1, 7, 60, 128, 512):
        for columns in (1, 5, 36, 200):
            starts = group_starts(count, columns)
            assert starts[0] == 0
            assert len(starts) <= columns
            sizes = {b - a for a, b in zip(starts, (*starts[1:], count), strict=True)}
            assert sum(b - a for a, b in zip(starts, (*starts[1:], count), strict=True)) == count
            assert len(sizes) <= 2


def test_nothing_streams_nothing_shown():
    assert plain(()) == []


def test_nothing_used_yet_is_a_picture_all_the_same():
    assert plain((a_layer(3, uses=(0, 0)),))[1].strip() == "3"
