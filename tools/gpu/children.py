"""One measurement in a process of its own, so that a crash or a hang costs a row and no more.

Knows: how a child is given its order, and what of its end is told.
Does not know: what is measured.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

_LONGEST_TAIL = 120


def figures_of(
    module: str, order: Mapping[str, Any], *, timeout_s: int, late: str
) -> tuple[dict[str, Any], str | None]:
    """Run a module on an order; return what its last line says, or why there is none.

    `late` says what is missing after `timeout_s`.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(order, file)
        file.flush()
        command = [sys.executable, "-m", module, file.name]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return {}, f"{late} within {timeout_s} s"
    if done.returncode:
        tail = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {}, f"ended with {done.returncode}: {tail[:_LONGEST_TAIL]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, None
