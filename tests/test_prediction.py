import ctypes
import mmap

import gguf
import numpy as np
import pytest

from moerun.engine.interface import MappedFile
from moerun.errors import MoerunError
from moerun.experts.layout import FileRange
from moerun.experts.prediction import open_predictor
from moerun.model.gguf_header import read_header

WIDTH, EXPERTS, LAYERS = 32, 16, (1, 2, 4)
RANDOM = np.random.default_rng(5)
HIDDEN = RANDOM.standard_normal(WIDTH, dtype=np.float32)


def weights(*shape):
    return RANDOM.standard_normal(shape, dtype=np.float32)


def a_file(path, tensors, *, gating=None):
    """Write a file of these tensors; arrays of 16 bits and tuples (array, type) go as they are."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    if gating is not None:
        writer.add_uint32("qwen3moe.expert_gating_func", gating)
    for name, value in tensors.items():
        values, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def opened(path, **changes):
    return open_predictor(path, LAYERS, **{"mapped": (), "resident": (), **changes})


def top(scores, count=4):
    return set(np.argsort(scores)[-count:].tolist())


def test_the_next_router_is_asked_with_this_layers_state(tmp_path):
    routers = {layer: weights(EXPERTS, WIDTH) for layer in LAYERS}
    path = a_file(
        tmp_path / "m.gguf", {f"blk.{n}.ffn_gate_inp.weight": w for n, w in routers.items()}
    )
    predictor, note = opened(path)
    assert note is None
    assert len(predictor) == 2
    following, experts = predictor.predict(1, HIDDEN, 4)
    assert following == 2
    assert set(experts) == top(routers[2] @ HIDDEN)
    following, experts = predictor.predict(2, HIDDEN[None, :], 4)  # layer 3 has no experts
    assert (following, set(experts)) == (4, top(routers[4] @ HIDDEN))
    assert predictor.predict(4, HIDDEN, 4) is None
    assert len(predictor.predict(1, HIDDEN, 99)[1]) == EXPERTS


def test_one_norm_is_taken_out_and_the_next_put_in(tmp_path):
    router, own, following = weights(EXPERTS, WIDTH), weights(WIDTH) + 3, weights(WIDTH) + 3
    own[5] = 0.0  # what this norm let nothing through of is not known
    path = a_file(
        tmp_path / "m.gguf",
        {
            "blk.1.ffn_norm.weight": own,
            "blk.2.post_attention_norm.weight": following,
            "blk.2.ffn_gate_inp.weight": router,
        },
    )
    predictor, note = opened(path)
    ratio = np.divide(following, own, out=np.zeros_like(own), where=own != 0)
    assert set(predictor.predict(1, HIDDEN, 4)[1]) == top(router @ (HIDDEN * ratio))
    assert "1 of 2 layers cannot be foretold" in str(note)


@pytest.mark.parametrize("gating", [None, 1, 2, 4])
def test_biases_count_as_the_model_counts_them(tmp_path, gating):
    router, logit_bias, choice_bias = weights(EXPERTS, WIDTH), weights(EXPERTS), weights(EXPERTS)
    tensors = {
        "blk.2.ffn_gate_inp.weight": router,
        "blk.2.ffn_gate_inp.bias": logit_bias,
        "blk.2.exp_probs_b.bias": choice_bias,
    }
    predictor, _ = opened(a_file(tmp_path / "m.gguf", tensors, gating=gating))
    logits = router @ HIDDEN + logit_bias
    gated = {
        1: np.exp(logits) / np.exp(logits).sum(),
        2: 1 / (1 + np.exp(-logits)),
        4: np.sqrt(np.log1p(np.exp(logits))),
    }[gating or 2]
    assert set(predictor.predict(1, HIDDEN, 4)[1]) == top(gated + choice_bias)


def test_half_precision_is_read_and_quantized_routers_are_not(tmp_path):
    half = weights(EXPERTS, WIDTH).astype(np.float16)
    brain = weights(EXPERTS, WIDTH).view(np.uint32) >> 16
    kinds = gguf.GGMLQuantizationType
    tensors = {
        "blk.1.ffn_gate_inp.weight": (
            gguf.quants.quantize(weights(EXPERTS, WIDTH), kinds.Q8_0),
            kinds.Q8_0,
        ),
        "blk.2.ffn_gate_inp.weight": half,
        "blk.4.ffn_gate_inp.weight": (brain.astype(np.uint16).view(np.uint8), kinds.BF16),
    }
    predictor, note = opened(a_file(tmp_path / "m.gguf", tensors))
    assert note is None  # the first layer's router is never needed
    assert set(predictor.predict(1, HIDDEN, 4)[1]) == top(half.astype(np.float32) @ HIDDEN)
    exact = (brain << 16).view(np.float32)
    assert set(predictor.predict(2, HIDDEN, 4)[1]) == top(exact @ HIDDEN)
    quantized = {**tensors, "blk.2.ffn_gate_inp.weight": tensors["blk.1.ffn_gate_inp.weight"]}
    predictor, note = opened(a_file(tmp_path / "q.gguf", quantized))
    assert len(predictor) == 1
    assert "absent or quantized" in str(note)


def test_weights_that_the_engine_has_are_looked_at_in_place(tmp_path):
    router = weights(EXPERTS, WIDTH)
    path = a_file(tmp_path / "m.gguf", {"blk.2.ffn_gate_inp.weight": router})
    [entry] = read_header(path).tensors
    with open(path, "rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    here = ctypes.c_char.from_buffer(view)
    mapped = MappedFile(
        path=path, address=ctypes.addressof(here), offset_bytes=0, size_bytes=len(view)
    )
    resident = FileRange(file_index=0, offset_bytes=entry.offset_bytes, size_bytes=entry.size_bytes)
    changed = -router  # what lies in memory counts, so it was not read from the file
    view[entry.offset_bytes : entry.offset_bytes + entry.size_bytes] = changed.tobytes()
    predictor, _ = opened(path, mapped=(mapped,), resident=(resident,))
    assert set(predictor.predict(1, HIDDEN, 4)[1]) == top(changed @ HIDDEN)
    # a range that the host does not always need may be unmapped
    predictor, _ = opened(path, mapped=(mapped,))
    assert set(predictor.predict(1, HIDDEN, 4)[1]) == top(router @ HIDDEN)
    del here


def test_a_file_that_was_cut_is_an_error(tmp_path):
    path = a_file(tmp_path / "m.gguf", {"blk.2.ffn_gate_inp.weight": weights(EXPERTS, WIDTH)})
    header = read_header(path)
    from moerun.experts.prediction import _Source

    with open(path, "r+b") as file:
        file.truncate(header.tensors[0].offset_bytes + 4)
    with pytest.raises(MoerunError, match="shorter"):
        _Source(header, (), ()).read(header.tensors[0])
