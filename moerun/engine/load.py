"""Loading a model into the engine: arguments into C structs, failures into sentences.

The low-level interface is used, since the package's own class has no argument for tensor
overrides, the device list, repacking or the load mode.

Knows: which field of which struct an argument becomes.
Does not know: why the arguments are what they are, or what is asked of the model later.
"""

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, assert_never

from moerun.engine import abi, devices
from moerun.engine.adapters import apply_adapters
from moerun.engine.arguments import BufferReport, EngineArgs, Override
from moerun.engine.device_slots import DeviceSlots
from moerun.engine.engine_log import EngineLog, engine_log
from moerun.engine.graph_cuts import Graph
from moerun.engine.interface import ExpertSupplier, MappedFile, SlotSupplier
from moerun.engine.lazy_load import (
    advise_normal,
    mapped_files,
    require_streaming,
    without_reading,
)
from moerun.engine.load_log import (
    device_of_buffer,
    error_line,
    find_memory_failure,
    read_load_log,
)
from moerun.engine.router_hook import RouterHook
from moerun.engine.slot_opening import open_slots
from moerun.engine.slot_use import SlotUse
from moerun.errors import EngineOutOfMemory, EngineRefused, ModelNotFound, UsageError
from moerun.machine.description import HOST, DeviceId
from moerun.planning.strategy import LoadMode, Toggle
from moerun.units import format_gib

# What the command line tools of llama.cpp accept — common/arg.cpp @ 0.3.36 — with the numbers of
# `enum ggml_type` — ggml/include/ggml.h @ 0.3.36 — both checked by tests/engine/test_abi.py.
KV_ENCODINGS: Final = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "IQ4_NL": 20,
    "BF16": 30,
}
# LLAMA_MAX_SEQ — src/llama-cparams.h @ 0.3.36
MOST_SEQUENCES: Final = 256
_LONGEST_NAME_BYTES: Final = 128


@dataclass(slots=True, kw_only=True)
class LoadedModel:
    """A model and its context as the engine holds them, and what has to outlive them.

    `kept` are the arrays and callbacks that C structs point to. `decode_tokens` is how many may
    be run by one call: a batch, or a micro-batch where every graph is listened to.
    """

    abi: abi.Abi
    log: EngineLog
    args: EngineArgs
    model: Any
    context: Any
    vocabulary: Any
    vocabulary_size: int
    context_tokens: int
    decode_tokens: int
    buffers: tuple[BufferReport, ...]
    load_log: tuple[str, ...]
    load_s: float
    kept: list[Any]
    supplier: ExpertSupplier | None = None
    hook: RouterHook | None = None
    sequences: int = 1
    slots: DeviceSlots | None = None

    def free(self) -> None:
        """Give all memory back; a second call does nothing."""
        llama = self.abi.llama
        try:
            if self.supplier is not None:
                supplier, self.supplier = self.supplier, None
                supplier.close()
        finally:
            self._free(llama)

    def _free(self, llama: Any) -> None:
        if self.context is not None:
            llama.llama_free(self.context)
            self.context = None
        if self.slots is not None:
            self.slots.close()
            self.slots = None
        if self.model is not None:
            llama.llama_model_free(self.model)
            self.model = None
        self.kept.clear()


def load_model(
    args: EngineArgs,
    *,
    on_progress: Callable[[float], None] | None = None,
    supplier: ExpertSupplier | None = None,
    slots: SlotSupplier | None = None,
) -> LoadedModel:
    """Load the model and make its context; suppliers are attached when both are there.

    Raises EngineOutOfMemory with the device and bytes the log names, EngineRefused with the
    engine's own words otherwise.
    """
    use = SlotUse(slots) if slots is not None and args.expert_slots else None
    if args.load_mode is not LoadMode.STREAM:
        loaded = _load(args, on_progress=on_progress, supplier=supplier, use=use)
        return _attached(loaded, (), use)
    _check_streaming(args, supplier)
    opened = abi.open_engine()
    before = mapped_files(args.model_path)

    def progress(fraction: float) -> None:
        if fraction == 0.0:  # what goes to devices is read by faults, from now on
            advise_normal(mapped_files(args.model_path, before=before))
        if on_progress is not None:
            on_progress(fraction)

    with without_reading(opened):
        loaded = _load(args, on_progress=progress, supplier=supplier, use=use)
    return _attached(loaded, before, use)


def _check_streaming(args: EngineArgs, supplier: ExpertSupplier | None) -> None:
    require_streaming()
    if supplier is None:
        raise EngineRefused("The load mode 'stream' needs something that supplies the experts.")
    if args.extra_buffers:
        raise EngineRefused(
            "Experts that are repacked for the processor are copied to memory as a whole, so "
            "they cannot be streamed.",
            hint="Plan with streaming, which turns repacking off, or use --streaming off.",
        )


def _attached(
    loaded: LoadedModel, before: tuple[MappedFile, ...], use: SlotUse | None
) -> LoadedModel:
    """Hand slots and mappings to the suppliers; the model is freed when they do not take them."""
    if loaded.supplier is None:
        return loaded
    try:
        if use is not None:
            _open_slots(loaded, use)
        mapped = mapped_files(loaded.args.model_path, before=before)
        if loaded.args.load_mode is LoadMode.STREAM:
            advise_normal(mapped)
        loaded.supplier.attach(mapped)
    except BaseException:
        loaded.free()
        raise
    return loaded


def _open_slots(loaded: LoadedModel, use: SlotUse) -> None:
    """Make the slots; nothing is in the memory of past tokens afterwards."""
    hook, llama = loaded.hook, loaded.abi.llama
    if hook is None:
        raise EngineRefused("Slots for experts need something that listens to their choice.")

    keeps_state = bool(
        llama.llama_model_is_recurrent(loaded.model) or llama.llama_model_is_hybrid(loaded.model)
    )

    def learn(tokens: int) -> Graph | None:
        graph = hook.learn(tokens)
        if graph is not None:
            llama.llama_memory_clear(llama.llama_get_memory(loaded.context), keeps_state)
        return graph

    loaded.slots, refused = open_slots(
        loaded.abi, loaded.args, learn, architecture=_architecture(loaded)
    )
    use.open(loaded.slots, tuple(refused))
    loaded.buffers = (*loaded.buffers, *loaded.slots.reports())


def _architecture(loaded: LoadedModel) -> str:
    """Return the architecture by the name that the model's file gives it."""
    text = ctypes.create_string_buffer(_LONGEST_NAME_BYTES)
    key = b"general.architecture"
    loaded.abi.llama.llama_model_meta_val_str(loaded.model, key, text, len(text))
    return text.value.decode("utf-8", "replace") or "this architecture"


def load_without_memory(args: EngineArgs) -> LoadedModel:
    """Build the model and the context without allocating or reading weights and KV cache.

    Belief: `no_alloc` needs the load mode NONE — src/llama-model.cpp:1855 @ 0.3.36 — checked by
    tests/engine/test_dry_run.py. The result may be asked for its log and must be freed.
    """
    return _load(args, is_dry=True)


def engine_load_mode(mode: LoadMode) -> abi.EngineLoadMode:
    """Return the engine's load mode.

    LOCK pins the mapping itself: no second copy of the weights is made, and a model that fits
    the memory is not evicted (MLOCK alone would copy first). STREAM maps, and `lazy_load` keeps
    the engine from reading what it maps.
    """
    match mode:
        case LoadMode.MMAP | LoadMode.STREAM:
            return abi.EngineLoadMode.MMAP
        case LoadMode.COPY:
            return abi.EngineLoadMode.NONE
        case LoadMode.LOCK:
            return abi.EngineLoadMode.MMAP_MLOCK
        case LoadMode.DIRECT:
            return abi.EngineLoadMode.DIRECT_IO
        case _:
            assert_never(mode)


def _load(
    args: EngineArgs,
    *,
    is_dry: bool = False,
    on_progress: Callable[[float], None] | None = None,
    supplier: ExpertSupplier | None = None,
    use: SlotUse | None = None,
) -> LoadedModel:
    opened = abi.open_engine()
    _check(args)
    devices.register_workers(args.workers)
    log = engine_log()
    mark, started_s = log.mark(), time.monotonic()
    kept: list[Any] = []
    parameters = model_parameters(opened, args, kept)
    mode = abi.EngineLoadMode.NONE if is_dry else engine_load_mode(args.load_mode)
    parameters.load_mode = int(mode)
    parameters.no_alloc = is_dry
    failure: list[BaseException] = []
    if on_progress is not None:
        parameters.progress_callback = _progress_callback(opened, on_progress, failure)
        kept.append(parameters.progress_callback)
    model = opened.llama.llama_model_load_from_file(abi.encode_path(args.model_path), parameters)
    if failure:
        if model:
            opened.llama.llama_model_free(model)
        raise failure[0]
    if not model:
        _refuse(args, log, mark, what="load the model")
    # Without experts that stream nothing is listened to, and the engine runs as it always does.
    hook = None
    if supplier is not None and supplier.streamed:
        hook = RouterHook(opened, supplier, use)
    context_values = context_parameters(opened, args)
    is_shared = hook is None or (use is not None and args.load_mode is not LoadMode.STREAM)
    sequences = _granted_sequences(opened, model, args) if is_shared else 1
    if sequences > 1:
        context_values.n_seq_max = sequences
        context_values.kv_unified = True
    if hook is not None:
        context_values.cb_eval = hook.callback
    context = opened.llama.llama_init_from_model(model, context_values)
    if not context:
        opened.llama.llama_model_free(model)
        _refuse(args, log, mark, what=f"make a context of {args.context_tokens:,} tokens")
    if hook is not None:
        hook.context = context
    try:
        apply_adapters(opened, log, model, context, args.adapters)
    except BaseException:
        opened.llama.llama_free(context)
        opened.llama.llama_model_free(model)
        raise
    vocabulary = opened.llama.llama_model_get_vocab(model)
    lines = log.since(mark)
    return LoadedModel(
        abi=opened,
        log=log,
        args=args,
        model=model,
        context=context,
        vocabulary=vocabulary,
        vocabulary_size=opened.llama.llama_vocab_n_tokens(vocabulary),
        context_tokens=opened.llama.llama_n_ctx(context),
        decode_tokens=_decode_tokens(opened, context, hook),
        buffers=read_load_log(lines, args, buffer_types=devices.buffer_type_names(args.devices)),
        load_log=lines,
        load_s=time.monotonic() - started_s,
        kept=kept,
        supplier=supplier,
        hook=hook,
        sequences=sequences,
    )


def _granted_sequences(opened: abi.Abi, model: Any, args: EngineArgs) -> int:
    """Return how many sequences may share the memory that was planned for one.

    Beliefs: cells of a unified KV cache are shared by all sequences, so their number costs
    nothing; a recurrent state and a sliding window are kept for each, which no plan has charged —
    src/llama-model.cpp:2387, src/llama-kv-cache-iswa.cpp @ 0.3.36 — checked by
    tests/engine/test_sharing.py.
    """
    llama = opened.llama
    keeps_more = (
        llama.llama_model_is_recurrent(model)
        or llama.llama_model_is_hybrid(model)
        or llama.llama_model_n_swa(model) > 0
    )
    return 1 if keeps_more else args.sequences


def _decode_tokens(opened: abi.Abi, context: Any, hook: RouterHook | None) -> int:
    """Return how many tokens one call may run; a call with several graphs cannot be listened to."""
    if hook is None:
        return int(opened.llama.llama_n_batch(context))
    return int(min(opened.llama.llama_n_batch(context), opened.llama.llama_n_ubatch(context)))


def _check(args: EngineArgs) -> None:
    """Refuse in words what the engine would meet with an abort or a bare NULL."""
    if not os.path.isfile(args.model_path):
        raise ModelNotFound(f"There is no model file at {args.model_path}.")
    for name, value in (
        ("context", args.context_tokens),
        ("batch", args.batch_tokens),
        ("micro-batch", args.ubatch_tokens),
        ("thread count", args.threads),
        ("number of sequences", args.sequences),
    ):
        if not 0 < value < 2**31:
            raise UsageError(f"The {name} must be a positive number, not {value}.")
    if args.sequences > MOST_SEQUENCES:
        raise UsageError(
            f"At most {MOST_SEQUENCES} answers can share the engine, not {args.sequences}."
        )
    for encoding in (args.kv_encoding_k, args.kv_encoding_v):
        if encoding.upper() not in KV_ENCODINGS:
            raise UsageError(
                f"The KV cache cannot be kept as {encoding}; use one of {', '.join(KV_ENCODINGS)}."
            )
    if args.tensor_split and len(args.tensor_split) != len(args.devices):
        raise EngineRefused(
            f"The layers are split over {len(args.tensor_split)} devices, but "
            f"{len(args.devices)} are given."
        )
    if any(not override.pattern or "\0" in override.pattern for override in args.overrides):
        raise EngineRefused("A tensor override has an empty pattern or one with a NUL in it.")


def model_parameters(opened: abi.Abi, args: EngineArgs, kept: list[Any]) -> Any:
    """Return `llama_model_params` but for the load mode; what they point to goes into `kept`."""
    parameters = opened.llama.llama_model_default_params()
    parameters.n_gpu_layers = args.n_gpu_layers
    parameters.use_extra_bufts = args.extra_buffers
    pointers = devices.device_pointers(args.devices)
    # A list that ends at once means no device; without a list the engine takes all it finds.
    device_list = (ctypes.c_void_p * (len(pointers) + 1))(*pointers, None)
    parameters.devices = ctypes.cast(device_list, ctypes.c_void_p)
    kept.append(device_list)
    if args.overrides:
        overrides = _override_array(opened, args.overrides, dict(_by_id(args, pointers)))
        parameters.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        kept.append(overrides)
    if args.tensor_split:
        # The engine reads one number for each device, and compares with llama_max_devices.
        split = (ctypes.c_float * max(opened.llama.llama_max_devices(), len(args.tensor_split)))(
            *args.tensor_split
        )
        parameters.tensor_split = split
        kept.append(split)
    return parameters


def context_parameters(opened: abi.Abi, args: EngineArgs) -> Any:
    """Return `llama_context_params` for the arguments; all else as the engine defaults."""
    parameters = opened.llama.llama_context_default_params()
    parameters.n_ctx = args.context_tokens
    parameters.n_batch = args.batch_tokens
    parameters.n_ubatch = args.ubatch_tokens
    parameters.n_threads = args.threads
    parameters.n_threads_batch = args.threads
    parameters.type_k = KV_ENCODINGS[args.kv_encoding_k.upper()]
    parameters.type_v = KV_ENCODINGS[args.kv_encoding_v.upper()]
    parameters.flash_attn_type = int(_flash_attention(args.flash_attention))
    parameters.swa_full = args.swa_full
    return parameters


def _flash_attention(toggle: Toggle) -> abi.FlashAttention:
    match toggle:
        case Toggle.AUTO:
            return abi.FlashAttention.AUTO
        case Toggle.ON:
            return abi.FlashAttention.ON
        case Toggle.OFF:
            return abi.FlashAttention.OFF
        case _:
            assert_never(toggle)


def _by_id(args: EngineArgs, pointers: tuple[int, ...]) -> list[tuple[DeviceId, int]]:
    return [
        (reference.id, pointer) for reference, pointer in zip(args.devices, pointers, strict=True)
    ]


def _override_array(
    opened: abi.Abi, overrides: tuple[Override, ...], pointers: dict[DeviceId, int]
) -> ctypes.Array[abi.TensorBufferOverride]:
    array = (abi.TensorBufferOverride * (len(overrides) + 1))()
    for slot, override in zip(array, overrides, strict=False):
        if override.device == HOST:
            buffer_type = devices.processor_buffer_type()
        elif override.device in pointers:
            buffer_type = opened.device_buffer_type(pointers[override.device])
        else:
            raise EngineRefused(
                f"The override {override.pattern} names {override.device}, which is not among "
                "the devices of the plan."
            )
        slot.pattern = override.pattern.encode()
        slot.buffer_type = buffer_type
    return array


def _progress_callback(
    opened: abi.Abi, on_progress: Callable[[float], None], failure: list[BaseException]
) -> Any:
    def report(fraction: float, _: Any) -> bool:
        try:
            on_progress(fraction)
        except BaseException as error:  # it must not pass through C; the caller raises it again
            failure.append(error)
            return False
        return True

    return opened.llama.llama_progress_callback(report)


def _refuse(args: EngineArgs, log: EngineLog, mark: int, *, what: str) -> NoReturn:
    lines = log.since(mark)
    memory = find_memory_failure(lines)
    if memory is not None:
        device = (
            device_of_buffer(memory.buffer, args.devices, devices.buffer_type_names(args.devices))
            if memory.buffer
            else None
        )
        size = (
            f"{format_gib(memory.requested_bytes)} could not be allocated"
            if memory.requested_bytes
            else "an allocation failed"
        )
        raise EngineOutOfMemory(
            f"The engine ran out of memory on {device or memory.buffer or 'a device'}: {size}.",
            device=device or memory.buffer,
            requested_bytes=memory.requested_bytes,
            hint="Plan with a larger margin, a smaller --ctx, or fewer layers on that device.",
        )
    said = error_line(log.since(mark, least=abi.LogLevel.ERROR))
    raise EngineRefused(
        f"The engine could not {what}: {said or 'it gave no reason'}.", log_tail=log.tail()
    )
