"""From a plan to the engine's arguments, and from the arguments to what the engine will do."""

import re
from dataclasses import replace
from random import Random

import pytest

from moerun.engine.arguments import (
    EngineArgs,
    EngineDeviceRef,
    Override,
    engine_args,
    output_device,
    predicted_buffers,
    simulate,
)
from moerun.engine.tensor_patterns import number_patterns, patterns_for
from moerun.machine.description import HOST, SSD, DeviceId, GpuBackend
from moerun.model.description import Layer, Model, TensorRole, TensorUse
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import LoadMode, Pin, Strategy
from tests.builders import (
    GIB,
    MIB,
    a_gpu,
    a_layer,
    a_machine,
    a_model,
    a_tensor,
    some_arguments,
    with_offsets,
)

FIRST, SECOND = DeviceId("gpu:a"), DeviceId("gpu:b")


def two_devices(**changes: object) -> EngineArgs:
    devices = (
        EngineDeviceRef(id=FIRST, engine_name="CUDA0"),
        EngineDeviceRef(id=SECOND, engine_name="CUDA1"),
    )
    return some_arguments(devices=devices, **changes)


def layers_of(args: EngineArgs, model: Model) -> list[DeviceId]:
    placed = simulate(args, model)
    return [placed[layer.tensors[0].name] for layer in model.layers]


def test_without_devices_everything_is_on_the_host():
    model = a_model(layers=3)
    assert set(simulate(some_arguments(n_gpu_layers=99), model).values()) == {HOST}
    assert output_device(some_arguments(n_gpu_layers=99), model) == HOST


def test_layers_count_from_the_end_and_the_output_is_one_of_them():
    model = a_model(layers=4)
    args = two_devices(n_gpu_layers=3, tensor_split=(1.0, 0.0))
    assert layers_of(args, model) == [HOST, HOST, FIRST, FIRST]
    assert output_device(args, model) == FIRST
    only_output = two_devices(n_gpu_layers=1, tensor_split=(1.0, 0.0))
    assert layers_of(only_output, model) == [HOST] * 4
    assert simulate(only_output, model)["output.weight"] == FIRST
    assert simulate(only_output, model)["token_embd.weight"] == HOST


def test_a_split_is_told_in_layers_and_the_last_device_has_the_output():
    model = a_model(layers=5)
    args = two_devices(n_gpu_layers=6, tensor_split=(2.0, 4.0))
    assert layers_of(args, model) == [FIRST, FIRST, SECOND, SECOND, SECOND]
    assert output_device(args, model) == SECOND


@pytest.mark.parametrize("count", [7, 47, 61, 94, 512])
def test_every_cut_survives_the_engines_float_arithmetic(count: int):
    model = a_model(layers=count, expert=0)
    for first in range(1, count, max(1, count // 40)):
        args = two_devices(
            n_gpu_layers=count + 1, tensor_split=(float(first), float(count + 1 - first))
        )
        assert layers_of(args, model) == [FIRST] * first + [SECOND] * (count - first)


def test_the_first_override_that_matches_wins():
    overrides = (
        Override(pattern=r"blk\.1\.", device=SECOND),
        Override(pattern=r"ffn_up_exps", device=HOST),
    )
    model = a_model(layers=2)
    args = two_devices(n_gpu_layers=3, tensor_split=(3.0, 0.0), overrides=overrides)
    placed = simulate(args, model)
    assert placed["blk.0.ffn_up_exps.weight"] == HOST
    assert placed["blk.1.ffn_up_exps.weight"] == SECOND
    assert placed["blk.0.ffn_down_exps.weight"] == FIRST


def test_a_plan_becomes_few_overrides_with_consecutive_layers_together():
    model = a_model(layers=40)
    machine = a_machine(gpus=[5 * GIB])
    plan = plan_placement(model, machine, Strategy(split_layers=False))
    args = engine_args(plan, model, machine)
    (override,) = args.overrides
    assert override.device == HOST
    assert len(override.pattern) < 120
    assert args.n_gpu_layers == 41


def test_arguments_carry_what_the_plan_says():
    model = a_model(layers=4)
    remote = a_gpu(0, free=4 * GIB, backend=GpuBackend.RPC)
    machine = a_machine(gpus=[remote])
    strategy = Strategy(context_tokens=1000, threads=3, kv_encoding_k="Q8_0", ubatch_tokens=64)
    plan = plan_placement(model, machine, strategy)
    args = engine_args(plan, model, machine, model_path="/elsewhere/m.gguf")
    assert args.model_path == "/elsewhere/m.gguf"
    assert (args.context_tokens, args.threads, args.ubatch_tokens) == (1000, 3, 64)
    assert args.kv_encoding_k == "Q8_0"
    assert args.workers == ("10.0.0.0:50052",)
    assert args.devices == (EngineDeviceRef(id=remote.id, engine_name="RPC0"),)
    assert args.load_mode is plan.load_mode


def test_a_tied_embedding_pinned_to_the_cpu_takes_its_output_copy_along():
    model = a_model(layers=2, is_tied=True)
    machine = a_machine(gpus=[16 * GIB])
    pin = Pin(pattern="token_embd.weight", device="cpu", origin="--pin")
    plan = plan_placement(model, machine, Strategy(pins=(pin,), load_mode=LoadMode.COPY))
    args = engine_args(plan, model, machine)
    assert any(re.search(o.pattern, "token_embd.weight") for o in args.overrides)
    on_gpu = [b for b in predicted_buffers(args, model) if b.device != HOST]
    weights = sum(layer.dense_bytes + layer.expert_bytes for layer in model.layers)
    assert sum(buffer.size_bytes for buffer in on_gpu) == weights + MIB  # and the final norm


def test_what_lies_on_ssd_is_mapped_into_the_host():
    model = a_model(layers=10)
    machine = a_machine(ram=2 * GIB)
    plan = plan_placement(model, machine, Strategy(host_margin_bytes=0))
    assert SSD in plan.devices_by_tensor(model).values()
    assert set(simulate(engine_args(plan, model, machine), model).values()) == {HOST}


def test_mapped_buffers_are_spans_and_allocated_ones_are_sums():
    model = a_model(layers=4)
    mapped = predicted_buffers(some_arguments(), model)
    (buffer,) = mapped
    tensors = model.loaded_tensors
    end = max(t.offset_bytes + t.size_bytes for t in tensors)
    assert buffer.buffer == "CPU_Mapped"
    assert buffer.size_bytes == end - min(t.offset_bytes for t in tensors)
    (copied,) = predicted_buffers(some_arguments(load_mode=LoadMode.COPY), model)
    assert (copied.buffer, copied.size_bytes) == ("CPU", model.weight_bytes)


def test_a_span_covers_what_lies_between():
    model = a_model(layers=3)
    args = two_devices(n_gpu_layers=4, tensor_split=(4.0, 0.0))
    (host, gpu) = sorted(predicted_buffers(args, model), key=lambda b: b.device != HOST)
    assert host.size_bytes == 50 * MIB  # the input alone
    assert gpu.size_bytes == model.weight_bytes - 50 * MIB
    ends = (
        Override(pattern=r"^blk\.0\.attn_q\.weight$", device=HOST),
        Override(pattern=r"^blk\.2\.attn_q\.weight$", device=HOST),
    )
    (host, _) = sorted(
        predicted_buffers(replace(args, overrides=ends), model), key=lambda b: b.device != HOST
    )
    by_name = {tensor.name: tensor for tensor in model.loaded_tensors}
    last = by_name["blk.2.attn_q.weight"]
    first = by_name["token_embd.weight"]
    assert host.size_bytes == last.offset_bytes + last.size_bytes - first.offset_bytes


def test_a_tied_output_is_a_second_buffer_only_on_another_device():
    model = a_model(layers=2, is_tied=True, expert=0)
    on_host = predicted_buffers(some_arguments(load_mode=LoadMode.COPY), model)
    assert sum(b.size_bytes for b in on_host) == model.weight_bytes
    args = two_devices(n_gpu_layers=3, tensor_split=(3.0, 0.0), load_mode=LoadMode.COPY)
    assert sum(b.size_bytes for b in predicted_buffers(args, model)) == (
        model.weight_bytes + 50 * MIB
    )


def test_repeated_factors_are_on_every_device_that_has_layers():
    factors = a_tensor(
        "rope_freqs.weight", 256, role=TensorRole.OTHER, layer=0, use=TensorUse.REPEATED
    )
    layers: list[Layer] = [a_layer(index, dense=MIB) for index in range(4)]
    layers[0] = replace(layers[0], tensors=(*layers[0].tensors, factors))
    model = with_offsets(a_model(layers=layers))
    args = two_devices(n_gpu_layers=4, tensor_split=(2.0, 2.0), load_mode=LoadMode.COPY)
    sizes = {b.device: b.size_bytes for b in predicted_buffers(args, model)}
    assert sizes == {
        HOST: 50 * MIB + MIB + 256,
        FIRST: 2 * MIB + 256,
        SECOND: MIB + 256 + 51 * MIB,
    }


def test_quantized_rows_are_padded_on_cuda():
    weight = a_tensor("blk.0.attn_q.weight", 144, layer=0, encoding="Q4_K", shape=(256, 1))
    layer = Layer(index=0, tensors=(weight,), attention=None)
    model = with_offsets(a_model(layers=[layer]))
    args = two_devices(n_gpu_layers=2, tensor_split=(2.0, 0.0))
    (gpu,) = [b for b in predicted_buffers(args, model) if b.device == FIRST]
    # 256 of 512 values in a row, so one more block of 144 bytes, on a multiple of 128
    assert gpu.size_bytes == 384 + 51 * MIB


def test_patterns_match_exactly_their_names():
    draw = Random(7)
    rests = ("ffn_up_exps.weight", "ffn_up_exps.bias", "ffn_gate_exps.weight", "attn_q.weight")
    everything = [f"blk.{layer}.{rest}" for layer in range(130) for rest in rests]
    everything += ["token_embd.weight", "output.weight", "output_norm.weight", "a+b.weight"]
    for _ in range(200):
        wanted = set(draw.sample(everything, draw.randrange(1, 200)))
        found = patterns_for(sorted(wanted))
        matched = {n for n in everything if any(re.search(pattern, n) for pattern in found)}
        assert matched == wanted


@pytest.mark.parametrize(
    ("numbers", "patterns"),
    [
        ([7], ["7"]),
        (range(10), ["[0-9]"]),
        (range(10, 24), ["1[0-9]", "2[0-3]"]),
        (range(100), ["[0-9]", "[1-9][0-9]"]),
        ([0, 2, 3], ["[023]"]),
    ],
)
def test_numbers_become_short_alternatives(numbers: range | list[int], patterns: list[str]):
    assert number_patterns(numbers) == patterns


def test_every_set_of_numbers_is_matched_exactly():
    draw = Random(11)
    for _ in range(300):
        wanted = set(draw.sample(range(520), draw.randrange(1, 60)))
        pattern = re.compile("|".join(number_patterns(wanted)))
        assert {n for n in range(520) if pattern.fullmatch(str(n))} == wanted
