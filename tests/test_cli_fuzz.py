"""Seeded command lines of someone careless: each ends in a plan or in one sentence."""

import random
from collections import Counter
from pathlib import Path

import pytest

from moerun.cli.app import main
from moerun.cli.verbs import build_verb
from tests.real_shapes import write_sparse_gguf

SEED = 20261121
CASES = 80
MACHINES = sorted((Path(__file__).parent / "fixtures" / "machines").glob("*.json"))
SENSIBLE = {
    "--vram": ("8G", "24G", "80%", "8G,24G", "auto", "0"),
    "--ram": ("32G", "8G", "80%", "auto"),
    "--ctx": ("max", "8k", "256", "100000"),
    "--kv-type": ("q8_0", "f16", "q4_0"),
    "--hierarchy": ("vram,ram", "ram", "ssd", "vram,ssd"),
    "--expert-residency": ("50%", "{vram: 30%, ram: 30%}", "100%"),
    "--pin": ("*exps*=cpu", "*exps*=gpu0", "*exps*=ssd", "output.weight=cpu", "blk.1.*=gpu1"),
    "--cpu-expert-layers": ("0", "3", "1000"),
    "--load-mode": ("copy", "lock", "mmap", "direct"),
    "--ubatch": ("1", "256", "2048"),
    "--flash-attention": ("on", "off"),
    "--gpu-margin": ("0", "1G", "100G"),
    "--host-margin": ("0", "8G", "500G"),
}
CARELESS = (
    "", "0", "-1", "1e9", "9" * 30, "NaN", "[1]", "{a: b}", "{}", "[", "&a", "*a", "x=y=z", "a:1",
    "\u202e", "\n", "\x1b[2J", "\udcff", "8GG", "120%", ",", "~nobody-here", "gpu9", "max", "auto",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "m.gguf"
    return str(write_sparse_gguf(path, "gpt-oss-20b-mxfp4", vocabulary=8))


def a_command_line(chance: random.Random, model: str) -> list[str]:
    options = [o for o in build_verb("plan").params if o.param_type_name == "option"]
    line = ["plan", model, "--machine", str(chance.choice(MACHINES))]
    for _ in range(chance.randint(0, 5)):
        if chance.random() < 0.8:
            flag = chance.choice(list(SENSIBLE))
            line += [flag, chance.choice(SENSIBLE[flag])]
        else:
            line += [chance.choice(chance.choice(options).opts), chance.choice(CARELESS)]
    return line + [flag for flag in ("--explain", "--json") if chance.random() < 0.2]


def test_command_lines_end_in_a_plan_or_one_sentence(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("MOERUN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    chance = random.Random(SEED)
    codes: Counter[int] = Counter()
    for _ in range(CASES):
        line = a_command_line(chance, model)
        code = main(line)
        said = capsys.readouterr()
        codes[code] += 1
        told = f"seed {SEED}: {line}\n{said.err}"
        errors = [text for text in said.err.splitlines() if text.startswith("Error: ")]
        assert code in (0, 2, 3, 4, 5), told
        assert len(errors) == bool(code), told
        assert bool(said.out) is (code == 0), told
        assert all(text.isprintable() for text in said.err.splitlines()), told
    assert codes[0] > CASES // 3
    assert codes[2] > CASES // 10
    assert codes[4] > 1
