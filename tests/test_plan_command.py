"""`moerun plan` as it is typed: models from sparse files, machines from fixtures."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from moerun.cli.app import main
from tests.real_shapes import write_sparse_gguf

MACHINES = Path(__file__).parent / "fixtures" / "machines"
LAPTOP = str(MACHINES / "laptop_8g_ram32g.json")
TWO_CARDS = str(MACHINES / "two_3090_24g_ram128g.json")
NO_GPU = str(MACHINES / "cpu_only_ram32g.json")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in list(os.environ):
        if name.startswith("MOERUN_"):
            monkeypatch.delenv(name)
    for name in (
        "OLLAMA_MODELS",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "XDG_CACHE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MOERUN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("qwen3-30b-a3b-q4_k_m", "qwen3-235b-a22b-142gib"):
        write_sparse_gguf(folder / f"{name}.gguf", name, vocabulary=8)
    (folder / "damaged.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    return folder


@pytest.fixture
def small(models: Path) -> str:
    return str(models / "qwen3-30b-a3b-q4_k_m.gguf")


@pytest.fixture
def large(models: Path) -> str:
    return str(models / "qwen3-235b-a22b-142gib.gguf")


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run `plan --json` and return its document; whatever else is said goes to standard error."""
    assert main(["plan", *arguments, "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert data["schema"] == 1
    return data


def test_a_model_beyond_memory_says_what_lies_on_ssd(large: str, capsys):
    assert main(["plan", large, "--vram", "24G", "--ram", "64G", "--machine", NO_GPU]) == 0
    captured = capsys.readouterr()
    answer = captured.out
    assert "94 layers" in answer
    on_ssd = re.search(r"^ssd .* (\S+ GiB) of 14\d\.\d GiB$", answer, re.MULTILINE)
    assert on_ssd is not None
    assert f"Caution     {on_ssd[1]} of 137.1 GiB of experts lie on SSD" in answer
    assert "Loading     stream" in answer
    saved = re.search(r"(\S+) GiB\s+instead of\s+the (\S+) GiB.*?(\S+)\s+GiB\s+saved", answer, re.S)
    assert saved is not None
    held, full, difference = map(float, saved.groups())
    assert abs(full - held - difference) < 0.2
    strip = re.findall(r"^ +\d+  ([VvRrS ]+)$", answer, re.MULTILINE)
    letters = "".join(strip).replace(" ", "")
    assert len(letters) == 94
    assert re.fullmatch(r"S+v?V+", letters)
    assert "Note: planned for hypothetical GPUs of 24.0 GiB" in captured.err
    assert "\x1b" not in answer


def test_the_document_adds_up(large: str, capsys):
    data = document(capsys, large, "--machine", LAPTOP)
    sums = data["summary"]
    charges = data["plan"]["ledger"]["charges"]
    experts = [c["size_bytes"] for c in charges if c["kind"] == "expert_weights"]
    assert sum(experts) == data["model"]["expert_bytes"]
    assert sum(share["size_bytes"] for share in sums["experts"]) == data["model"]["expert_bytes"]
    kept_twice = sums["cache_bytes"]
    assert sums["memory_bytes"] + sums["ssd_bytes"] - kept_twice == sums["full_bytes"]
    charged = sum(c["size_bytes"] for c in charges if c["kind"] != "margin")
    assert sums["full_bytes"] == charged - kept_twice
    assert data["model"]["layer_count"] == len(data["plan"]["layers"]) == 94
    assert data["plan"]["devices"] == [gpu["id"] for gpu in data["machine"]["gpus"]]


def test_vram_gives_gpus_to_a_machine_without(small: str, capsys):
    data = document(capsys, small, "--machine", NO_GPU, "--vram", "8G,24G")
    assert [gpu["total_bytes"] for gpu in data["machine"]["gpus"]] == [8 * GIB, 24 * GIB]
    assert all(gpu["is_hypothetical"] for gpu in data["machine"]["gpus"])
    assert data["summary"]["vram_bytes"] > data["model"]["expert_bytes"]


def test_vram_limits_the_gpus_that_are_there(small: str, capsys):
    data = document(capsys, small, "--machine", TWO_CARDS, "--vram", "4G")
    assert not any(gpu["is_hypothetical"] for gpu in data["machine"]["gpus"])
    budgets = {b["device"]: b["budget_bytes"] for b in data["plan"]["budgets"]}
    assert [budgets[gpu["id"]] for gpu in data["machine"]["gpus"]] == [4 * GIB, 4 * GIB]


def test_ram_limits_or_imagines(small: str, capsys):
    limited = document(capsys, small, "--machine", NO_GPU, "--ram", "12G")
    assert limited["machine"]["host"]["total_bytes"] > 30 * GIB
    assert limited["summary"]["ram_bytes"] <= 12 * GIB
    assert limited["summary"]["ssd_bytes"] > 0
    imagined = document(capsys, small, "--machine", NO_GPU, "--ram", "64G")
    assert imagined["machine"]["host"]["total_bytes"] == 64 * GIB


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--machine", TWO_CARDS, "--vram", "1G,2G,3G"], "3 limits are given for 2 GPUs"),
        (["--machine", NO_GPU, "--vram", "80%"], "no GPU here whose share could be taken"),
        (["--machine", NO_GPU, "--ram", "80"], "means 80 bytes; write 80G"),
    ],
)
def test_limits_that_make_no_sense_are_refused(arguments, words, small: str, capsys):
    assert main(["plan", small, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_list_of_limits_in_a_file_waits_for_its_gpus(small: str, tmp_path: Path, capsys):
    (tmp_path / "moerun.yaml").write_text("memory_strategy: {vram_limit: [4G, 4G]}\n")
    assert not document(capsys, small, "--machine", NO_GPU)["machine"]["gpus"]
    assert len(document(capsys, small, "--machine", TWO_CARDS)["machine"]["gpus"]) == 2
    assert main(["plan", small, "--machine", LAPTOP]) == 2
    assert "./moerun.yaml:1: 2 limits are given for 1 GPU\n" in capsys.readouterr().err


def test_a_refusal_tells_numbers_and_what_was_checked_to_fit(large: str, capsys):
    refused = ["plan", large, "--machine", NO_GPU, "--hierarchy", "vram,ram"]
    assert main(refused) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    error, charges, hint = captured.err.splitlines()
    assert re.match(
        r"  \| \d+\.\d GiB are missing; what is needed: expert weights 137\.1 GiB, ", charges
    )
    assert re.search(r"takes \d+\.\d GiB of RAM, and \d+\.\d GiB may be used", error)
    remedy = re.search(r"checked to fit: (--hierarchy \S+)", hint)
    assert remedy is not None
    assert main([*refused, *remedy[1].split()]) == 0


def test_reasons_are_added_when_asked(small: str, capsys):
    assert main(["plan", small, "--machine", LAPTOP]) == 0
    brief = capsys.readouterr().out
    assert main(["plan", small, "--machine", LAPTOP, "--explain"]) == 0
    full = capsys.readouterr().out
    assert full.startswith(brief)
    decisions = full.removeprefix(brief)
    assert decisions.startswith("\nDecisions\n")
    for step in ("budgets", "devices", "dense", "experts", "context", "loading"):
        assert f"\n  {step} " in decisions


def test_every_flag_reaches_the_plan(small: str, capsys):
    plan = document(
        capsys, small, "--machine", TWO_CARDS, "--ctx", "4k", "--kv-type", "q8_0",
        "--flash-attention", "on", "--batch", "512", "--ubatch", "256", "--threads", "3",
        "--load-mode", "mmap", "--extra-buffers", "off", "--cpu-expert-layers", "7",
        "--pin", "blk.40.ffn_up_exps.weight=ssd",
    )["plan"]  # fmt: skip
    assert (plan["context_tokens"], plan["threads"]) == (4096, 3)
    assert (plan["kv_encoding_k"], plan["kv_encoding_v"]) == ("Q8_0", "Q8_0")
    assert (plan["batch_tokens"], plan["ubatch_tokens"]) == (512, 256)
    assert (plan["flash_attention"], plan["load_mode"]) == ("on", "mmap")
    assert plan["extra_buffers"] is False
    experts = [dict(layer["experts"]) for layer in plan["layers"]]
    assert all(set(layer.values()) == {"host"} for layer in experts[:7])
    assert experts[40]["up"] == "ssd"


def test_without_a_model_there_is_a_row_for_each(models: Path, capsys, monkeypatch):
    monkeypatch.setenv("MOERUN_MODELS", str(models))
    rows = {row["name"]: row for row in document(capsys, "--machine", LAPTOP)["models"]}
    assert rows["qwen3-30b-a3b-q4_k_m"]["verdict"] == "VRAM+RAM"
    assert rows["qwen3-235b-a22b-142gib"]["verdict"] == "needs SSD"
    damaged = rows["damaged"]
    assert (damaged["verdict"], damaged["file_bytes"]) == ("refused", None)
    assert "damaged.gguf" in damaged["error"]
    assert rows["qwen3-30b-a3b-q4_k_m"]["source"] == "file"
    assert rows["glm-4.5-air"]["source"] == "catalog"
    assert main(["plan", "--machine", LAPTOP]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "SIZE", "VRAM", "RAM", "SSD", "CONTEXT", "SOURCE", "VERDICT"]
    assert {line.split()[0] for line in lines} == set(rows)
    column = heading.index("VERDICT")
    assert all(line[column:].startswith(("VRAM", "needs", "refused", "in")) for line in lines)


def test_one_that_fits_nowhere_is_a_row_with_its_reason(models: Path, capsys, monkeypatch):
    monkeypatch.setenv("MOERUN_MODELS", str(models))
    data = document(capsys, "--machine", NO_GPU, "--hierarchy", "vram,ram")
    row = next(row for row in data["models"] if row["name"] == "qwen3-235b-a22b-142gib")
    assert row["verdict"] == "too large"
    assert "does not fit" in row["error"]


def test_no_models_at_hand_are_an_empty_table(capsys):
    data = document(capsys, "--machine", NO_GPU)
    at_hand = [row for row in data["models"] if row["source"] != "catalog"]
    assert [(row["name"], row["source"]) for row in at_hand] in ([], [("demo", "demo")])


def test_a_limit_of_an_ssd_cache_that_nobody_named_is_said_to_change_nothing(small: str, capsys):
    assert main(["plan", small, "--machine", LAPTOP, "--max-swap", "1G"]) == 0
    told = "".join(capsys.readouterr())
    assert "max_swap_size is 1.0 GiB and changes nothing" in " ".join(told.split())


def test_a_machine_in_a_file_has_no_workers_of_others(small: str, capsys):
    assert main(["plan", small, "--machine", LAPTOP, "--worker", "10.0.0.1:50052"]) == 0
    assert "brings its own workers; not asked: 10.0.0.1:50052" in capsys.readouterr().err


def test_a_worker_that_is_away_is_a_note(small: str, capsys):
    assert main(["plan", small, "--workers", "127.0.0.1:1"]) == 0
    assert "Note: The worker at 127.0.0.1:1 cannot be reached" in capsys.readouterr().err


def test_it_plans_for_the_machine_at_hand(small: str, capsys):
    data = document(capsys, small, "--ram", "64G", "--vram", "auto")
    assert data["machine"]["host"]["physical_cores"] >= 1
    assert data["plan"]["machine_fingerprint"]


def test_a_limit_of_no_gpu_is_said_to_do_nothing(small: str, tmp_path: Path, capsys):
    (tmp_path / "moerun.yaml").write_text("memory_strategy: {vram_limit: 4G}\n")
    assert main(["plan", small, "--machine", NO_GPU]) == 0
    assert "Note: vram_limit (./moerun.yaml:1) has no effect" in capsys.readouterr().err
    assert main(["plan", small, "--machine", TWO_CARDS]) == 0
    assert "vram_limit" not in capsys.readouterr().err


def test_the_document_says_what_a_cache_holds(large: str, capsys):
    data = document(capsys, large, "--machine", LAPTOP, "--streaming", "paging")
    streaming, sums = data["plan"]["streaming"], data["summary"]
    assert streaming["mode"] == "paging"
    assert sums["held_fraction"] == streaming["cache_bytes"] / streaming["expert_bytes"]
    assert sums["held_cycles"] > 1.5
    assert not data["plan"]["extra_buffers"]
    mapped = document(capsys, large, "--machine", LAPTOP, "--streaming", "off")
    assert mapped["plan"]["streaming"] is None
    assert "held_fraction" not in mapped["summary"]


def test_an_entry_of_the_catalogue_is_planned_before_any_download(capsys):
    assert main(["plan", "qwen3-30b-a3b", "--machine", LAPTOP]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Qwen3 30B A3B\nqwen3moe · Q4_K_M · 17.3 GiB · 48 layers")
    assert "before any download: the size is derived, 0.0% from the published one" in captured.err
    data = document(capsys, "Qwen3-30B-A3B:q8_0", "--machine", LAPTOP)
    assert data["catalog"]["quantization"] == "Q8_0"
    assert data["catalog"]["size_is_derived"] is True
    assert data["catalog"]["published_size"]["source"]["read_on"]
    assert data["summary"]["ssd_bytes"] > 0


def test_a_file_goes_before_its_namesake_in_the_catalogue(small: str, tmp_path: Path, capsys):
    (tmp_path / "mixtral-8x7b.gguf").symlink_to(small)
    data = document(capsys, "mixtral-8x7b", "--machine", LAPTOP)
    assert data["model"]["architecture"] == "qwen3moe"
    assert "catalog" not in data
    rows = [r for r in document(capsys, "--machine", LAPTOP)["models"] if "8x7b" in r["name"]]
    assert [row["source"] for row in rows] == ["file"]


def test_what_suits_a_machine_better_is_a_hint_unless_a_quantization_was_named(capsys):
    large = ["--machine", TWO_CARDS]
    assert main(["plan", "qwen3-30b-a3b", *large]) == 0
    hint = capsys.readouterr().err.splitlines()[-1]
    assert hint.startswith("Hint: on this machine Q8_0 suits better than Q4_K_M: ")
    assert hint.endswith("`moerun plan qwen3-30b-a3b --advise` compares all")
    assert main(["plan", "qwen3-30b-a3b:q6_k", *large]) == 0
    assert "Hint" not in capsys.readouterr().err


def test_the_hint_and_the_whole_comparison_agree(capsys):
    for name in ("qwen3-30b-a3b", "glm-4.5-air", "qwen3-235b-a22b", "lfm2-8b-a1b", "gpt-oss-20b"):
        for machine in (LAPTOP, TWO_CARDS):
            advice = document(capsys, name, "--advise", "--machine", machine)["advice"]
            assert main(["plan", name, "--machine", machine]) == 0
            hints = [line for line in capsys.readouterr().err.splitlines() if "Hint" in line]
            suited = [hint.split()[4] for hint in hints]
            if suited:
                assert suited == [advice["recommended"]], (name, machine)
            else:
                least = "reads the least from the SSD"
                is_usual = advice["recommended"] == advice["usual"]
                assert is_usual or least in advice["because"], (name, machine)


def test_quantizations_are_compared_and_one_is_recommended(capsys):
    advice = document(capsys, "qwen3-30b-a3b", "--advise", "--machine", TWO_CARDS)["advice"]
    assert advice["usual"] == "Q4_K_M"
    assert advice["recommended"] == "Q8_0"
    labels = [option["quantization"] for option in advice["options"]]
    assert (labels[0], labels[-1]) == ("BF16", "IQ2_XXS")
    assert main(["plan", "qwen3-30b-a3b", "--advise", "--machine", TWO_CARDS]) == 0
    title, heading, *lines = capsys.readouterr().out.splitlines()
    assert title == "Qwen3 30B A3B"
    assert heading.split()[:3] == ["QUANTIZATION", "SIZE", "BITS"]
    assert [line.split()[0] for line in lines[: len(labels)]] == labels
    assert lines[len(labels) + 1].startswith("Recommended  Q8_0: ")


def test_what_fits_is_what_memory_holds_whole(capsys):
    everything = document(capsys, "--machine", LAPTOP)["models"]
    fitting = document(capsys, "--fits", "--machine", LAPTOP)["models"]
    assert fitting == [row for row in everything if row["ssd_bytes"] == 0]
    assert {"gpt-oss-20b", "lfm2-8b-a1b"} <= {row["name"] for row in fitting}
    assert "deepseek-v3" not in {row["name"] for row in fitting}
    nothing = ["plan", "--fits", "--machine", NO_GPU, "--ram", "1G"]
    assert main(nothing) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) <= 2
    assert main(["plan", "--machine", NO_GPU, "--hierarchy", "vram,ram"]) == 0
    assert re.search(r"^deepseek-v3 .* too large", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["qwen3-30b-a3b:UD-Q4_K_XL"], 2, "does not know qwen3-30b-a3b in UD-Q4_K_XL"),
        (["--advise"], 2, "say which model's quantizations"),
        (["qwen3-30b-a3b", "--fits"], 2, "leave out MODEL"),
        (["nothing-like-it", "--advise"], 3, "has no 'nothing-like-it'"),
        (["qwen3-30b-a3c"], 3, "did you mean qwen3-30b-a3b"),
        (["deepseek"], 3, "did you mean deepseek-"),
    ],
)
def test_what_cannot_be_planned_or_compared_is_one_sentence(arguments, code, words, capsys):
    assert main(["plan", *arguments, "--machine", LAPTOP]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err


def test_how_far_formulas_are_off_is_told_of_a_machine_that_is_not_here(small: str, capsys):
    assert main(["plan", small, "--machine", TWO_CARDS]) == 0
    assert "compute buffers of devices that are not here are by formula" in capsys.readouterr().err
    assert main(["plan", small, "--machine", NO_GPU]) == 0
    assert "by formula" not in capsys.readouterr().err
