"""One load and one answer in a process of its own: rates, and what the driver saw of the load.

`python -m tools.gpu.answer ORDER.json` reads the engine's arguments and prints one JSON document.

Knows: how an answer is timed.
Does not know: which placements are compared.
"""

import json
import sys
from pathlib import Path

from moerun.codec import from_plain
from moerun.engine.arguments import EngineArgs
from moerun.engine.interface import GenerationRequest
from moerun.engine.llama import LlamaEngine
from moerun.machine.probe_nvml import read_nvml


def main() -> int:
    """Load, answer once to warm up and once for the figures, and print them."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    args = from_plain(EngineArgs, order["args"])
    before = _free_bytes()
    session = LlamaEngine().load(args)
    prompt = tuple(1 + index % 200 for index in range(order["prompt_tokens"]))
    wanted = GenerationRequest(tokens=prompt, maximum_tokens=order["answer_tokens"])
    warm = GenerationRequest(tokens=prompt[:8], maximum_tokens=8)
    for request in (warm, wanted):
        found = session.generate(request, on_text=lambda text: None, is_cancelled=lambda: False)
    after = _free_bytes()
    session.close()
    sys.stdout.write(
        json.dumps(
            {
                "seen_bytes": None if before is None or after is None else before - after,
                "prefill_tokens_per_s": (found.prompt_tokens - found.reused_tokens)
                / max(found.prompt_s, 1e-9),
                "decode_tokens_per_s": found.answer_tokens / max(found.answer_s, 1e-9),
            }
        )
        + "\n"
    )
    return 0


def _free_bytes() -> int | None:
    cards = read_nvml().cards
    return cards[0].free_bytes if cards else None


if __name__ == "__main__":
    sys.exit(main())
