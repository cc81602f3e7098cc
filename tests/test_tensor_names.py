import pytest

from moerun.model.description import ExpertPart, TensorRole
from moerun.model.tensor_names import LEGACY_EXPERT, Operation, meaning


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("token_embd.weight", TensorRole.INPUT),
        ("per_layer_token_embd.weight", TensorRole.INPUT),
        ("output.weight", TensorRole.OUTPUT),
        ("output_norm.weight", TensorRole.NORM),
        ("blk.3.attn_q.weight", TensorRole.ATTENTION),
        ("blk.3.attn_kv_a_mqa.weight", TensorRole.ATTENTION),
        ("blk.3.attn_kv_a_norm.weight", TensorRole.NORM),
        ("blk.3.attn_sinks.weight", TensorRole.ATTENTION),
        ("blk.3.indexer.k_norm.bias", TensorRole.NORM),
        ("blk.3.ffn_gate.weight", TensorRole.DENSE_FFN),
        ("blk.3.ffn_gate_inp.weight", TensorRole.ROUTER),
        ("blk.3.exp_probs_b.bias", TensorRole.ROUTER),
        ("blk.3.ffn_gate_inp_shexp.weight", TensorRole.SHARED_EXPERT),
        ("blk.3.ffn_down_shexp.weight", TensorRole.SHARED_EXPERT),
        ("blk.3.ffn_norm_exps.weight", TensorRole.NORM),
        ("blk.3.ssm_a", TensorRole.RECURRENT),
        ("blk.3.shortconv.conv.weight", TensorRole.RECURRENT),
        ("blk.3.time_mix_w1.weight", TensorRole.RECURRENT),
        ("blk.3.nextn.eh_proj.weight", TensorRole.OTHER),
        ("blk.3.never_heard_of.weight", TensorRole.OTHER),
    ],
)
def test_a_name_has_a_role(name: str, role: TensorRole):
    assert meaning(name).role is role


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blk.12.ffn_gate_exps.weight", ExpertPart.GATE),
        ("blk.12.ffn_up_exps.bias", ExpertPart.UP),
        ("blk.12.ffn_down_exps.scale", ExpertPart.DOWN),
        ("blk.12.ffn_down_chexps.weight", ExpertPart.DOWN),
        ("blk.12.ffn_gate_up_exps.weight", ExpertPart.GATE_UP),
    ],
)
def test_biases_and_scales_of_experts_go_with_their_part(name: str, part: ExpertPart):
    said = meaning(name)
    assert (said.role, said.layer, said.part) == (TensorRole.EXPERT, 12, part)


def test_tensors_of_the_whole_model_have_no_layer():
    assert meaning("output_norm.weight").layer is None
    assert meaning("token_embd.weight").layer is None


def test_some_tensors_without_a_number_lie_with_the_first_layer():
    assert meaning("rope_freqs.weight").layer == 0
    assert meaning("token_embd_norm.weight").layer == 0


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("token_embd.weight", Operation.LOOKUP),
        ("blk.0.ffn_gate_inp.weight", Operation.MATRIX),
        ("blk.0.ffn_up_exps.weight", Operation.EXPERT_MATRIX),
        ("blk.0.ffn_up_exps.bias", Operation.ELEMENTWISE),
        ("blk.0.attn_q.bias", Operation.ELEMENTWISE),
        ("blk.0.attn_q_norm.weight", Operation.ELEMENTWISE),
        ("blk.0.ssm_conv1d.weight", Operation.ELEMENTWISE),
        ("blk.0.ffn_gate_tid2eid.weight", Operation.INDEX),
    ],
)
def test_a_name_tells_how_the_engine_reads_it(name: str, operation: Operation):
    assert meaning(name).operation is operation


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("blk.3.ffn_up_exps.weight", True),
        ("blk.3.ssm_a", True),
        ("enc.blk.0.attn_q.weight", True),
        ("output_norm.bias", True),
        ("blk.3.never_heard_of.weight", False),
        ("enc.blk.0.ffn_up_exps.weight", False),
        ("v.blk.0.attn_q.weight", False),
        ("anything", False),
    ],
)
def test_a_name_that_the_engine_never_asks_for_is_not_known(name: str, known: bool):
    assert meaning(name).is_known is known


def test_one_tensor_for_each_expert_is_an_old_layout():
    assert LEGACY_EXPERT.fullmatch("blk.0.ffn_gate.7.weight")
    assert not LEGACY_EXPERT.fullmatch("blk.0.ffn_gate.weight")
