"""Plans with round numbers, drawn: the pictures that tests/snapshots pins.

`python -m tests.plan_pictures` writes them anew; look at the difference before you commit it.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from moerun.machine.description import HOST, SSD, DeviceId, Machine
from moerun.model.description import ExpertPart, Model
from moerun.planning.advice import Advice, Option
from moerun.planning.plan import (
    Budget,
    Caution,
    Charge,
    ChargeKind,
    Confidence,
    Decision,
    LayerPlacement,
    Ledger,
    Plan,
    Rung,
)
from moerun.planning.planner import plan_placement
from moerun.planning.strategy import LoadMode, Strategy, StreamingMode, Toggle
from moerun.planning.summary import Verdict
from moerun.report.advice_view import advice_lines
from moerun.report.console import ASCII, BLOCKS, Page, print_lines
from moerun.report.plan_view import plan_lines
from moerun.report.tables import ModelRow, model_lines
from tests.builders import GIB, MIB, PARTS, a_gpu, a_layer, a_machine, a_model

FOLDER = Path(__file__).parent / "snapshots"


def a_picture_model() -> Model:
    """Return 72 layers of 1.5 GiB of experts, the first without any, the second without weights."""
    layers = [
        a_layer(index, dense=32 * MIB, experts=(512 * MIB,) * 3, kv_values=512)
        for index in range(72)
    ]
    layers[0] = a_layer(0, dense=64 * MIB)
    layers[1] = replace(layers[1], tensors=())
    model = a_model(layers=layers, experts_used=4, expert_count=64, train_context_tokens=131072)
    return replace(model, name="Picture 100B\x1b[31m", quantization="Q4_K_M")


def a_picture_machine() -> Machine:
    machine = a_machine(gpus=[a_gpu(0, free=22 * GIB, total=24 * GIB), a_gpu(1)], ram=64 * GIB)
    host = replace(machine.host, processor="A processor with quite a long name, 16 cores at 4 GHz")
    return replace(machine, host=host)


def a_picture_plan(model: Model, machine: Machine) -> Plan:
    """Return a plan written by hand: VRAM from layer 61 on, RAM from 33, SSD before."""
    gpu = machine.gpus[0].id
    layers = tuple(_placement(layer.index, model, gpu) for layer in model.layers)
    return Plan(
        model_name=model.name,
        model_digest=model.digest,
        machine_fingerprint=machine.fingerprint,
        strategy=Strategy(),
        context_tokens=8192,
        batch_tokens=2048,
        ubatch_tokens=512,
        kv_encoding_k="F16",
        kv_encoding_v="F16",
        flash_attention=Toggle.AUTO,
        extra_buffers=False,
        load_mode=LoadMode.MMAP,
        threads=16,
        devices=(gpu,),
        layers=layers,
        shared=(),
        exceptions=(),
        budgets=(
            Budget(device=gpu, budget_bytes=22 * GIB, total_bytes=24 * GIB, because="22 GiB free"),
            Budget(device=HOST, budget_bytes=48 * GIB, total_bytes=64 * GIB, because="a limit"),
        ),
        ledger=Ledger(charges=_charges(model, layers, gpu)),
        decisions=(
            Decision(step="budgets", subject="gpu0", chosen="21.5 GiB", because="22.0 are free"),
            Decision(step="budgets", subject="cpu", chosen="46.0 GiB", because="ram_limit is 48G"),
            Decision(
                step="loading",
                subject="load mode",
                chosen="mmap",
                because="experts lie on SSD, so that the system reads them as they are needed",
                instead_of="copy",
            ),
        ),
        cautions=(
            Caution(code="test", message="a sentence that is long enough to be wrapped " * 2),
        ),
        next_rung=Rung(context_tokens=16384, expert_bytes_moved=3 * GIB, fits=True),
    )


def _placement(index: int, model: Model, gpu: DeviceId) -> LayerPlacement:
    if not model.layers[index].is_sparse:
        return LayerPlacement(layer=index, dense=gpu)
    device = gpu if index > 60 else HOST if index > 32 else SSD
    experts = dict.fromkeys(PARTS, device)
    if index == 60:
        experts[ExpertPart.DOWN] = gpu
    if index == 32:
        experts[ExpertPart.UP] = HOST
    return LayerPlacement(layer=index, dense=gpu, experts=tuple(experts.items()))


def _charges(model: Model, layers: tuple[LayerPlacement, ...], gpu: DeviceId) -> tuple[Charge, ...]:
    def charge(device: DeviceId, kind: ChargeKind, size_bytes: int) -> Charge:
        return Charge(device=device, kind=kind, size_bytes=size_bytes, confidence=Confidence.EXACT)

    experts = [
        charge(
            device, ChargeKind.EXPERT_WEIGHTS, model.layers[placement.layer].expert_part_bytes(part)
        )
        for placement in layers
        for part, device in placement.experts
    ]
    return (
        *experts,
        charge(gpu, ChargeKind.DENSE_WEIGHTS, model.weight_bytes - model.expert_bytes),
        charge(gpu, ChargeKind.KV_CACHE, 512 * MIB),
        charge(gpu, ChargeKind.RECURRENT_STATE, 8 * MIB),
        charge(gpu, ChargeKind.COMPUTE, 256 * MIB),
        charge(gpu, ChargeKind.RUNTIME, 256 * MIB),
        charge(gpu, ChargeKind.MARGIN, 512 * MIB),
        charge(HOST, ChargeKind.RUNTIME, 512 * MIB),
        charge(HOST, ChargeKind.MARGIN, 2 * GIB),
    )


def drawn(lines: Iterable[Text], page: Page) -> str:
    """Return lines as a terminal without colours shows them."""
    stream = io.StringIO()
    print_lines(Console(file=stream, width=page.columns, no_color=True), lines)
    return stream.getvalue()


def plan_picture(page: Page, *, explains: bool = False) -> str:
    model, machine = a_picture_model(), a_picture_machine()
    plan = a_picture_plan(model, machine)
    return drawn(plan_lines(model, machine, plan, page, explains=explains), page)


def table_picture(page: Page) -> str:
    rows = (
        ModelRow(
            name="demo",
            path="/x/demo.gguf",
            verdict="in RAM",
            file_bytes=20 * MIB,
            vram_bytes=0,
            ram_bytes=600 * MIB,
            ssd_bytes=0,
            context_tokens=512,
        ),
        ModelRow(
            name="モデル-100b",
            path="/x/m.gguf",
            verdict="needs SSD",
            file_bytes=110 * GIB,
            vram_bytes=20 * GIB,
            ram_bytes=46 * GIB,
            ssd_bytes=44 * GIB,
            context_tokens=131072,
            source="catalog",
            quantization="Q4_K_M",
        ),
        ModelRow(
            name="bad\x1b[31m",
            path="/x/bad.gguf",
            verdict="refused",
            error="bad.gguf is damaged: it claims 7 tensors in the 3 bytes that follow; "
            "download it again",
        ),
    )
    return drawn(model_lines(rows, page), page)


def advice_picture(page: Page) -> str:
    def option(label: str, size: int, bits: float, vram: int, ssd: int = 0) -> Option:
        return Option(
            quantization=label,
            file_bytes=size * GIB,
            bits_per_weight=bits,
            verdict=Verdict.NEEDS_SSD if ssd else Verdict.IN_VRAM_AND_RAM,
            vram_bytes=vram * GIB,
            ram_bytes=(size - vram - ssd) * GIB,
            ssd_bytes=ssd * GIB,
            context_tokens=8192,
        )

    refused = Option(
        quantization="BF16",
        file_bytes=210 * GIB,
        bits_per_weight=16,
        refusal="the dense half of the model takes 30.0 GiB, and 22.0 GiB may be used",
    )
    advice = Advice(
        options=(
            refused,
            option("Q8_0", 110, 8.5, 20, ssd=40),
            option("Q4_K_M", 66, 4.9, 22),
            option("Q2_K", 40, 2.9, 22),
        ),
        usual="Q4_K_M",
        recommended="Q4_K_M",
        because="its 66.0 GiB lie in memory, with 22.0 GiB of VRAM in use; more bits would make "
        "each token read more, and gain little",
    )
    return drawn(advice_lines("Picture 100B\x1b[31m", advice, page), page)


def slots_picture(page: Page) -> str:
    """Draw the planner's own plan with slots: 12 layers of 64 experts on two cards, and RAM."""
    model = a_model(layers=12, expert=512 * MIB, experts_used=4, expert_count=64)
    machine = a_machine(gpus=[a_gpu(0, free=6 * GIB), a_gpu(1, free=4 * GIB)], ram=64 * GIB)
    strategy = Strategy(streaming=StreamingMode.SLOTS)
    plan = plan_placement(model, machine, strategy)
    return drawn(plan_lines(model, machine, plan, page, explains=True), page)


PICTURES: dict[str, Callable[[], str]] = {
    "plan_60": lambda: plan_picture(Page(columns=60)),
    "plan_80": lambda: plan_picture(Page(columns=80), explains=True),
    "plan_120": lambda: plan_picture(Page(columns=120)),
    "plan_pipe": lambda: plan_picture(Page(wraps=False, glyphs=BLOCKS), explains=True),
    "plan_ascii": lambda: plan_picture(Page(glyphs=ASCII)),
    "plan_slots_80": lambda: slots_picture(Page(columns=80)),
    "plan_slots_pipe": lambda: slots_picture(Page(wraps=False)),
    "models_80": lambda: table_picture(Page(columns=80)),
    "advice_80": lambda: advice_picture(Page(columns=80)),
    "advice_pipe": lambda: advice_picture(Page(wraps=False)),
    "models_pipe": lambda: table_picture(Page(wraps=False)),
}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.txt").write_text(draw(), encoding="utf-8")
