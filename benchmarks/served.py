"""A server for benchmarks, and how fast it answers as its client sees it.

Knows: how a server is started and ended, and which words of a stream are timed.
Does not know: what is compared with what.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

END_BIAS = -100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server process and where it listens."""

    url: str
    pid: int
    state: Path


@contextlib.contextmanager
def served(parallel: int, more: Mapping[str, str] | None = None) -> Iterator[Server]:
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
            **(more or {}),
        }
        command = [sys.executable, "-m", "moerun", "serve"]
        process = subprocess.Popen(command, env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_up(url)
            yield Server(url=url, pid=process.pid, state=Path(state))
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
        if code != 0:
            raise SystemExit(f"the server ended with exit code {code}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedAnswer:
    """An answer of so many tokens, and the seconds from its first piece to its end."""

    text: str
    tokens: int
    after_first_s: float

    @property
    def tokens_per_s(self) -> float:
        """How fast the tokens after the first came."""
        return (self.tokens - 1) / self.after_first_s


def timed_completion(
    url: str, model: str, prompt: str, *, tokens: int, ends: tuple[int, ...]
) -> TimedAnswer:
    """Ask OpenAI's API for a greedy completion that does not end early, as a stream.

    The client is a thin one: on a machine whose cores are all decoding, its work counts, too.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {str(token): END_BIAS for token in ends},
    }
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=600)
    lines: list[bytes] = []
    first_s = None
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", body=json.dumps(body))
        reply = connection.getresponse()
        if reply.status != 200:
            raise SystemExit(f"the server answered {reply.status}: {reply.read(500)!r}")
        while line := reply.readline():
            last_s = time.perf_counter()
            first_s = last_s if first_s is None else first_s
            lines.append(line)
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    counted = events[-1]["usage"]["completion_tokens"]
    if first_s is None or counted != tokens:
        raise SystemExit(f"an answer has {counted} tokens instead of {tokens}")
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    return TimedAnswer(text=text, tokens=counted, after_first_s=last_s - first_s)


def _wait_until_up(url: str) -> None:
    for _ in range(300):
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url)
            return
        time.sleep(0.1)
    raise SystemExit("the server does not answer")
