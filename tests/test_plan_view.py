"""How plans and tables look, pinned in tests/snapshots, and what holds at any width."""

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from moerun.machine.description import HOST
from moerun.machine.document import read_machine
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import Strategy, StreamingMode
from moerun.report.bars import cell_counts, device_segments
from moerun.report.console import ASCII, BLOCKS, Page, open_console, page_of, print_lines
from moerun.report.plan_view import plan_lines
from tests.plan_pictures import (
    FOLDER,
    PICTURES,
    a_picture_machine,
    a_picture_model,
    a_picture_plan,
    drawn,
    plan_picture,
    table_picture,
)
from tests.real_shapes import real_model

MACHINES = sorted((Path(__file__).parent / "fixtures" / "machines").glob("*.json"))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_as_they_were_approved(name: str):
    approved = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert PICTURES[name]() == approved, "python -m tests.plan_pictures draws them anew"


def test_all_pictures_are_drawn_by_something():
    patterns = ("plan_*", "models_*", "advice_*")
    found = {path.stem for pattern in patterns for path in FOLDER.glob(pattern)}
    assert found == set(PICTURES)


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["gpt-oss-20b-mxfp4", "qwen3-235b-a22b-q4_k_m"])
def test_every_bar_adds_up_to_its_device(path: Path, name: str):
    model, machine = real_model(name), read_machine(path)
    plan = plan_placement(model, machine, Strategy())
    for device in (*plan.devices, HOST):
        segments = device_segments(machine, plan, device, BLOCKS)
        budget = next(budget for budget in plan.budgets if budget.device == device)
        assert sum(segment.size_bytes for segment in segments) == budget.total_bytes
        assert min(segment.size_bytes for segment in segments) >= 0


@pytest.mark.parametrize("columns", [60, 72, 80, 100, 120, 200])
def test_no_line_is_wider_than_its_page(columns: int):
    page = Page(columns=columns)
    lines = plan_picture(page, explains=True).splitlines()
    if columns >= 100:  # the table's columns are as wide as their contents
        lines += table_picture(page).splitlines()
    assert max(map(cell_len, lines)) <= columns


def test_pictures_hold_no_control_characters():
    for draw in PICTURES.values():
        assert all(line.isprintable() for line in draw().splitlines())


def test_a_terminal_of_few_characters_gets_ascii():
    assert plan_picture(Page(glyphs=ASCII)).isascii()


def test_colours_repeat_what_shapes_say():
    model, machine = a_picture_model(), a_picture_machine()
    plan = a_picture_plan(model, machine)
    texts = []
    for no_color in (True, False):
        stream = io.StringIO()
        console = Console(
            file=stream, width=80, force_terminal=True, color_system="standard", no_color=no_color
        )
        print_lines(console, plan_lines(model, machine, plan, Page()))
        texts.append(stream.getvalue())
    assert "\x1b[32m" in texts[1]  # experts in VRAM are green
    assert "\x1b[32m" not in texts[0]
    assert "V" in texts[0]


@pytest.mark.parametrize(
    ("sizes", "cells", "expected"),
    [
        ((), 10, ()),
        ((0, 0), 10, (0, 0)),
        ((1, 1), 10, (5, 5)),
        ((1, 0, 999), 10, (1, 0, 9)),
        ((1, 1, 1), 10, (4, 3, 3)),
        ((1, 2, 3, 4), 3, (1, 1, 1, 1)),
    ],
)
def test_cells_are_shared_by_size(sizes, cells, expected):
    assert cell_counts(sizes, cells) == expected


def test_cells_always_add_up():
    for first in range(60):
        for second in range(60):
            counts = cell_counts((first, second, 7), 20)
            assert sum(counts) == 20
            assert [bool(count) for count in counts] == [bool(first), bool(second), True]


def test_a_pipe_has_a_width_and_no_wrapping():
    console = open_console(io.StringIO())
    assert page_of(console) == Page(columns=80, wraps=False, glyphs=BLOCKS)


def test_an_encoding_without_blocks_gets_ascii():
    console = open_console(io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert page_of(console).glyphs is ASCII


def test_a_closed_pipe_is_left_to_the_command_line():
    with pytest.raises(BrokenPipeError):
        open_console(io.StringIO()).on_broken_pipe()


def test_a_plan_that_streams_shows_its_cache_and_the_streamed_layers():
    model = real_model("qwen3-235b-a22b-q4_k_m")
    machine = read_machine(next(path for path in MACHINES if path.stem == "rtx4090_24g_ram64g"))
    page = Page(columns=100)

    def shown(strategy: Strategy) -> str:
        plan = plan_placement(model, machine, strategy)
        return drawn(plan_lines(model, machine, plan, page, explains=True), page)

    streamed, mapped = (
        shown(Strategy(streaming=mode)) for mode in (StreamingMode.AUTO, StreamingMode.OFF)
    )
    for words in ("cache of experts", "experts, streamed through RAM", "S SSD, streamed"):
        assert words in streamed
        assert words not in mapped
    (line,) = [line for line in streamed.splitlines() if line.startswith("Streaming ")]
    assert "a cache of" in line
    assert "GiB of RAM holds" in line
    assert "experts, read as they are needed" in mapped
    assert "streaming is off" in mapped
    assert "Streaming " not in mapped
