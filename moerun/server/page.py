"""The page at `/` for browsers, and the figures that it draws.

Knows: which tiers a model's bytes lie on, and what a browser may load for the page: nothing.
Does not know: how the page draws, which its own file tells.
"""

import asyncio
from functools import cache
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from moerun.codec import to_plain
from moerun.errors import MoerunError
from moerun.experts.counters import StreamingSample
from moerun.machine.description import HOST
from moerun.server.backend import Backend
from moerun.server.endpoints import Call, Reply
from moerun.server.slots import Slot

# Tools look for these very words to know that somebody speaks this API.
GREETING: Final = "Ollama is running"
_PAGE: Final = Path(__file__).with_name("page.html")
_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


async def root(request: Request) -> Response:
    """Give browsers the page, and everyone else ollama's words."""
    headers = {"Vary": "Accept"}
    if "text/html" not in request.headers.get("accept", ""):
        return PlainTextResponse(GREETING, headers=headers)
    more = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(_page(), headers={**headers, **more})


class StatusApi:
    """What the page draws, as JSON."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def status(self, call: Call) -> Reply:
        """Tell of each model in memory: its tiers, and what its experts do."""
        scheduler = self._backend.scheduler
        await scheduler.measure()
        models = [await _row(slot) for slot in scheduler.loaded]
        return Reply(content={"schema": 1, "waiting": scheduler.waiting, "models": models})


async def _row(slot: Slot) -> dict[str, Any]:
    try:
        loop = asyncio.get_running_loop()
        streaming = await loop.run_in_executor(slot.threads, slot.loaded.streaming)
    except (MoerunError, RuntimeError):  # it ends at this very moment
        streaming = None
    return {
        "name": slot.model.name,
        "mode": slot.loaded.mode,
        "context_tokens": slot.loaded.context_tokens,
        "users": slot.users,
        "tiers": _tiers(slot, streaming),
        "streaming": None if streaming is None else _streaming(streaming),
    }


def _tiers(slot: Slot, streaming: StreamingSample | None) -> list[dict[str, Any]]:
    rows = [
        {
            "tier": "ram" if each.device == HOST else "vram",
            "name": "RAM" if each.device == HOST else str(each.device),
            "bytes": each.size_bytes,
        }
        for each in slot.held
    ]
    if streaming is not None:
        left_bytes = max(0, streaming.expert_bytes - streaming.held_bytes)
        rows.append({"tier": "ssd", "name": "experts on SSD", "bytes": left_bytes})
    return rows


def _streaming(sample: StreamingSample) -> dict[str, Any]:
    return {
        "hit_fraction": sample.recent.hit_fraction,
        "read_bytes_per_token": sample.recent.read_bytes_per_token,
        "held_bytes": sample.held_bytes,
        "expert_bytes": sample.expert_bytes,
        "heat": [to_plain(layer) for layer in sample.heat],
    }


@cache
def _page() -> str:
    return _PAGE.read_text(encoding="utf-8")
