"""Whether the installed engine is what moerun takes it for, found out where it may die: in a child.

Run as a program (`python -m moerun.engine.self_check`) it does the steps and writes one line as
each begins and one for what it found; the parent reads how far it came.

Knows: the steps, what each failure means, and what to do about it.
Does not know: plans; `plain_arguments` says what is left when the check fails.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moerun.codec import from_plain, to_plain
from moerun.engine import abi
from moerun.engine.arguments import EngineArgs, Override
from moerun.engine.children import child_environment, describe_exit, module_command
from moerun.engine.interface import MappedFile, Routing
from moerun.errors import MoerunError
from moerun.machine.description import HOST
from moerun.planning.strategy import LoadMode, Toggle

DEFAULT_TIMEOUT_S: Final = 120.0
PROMPT_TOKENS: Final = 32
_MARK: Final = "moerun-self-check "
_REBUILD: Final = "run `make run`, or build it again: {} --force-reinstall"
_NO_AMX: Final = (
    "builds by GCC 12 crash on processors with AMX; `make run` builds without it, or set CFLAGS "
    "and CXXFLAGS to '-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'"
)
# What a native death in a step means to a user.
_REMEDIES: Final = {
    "library": "the build may be for another processor; " + _REBUILD,
    "prompt": _NO_AMX,
    "overrides": _REBUILD,
    "streaming": "larger models than memory cannot be run with it; " + _REBUILD,
    "devices": "a driver may be broken or of another version than the build expects",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one step; `detail` is what was seen, and what to do when it is bad."""

    name: str
    is_ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """What the check of the engine found; `engine_version` is None when none is installed."""

    engine_version: str | None
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether everything is as believed."""
        return bool(self.findings) and all(finding.is_ok for finding in self.findings)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Return the findings that are not as believed."""
        return tuple(finding for finding in self.findings if not finding.is_ok)


def plain_arguments(args: EngineArgs) -> EngineArgs:
    """Return arguments that use nothing the check is about: the processor alone, no overrides."""
    return replace(
        args,
        devices=(),
        workers=(),
        n_gpu_layers=0,
        tensor_split=(),
        overrides=(),
        extra_buffers=False,
        load_mode=LoadMode.MMAP if args.load_mode is LoadMode.STREAM else args.load_mode,
        expert_slots=(),
    )


def run_self_check(
    *, timeout_s: float = DEFAULT_TIMEOUT_S, command: tuple[str, ...] | None = None
) -> SelfCheck:
    """Check the engine in a child process and return what was found; never raises for the engine.

    `command` is the program to run instead of this module.
    """
    version = abi.installed_version()
    try:
        abi.require_version()
    except MoerunError as error:
        detail = " ".join(part for part in (error.message, error.hint) if part)
        return SelfCheck(
            engine_version=version, findings=(Finding(name="version", is_ok=False, detail=detail),)
        )
    head = Finding(name="version", is_ok=True, detail=f"{abi.PACKAGE} {version}")
    try:
        done = subprocess.run(
            command or module_command("moerun.engine.self_check"),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=child_environment(),
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        findings = _read(error.stdout or b"", ending=f"the engine did not end in {timeout_s:g} s")
    else:
        ending = f"the engine died with {describe_exit(done.returncode)}"
        findings = _read(done.stdout, ending=ending if done.returncode else None)
    return SelfCheck(engine_version=version, findings=(head, *findings))


def _read(output: bytes, *, ending: str | None) -> tuple[Finding, ...]:
    """Read the child's lines; a step that began and has no outcome is where it died."""
    findings: list[Finding] = []
    open_step: str | None = "start"
    for line in output.decode("utf-8", "replace").splitlines():
        if not line.startswith(_MARK):
            continue
        document = json.loads(line.removeprefix(_MARK))
        if "begins" in document:
            open_step = document["begins"]
        elif "found" in document:
            findings.append(from_plain(Finding, document["found"]))
            open_step = None
        else:
            return tuple(findings)
    # Without the line of the end the child was stopped, whatever its exit code says.
    step = open_step or "the end"
    remedy = _REMEDIES.get(step, _REBUILD).format(abi.INSTALL_COMMAND)
    how = ending or "the engine ended the process"
    findings.append(Finding(name=step, is_ok=False, detail=f"{how} at '{step}': {remedy}"))
    return tuple(findings)


def main() -> int:
    """Do the steps in this process, telling each on standard output."""
    steps: tuple[tuple[str, Callable[[Path], str]], ...] = (
        ("library", _check_library),
        ("devices", _check_devices),
        ("prompt", _check_prompt),
        ("overrides", _check_overrides),
        ("streaming", _check_streaming),
    )
    with tempfile.TemporaryDirectory(prefix="moerun-check-") as folder:
        for name, step in steps:
            _tell({"begins": name})
            finding = _do(name, step, Path(folder))
            _tell({"found": to_plain(finding)})
            if name == "library" and not finding.is_ok:
                break  # calling into an engine of another shape proves nothing
    _tell({"ends": True})
    return 0


def _do(name: str, step: Callable[[Path], str], folder: Path) -> Finding:
    """Do one step; whatever it raises is its finding, since a check must not fail itself."""
    try:
        return Finding(name=name, is_ok=True, detail=step(folder))
    except MoerunError as error:
        detail = " ".join(part for part in (error.message, error.hint) if part)
    except _NotAsBelieved as error:
        detail = f"{error}; {_REBUILD.format(abi.INSTALL_COMMAND)}"
    except Exception as error:
        detail = f"the check itself failed: {type(error).__name__}: {error}"
    return Finding(name=name, is_ok=False, detail=detail)


class _NotAsBelieved(Exception):
    """A step ran and what came out is wrong."""


def _tell(document: dict[str, Any]) -> None:
    sys.stdout.write(_MARK + json.dumps(document) + "\n")
    sys.stdout.flush()


def _check_library(_: Path) -> str:
    """Structs, symbols and the backend API; a mismatch is raised as EngineMismatch."""
    opened = abi.open_engine()
    rpc = "with RPC" if opened.add_rpc_server else "without RPC"
    return f"structs, functions and backend API {abi.BACKEND_API_VERSION} match, {rpc}"


def _check_devices(_: Path) -> str:
    from moerun.engine.devices import list_devices  # binds nothing before the library is checked

    return ", ".join(device.name for device in list_devices())


def _check_prompt(folder: Path) -> str:
    """A prompt of 32 tokens with default parameters on both common encodings.

    Belief: repacked Q8_0 and Q4_0 weights take another path from 8 tokens on, where AMX builds by
    GCC 12.2 die — ggml/src/ggml-cpu/amx/mmq.cpp @ 0.3.36 — checked by tests/engine/
    test_self_check.py as far as the machine has AMX.
    """
    from moerun.engine.tiny_gguf import write_tiny_moe

    for encoding in ("Q8_0", "Q4_0"):
        path = folder / f"prompt-{encoding}.gguf"
        write_tiny_moe(path, encoding=encoding, expert_encoding=encoding)
        _default_prompt(path)
    return f"{PROMPT_TOKENS} tokens with default parameters on Q8_0 and Q4_0"


def _default_prompt(path: Path) -> None:
    """Run the prompt with the engine's default parameters, on its devices and the processor."""
    import ctypes

    opened = abi.open_engine()
    llama = opened.llama
    no_device = (ctypes.c_void_p * 1)(None)
    for devices in (None, ctypes.cast(no_device, ctypes.c_void_p)):
        parameters = llama.llama_model_default_params()
        parameters.devices = devices
        with _opened(llama, path, parameters) as (model, context):
            size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
            tokens = (llama.llama_token * PROMPT_TOKENS)(*range(260, 260 + PROMPT_TOKENS))
            status = llama.llama_decode(context, llama.llama_batch_get_one(tokens, PROMPT_TOKENS))
            if status != 0:
                raise _NotAsBelieved(f"decoding a prompt gave status {status}")
            logits = llama.llama_get_logits_ith(context, -1)
            if not logits or any(logits[i] != logits[i] for i in range(size)):
                raise _NotAsBelieved("a prompt gave no logits, or some that are no numbers")


@contextmanager
def _opened(llama: Any, path: Path, parameters: Any) -> Iterator[tuple[Any, Any]]:
    model = llama.llama_model_load_from_file(abi.encode_path(str(path)), parameters)
    if not model:
        raise _NotAsBelieved("a tiny model did not load with default parameters")
    try:
        context = llama.llama_init_from_model(model, llama.llama_context_default_params())
        if not context:
            raise _NotAsBelieved("no context could be made with default parameters")
        try:
            yield model, context
        finally:
            llama.llama_free(context)
    finally:
        llama.llama_model_free(model)


def _check_overrides(folder: Path) -> str:
    """Overrides must reach the loader, and change no bit of the result."""
    from moerun.engine.llama import LlamaEngine
    from moerun.engine.tiny_gguf import write_tiny_moe

    path = folder / "overrides.gguf"
    write_tiny_moe(path)
    engine = LlamaEngine(log_sink=None)
    plain = _plain_arguments_for(path)
    experts = Override(pattern=r"ffn_(gate|up|down)_exps", device=HOST)
    rows = []
    for args in (plain, replace(plain, overrides=(experts,))):
        session = engine.load(args)
        try:
            moved = [line for line in session.load_log if "buffer type overridden to" in line]
            rows.append(session.evaluate(range(260, 260 + PROMPT_TOKENS)).tobytes())
        finally:
            session.close()
        if bool(moved) != bool(args.overrides):
            raise _NotAsBelieved(
                f"{len(args.overrides)} tensor override was given and the loader applied "
                f"{len(moved)}: llama_model_params is not laid out as believed"
            )
    if rows[0] != rows[1]:
        raise _NotAsBelieved("logits differ between loading with and without tensor overrides")
    return f"{len(moved)} tensors overridden, logits equal to the bit"


def _check_streaming(folder: Path) -> str:
    """Every layer's choice must be heard before its experts are read, and change no bit."""
    from moerun.engine.lazy_load import can_stream
    from moerun.engine.llama import LlamaEngine
    from moerun.engine.tiny_gguf import TinyShape, write_tiny_moe

    path, shape = folder / "streaming.gguf", TinyShape()
    write_tiny_moe(path, shape=shape)
    args = _plain_arguments_for(path)
    listener = _Listener(shape.layers)
    rows = []
    for supplier in (None, listener):
        is_streamed = supplier is not None and can_stream()
        mode = LoadMode.STREAM if is_streamed else LoadMode.MMAP
        session = LlamaEngine(log_sink=None).load(replace(args, load_mode=mode), supplier=supplier)
        try:
            rows.append(session.evaluate(range(260, 260 + PROMPT_TOKENS)).tobytes())
        finally:
            session.close()
    if listener.heard != list(range(shape.layers)):
        raise _NotAsBelieved(
            f"the router's choice was heard in the layers {listener.heard} of {shape.layers}"
        )
    if rows[0] != rows[1]:
        raise _NotAsBelieved("logits differ between listening to the router and not")
    return f"the choices of {shape.layers} layers heard, logits equal to the bit"


class _Listener:
    """Notes the layers whose choice it hears; every expert is in memory."""

    wants_hidden = wants_weights = False

    def __init__(self, layers: int) -> None:
        parts = ("gate", "up", "down")
        self.streamed = {
            f"blk.{layer}.ffn_{part}_exps.weight": layer
            for layer in range(layers)
            for part in parts
        }
        self.heard: list[int] = []

    def attach(self, mapped: tuple[MappedFile, ...]) -> None:
        """Nothing is taken over."""

    def supply(self, routing: Routing) -> None:
        """Note the layer."""
        self.heard.append(routing.layer)

    def supply_layer(self, layer: int) -> None:
        """Take a layer whose choice was not heard for one that is not as believed."""
        raise _NotAsBelieved(f"the choice of layer {layer} was not heard")

    def check(self) -> None:
        """Every token may leave."""

    def close(self) -> None:
        """Nothing is held."""


def _plain_arguments_for(path: Path) -> EngineArgs:
    return EngineArgs(
        model_path=str(path),
        devices=(),
        n_gpu_layers=0,
        tensor_split=(),
        overrides=(),
        context_tokens=256,
        batch_tokens=PROMPT_TOKENS,
        ubatch_tokens=PROMPT_TOKENS,
        kv_encoding_k="F16",
        kv_encoding_v="F16",
        flash_attention=Toggle.AUTO,
        extra_buffers=False,
        load_mode=LoadMode.MMAP,
        threads=2,
    )


if __name__ == "__main__":
    sys.exit(main())
