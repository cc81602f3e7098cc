"""Plans for real models on real machines stay as they were looked at and committed."""

from pathlib import Path

import pytest

from tests.golden import FOLDER, outcome, read_case, touched

CASES = sorted(FOLDER.glob("*.json"))
MODELS = ("qwen3-30b-a3b", "gpt-oss-20b", "gpt-oss-120b", "deepseek-v3", "qwen3-235b", "mixtral")
MACHINES = ("8g", "12g", "24g", "two_3090", "mac", "windows")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_planner_still_gives_the_golden_plan(path: Path):
    case = read_case(path)
    expected = {key: case[key] for key in ("plan", "refused") if key in case}
    assert len(expected) == 1, "a case has either a plan or a refusal; run `make golden`"
    assert outcome(case) == expected, "if this is wanted: `make golden`, and look at the difference"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_no_golden_plan_uses_what_it_never_may(path: Path):
    case = read_case(path)
    used = touched(case["plan"]) if "plan" in case else set()
    assert used.isdisjoint(case["never"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_model_has_a_case_on_every_machine(model: str, machine: str):
    assert any(
        model in case["model"] and machine in case["machine"] for case in map(read_case, CASES)
    )
