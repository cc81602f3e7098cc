"""Damaged settings and machine files: an answer or one sentence, whatever the damage is."""

import json
import random
from pathlib import Path

from moerun.codec import to_plain
from moerun.errors import ConfigError, MachineError
from moerun.machine.document import read_machine
from moerun.settings.load import read_settings_file

ROOT = Path(__file__).parents[1]
MUTATIONS = 1000
PIECES = (
    b"\n", b"\t", b" ", b": ", b"- ", b"[", b"]", b"{", b"}", b"'", b'"', b"*a", b"&a ", b"!!int ",
    b"#", b"---\n", b"...\n", b"%YAML 9.9\n", b"? ", b"|\n", b">-\n", b"\xff", b"\x00", b"\xc3",
    b"<<: ", b"\\", b"99999999999999999999", b"-1", b"1e999", b"~", b"null", b"\xe2\x80\xae",
)  # fmt: skip


def mutated(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(changed) + 1)
        match dice.randrange(4):
            case 0:
                changed[start:start] = dice.choice(PIECES)
            case 1:
                del changed[start : start + dice.randint(1, 12)]
            case 2:
                changed[start : start + 1] = bytes((dice.randrange(256),))
            case _:
                other = dice.randrange(len(changed) + 1)
                changed[start:start] = changed[other : other + dice.randint(1, 40)]
    return bytes(changed)


def without_comments(text: str) -> bytes:
    lines = (line for line in text.splitlines() if line and not line.strip().startswith("#"))
    return "\n".join(lines).encode()


def test_damaged_settings(tmp_path: Path):
    good = without_comments((ROOT / "configs/default.yaml").read_text())
    file = tmp_path / "config.yaml"
    refusals: dict[int, ConfigError] = {}
    for seed in range(MUTATIONS):
        file.write_bytes(mutated(good, random.Random(seed)))
        try:
            read_settings_file(file)
        except ConfigError as error:
            refusals[seed] = error
        except Exception as error:
            raise AssertionError(f"seed {seed} escaped as {type(error).__name__}") from error
    assert len(refusals) > MUTATIONS // 4
    for seed, refusal in refusals.items():
        assert "\n" not in refusal.message, f"seed {seed}"
        assert refusal.origin.startswith(str(file)), f"seed {seed}"


def test_damaged_machines(tmp_path: Path):
    fixture = ROOT / "tests/fixtures/machines/workstation_8g_24g_ram64g.json"
    good = json.dumps(to_plain(read_machine(fixture))).encode()
    file = tmp_path / "machine.json"
    refusals: dict[int, MachineError] = {}
    for seed in range(MUTATIONS):
        file.write_bytes(mutated(good, random.Random(seed)))
        try:
            machine = read_machine(file)
        except MachineError as error:
            refusals[seed] = error
        except Exception as error:
            raise AssertionError(f"seed {seed} escaped as {type(error).__name__}") from error
        else:
            assert 0 <= machine.host.available_bytes <= machine.host.total_bytes, f"seed {seed}"
    assert len(refusals) > MUTATIONS // 2
    for seed, refusal in refusals.items():
        assert "\n" not in refusal.message, f"seed {seed}"
