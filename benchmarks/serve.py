"""What a server adds, and what it withstands: `python -m benchmarks.serve`.

Starts `moerun serve` with the demo on a port of its own, and measures, one after the other (or
`--only` one of them): the time to the first byte beside the runner's own, clients at once with
every answer checked and the server's memory watched, runners killed under load. Tokens per second
are measured by `benchmarks.api_rate`.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import threading
import time
from typing import Any

import httpx
import psutil

from benchmarks.served import Server, served

PROMPTS = tuple(f"Say the number {number}." for number in range(16))
ANSWER_TOKENS = 24
MOST_ADDED_MS = 10.0


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


def first_byte(server: Server, rounds: int) -> dict[str, Any]:
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
    median_ms = statistics.median(added)
    return {
        "median_ms": median_ms,
        "least_ms": min(added),
        "p90_ms": sorted(added)[rounds * 9 // 10],
        "is_met": median_ms <= MOST_ADDED_MS,
    }


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--only", choices=("first-byte", "at-once", "killed"))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    document: dict[str, Any] = {}
    with served(options.parallel) as server:
        if options.only in (None, "first-byte"):
            document["first_byte_added"] = first_byte(server, options.rounds)
        if options.only in (None, "at-once"):
            document["at_once"] = at_once(server, options.clients, options.seconds)
        if options.only in (None, "killed"):
            document["killed"] = kills(server, options.kills)
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
