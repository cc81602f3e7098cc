"""How quickly a file is pulled over loopback, beside curl in the same run, and what kills cost.

`python -m benchmarks.pull` serves a file of 1 GB as Hugging Face would, from a process of its own,
and fetches it in turn by `curl`, by curl with the digest beside it (the quicker of `sha256sum` and
`openssl sha256`, and of a pipe and one after the other), and by `moerun pull`, whose whole run
counts: start of Python, listing, digest, and the last byte settled on the disk, which neither of
the others waits for. Once the server is held to 200 MB/s, once it is not.

`--kills 20` also kills a pull at seeded points, and says how many bytes were fetched twice.

Knows: what is timed, in which order, and how often.
Does not know: what would be fast enough (docs/figures.md says).
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from tests.servers.file_host import FileHost
from tests.servers.hub import COMMIT, Hub, Published

FILE = "model-Q4_K_M.gguf"
LIMIT_BYTES_PER_S = 200e6
_COUNT = "count"


def main() -> None:
    """Serve, fetch in turn, and print a line for each."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    asked.add_argument("--size-bytes", type=int, default=10**9)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--kills", type=int, default=0)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = write_source(folder / "source", options.size_bytes)
        for limit in (LIMIT_BYTES_PER_S, None) if options.rounds else ():
            with serving(source, limit) as (origin, _):
                compare(folder, origin, source, limit, options.rounds)
        if options.kills:
            with serving(source, LIMIT_BYTES_PER_S) as (origin, line):
                kill_often(folder, origin, line, source, options.kills)


def write_source(path: Path, size_bytes: int) -> Path:
    """Write random bytes, which nothing on the way can make shorter."""
    chance = random.Random(1)
    with path.open("wb") as file:
        for start in range(0, size_bytes, 1 << 20):
            file.write(chance.randbytes(min(1 << 20, size_bytes - start)))
    return path


@contextmanager
def serving(source: Path, limit: float | None) -> Iterator[tuple[str, Connection]]:
    """Serve a file from another process; yields the address, and the line to ask for counts."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(source, limit, there))
    process.start()
    try:
        yield here.recv(), here
    finally:
        process.terminate()
        process.join()


def serve(source: Path, limit: float | None, line: Connection) -> None:
    """Answer until the process is ended; tell how much was sent when asked."""
    hub = Hub(FileHost(bytes_per_s=limit, send_buffer_bytes=1 << 18 if limit else 0))
    with source.open("rb") as file:
        hub.lies_about[FILE] = hashlib.file_digest(file, "sha256").hexdigest()  # told once
    hub.repositories["user/repo"] = Published(files={FILE: source})
    with hub.serving():
        line.send(hub.origin)
        while line.recv() == _COUNT:
            line.send(hub.files.sent_bytes)


def compare(folder: Path, origin: str, source: Path, limit: float | None, rounds: int) -> None:
    """Fetch by each way in turn and print the median rates."""
    url = f"{origin}/user/repo/resolve/{COMMIT}/{FILE}"
    target = folder / "curled"
    ways: dict[str, Callable[[], None]] = {
        "curl": lambda: shell(f"curl -sSfL -o '{target}' '{url}'"),
        "moerun pull": lambda: pull(folder, origin),
    }
    for name, command in hashers().items():
        ways[f"curl | tee | {name}"] = piped(url, target, command)
        ways[f"curl, then {name}"] = piped(url, target, command, waits=True)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            shutil.rmtree(folder / "hf", ignore_errors=True)
            target.unlink(missing_ok=True)
            seconds[name].append(timed(way))
    size_bytes = source.stat().st_size
    print(f"server {f'held to {limit / 1e6:.0f} MB/s' if limit else 'not held to any rate'}:")
    rates = {name: size_bytes / 1e6 / statistics.median(took) for name, took in seconds.items()}
    for name, rate in rates.items():
        slowest, quickest = (size_bytes / 1e6 / pick(seconds[name]) for pick in (max, min))
        print(f"  {name:24} {rate:7.1f} MB/s  ({slowest:.1f} to {quickest:.1f}, {rounds} rounds)")
    together = max(rate for name, rate in rates.items() if name not in ("curl", "moerun pull"))
    print(f"  moerun of curl           {rates['moerun pull'] / rates['curl']:7.3f}")
    print(f"  moerun of curl and sha   {rates['moerun pull'] / together:7.3f}")


def hashers() -> dict[str, str]:
    """Return the programs for the digest that are here."""
    known = {"sha256sum": "sha256sum", "openssl": "openssl dgst -sha256"}
    return {name: command for name, command in known.items() if shutil.which(name)}


def piped(url: str, target: Path, command: str, *, waits: bool = False) -> Callable[[], None]:
    """Return what fetches and hashes, at once or one after the other."""
    if waits:
        return lambda: shell(f"curl -sSfL -o '{target}' '{url}' && {command} '{target}'")
    return lambda: shell(f"set -o pipefail; curl -sSfL '{url}' | tee '{target}' | {command}")


def pull(folder: Path, origin: str) -> None:
    """Pull by the command line; its digest is part of it."""
    subprocess.run(command_line(), env=environment(folder, origin), check=True, capture_output=True)


def command_line() -> list[str]:
    """Return the command."""
    return [sys.executable, "-m", "moerun", "pull", "user/repo", "--json"]


def environment(folder: Path, origin: str) -> dict[str, str]:
    """Return the variables that lead to the local server."""
    return os.environ | {"HF_ENDPOINT": origin, "HF_HOME": str(folder / "hf")}


def shell(line: str) -> None:
    """Run a line of bash."""
    subprocess.run(["bash", "-c", line], check=True, stdout=subprocess.DEVNULL)


def timed(action: Callable[[], None]) -> float:
    """Return the seconds that an action takes; what earlier ones wrote is settled before."""
    os.sync()
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def kill_often(folder: Path, origin: str, line: Connection, source: Path, kills: int) -> None:
    """Kill pulls at seeded points, end the last, and print what was fetched twice."""
    shutil.rmtree(folder / "hf", ignore_errors=True)
    size_bytes = source.stat().st_size
    chance = random.Random(20)
    died = 0
    for point in sorted(chance.randrange(size_bytes // 100, size_bytes) for _ in range(kills)):
        with subprocess.Popen(
            command_line(), env=environment(folder, origin), stdout=subprocess.DEVNULL
        ) as process:
            while sent_by(line) < point and process.poll() is None:
                time.sleep(0.002)
            process.kill()
        died += process.returncode < 0
    last = subprocess.run(
        command_line(), env=environment(folder, origin), check=True, capture_output=True
    )
    path = Path(json.loads(last.stdout)["models"][0]["path"])
    with path.open("rb") as here, source.open("rb") as there:
        is_whole = hashlib.file_digest(here, "sha256").digest() == (
            hashlib.file_digest(there, "sha256").digest()
        )
    twice = sent_by(line) - size_bytes
    print(f"killed {died} times of {kills}; the digest is {'right' if is_whole else 'WRONG'};")
    print(f"  sent twice: {twice:,} bytes, {twice / size_bytes:.2%}")


def sent_by(line: Connection) -> int:
    """Return how many bytes the server has sent."""
    line.send(_COUNT)
    count = line.recv()
    assert isinstance(count, int)
    return count


if __name__ == "__main__":
    main()
