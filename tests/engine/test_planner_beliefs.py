"""What the planner believes of the engine's limits, asked of the engine."""

from collections.abc import Callable
from pathlib import Path

import llama_cpp
import pytest

from moerun.engine.arguments import MAX_OVERRIDES
from moerun.engine.llama import LlamaEngine
from moerun.errors import EngineRefused
from moerun.planning.placement import MAX_DEVICES
from moerun.planning.strategy import Toggle
from tests.engine.builders import arguments

pytestmark = pytest.mark.engine


def test_the_engine_takes_as_many_devices_and_overrides_as_are_planned_for():
    assert llama_cpp.llama_max_devices() == MAX_DEVICES
    assert llama_cpp.llama_max_tensor_buft_overrides() == MAX_OVERRIDES


def test_quantized_values_need_flash_attention(tiny_model: Callable[[str], Path]):
    engine = LlamaEngine(log_sink=None)
    path = tiny_model("qwen3moe")
    with pytest.raises(EngineRefused):
        engine.measure(arguments(path, kv_encoding_v="Q8_0", flash_attention=Toggle.OFF))
    assert engine.measure(arguments(path, kv_encoding_v="Q8_0", flash_attention=Toggle.ON))


def test_grok_cannot_have_flash_attention(tiny_model: Callable[[str], Path]):
    args = arguments(tiny_model("grok"), kv_encoding_v="Q8_0", flash_attention=Toggle.ON)
    with pytest.raises(EngineRefused):
        LlamaEngine(log_sink=None).measure(args)
