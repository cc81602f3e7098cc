"""The whole check in one command, to be run again until it no longer says 75.

`python -m tools.gpu.check --bundle FILE --saved FOLDER --out FOLDER [--architecture 90 | --cpu]`
does one step of the build; when all is built, it installs the engine beside the wheels of the
bundle, runs the tests marked `gpu`, and in further steps measures the tables, of which the rows
that are known lie in `--out`. With `--cpu` the tests are those of the
engine that need no card, and the measured model is small: a rehearsal of the same steps.

Knows: the order of the steps, and what each is given.
Does not know: how any of them works.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.gpu import build

_REHEARSED: Final = ("tests/engine/test_devices.py",)


def install(order: build.Order) -> dict[str, str]:
    """Put the built libraries where the bindings look, and return an environment that finds them.

    Belief: the bindings load `lib/libllama.so` beside them — llama_cpp/llama_cpp.py @ 0.3.36 —
    and moerun asks the metadata of the package for its version — moerun/engine/abi.py.
    """
    engine = order.source / "engine"
    libraries = engine / "llama_cpp" / "lib"
    shutil.rmtree(libraries, ignore_errors=True)
    shutil.copytree(order.build / "bin", libraries, symlinks=True)
    facts = engine / "llama_cpp_python-0.3.36.dist-info"
    facts.mkdir(exist_ok=True)
    shutil.copy(engine / "PKG-INFO", facts / "METADATA")
    paths = [str(engine)]
    wheels = sorted((order.source / "wheels").glob("*.whl"))
    if wheels:
        site = order.work / "site"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--upgrade", "--target", site, *wheels], check=True)
        paths.append(str(site))
    paths.append(os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def run(order: build.Order, out: Path, *, docs: Path | None) -> int:
    """Build or go on building, then test, then measure; return the first failure."""
    if (status := build.run_step(order)) != 0:
        return status
    environment = install(order)
    out.mkdir(parents=True, exist_ok=True)
    is_rehearsal = order.architecture is None
    tests = list(_REHEARSED) if is_rehearsal else ["-m", "gpu", "tests/gpu"]
    passed = out / "tests.passed"
    if not passed.exists():
        command = [sys.executable, "-m", "pytest", "-q", *tests]
        if (failed := _logged(command, out / "tests.log", environment)) != 0:
            return failed
        passed.touch()
        return build.NOT_DONE  # the table has a step of its own
    measure = [sys.executable, "-m", "tools.gpu.measure", "--work", order.work]
    measure += ["--rows", out / "rows.json"]
    measure += ["--fit", order.build / "bin" / "llama-fit-params"]
    measure += ["--cpu"] if is_rehearsal else []
    measure += ["--docs", docs] if docs is not None else []
    status = _logged([str(part) for part in measure], out / "measured.log", environment)
    if status != 0:
        return status
    slots = [sys.executable, "-m", "tools.gpu.slots", "--work", order.work]
    slots += ["--rows", out / "slots.json", *(["--cpu"] if is_rehearsal else [])]
    slots += ["--docs", docs] if docs is not None else []
    return _logged([str(part) for part in slots], out / "slots.log", environment)


def _logged(command: Sequence[str], log: Path, environment: dict[str, str]) -> int:
    """Run a program, keep what it says, and say it too."""
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
        )
    sys.stdout.write(log.read_text(encoding="utf-8", errors="replace"))
    return done.returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check that the command line asks for."""
    parser = build.options_parser("python -m tools.gpu.check", __doc__ or "")
    parser.add_argument("--out", type=Path, default=Path(".build/gpu/out"))
    parser.add_argument("--docs", type=Path, help="the document whose table is rewritten")
    options: argparse.Namespace = parser.parse_args(arguments)
    order = build.order_of(options)
    if (lacking := build.lacking(order)) is not None:
        sys.stderr.write(f"Error: not here: {lacking}\n")
        return 1
    status = run(order, options.out, docs=options.docs)
    if status == build.NOT_DONE:
        sys.stderr.write("not done yet; run the same command again\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
