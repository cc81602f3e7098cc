"""Traces by hand, and the recorded ones that lie beside the checkout."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from moerun.experts.routes import LayerChoice, Pass, Phase, Trace, TracedLayer, TraceHeader

FOLDER = Path(__file__).parents[2] / "shared" / "traces"
RECORDED = ("qwen3-30b-a3b", "gpt-oss-120b")


def recorded_trace(name: str) -> Path:
    """Return the file of a recorded trace; skips the test where there is none."""
    path = FOLDER / f"{name}.route.csv"
    if not path.is_file():
        pytest.skip(f"the recorded trace {path.name} is not beside this checkout")
    return path


def a_pass(*choices: Sequence[int], phase: Phase = Phase.DECODE, tokens: int = 1) -> Pass:
    """Return a pass that chose these experts, layer by layer."""
    return Pass(
        turn=0,
        phase=phase,
        tokens=tokens,
        choices=tuple(LayerChoice(layer, tuple(found)) for layer, found in enumerate(choices)),
    )


def a_trace(passes: Sequence[Pass], *, expert_bytes: int = 10, experts_used: int = 2) -> Trace:
    """Return a trace of a model with as many layers as the passes have."""
    layers = sorted({choice.layer for each in passes for choice in each.choices})
    return Trace(
        header=TraceHeader(
            model_name="model.gguf",
            architecture="qwen3moe",
            layer_count=len(layers),
            expert_count=8,
            experts_used=experts_used,
            layers=tuple(
                TracedLayer(layer=layer, expert_bytes=expert_bytes, dense_bytes=100)
                for layer in layers
            ),
            shared_bytes=50,
        ),
        passes=tuple(passes),
    )
