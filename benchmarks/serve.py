"""What a server adds, and what it withstands: `python -m benchmarks.serve`.

Starts `moerun serve` with the demo on a port of its own, and measures, one after the other: the
time to the first byte beside the runner's own, tokens per second beside the runner's own, clients
at once with every answer checked and the server's memory watched, runners killed under load.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

PROMPTS = tuple(f"Say the number {number}." for number in range(16))
ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server process and where it listens."""

    url: str
    pid: int
    state: Path


@contextlib.contextmanager
def served(parallel: int) -> Iterator[Server]:
    """Run a server; its exit code must be 0 after SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as state:
        environment = {
            **os.environ,
            "MOERUN_HOST": f"127.0.0.1:{port}",
            "MOERUN_STATE_DIR": state,
            "MOERUN_NUM_PARALLEL": str(parallel),
        }
        command = [sys.executable, "-m", "moerun", "serve"]
        process = subprocess.Popen(command, env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_up(url)
            yield Server(url=url, pid=process.pid, state=Path(state))
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
        if code != 0:
            raise SystemExit(f"the server ended with exit code {code}")


def wait_until_up(url: str) -> None:
    """Wait until the server answers."""
    for _ in range(300):
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url)
            return
        time.sleep(0.1)
    raise SystemExit("the server does not answer")


def body(prompt: str, *, streams: bool, tokens: int = ANSWER_TOKENS) -> dict[str, Any]:
    """Return a greedy request."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": prompt}],
        "stream": streams,
        "options": {"temperature": 0, "seed": 1, "num_predict": tokens},
    }


def ask(client: httpx.Client, prompt: str) -> str:
    """Return an answer; an error raises."""
    reply = client.post("/api/chat", json=body(prompt, streams=False))
    reply.raise_for_status()
    content: str = reply.json()["message"]["content"]
    return content


def first_byte(server: Server, rounds: int) -> dict[str, float]:
    """Return the server's share of the time to the first byte, in milliseconds.

    The runner's own is what it tells of its prompt; the answer is one token long.
    """
    added = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        ask(client, PROMPTS[0])
        for turn in range(rounds):
            request = body(PROMPTS[turn % len(PROMPTS)], streams=True, tokens=1)
            begun = time.perf_counter()
            with client.stream("POST", "/api/chat", json=request) as reply:
                lines = reply.iter_lines()
                next(lines)
                took = time.perf_counter() - begun
                last = json.loads(list(lines)[-1])
            own = (last["prompt_eval_duration"] + last["eval_duration"]) / 1e9
            added.append((took - own) * 1000)
    return {"median_ms": statistics.median(added), "p90_ms": sorted(added)[rounds * 9 // 10]}


def at_once(server: Server, clients: int, seconds: float) -> dict[str, Any]:
    """Have many clients ask for a while; every answer must be the one that it has alone."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        alone = {prompt: ask(client, prompt) for prompt in PROMPTS}
    counts = {"right": 0, "other": 0, "failed": 0}
    lock, end = threading.Lock(), time.monotonic() + seconds
    process = psutil.Process(server.pid)

    def keep_asking(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=300) as client:
            turn = number
            while time.monotonic() < end:
                prompt = PROMPTS[turn % len(PROMPTS)]
                turn += 1
                try:
                    kind = "right" if ask(client, prompt) == alone[prompt] else "other"
                except httpx.HTTPError:
                    kind = "failed"
                with lock:
                    counts[kind] += 1

    threads = [threading.Thread(target=keep_asking, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 4)
    early_bytes = process.memory_info().rss
    for thread in threads:
        thread.join()
    late_bytes = process.memory_info().rss
    return {**counts, "server_early_bytes": early_bytes, "server_late_bytes": late_bytes}


def kills(server: Server, times: int) -> dict[str, Any]:
    """Kill the runner under load, again and again; the next request must be answered."""
    process = psutil.Process(server.pid)
    answered, open_files = 0, []
    for _ in range(times):
        threads = [threading.Thread(target=long_answer, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        for path in (server.state / "runners").glob("*.json"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.stem), signal.SIGKILL)
        for thread in threads:
            thread.join()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            answered += bool(ask(client, PROMPTS[0]))
        open_files.append(process.num_fds())
    zombies = [child for child in process.children() if child.status() == psutil.STATUS_ZOMBIE]
    return {
        "kills": times,
        "answered_next": answered,
        "zombies": len(zombies),
        "open_files_first": open_files[0],
        "open_files_last": open_files[-1],
        "server_bytes": process.memory_info().rss,
    }


def long_answer(server: Server) -> None:
    """Ask for a long answer, whose end by a crash is no error here."""
    request = body("Tell a long story.", streams=False, tokens=400)
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{server.url}/api/chat", json=request, timeout=120)


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    with served(options.parallel) as server:
        document = {
            "first_byte_added": first_byte(server, options.rounds),
            "at_once": at_once(server, options.clients, options.seconds),
            "killed": kills(server, options.kills),
        }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
