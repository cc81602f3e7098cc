"""What `moerun doctor` shows, held to a snapshot of 80 columns without colour."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from moerun.machine.description import KernelSettings
from moerun.machine.document import read_machine
from moerun.planning.obstacles import streaming_ability
from moerun.report.doctor_view import CheckLine, doctor_lines

HERE = Path(__file__).parent
CHECKS = (
    CheckLine(name="version", is_ok=True, detail="llama-cpp-python 0.3.36"),
    CheckLine(name="prompt", is_ok=False, detail="the engine died with SIGILL"),
)


def shown(name: str, **changes: object) -> str:
    machine = replace(read_machine(HERE / f"fixtures/machines/{name}.json"), **changes)  # type: ignore[arg-type]
    console = Console(width=80, no_color=True, record=True, file=io.StringIO())
    lines = doctor_lines(
        machine, engine_version="0.3.36", checks=CHECKS, streaming=streaming_ability(machine)
    )
    for line in lines:
        console.print(line, soft_wrap=True)
    return console.export_text()


@pytest.mark.parametrize("name", ["workstation_8g_24g_ram64g", "mac_m2_max_32g", "cpu_only_ram32g"])
def test_the_whole_answer(name: str):
    assert shown(name) == (HERE / f"snapshots/doctor_{name}.txt").read_text()


def test_long_lines_are_never_cut():
    note = "n" * 300
    assert note in shown("cpu_only_ram32g", notes=(note,))


def test_text_from_outside_cannot_steer_a_terminal():
    assert "\x1b" not in shown("cpu_only_ram32g", notes=("a\x1b[31mb",))
    assert "[bold]" in shown("cpu_only_ram32g", notes=("a [bold] name",))


def test_what_hinders_streaming_is_said_with_what_helps():
    strict = KernelSettings(commit_left_bytes=3 << 30)
    lines = shown("cpu_only_ram32g", kernel=strict).splitlines()
    (index,) = [i for i, line in enumerate(lines) if line.startswith("Streaming")]
    assert lines[index].split(maxsplit=1)[1] == "by cache and paging"
    assert "3.0 GiB may still be promised" in lines[index + 1]
    assert "sysctl vm.overcommit_memory=0" in lines[index + 1]


def test_no_engine_is_said():
    machine = read_machine(HERE / "fixtures/machines/cpu_only_ram32g.json")
    streaming = streaming_ability(machine)
    first = doctor_lines(machine, engine_version=None, checks=(), streaming=streaming)[0]
    assert first.plain.split() == ["Engine", "not", "installed"]
