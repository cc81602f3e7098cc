"""`moerun pull` as it is typed, in processes of its own: killed, interrupted, without a network."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from moerun.units import MIB
from tests.model_files import a_model_file
from tests.servers.file_host import Fault, FileHost
from tests.servers.hub import Hub, Published, sha256_of

ROOT = Path(__file__).parents[1]
KILLS = 20
SIZE_BYTES = 64 * MIB
BYTES_PER_S = 50e6
TWICE_FRACTION = 0.05
# Prints each connection that is made, whoever makes it, and goes on as the program would.
COUNTING = """
import sys
def heard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        where = arguments[1] if event == "socket.connect" else arguments
        if not isinstance(where, (str, bytes)):  # a socket of this machine's file system
            sys.stderr.write(f"CONNECTION {event}\\n")
sys.addaudithook(heard)
from moerun.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(FileHost(bytes_per_s=BYTES_PER_S, send_buffer_bytes=1 << 15))
    with hub.serving():
        yield hub


def environment_of(folder: Path, **more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MOERUN_", "HF_")) and "proxy" not in name.lower()
    }
    return kept | {
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder / "hf"),
        "MOERUN_MODELS": str(folder / "models"),
        "MOERUN_CONFIG_DIR": str(folder / "config"),
        "MOERUN_STATE_DIR": str(folder / "state"),
        **more,
    }


def moerun(
    arguments: list[str], environment: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moerun", *arguments],
        env=dict(environment),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def starting(hub: Hub, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "moerun", "pull", "user/repo"],
        env=environment_of(folder, HF_ENDPOINT=hub.origin),
        cwd=folder,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def publish(hub: Hub, folder: Path, size_bytes: int) -> Path:
    source = folder / "source"
    source.write_bytes(random.Random(3).randbytes(size_bytes))
    hub.repositories["user/repo"] = Published(files={"m-Q4_K_M.gguf": source})
    return source


def blobs(folder: Path) -> list[Path]:
    return sorted((folder / "hf" / "hub" / "models--user--repo" / "blobs").iterdir())


def test_twenty_kills_cost_little_and_the_file_is_whole(hub: Hub, tmp_path: Path):
    source = publish(hub, tmp_path, SIZE_BYTES)
    chance = random.Random(20)
    points = sorted(chance.randrange(SIZE_BYTES // 100, SIZE_BYTES) for _ in range(KILLS))
    kills = unseen_bytes = 0
    for point in points:
        with starting(hub, tmp_path) as process:
            while hub.files.sent_bytes - unseen_bytes < point and process.poll() is None:
                time.sleep(0.002)
            seen_bytes = hub.files.sent_bytes
            process.kill()
        # What the server's threads sent to a process that was gone, nobody fetched.
        unseen_bytes += hub.files.sent_bytes - seen_bytes
        kills += process.returncode == -signal.SIGKILL
    done = moerun(
        ["pull", "user/repo", "--json"], environment_of(tmp_path, HF_ENDPOINT=hub.origin), tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert kills == KILLS
    assert [path.name for path in blobs(tmp_path)] == [sha256_of(source)]
    assert sha256_of(blobs(tmp_path)[0]) == sha256_of(source)
    twice_bytes = hub.files.sent_bytes - unseen_bytes - SIZE_BYTES
    assert 0 <= twice_bytes <= TWICE_FRACTION * SIZE_BYTES, twice_bytes / SIZE_BYTES


def test_ctrl_c_keeps_the_part_and_says_nothing_odd(hub: Hub, tmp_path: Path):
    source = publish(hub, tmp_path, 16 * MIB)
    with starting(hub, tmp_path) as process:
        while hub.files.sent_bytes < 8 * MIB:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert len(blobs(tmp_path)) == 2  # the part, and the book of its pieces
    order = moerun(
        ["pull", "user/repo", "--dry-run", "--json"],
        environment_of(tmp_path, HF_ENDPOINT=hub.origin),
        tmp_path,
    )
    missing_bytes = json.loads(order.stdout)["models"][0]["missing_bytes"]
    assert 0 < missing_bytes < 16 * MIB
    done = moerun(
        ["pull", "user/repo", "--json"], environment_of(tmp_path, HF_ENDPOINT=hub.origin), tmp_path
    )
    model = json.loads(done.stdout)["models"][0]
    assert model["fetched_bytes"] == missing_bytes
    assert Path(model["path"]).read_bytes() == source.read_bytes()


def test_two_processes_pull_the_same_and_nothing_is_lost(hub: Hub, tmp_path: Path):
    source = publish(hub, tmp_path, 8 * MIB)
    processes = [starting(hub, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert hub.files.sent_bytes == 8 * MIB
    assert sha256_of(blobs(tmp_path)[0]) == sha256_of(source)


def test_a_dry_run_fetches_and_writes_nothing(hub: Hub, tmp_path: Path):
    publish(hub, tmp_path, MIB)
    environment = environment_of(tmp_path, HF_ENDPOINT=hub.origin)
    done = moerun(["pull", "user/repo", "--dry-run"], environment, tmp_path)
    assert done.returncode == 0
    assert "m-Q4_K_M.gguf" in done.stdout
    assert "1.0 MB would be fetched" in done.stdout
    assert hub.files.requests == []
    assert not (tmp_path / "hf").exists()


def test_a_file_that_may_not_grow_ends_in_a_sentence(hub: Hub, tmp_path: Path):
    """A limit on the length of files stands for a full disk; the program is told the same way."""
    publish(hub, tmp_path, 4 * MIB)
    limited = f"ulimit -f 2048; exec {sys.executable} -m moerun pull user/repo"  # blocks of 1 KiB
    done = subprocess.run(
        ["bash", "-c", limited],
        env=environment_of(tmp_path, HF_ENDPOINT=hub.origin),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 8
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "hf" / "hub" / "models--user--repo" / "snapshots").exists()


def test_without_a_network_a_pull_is_one_sentence(tmp_path: Path):
    """Nobody listens at the port, as nobody answers where there is no network."""
    for environment in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        done = moerun(["pull", "user/repo"], environment_of(tmp_path, **environment), tmp_path)
        assert done.returncode == 8
        assert done.stdout == ""
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 2  # and a hint


def test_a_host_that_answers_nothing_is_left_in_time(hub: Hub, tmp_path: Path):
    hub.fault = lambda request: Fault(status=503, headers={"Retry-After": "3600"})
    environment = environment_of(tmp_path, HF_ENDPOINT=hub.origin)
    done = moerun(["pull", "user/repo"], environment, tmp_path)
    assert done.returncode == 8
    assert "503" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["plan"], 0),
        (["plan", "qwen3-30b-a3b", "--ram", "64G"], 0),
        (["plan", "demo"], 0),
        (["plan", "no-such-model"], 3),
        (["stat"], 0),
        (["config"], 0),
        (["pull", "--help"], 0),
        (["pull", "./file.gguf"], 2),
    ],
)
def test_other_verbs_make_no_connection(arguments: list[str], code: int, tmp_path: Path):
    a_model_file(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *arguments],
        env=environment_of(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "CONNECTION" not in done.stderr


def test_the_count_of_connections_sees_one(hub: Hub, tmp_path: Path):
    publish(hub, tmp_path, MIB)
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, "pull", "user/repo", "--dry-run"],
        env=environment_of(tmp_path, HF_ENDPOINT=hub.origin),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert "CONNECTION socket.connect" in done.stderr


def test_a_plan_of_a_remote_name_reads_headers_alone(hub: Hub, tmp_path: Path):
    path = a_model_file(tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 512 * MIB)
    hub.lies_about["m-Q4_K_M.gguf"] = "b" * 64
    hub.repositories["user/repo"] = Published(files={"m-Q4_K_M.gguf": path})
    environment = environment_of(tmp_path, HF_ENDPOINT=hub.origin)
    done = moerun(["plan", "hf.co/user/repo:q4_k_m", "--json"], environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["name"] == "a model"
    assert hub.files.sent_bytes <= 4 * MIB
    assert not (tmp_path / "hf").exists()
