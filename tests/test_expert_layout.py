"""Slices and ranges of models by hand and of the headers of real ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from moerun.errors import UnsupportedModel
from moerun.experts.layout import ExpertLayout, FileRange, StreamedTensor, expert_layout
from moerun.machine.description import HOST, SSD, DeviceId
from moerun.model.description import ExpertPart, Layer, Model, TensorRole, TensorUse
from moerun.model.gguf_header import read_model
from tests.builders import a_layer, a_model, a_tensor, with_offsets
from tests.real_shapes import REAL_MODELS, real_model, write_sparse_gguf

GPU = DeviceId("gpu:0")


def everywhere(model: Model, device: DeviceId = HOST) -> dict[str, DeviceId]:
    return {tensor.name: device for tensor in model.loaded_tensors}


def with_tensor_in_layer(model: Model, name: str, size_bytes: int, shape: tuple[int, ...]) -> Model:
    """Return the model with one more gate of the first layer's experts."""
    extra = a_tensor(
        name, size_bytes, role=TensorRole.EXPERT, layer=0, part=ExpertPart.GATE, shape=shape
    )
    first = replace(model.layers[0], tensors=(*model.layers[0].tensors, extra))
    return with_offsets(replace(model, layers=(first, *model.layers[1:])))


def overlaps(layout: ExpertLayout) -> list[tuple[FileRange, StreamedTensor]]:
    return [
        (part, tensor)
        for part in layout.resident
        for tensor in layout.tensors
        if part.file_index == tensor.file_index
        and part.offset_bytes < tensor.offset_bytes + tensor.size_bytes
        and tensor.offset_bytes < part.offset_bytes + part.size_bytes
    ]


def test_slices_of_a_model_by_hand():
    model = a_model(layers=2, dense=64, expert=800, input_bytes=96, output_bytes=96)
    layout = expert_layout(model, everywhere(model, SSD))
    assert [tensor.name for tensor in layout.by_layer[1]] == [
        "blk.1.ffn_gate_exps.weight",
        "blk.1.ffn_up_exps.weight",
        "blk.1.ffn_down_exps.weight",
    ]
    first = layout.tensors[0]
    own = next(t for t in model.tensors if t.name == first.name)
    assert (first.expert_bytes, first.expert_count) == (100, 8)
    assert first.offset_bytes == own.offset_bytes
    assert layout.slot_bytes == {0: 300, 1: 300}
    assert layout.cycle_bytes == 2 * 2 * 300
    assert layout.experts_used == 2


def test_neighbours_are_one_range_and_experts_part_them():
    model = a_model(layers=2, dense=64, expert=800, input_bytes=96, output_bytes=96)
    layout = expert_layout(model, everywhere(model))
    # input, norm, output, first attention; second attention
    sizes = [part.size_bytes for part in layout.resident]
    assert sizes == [96 + (1 << 20) + 96 + 64, 64]
    assert layout.resident[0].offset_bytes == 4096
    assert not overlaps(layout)


def test_the_order_is_that_of_computation():
    parts = (ExpertPart.DOWN, ExpertPart.GATE_UP)
    model = a_model(layers=[a_layer(0, dense=64, experts=(800, 1600), parts=parts)])
    layout = expert_layout(model, everywhere(model))
    assert [t.name.split(".")[2] for t in layout.tensors] == ["ffn_gate_up_exps", "ffn_down_exps"]
    shuffled = (ExpertPart.UP, ExpertPart.DOWN, ExpertPart.GATE)
    model = a_model(layers=[a_layer(0, dense=64, experts=(800,) * 3, parts=shuffled)])
    layout = expert_layout(model, everywhere(model))
    assert [t.name.split("_")[1] for t in layout.tensors] == ["gate", "up", "down"]


def test_biases_of_experts_stay():
    model = a_model(layers=[a_layer(0, dense=64, experts=(880,) * 3, has_biases=True)])
    layout = expert_layout(model, everywhere(model, SSD))
    assert [tensor.expert_bytes for tensor in layout.tensors] == [99, 99, 99]
    biases = [t for t in model.layers[0].tensors if t.name.endswith("exps.bias")]
    assert len(biases) == 3
    for bias in biases:
        assert any(
            part.offset_bytes <= bias.offset_bytes
            and bias.offset_bytes + bias.size_bytes <= part.offset_bytes + part.size_bytes
            for part in layout.resident
        )


def test_what_lies_on_a_gpu_is_in_neither():
    model = a_model(layers=2, dense=64, expert=800)
    devices = everywhere(model, GPU) | {
        "blk.1.ffn_up_exps.weight": SSD,
        "token_embd.weight": HOST,
    }
    layout = expert_layout(model, devices)
    assert [tensor.name for tensor in layout.tensors] == ["blk.1.ffn_up_exps.weight"]
    assert layout.resident_bytes == 50 << 20


def test_held_matrices_are_resident():
    model = a_model(layers=1, dense=64, expert=800)
    name = "blk.0.ffn_up_exps.weight"
    layout = expert_layout(model, everywhere(model), held={name})
    assert name not in [tensor.name for tensor in layout.tensors]
    free = expert_layout(model, everywhere(model))
    assert layout.resident_bytes >= free.resident_bytes + 800
    assert not overlaps(layout)


def test_a_tied_embedding_is_needed_once():
    model = a_model(layers=1, dense=64, expert=800, is_tied=True)
    layout = expert_layout(model, everywhere(model))
    assert layout.resident_bytes == (50 << 20) + (1 << 20) + 64


def test_a_skipped_tensor_is_in_neither_and_parts_ranges():
    model = a_model(layers=1, dense=64, expert=0, input_bytes=96, output_bytes=96)
    norm = replace(model.shared[1], use=TensorUse.SKIPPED)
    model = replace(model, shared=(model.shared[0], norm, model.shared[2]))
    layout = expert_layout(model, everywhere(model))
    assert [part.size_bytes for part in layout.resident] == [96, 96 + 64]


@pytest.mark.parametrize(("dense_device", "expected"), [(HOST, 64 + 32), (GPU, 0)])
def test_a_repeated_tensor_is_needed_where_a_layer_computes(dense_device: DeviceId, expected: int):
    repeated = a_tensor("rope_freqs.weight", 32, layer=0, use=TensorUse.REPEATED, shape=(8,))
    dense = a_tensor("blk.0.attn_q.weight", 64, layer=0)
    model = a_model(layers=[Layer(index=0, tensors=(dense, repeated), attention=None)])
    devices = everywhere(model, GPU) | {"blk.0.attn_q.weight": dense_device}
    assert expert_layout(model, devices).resident_bytes == expected


def test_layers_may_differ_in_their_counts_of_experts():
    model = a_model(layers=2, dense=64, expert=800)
    second = replace(
        model.layers[1],
        tensors=tuple(
            replace(t, shape=(512, 512, 4)) if t.role is TensorRole.EXPERT else t
            for t in model.layers[1].tensors
        ),
    )
    model = replace(model, layers=(model.layers[0], second))
    layout = expert_layout(model, everywhere(model))
    assert layout.expert_counts == {0: 8, 1: 4}
    assert layout.slot_bytes == {0: 300, 1: 600}


def test_a_second_set_of_experts_stays():
    model = with_tensor_in_layer(
        a_model(layers=1, dense=64, expert=800), "blk.0.ffn_gate_chexps.weight", 400, (512, 512, 4)
    )
    layout = expert_layout(model, everywhere(model))
    assert [t.name.split(".")[2] for t in layout.tensors] == [
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
    ]


def test_sets_that_cannot_be_told_apart_do_not_stream():
    model = with_tensor_in_layer(
        a_model(layers=2, dense=64, expert=800), "blk.0.ffn_gate_chexps.weight", 800, (512, 512, 8)
    )
    assert set(expert_layout(model, everywhere(model)).by_layer) == {1}


def test_a_matrix_of_broken_experts_is_refused():
    model = a_model(layers=1, dense=64, expert=801)
    with pytest.raises(UnsupportedModel, match="801 bytes for 8 experts"):
        expert_layout(model, everywhere(model))


@pytest.mark.parametrize("name", REAL_MODELS)
def test_slices_and_ranges_of_real_models_are_all_there_is(name: str):
    model = real_model(name)
    layout = expert_layout(model, everywhere(model, SSD))
    assert not overlaps(layout)
    padding = layout.expert_bytes + layout.resident_bytes - model.weight_bytes
    assert 0 <= padding < 32 * len(model.tensors)
    for tensor in layout.tensors:
        assert tensor.expert_count == model.expert_count
    sparse = {layer.index for layer in model.layers if layer.is_sparse}
    assert set(layout.by_layer) == sparse


def test_split_files_keep_their_numbers(tmp_path: Path):
    path = write_sparse_gguf(tmp_path / "m.gguf", "gpt-oss-20b-mxfp4", shards=3, vocabulary=8)
    model = read_model(path)
    layout = expert_layout(model, everywhere(model))
    assert {tensor.file_index for tensor in layout.tensors} == {0, 1, 2}
    for part in layout.resident:
        file = model.files[part.file_index]
        assert file.data_offset_bytes <= part.offset_bytes
        assert part.offset_bytes + part.size_bytes <= file.size_bytes
    assert not overlaps(layout)
