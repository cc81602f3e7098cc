"""How long `moerun list` takes with 200 models, each in a process of its own as it is typed.

    .venv/bin/python -m benchmarks.list_models

Half of the models lie in moerun's own store, half as files, whose headers (with vocabularies of
32,000 words) are read in the first run and remembered for the later ones.

Knows: what a user would wait for.
Does not know: what a list shows.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from moerun.store.own_store import OwnStore
from tests.model_files import a_model_file
from tests.stores import add_model

_MODELS = 200
_RUNS = 11
_LIMIT_S = 0.3


def main() -> int:
    """Print the times, and whether the limit is met."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work, own = folder / "work", folder / "own"
        work.mkdir()
        vocabulary = {"tokenizer.ggml.tokens": [f"word{number}" for number in range(32_000)]}
        source = a_model_file(folder, keys=vocabulary)
        store = OwnStore(own)
        for number in range(_MODELS // 2):
            add_model(store, f"own{number}", source)
            os.link(source, work / f"file{number}.gguf")
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MOERUN_")},
            "HOME": name,
            "HF_HOME": str(folder / "hub"),
            "MOERUN_MODELS": str(own),
            "MOERUN_STATE_DIR": str(folder / "state"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        first_s = _list(environment, work)
        times_s = sorted(_list(environment, work) for _ in range(_RUNS))
    figures = {
        "models": _MODELS,
        "first_s": round(first_s, 3),
        "median_s": round(median(times_s), 3),
        "slowest_s": round(times_s[-1], 3),
        "limit_s": _LIMIT_S,
        "met": median(times_s) <= _LIMIT_S,
    }
    print(json.dumps(figures))
    return 0 if figures["met"] else 1


def _list(environment: dict[str, str], folder: Path) -> float:
    started_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "moerun", "list"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    took_s = time.perf_counter() - started_s
    rows = [line for line in done.stdout.splitlines() if line.split()[0] not in ("NAME", "demo")]
    assert len(rows) == _MODELS, done.stdout
    return took_s


if __name__ == "__main__":
    sys.exit(main())
