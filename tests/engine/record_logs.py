"""Record the engine's load logs for tests/test_load_log.py: `python -m tests.engine.record_logs`.

Kept are the lines that speak of layers, buffers and failures, each with its level; paths and
ports are replaced, so that a second run gives the same files.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from moerun.engine.arguments import EngineArgs, EngineDeviceRef, Override
from moerun.engine.devices import list_devices
from moerun.engine.engine_log import engine_log
from moerun.engine.llama import LlamaEngine
from moerun.engine.rpc_worker import loopback_worker
from moerun.errors import EngineError
from moerun.machine.description import HOST, EngineDeviceKind
from moerun.machine.gpus import device_id_of
from moerun.units import MIB
from tests.engine.placements import ALL_LAYERS, EXPERTS, on_the_host
from tests.engine.plain import Settings
from tests.tiny_models import write_tiny_model

FOLDER = Path(__file__).parent.parent / "fixtures" / "logs"
KEPT = re.compile(r"buffer|layer +\d+|kv_cache|rror|failed|unable")
DROPPED = re.compile(r"compute buffer size is|^print_info|^llama_model_loader: - ")


def main() -> None:
    """Record every log."""
    with tempfile.TemporaryDirectory() as folder, two_devices() as devices:
        models = Path(folder)
        plain = on_the_host(write_tiny_model(models / "qwen3moe.gguf", "qwen3moe"), Settings())
        window = on_the_host(write_tiny_model(models / "gpt-oss.gguf", "gpt-oss"), Settings())
        hybrid = on_the_host(write_tiny_model(models / "hybrid.gguf", "granitehybrid"), Settings())

        def over_both(args: EngineArgs) -> EngineArgs:
            return replace(
                args, devices=devices[:2], n_gpu_layers=ALL_LAYERS, tensor_split=(1.0, 1.0)
            )

        record("host_mapped", plain, models)
        record(
            "experts_on_host",
            replace(
                plain,
                devices=devices[:1],
                n_gpu_layers=ALL_LAYERS,
                overrides=(Override(pattern=EXPERTS, device=HOST),),
            ),
            models,
        )
        record("two_devices_sliding_window", over_both(window), models)
        record("two_devices_recurrent", over_both(hybrid), models)
        record("dry_run_two_devices", over_both(window), models, is_dry=True)
        small = replace(plain, devices=devices[2:], n_gpu_layers=ALL_LAYERS, context_tokens=2**20)
        record("out_of_memory_on_device", small, models)
        truncated = models / "truncated.gguf"
        truncated.write_bytes((models / "qwen3moe.gguf").read_bytes()[:-10_000])
        record("truncated", replace(plain, model_path=str(truncated)), models)
        record(
            "odd_kv",
            replace(window, kv_encoding_k="Q8_0", kv_encoding_v="Q4_0"),
            models,
        )


@contextmanager
def two_devices() -> Iterator[tuple[EngineDeviceRef, ...]]:
    """Yield two devices, and a third that has 64 MiB."""
    with loopback_worker() as first, loopback_worker() as second, loopback_worker(64 * MIB) as less:
        found = list_devices((first, second, less))
        yield tuple(
            EngineDeviceRef(id=device_id_of(device), engine_name=device.name)
            for device in found
            if device.kind is EngineDeviceKind.GPU
        )


def record(name: str, args: EngineArgs, folder: Path, *, is_dry: bool = False) -> None:
    """Load or measure, and write what was logged."""
    engine = LlamaEngine(log_sink=None)
    log = engine_log()
    mark = log.mark()
    try:
        if is_dry:
            engine.measure(args)
        else:
            engine.load(args).close()
    except EngineError as error:
        print(f"{name}: {error.message}")  # noqa: T201 - a program for developers
    text = "\n".join(
        line for line in log.since(mark) if KEPT.search(line) and not DROPPED.search(line)
    )
    text = text.replace(str(folder), "/models")
    for index, reference in enumerate(args.devices):
        address = reference.id.partition("[")[2].rstrip("]")
        text = text.replace(address, f"127.0.0.1:{50052 + index}")
    (FOLDER / f"{name}.txt").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
