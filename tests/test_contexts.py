"""Which context a plan is made for, and what the next larger one would cost."""

from dataclasses import replace

from moerun.machine.description import HOST
from moerun.planning.strategy import Strategy
from tests.builders import GIB, MIB, a_machine, a_model
from tests.planned import FIXED, planned


def test_the_default_context_grows_only_into_memory_that_moves_no_expert():
    model = a_model(layers=4, train_context_tokens=131072)
    free = Strategy(gpu_margin_bytes=0, host_margin_bytes=0)
    roomy = planned(model, a_machine(gpus=[16 * GIB]), free)
    assert roomy.context_tokens == 131072
    assert roomy.next_rung is None
    tight = planned(model, a_machine(gpus=[1300 * MIB]), free)
    assert tight.context_tokens < 131072
    assert tight.next_rung is not None
    assert tight.next_rung.expert_bytes_moved > 0
    base = planned(model, a_machine(gpus=[1300 * MIB]), replace(free, context_tokens=8192))
    assert tight.expert_bytes(model, HOST) == base.expert_bytes(model, HOST)


def test_the_context_shrinks_when_the_default_does_not_fit_and_says_so():
    model = a_model(layers=4, kv_values=65536, train_context_tokens=65536)
    plan = planned(model, a_machine(ram=2 * GIB), Strategy(host_margin_bytes=0))
    assert plan.context_tokens < 8192
    assert "context-reduced" in {caution.code for caution in plan.cautions}


def test_the_largest_context_is_the_trained_one_where_it_fits():
    model = a_model(layers=4, train_context_tokens=32768)
    strategy = Strategy(context_is_largest=True)
    assert planned(model, a_machine(ram=64 * GIB), strategy).context_tokens == 32768


def test_a_context_beyond_training_is_a_caution():
    plan = planned(a_model(train_context_tokens=2048), a_machine(), FIXED)
    assert "context-beyond-training" in {caution.code for caution in plan.cautions}


def test_the_next_rung_counts_layers_that_would_leave_the_gpu():
    model = a_model(layers=8, dense=200 * MIB, kv_values=16384, train_context_tokens=65536)
    plan = planned(model, a_machine(gpus=[2 * GIB]))
    assert plan.next_rung is not None
    assert plan.next_rung.layers_moved > 0
