"""What holds for every plan: 1,500 random models, machines and strategies.

A failure names its seed; `a_case(seed)` gives the problem again.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from random import Random

import pytest

from moerun.engine.arguments import MAX_OVERRIDES, engine_args, output_device, simulate
from moerun.errors import DoesNotFit, PinConflict
from moerun.machine.description import HOST, SSD, is_gpu
from moerun.model.description import TensorUse
from moerun.planning.audit import audit
from moerun.planning.plan import ChargeKind, Plan, Remedy, Shortfall
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import LoadMode, Strategy, StreamingMode, Tier, parse_limit
from moerun.units import parse_bytes
from tests.random_cases import Case, a_case

SEEDS = range(1500)
CHUNKS = [SEEDS[start : start + 250] for start in range(0, len(SEEDS), 250)]
in_chunks = pytest.mark.parametrize(
    "seeds",
    [CHUNKS[0], *(pytest.param(chunk, marks=pytest.mark.many) for chunk in CHUNKS[1:])],
    ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}",
)
WEIGHTS = (ChargeKind.DENSE_WEIGHTS, ChargeKind.EXPERT_WEIGHTS)


def planned(case: Case, strategy: Strategy | None = None) -> Plan | None:
    try:
        return plan_placement(case.model, case.machine, strategy or case.strategy)
    except (DoesNotFit, PinConflict):
        return None


@cache
def case_and_plan(seed: int) -> tuple[Case, Plan | None]:
    case = a_case(seed)
    return case, planned(case)


def plans(seeds: range) -> Iterator[tuple[Case, Plan]]:
    for case, plan in map(case_and_plan, seeds):
        if plan is not None:
            yield case, plan


def test_the_cases_are_a_good_mixture():
    made = [plan for _, plan in plans(range(300))]
    assert 150 < len(made) < 280
    assert sum(len(plan.devices) == 2 for plan in made) > 20
    assert sum(bool(plan.ledger.total_bytes(SSD)) for plan in made) > 30
    assert sum(not plan.ledger.total_bytes(SSD) for plan in made) > 30
    assert sum(bool(plan.exceptions) for plan in made) > 3
    assert sum(plan.streaming is not None for plan in made) > 10
    assert sum(bool(plan.ledger.total_bytes(SSD)) and not plan.streaming for plan in made) > 10
    assert sum(is_gpu(plan.output_device) and plan.layers[0].dense == HOST for plan in made) > 5


@in_chunks
def test_every_plan_passes_its_audit(seeds):
    for case, plan in plans(seeds):
        assert audit(plan, case.model, case.machine) == (), f"seed {case.seed}"


@in_chunks
def test_weight_charges_sum_to_the_model(seeds):
    for case, plan in plans(seeds):
        charged = sum(c.size_bytes for c in plan.ledger.charges if c.kind in WEIGHTS)
        copies = [t for t in case.model.loaded_tensors if t.use is not TensorUse.LOADED]
        most = sum(t.size_bytes * len(plan.devices) for t in copies)
        if not plan.devices and plan.extra_buffers:
            most = sum(t.size_bytes for t in copies)
        assert 0 <= charged - case.model.weight_bytes <= most, f"seed {case.seed}"


@in_chunks
def test_no_device_exceeds_what_is_free_beside_the_margin(seeds):
    for case, plan in plans(seeds):
        for gpu in case.machine.gpus:
            assert plan.ledger.total_bytes(gpu.id) <= gpu.free_bytes, f"seed {case.seed}"
        available = case.machine.host.available_bytes
        assert plan.ledger.total_bytes(HOST) <= available, f"seed {case.seed}"
        if any(gpu.shares_host_memory for gpu in case.machine.gpus):
            shared = [gpu.id for gpu in case.machine.gpus if gpu.shares_host_memory]
            both = sum(plan.ledger.total_bytes(device) for device in (*shared, HOST))
            assert both <= available, f"seed {case.seed}"


@in_chunks
def test_same_inputs_give_an_equal_plan(seeds):
    for case, plan in plans(seeds):
        again = a_case(case.seed)
        assert plan_placement(again.model, again.machine, again.strategy) == plan, case.seed


@in_chunks
def test_the_engine_puts_every_tensor_where_the_plan_says(seeds):
    for case, plan in plans(seeds):
        args = engine_args(plan, case.model, case.machine)
        wanted = {
            name: HOST if device == SSD else device
            for name, device in plan.devices_by_tensor(case.model).items()
        }
        assert dict(simulate(args, case.model)) == wanted, f"seed {case.seed}"
        assert output_device(args, case.model) == plan.output_device, f"seed {case.seed}"


@in_chunks
def test_overrides_are_few_and_each_matches_a_tensor(seeds):
    for case, plan in plans(seeds):
        args = engine_args(plan, case.model, case.machine)
        assert len(args.overrides) < min(MAX_OVERRIDES, 60), f"seed {case.seed}"
        for override in args.overrides:
            found = [t for t in case.model.loaded_tensors if re.search(override.pattern, t.name)]
            assert found, f"seed {case.seed}: {override.pattern}"


def off_gpus_bytes(plan: Plan) -> int:
    """Weights, KV cache and state that are not in VRAM; copies of what VRAM holds do not count.

    Of experts with slots there, those without count; tests/test_slot_plans.py has their hits.
    """
    kinds = (*WEIGHTS, ChargeKind.KV_CACHE, ChargeKind.RECURRENT_STATE)
    off = sum(
        charge.size_bytes
        for charge in plan.ledger.charges
        if charge.device in (HOST, SSD) and charge.kind in kinds
    )
    return off - sum(
        layer.slots * layer.slot_bytes for layer in (plan.slots.layers if plan.slots else ())
    )


@in_chunks
def test_more_free_vram_never_moves_bytes_to_the_cpu(seeds):
    for seed in seeds:
        case = a_case(seed)
        if not case.machine.gpus:
            continue
        strategy = replace(case.strategy, context_tokens=4096, context_is_largest=False)
        before = planned(case, strategy)
        if before is None:
            continue
        draw = Random(seed)
        index = draw.randrange(len(case.machine.gpus))
        gpu = case.machine.gpus[index]
        more = draw.choice((1, 4096, 50 << 20, 700 << 20, 3 << 30))
        larger = replace(
            gpu,
            free_bytes=gpu.free_bytes + more,
            total_bytes=gpu.total_bytes + more,
            working_set_limit_bytes=(
                None if gpu.working_set_limit_bytes is None else gpu.working_set_limit_bytes + more
            ),
        )
        gpus = (*case.machine.gpus[:index], larger, *case.machine.gpus[index + 1 :])
        after = plan_placement(case.model, replace(case.machine, gpus=gpus), strategy)
        assert off_gpus_bytes(after) <= off_gpus_bytes(before), f"seed {seed}"


@in_chunks
def test_a_cache_is_worth_having_and_within_the_limit(seeds):
    for case, plan in plans(seeds):
        streaming = plan.streaming
        charged = plan.ledger.kind_bytes(HOST, ChargeKind.EXPERT_CACHE)
        assert charged == (0 if streaming is None else streaming.cache_bytes), f"seed {case.seed}"
        if streaming is None:
            continue
        assert plan.load_mode is LoadMode.STREAM, f"seed {case.seed}"
        assert not plan.extra_buffers, f"seed {case.seed}"
        assert 2 * streaming.minimum_bytes >= 3 * streaming.cycle_bytes or (
            streaming.minimum_bytes >= streaming.expert_bytes  # all experts are fewer
        ), f"seed {case.seed}"
        assert streaming.minimum_bytes <= streaming.cache_bytes, f"seed {case.seed}"
        assert plan.ledger.used_bytes(HOST) <= streaming.limit_bytes, f"seed {case.seed}"


def slow_expert_bytes(plan: Plan) -> int:
    """Return the experts on SSD that no cache holds."""
    on_ssd = plan.ledger.kind_bytes(SSD, ChargeKind.EXPERT_WEIGHTS)
    return on_ssd if plan.streaming is None else max(0, on_ssd - plan.streaming.cache_bytes)


@in_chunks
def test_more_ram_never_leaves_more_experts_to_the_ssd(seeds):
    """With one context: left free, it may grow into the RAM instead."""
    for seed in seeds:
        case = a_case(seed)
        strategy = fixed(case.strategy, 4096)
        if strategy.ram_limit is not None:
            continue  # the limit stays what it is, whatever there is
        before = planned(case, strategy)
        if before is None or any(gpu.shares_host_memory for gpu in case.machine.gpus):
            continue
        more = Random(seed).choice((1, 4096, 50 << 20, 700 << 20, 3 << 30))
        host = replace(
            case.machine.host,
            total_bytes=case.machine.host.total_bytes + more,
            available_bytes=case.machine.host.available_bytes + more,
        )
        after = plan_placement(case.model, replace(case.machine, host=host), strategy)
        assert slow_expert_bytes(after) <= slow_expert_bytes(before), f"seed {seed}"


@in_chunks
def test_a_larger_context_never_fits_where_a_smaller_did_not(seeds):
    for seed in seeds:
        case = a_case(seed)
        lengths = (512, 2048, 8192, 32768)
        fits = [planned(case, fixed(case.strategy, tokens)) is not None for tokens in lengths]
        assert fits == sorted(fits, reverse=True), f"seed {seed}"


def fixed(strategy: Strategy, tokens: int) -> Strategy:
    return replace(strategy, context_tokens=tokens, context_is_largest=False)


@in_chunks
def test_a_remedy_that_is_offered_gives_a_plan(seeds):
    for seed in seeds:
        case, plan = case_and_plan(seed)
        if plan is not None:
            continue
        try:
            plan_placement(case.model, case.machine, case.strategy)
        except DoesNotFit as refusal:
            shortfalls = refusal.shortfalls
        except PinConflict:
            continue
        assert shortfalls, f"seed {seed}"
        for shortfall in shortfalls:
            assert isinstance(shortfall, Shortfall)
            assert shortfall.needed_bytes > shortfall.available_bytes, f"seed {seed}"
            assert shortfall.largest_charges, f"seed {seed}"
            for remedy in shortfall.would_fit:
                changed = applied(remedy, case.strategy)
                assert planned(case, changed) is not None, f"seed {seed}: {remedy.flag}"


def applied(remedy: Remedy, strategy: Strategy) -> Strategy:
    """Return the strategy that the flag asks for, read as a user would type it."""
    flag, value = remedy.flag.split(" ", 1)
    match flag:
        case "--ctx":
            return replace(strategy, context_tokens=int(value))
        case "--hierarchy":
            return replace(strategy, hierarchy=tuple(Tier(tier) for tier in value.split(",")))
        case "--streaming":
            return replace(strategy, streaming=StreamingMode(value))
        case "--expert-slots":
            assert value == "auto"
            return replace(strategy, expert_slots=None)
        case "--load-mode":
            return replace(strategy, load_mode=LoadMode(value))
        case "--ram":
            return replace(strategy, ram_limit=None if value == "auto" else parse_limit(value))
        case "--vram":
            assert value == "auto"
            return replace(strategy, vram_limit=None)
        case "--kv-type":
            return replace(strategy, kv_encoding_k=value.upper(), kv_encoding_v=value.upper())
        case "--host-margin":
            return replace(strategy, host_margin_bytes=parse_bytes(value))
        case "--ubatch":
            return replace(strategy, ubatch_tokens=int(value))
    raise AssertionError(f"a remedy with an unknown flag: {remedy.flag}")
