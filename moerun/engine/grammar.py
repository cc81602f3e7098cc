"""Grammars for the engine, checked before they are used: a bad one ends the process natively.

Knows: what the engine's parser cannot take, and where a grammar is tried first.
Does not know: JSON schemas, or which answers have a grammar.
"""

import subprocess
import sys
from functools import lru_cache
from typing import Any, Final

from moerun.engine import abi
from moerun.engine.children import child_environment, describe_exit, module_command
from moerun.engine.load import LoadedModel
from moerun.errors import EngineRefused, UsageError

MOST_GRAMMAR_BYTES: Final = 1 << 20
_CHECK_TIMEOUT_S: Final = 20.0
_ROOT: Final = b"root"


def make_grammar(loaded: LoadedModel, grammar: str) -> Any:
    """Return the engine's sampler for a grammar; UsageError when it is none."""
    sampler = loaded.abi.llama.llama_sampler_init_grammar(
        loaded.vocabulary, grammar.encode(), _ROOT
    )
    if not sampler:
        raise UsageError("The engine does not take the grammar that the answer is to follow.")
    return sampler


@lru_cache(maxsize=64)
def check_grammar(grammar: str) -> None:
    """Try a stranger's grammar in a process of its own; UsageError with the engine's reason.

    The engine's parser recurses as deep as its input says, and throws where nobody catches.
    Beliefs: a NULL sampler for what does not parse — src/llama-grammar.cpp:1229 @ 0.3.36 —
    checked by tests/engine/test_formats.py.
    """
    data = grammar.encode("utf-8", "replace")
    if len(data) > MOST_GRAMMAR_BYTES:
        raise UsageError(
            f"The grammar has {len(data):,} bytes; {MOST_GRAMMAR_BYTES:,} are allowed."
        )
    if b"\0" in data:
        raise UsageError("The grammar has a NUL character in it.")
    try:
        done = subprocess.run(
            module_command("moerun.engine.grammar"),
            input=data,
            capture_output=True,
            timeout=_CHECK_TIMEOUT_S,
            env=child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"The grammar took the engine longer than {_CHECK_TIMEOUT_S:g} s to read."
        ) from error
    if done.returncode == 0:
        return
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    reason = next((line for line in said if line.startswith("parse: ")), "")
    if done.returncode != 1:
        reason = f"the engine died of it, {describe_exit(done.returncode)}"
    reason = reason.removeprefix("parse: error parsing grammar: ")[:200]
    raise UsageError(f"The grammar cannot be used: {reason or 'it has no usable rule root'}.")


def main() -> None:
    """Read a grammar from standard input; the exit code tells whether the engine takes it."""
    llama = abi.open_engine().llama
    if not (sampler := llama.llama_sampler_init_grammar(None, sys.stdin.buffer.read(), _ROOT)):
        sys.exit(1)
    llama.llama_sampler_free(sampler)


if __name__ == "__main__":
    try:
        main()
    except EngineRefused as error:
        sys.exit(str(error))
