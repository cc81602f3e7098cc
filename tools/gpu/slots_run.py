"""One script of tokens in a process of its own: how fast it decodes, and what its slots did.

`python -m tools.gpu.slots_run ORDER.json` reads the engine's arguments, an order where experts
move, and the tokens, and prints one JSON document. The tokens are given, not chosen, since each
routes as the model was made to.

Knows: how decoding is timed: after a first part, in which slots fill.
Does not know: which placements are compared.
"""

import json
import sys
import time
from pathlib import Path

from moerun.codec import from_plain
from moerun.engine.abi import installed_version
from moerun.engine.arguments import EngineArgs
from moerun.engine.decode import Decoder
from moerun.engine.llama import LlamaEngine
from moerun.experts.assembly import Opened, open_order
from moerun.experts.counters import SlotCounters
from moerun.experts.order import StreamingOrder
from moerun.machine.probe_nvml import read_nvml


def main() -> int:
    """Load, run the prompt and the first part, then time the rest, and print the figures."""
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    args = from_plain(EngineArgs, given["args"])
    opened = Opened(supplier=None, streamer=None)
    if given["order"] is not None:
        order = from_plain(StreamingOrder, given["order"])
        opened = open_order(order, engine_version=installed_version() or "")
    before = _free_bytes()
    session = LlamaEngine().load(args, supplier=opened.supplier, slots=opened.slots)
    decoder = Decoder(session.loaded)
    decoder.prefill(given["prompt"], is_cancelled=lambda: False)
    for token in given["filling"]:
        decoder.advance(token)
    filled = _slots(opened)
    started_s = time.perf_counter()
    for token in given["timed"]:
        decoder.advance(token)
    taken_s = time.perf_counter() - started_s
    ended, after = _slots(opened), _free_bytes()
    session.close()
    count = len(given["timed"])
    found: dict[str, object] = {
        "decode_tokens_per_s": count / taken_s,
        "seen_bytes": None if before is None or after is None else before - after,
    }
    if filled is not None and ended is not None:
        hits, uploads = ended.hits - filled.hits, ended.uploads - filled.uploads
        found["hit_fraction"] = hits / max(1, hits + uploads)
        found["uploads_per_token"] = uploads / count
        found["upload_ms_per_token"] = (ended.upload_s - filled.upload_s) / count * 1e3
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def _slots(opened: Opened) -> SlotCounters | None:
    return None if opened.streamer is None else opened.streamer.sample().slots


def _free_bytes() -> int | None:
    cards = read_nvml().cards
    return cards[0].free_bytes if cards else None


if __name__ == "__main__":
    sys.exit(main())
