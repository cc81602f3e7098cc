"""Slots over a model's life: loaded again and again, shared, failing, on a device that is full.

A native crash ends this process and not the tests. Every case is a line of JSON on standard output,
in the process of this module, with workers of its own.

Knows: what is done in each case.
Does not know: what a test expects of it.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from moerun.engine import abi
from moerun.engine.arguments import EngineArgs, LayerSlots, Override
from moerun.engine.decode import Decoder, Piece
from moerun.engine.devices import device_pointers
from moerun.engine.interface import AnswerPart, GenerationRequest, GenerationResult, Sampling
from moerun.engine.llama import LlamaEngine, LlamaSession
from moerun.engine.rpc_worker import loopback_worker
from moerun.engine.slot_memory import Device, SlotBuffers, Uploads, put_state, state_of
from moerun.errors import EngineOutOfMemory, MoerunError, SlotsRefused
from moerun.machine.description import HOST
from tests.engine.builders import device_references
from tests.engine.placements import EXPERTS
from tests.engine.slot_suppliers import InSlots, slots_everywhere
from tests.engine.slots_child import SLOTS, arguments_for, logits
from tests.engine.suppliers import host_layout
from tests.tiny_models import Shape, write_tiny_model

ENGINE = LlamaEngine(log_sink=None)
RELOADS, WARM_RELOADS = 50, 10
WORKER_BYTES = 64 << 20


def load(args: EngineArgs, *, slots: int = SLOTS) -> tuple[LlamaSession, InSlots]:
    layout = host_layout(Path(args.model_path))
    supplier = InSlots(layout)
    wished = slots_everywhere(layout, args.devices[0].id, slots)
    session = ENGINE.load(replace(args, expert_slots=wished), supplier=supplier, slots=supplier)
    return session, supplier


def one_token(decoder: Decoder, token: int) -> bytes:
    decoder.run((Piece(sequence=0, tokens=(token,), wants_logits=True),))
    return bytes(decoder.logits(-1).tobytes())


def reloads(args: EngineArgs) -> dict[str, Any]:
    """Load, decode and close; how large this process and the worker's were on the way."""
    own = psutil.Process()
    workers = own.children(recursive=True)
    sizes = []
    answers = set()
    for _ in range(RELOADS):
        session, _ = load(args)
        answers.add(one_token(Decoder(session.loaded), 7))
        session.close()
        gc.collect()
        worker_bytes = sum(worker.memory_info().rss for worker in workers)
        sizes.append((own.memory_info().rss, worker_bytes))
    grown = [last - first for first, last in zip(sizes[WARM_RELOADS - 1], sizes[-1], strict=True)]
    return {"own_bytes": grown[0], "worker_bytes": grown[1], "different": len(answers)}


class Collected:
    """The text of one answer."""

    def __init__(self) -> None:
        self.text = ""
        self.error: str | None = None

    def receive(self, part: AnswerPart) -> None:
        self.text += part.text

    def finish(self, result: GenerationResult) -> None:
        pass

    def fail(self, error: Exception) -> None:
        self.error = str(error)

    def is_cancelled(self) -> bool:
        return False


def shared(args: EngineArgs) -> dict[str, Any]:
    """Make three answers at once, twice, with and without slots; all experts fit into these."""
    args = replace(args, sequences=3)
    requests = [
        GenerationRequest(
            prompt=f"word{number} word{number + 9}",
            sampling=Sampling(temperature=1.0, seed=number, top_k=0),
            maximum_tokens=12 + 3 * number,
        )
        for number in (1, 2, 3)
    ]
    plain = ENGINE.load(args)
    expected = [together(plain, requests) for _ in range(2)]
    plain.close()
    session, supplier = load(args, slots=7)
    found = [together(session, requests) for _ in range(2)]
    sequences = session.report.sequences
    session.close()
    return {
        "same": found == expected,
        "sequences": sequences,
        "in_slots": sum(supplier.used),
        "batched": max(
            len(heard.rows) for each in supplier.evaluations for heard in each if len(each)
        ),
    }


def together(session: LlamaSession, requests: list[GenerationRequest]) -> list[str]:
    answers = [Collected() for _ in requests]
    for request, answer in zip(requests, answers, strict=True):
        session.begin(request, answer)
    while session.is_busy:
        session.step()
    assert not any(answer.error for answer in answers), [answer.error for answer in answers]
    return [answer.text for answer in answers]


def failing(args: EngineArgs) -> dict[str, Any]:
    """Have an upload fail in the middle of a token; then go on."""
    plain = ENGINE.load(args)
    decoder = Decoder(plain.loaded)
    expected = []
    for token in (7, 9):
        expected.append(one_token(decoder, token))
        decoder.clear()
    plain.close()
    session, supplier = load(args)
    decoder = Decoder(session.loaded)
    first = one_token(decoder, 7)
    supplier.failing = True
    message = ""
    try:
        one_token(decoder, 8)
    except OSError as error:
        message = str(error)
    supplier.failing = False
    supplier.forget_slots()
    supplier.forget()
    held = len(decoder.tokens)
    again = one_token(decoder, 9)
    session.close()
    return {"same": [first, again] == expected, "message": message, "held": held}


def full(args: EngineArgs) -> dict[str, Any]:
    """Ask a device for more than it has; what is said, and whether the model loads without."""
    with loopback_worker(memory_bytes=WORKER_BYTES, threads=1) as small:
        (device,) = device_references((small,))
        args = replace(args, devices=(device,), workers=(small,))
        path = Path(args.model_path)
        large = write_tiny_model(
            path.with_name("large.gguf"), "qwen3moe", shape=Shape(experts=64, expert_ff=1536)
        )
        args = replace(args, model_path=str(large))
        try:
            session, _ = load(args, slots=60)
        except EngineOutOfMemory as error:
            said = {"message": error.message, "device": error.device, "hint": error.hint}
        else:
            session.close()
            said = {"message": "none was missing"}
        session, _ = load(args, slots=6)
        session.close()
    return said


def apart(args: EngineArgs) -> dict[str, Any]:
    """Ask for slots beside repacked experts, and for too few; and with all layers on the host.

    Without weights of its own the choice follows its experts to the device, so the last is fine.
    """
    alone = replace(args, n_gpu_layers=0)
    rows = []
    plain = ENGINE.load(alone)
    decoder = Decoder(plain.loaded)
    rows.append([one_token(decoder, token) for token in range(7, 19)])
    plain.close()
    session, supplier = load(alone)
    decoder = Decoder(session.loaded)
    rows.append([one_token(decoder, token) for token in range(7, 19)])
    session.close()
    said: dict[str, Any] = {"same": rows[0] == rows[1], "misses": supplier.misses}
    for name, changed in (("repacked", replace(args, extra_buffers=True)), ("few", args)):
        try:
            session, _ = load(changed, slots=3 if name == "few" else SLOTS)
        except MoerunError as error:
            said[name] = f"{type(error).__name__}: {error.message}"
        else:
            session.close()
    session, _ = load(args)
    one_token(Decoder(session.loaded), 7)
    session.close()
    return said


def mixed(args: EngineArgs) -> dict[str, Any]:
    """Two devices with slots of their own layers, one layer whole on the second, one without."""
    path = Path(args.model_path)
    with loopback_worker(threads=1) as other:
        workers = (*args.workers, other)
        devices = device_references(workers)
        args = replace(
            args,
            devices=devices,
            workers=workers,
            tensor_split=(1.0, 1.0),
            overrides=(Override(pattern=r"blk\.[013]" + EXPERTS, device=HOST),),
        )
        plain = ENGINE.load(args)
        expected = logits(plain).tobytes()
        plain.close()
        layout = host_layout(path, on_device=lambda name: name.startswith("blk.2."))
        supplier = InSlots(layout)
        wished = (
            LayerSlots(layer=0, device=devices[0].id, slots=5),
            LayerSlots(layer=3, device=devices[1].id, slots=6),
        )
        away = (LayerSlots(layer=0, device=devices[1].id, slots=5),)
        try:
            ENGINE.load(replace(args, expert_slots=away), supplier=supplier, slots=supplier)
            refusal = "none"
        except SlotsRefused as error:
            refusal = error.message
        session = ENGINE.load(replace(args, expert_slots=wished), supplier=supplier, slots=supplier)
        found = logits(session).tobytes()
        taken = session.loaded.slots
        assert taken is not None
        sizes = [taken.device_bytes[device.id] for device in devices]
        counts = dict(taken.counts)
        session.close()
    return {
        "refusal": refusal,
        "same": found == expected,
        "counts": counts,
        "sizes": sizes,
        "slot_bytes": layout.slot_bytes,
    }


def staged(args: EngineArgs) -> dict[str, Any]:
    """Write through pinned memory (the processor's stands in for it) that is soon full."""
    opened = abi.open_engine()
    session = ENGINE.load(args)
    (pointer,) = device_pointers(args.devices[:1])
    device = Device(
        id=args.devices[0].id, pointer=pointer, buffer_type=opened.device_buffer_type(pointer)
    )
    processor = opened.device_by_type(0)
    assert processor is not None
    tensor = _a_tensor(session)
    buffers = SlotBuffers(opened, device)
    own = state_of(tensor)
    (placed,) = buffers.place([(tensor, own._replace(buffer=None, data=None))])
    put_state(tensor, placed)
    size_bytes = opened.tensor_bytes(tensor)
    source = np.random.default_rng(3).integers(0, 256, size_bytes, dtype=np.uint8)
    result = {}
    for name, kind in (("pinned", opened.device_buffer_type(processor)), ("plain", None)):
        uploads = Uploads(opened, device, staging_bytes=size_bytes // 3, pinned_type=kind)
        piece = size_bytes // 8
        for start in range(0, size_bytes, piece):
            length = min(piece, size_bytes - start)
            uploads.add(tensor, source.ctypes.data + start, start, length)
        uploads.wait()
        back = ctypes.create_string_buffer(size_bytes)
        opened.read_tensor(tensor, back, 0, size_bytes)
        result[name] = {
            "same": back.raw == source.tobytes(),
            "queued": uploads.is_queued,
            "staged": uploads.is_staged,
        }
        uploads.close()
        source = source[::-1].copy()
    put_state(tensor, own)
    buffers.close()
    session.close()
    return result


def _a_tensor(session: LlamaSession) -> int:
    """Return a tensor of experts, as a graph has it."""
    found: list[int] = []

    def ask(pointer: int) -> bool:
        tensor = abi.Tensor.from_address(pointer)
        if tensor.op == abi.Operation.MUL_MAT_ID:
            found.append(tensor.src[0])
        return False

    loaded = session.loaded
    llama = loaded.abi.llama
    callback = abi.EvaluationCallback(ask)
    parameters = llama.llama_context_default_params()
    parameters.cb_eval = ctypes.cast(callback, llama.ggml_backend_sched_eval_callback)
    context = llama.llama_init_from_model(loaded.model, parameters)
    token = (llama.llama_token * 1)(5)
    assert llama.llama_decode(context, llama.llama_batch_get_one(token, 1)) == 0
    llama.llama_free(context)
    return found[0]


CASES: dict[str, Callable[[EngineArgs], dict[str, Any]]] = {
    case.__name__: case for case in (reloads, shared, failing, full, apart, mixed, staged)
}


def results(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what each case gave."""
    with loopback_worker(threads=1) as worker:
        args = arguments_for(path, device_references((worker,)), (worker,))
        for name, case in CASES.items():
            yield {"case": name, **case(args)}


def main(path: str) -> None:
    """Print one line for each case of the model."""
    for result in results(Path(path)):
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
