import json
from pathlib import Path
from typing import Any

import pytest

from moerun.codec import to_plain
from moerun.errors import MachineError
from moerun.machine.description import Machine
from moerun.machine.document import machine_document, read_machine
from moerun.machine.hypothetical import with_ram, with_vram

FIXTURES = Path(__file__).parent / "fixtures/machines"
GIB = 1 << 30


def a_machine() -> Machine:
    return read_machine(FIXTURES / "workstation_8g_24g_ram64g.json")


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_every_fixture_is_a_machine():
    files = sorted(FIXTURES.glob("*.json"))
    assert len(files) >= 8
    for file in files:
        machine = read_machine(file)
        shared = [gpu for gpu in machine.gpus if gpu.shares_host_memory]
        assert all(gpu.working_set_limit_bytes for gpu in shared)
        assert json.loads(file.read_text())["machine"] == to_plain(machine)


def test_a_document_and_a_bare_machine_read_the_same(tmp_path: Path):
    machine = a_machine()
    document = write(tmp_path / "a.json", machine_document(machine, None))
    bare = write(tmp_path / "b.json", to_plain(machine))
    assert read_machine(document) == read_machine(bare) == machine


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([], "no JSON object"),
        ({"schema": 2, "machine": {}}, "schema 2 and this moerun reads up to 1"),
        ({"schema": "1", "machine": {}}, "schema number '1'"),
        ({"schema": True, "machine": {}}, "schema number True"),
        ({"schema": 1}, "expected an object"),
        ({"schema": 1, "machine": {"gpus": []}}, "missing"),
        ({"gpus": [], "wheels": 4}, "unknown field 'wheels'"),
    ],
)
def test_documents_that_are_none_are_one_sentence(tmp_path: Path, data: object, why: str):
    with pytest.raises(MachineError, match=why) as caught:
        read_machine(write(tmp_path / "m.json", data))
    assert "doctor --json" in (caught.value.hint or "")
    assert "\n" not in caught.value.message


def change(machine: dict, path: str, value: object) -> dict:
    *parents, last = path.split(".")
    target: Any = machine
    for name in parents:
        target = target[int(name) if name.isdigit() else name]
    target[last] = value
    return machine


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("host.available_bytes", 1 << 60, "bytes available of"),
        ("host.total_bytes", 0, "bytes available of"),
        ("host.physical_cores", 0, "0 physical cores"),
        ("host.total_bytes", "64G", "expected int"),
        ("storage.free_bytes", -1, "negative"),
        ("storage.kind", "floppy", "floppy"),
        ("gpus.0.free_bytes", 1 << 60, "bytes free of"),
        ("gpus.0.id", "gpu:0000:65:00.0", "not an id of its own"),
        ("gpus.0.id", "host", "starts with 'gpu:'"),
        ("host.physical_cores", 10**9, "1000000000 physical cores"),
        ("host.total_bytes", 10**20, "larger than any"),
        ("storage.read_bytes_per_s", 10**400, "larger than any"),
        ("storage.read_bytes_per_s", float("nan"), "NaN is no number"),
        ("storage.read_bytes_per_s", float("inf"), "Infinity is no number"),
        ("storage.read_bytes_per_s", 0.0, "not above zero"),
        ("gpus.1.link_bytes_per_s", -1.0, "not above zero"),
        ("gpus.1.link_latency_s", 0.0, "not above zero"),
        ("gpus.0.working_set_limit_bytes", -1, "not above zero"),
    ],
)
def test_numbers_no_machine_has_are_refused(tmp_path: Path, path: str, value: object, why: str):
    data = change(to_plain(a_machine()), path, value)
    written = write(tmp_path / "m.json", data)
    with pytest.raises(MachineError, match=why) as caught:
        read_machine(written)
    assert len(caught.value.message) < 300 + len(str(written))


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path):
    with pytest.raises(MachineError, match="folder"):
        read_machine(tmp_path)
    with pytest.raises(MachineError, match="No such file"):
        read_machine(tmp_path / "absent.json")
    (tmp_path / "text").write_text("{\n")
    with pytest.raises(MachineError, match="line 2 is not JSON"):
        read_machine(tmp_path / "text")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MachineError, match="UTF-8"):
        read_machine(tmp_path / "bytes")
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(MachineError, match="nested"):
        read_machine(tmp_path / "deep")
    (tmp_path / "digits").write_text(f'{{"schema": {"1" * 5000}}}')
    with pytest.raises(MachineError, match="larger than any number"):
        read_machine(tmp_path / "digits")
    (tmp_path / "large").write_text(" " * 2_000_000)
    with pytest.raises(MachineError, match="too many"):
        read_machine(tmp_path / "large")


def test_hypothetical_gpus_replace_the_real_ones():
    machine = with_vram(a_machine(), (8 * GIB, 24 * GIB))
    assert [gpu.id for gpu in machine.gpus] == ["gpu:hypothetical-0", "gpu:hypothetical-1"]
    assert [gpu.free_bytes for gpu in machine.gpus] == [8 * GIB, 24 * GIB]
    assert all(gpu.is_hypothetical for gpu in machine.gpus)
    assert machine.resolve("gpu1") == "gpu:hypothetical-1"
    assert "8.0 GiB and 24.0 GiB" in machine.notes[-1]


def test_hypothetical_memory_is_all_available():
    machine = with_ram(a_machine(), 32 * GIB)
    assert machine.host.total_bytes == machine.host.available_bytes == 32 * GIB
    assert machine.host.physical_cores == a_machine().host.physical_cores
    assert machine.fingerprint != a_machine().fingerprint
