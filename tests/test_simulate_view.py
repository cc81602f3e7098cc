"""How a simulation looks, pinned in tests/snapshots, and what its document holds."""

import json

import pytest
from rich.cells import cell_len

from moerun.report.console import Page
from moerun.report.simulate_view import simulation_document
from tests.simulate_pictures import FOLDER, PICTURES, a_picture_simulation, picture


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_as_they_were_approved(name: str):
    approved = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert PICTURES[name]() == approved, "python -m tests.simulate_pictures draws them anew"


@pytest.mark.parametrize("columns", [72, 80, 120])
def test_no_line_is_wider_than_its_page(columns: int):
    assert max(map(cell_len, picture(Page(columns=columns)).splitlines())) <= columns


def test_the_document_holds_what_the_table_shows():
    done = a_picture_simulation(compute_s=0.02)
    document = json.loads(json.dumps(simulation_document(done)))
    assert document["schema"] == 1
    assert document["notes"] == ["line 9 was cut off"]
    assert document["disk"]["read_bytes_per_s"] == 1.5e9
    small, half, _, all_of_it = document["sizes"]
    assert (small["is_enough"], small["replays"]) == (False, [])
    assert half["held_fraction"] == pytest.approx(0.5, abs=0.01)
    frequency = half["replays"][1]
    assert frequency["policy"] == "frequency"
    assert frequency["warm"]["hit_fraction"] == 0.5
    assert frequency["warm"]["read_bytes_per_token"] == 128 << 20
    read_s = (128 << 20) / 1.5e9
    assert frequency["warm"]["overlapped_tokens_per_s"] == pytest.approx(1 / read_s)
    assert frequency["warm"]["in_turn_tokens_per_s"] == pytest.approx(1 / (read_s + 0.02))
    assert all_of_it["held_fraction"] == 1.0
    assert all_of_it["replays"][0]["decode"]["repeat_hit_fraction"] == 1.0


def test_what_is_not_bound_by_the_disk_has_no_speed_in_the_document():
    document = simulation_document(a_picture_simulation())
    assert document["sizes"][-1]["replays"][0]["warm"]["overlapped_tokens_per_s"] is None
