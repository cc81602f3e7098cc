"""The engine behind the protocol of `interface`: llama.cpp through its low-level calls.

Knows: how the parts of this room make a session.
Does not know: plans, processes, or how an answer is shown.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import numpy
import numpy.typing

from moerun.engine import abi
from moerun.engine.answers import Answer
from moerun.engine.arguments import EngineArgs
from moerun.engine.chat import ChatPrompt, ChatTemplate, ChatWishes, without_oldest
from moerun.engine.decode import Decoder
from moerun.engine.dry_run import measure
from moerun.engine.embed import embed
from moerun.engine.engine_log import engine_log
from moerun.engine.formats import grammar_of, held_to
from moerun.engine.generate import make_answer
from moerun.engine.interface import (
    AnswerReceiver,
    Capability,
    EmbeddingRequest,
    EmbeddingResult,
    ExpertSupplier,
    GenerationRequest,
    GenerationResult,
    LoadReport,
    SlotSupplier,
    ToolUse,
)
from moerun.engine.load import LoadedModel, load_model
from moerun.engine.load_log import read_flash_attention, read_notes
from moerun.engine.receivers import LoneReceiver
from moerun.engine.sampling import choose_sampling
from moerun.engine.sharing import Sharing
from moerun.engine.vocabulary import Vocabulary
from moerun.errors import EngineRefused, UnsupportedModel
from moerun.planning.plan import Measurements


def write_to_stderr(line: str) -> None:
    """Hand a line of the engine's log to the process's standard error."""
    sys.stderr.write(line)


class LlamaEngine:
    """llama.cpp in this process. Creating it loads nothing; the first call opens the library.

    The engine's log goes line by line to `log_sink`, debugging left out; after a native crash
    what the sink has written is all that is left of it.
    """

    def __init__(self, *, log_sink: Callable[[str], object] | None = write_to_stderr) -> None:
        self._log_sink = log_sink

    def measure(self, args: EngineArgs) -> Measurements:
        """Ask the engine what the arguments would allocate; reads no weights."""
        engine_log().sink = self._log_sink
        return measure(args)

    def load(
        self,
        args: EngineArgs,
        *,
        on_progress: Callable[[float], None] | None = None,
        supplier: ExpertSupplier | None = None,
        slots: SlotSupplier | None = None,
    ) -> "LlamaSession":
        """Load; raises EngineOutOfMemory or EngineRefused with the end of the log.

        What the suppliers raise when they are attached ends the load, and the model is freed.
        """
        engine_log().sink = self._log_sink
        return LlamaSession(
            load_model(args, on_progress=on_progress, supplier=supplier, slots=slots)
        )


class LlamaSession:
    """One loaded model, with the newest conversations in its memory."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._vocabulary = Vocabulary(loaded)
        self._model_defaults = self._vocabulary.sampling_defaults()
        self._decoder: Decoder | None = None
        self._template: ChatTemplate | None = None
        self._sharing: Sharing | None = None

    @property
    def report(self) -> LoadReport:
        """Return what loading gave."""
        return LoadReport(
            buffers=self._loaded.buffers,
            context_tokens=self._loaded.context_tokens,
            load_s=self._loaded.load_s,
            engine_version=abi.installed_version() or "",
            notes=read_notes(self._loaded.load_log),
            flash_attention=read_flash_attention(self._loaded.load_log),
            sequences=self._loaded.sequences,
            capabilities=self._capabilities(),
        )

    @property
    def model_defaults(self) -> Mapping[str, float]:
        """Return the sampling defaults that the model's file names."""
        return dict(self._model_defaults)

    @property
    def load_log(self) -> tuple[str, ...]:
        """Return the lines that the engine logged while it loaded."""
        return self._loaded.load_log

    @property
    def loaded(self) -> LoadedModel:
        """Return the engine's own handles, for the rooms that work on them."""
        return self._loaded

    @property
    def is_busy(self) -> bool:
        """Whether answers are being made or wait for their turn."""
        return self._sharing is not None and self._sharing.is_busy

    def begin(self, request: GenerationRequest, receiver: AnswerReceiver) -> None:
        """Take a request in; what becomes of it is told to the receiver alone."""
        try:
            sharing = self._open_sharing()
            answer = self._answer(request, receiver)
        except Exception as error:
            receiver.fail(error)
            return
        sharing.begin(answer)

    def step(self) -> None:
        """Run one batch: a token of each answer, or a piece of the prompts."""
        if self._sharing is not None:
            self._sharing.step()

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_text: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> GenerationResult:
        """Answer alone, handing over the content; raises EngineRefused, UsageError (too long)."""
        receiver = LoneReceiver(on_text=on_text, asks=is_cancelled)
        self.begin(request, receiver)
        while self.is_busy:
            self.step()
        return receiver.outcome()

    def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Return the vectors of texts; UsageError for a model that has none or a text too long."""
        if self._loaded.context is None:
            raise EngineRefused("The model has been closed.")
        if self._decoder is not None:
            self._decoder.clear()
        return embed(self._loaded, self._vocabulary, request)

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a raw prompt, as `generate` would run them."""
        return tuple(self._vocabulary.tokenize(text))

    def evaluate(self, tokens: Sequence[int]) -> numpy.typing.NDArray[numpy.float32]:
        """Return the logits after each token of a fresh sequence, one row for each."""
        return self._open_decoder().evaluate(list(tokens))

    def close(self) -> None:
        """Free the model and its memory."""
        self._decoder = None
        self._sharing = None
        self._loaded.free()

    def _answer(self, request: GenerationRequest, receiver: AnswerReceiver) -> Answer:
        """Return an answer ready to be made; of a conversation that is too long, its end."""
        choice = choose_sampling(request.sampling, self._model_defaults)
        is_written = self._is_written(request)
        if is_written:
            request = replace(request, messages=(), prompt=request.template_prompt)
        while True:
            prompt = self._written(request) if is_written else self._prompt(request)
            tokens = self._tokens_of(request, prompt)
            if not request.truncates or len(tokens) < self._loaded.context_tokens:
                break
            shorter = without_oldest(request.messages)
            if shorter == request.messages:
                break
            request = replace(request, messages=shorter)
        return make_answer(
            self._loaded, self._vocabulary, request, prompt, tokens, choice, receiver
        )

    def _is_written(self, request: GenerationRequest) -> bool:
        """Whether a template beside the model's file writes the prompt."""
        if not request.messages or not request.template_prompt:
            return False
        return request.replaces_template or self._vocabulary.chat_template is None

    def _written(self, request: GenerationRequest) -> ChatPrompt:
        prompt = ChatPrompt(text=request.prompt)
        with contextlib.suppress(UnsupportedModel):  # a broken one of the file is not used here
            prompt = self._open_template().read_written(request.prompt)
        return held_to(prompt, request)

    def _tokens_of(self, request: GenerationRequest, prompt: ChatPrompt) -> list[int]:
        if request.messages:
            return self._vocabulary.tokenize(prompt.text)
        if request.suffix:
            return self._vocabulary.around(prompt.text, request.suffix)
        if not request.tokens:
            return self._vocabulary.tokenize(prompt.text)
        self._vocabulary.check(request.tokens)
        if not request.prompt:
            return list(request.tokens)
        return [*request.tokens, *self._vocabulary.tokenize(prompt.text, is_start=False)]

    def _prompt(self, request: GenerationRequest) -> ChatPrompt:
        if not request.messages:
            return ChatPrompt(text=request.prompt, grammar=grammar_of(request))
        tools = () if request.tool_choice.use is ToolUse.NONE else request.tools
        wishes = ChatWishes(tools=tools, think=request.think)
        return held_to(self._open_template().render(request.messages, wishes), request)

    def _open_template(self) -> ChatTemplate:
        if self._template is None:
            self._template = ChatTemplate(
                self._vocabulary.chat_template,
                begin_text=self._vocabulary.text_of(self._vocabulary.begin_token),
                end_text=self._vocabulary.text_of(self._vocabulary.end_token),
                now=lambda: datetime.now().astimezone(),
                monotonic_s=time.monotonic,
            )
        return self._template

    def _capabilities(self) -> tuple[Capability, ...]:
        """Return what the model can do, as its template and vocabulary tell."""
        found = [Capability.COMPLETION, Capability.EMBEDDING]
        if self._vocabulary.can_fill:
            found.append(Capability.INSERT)
        with contextlib.suppress(UnsupportedModel):  # a broken template is told when it is used
            template = self._open_template()
            if template.can_think:
                found.append(Capability.THINKING)
            if template.can_call:
                found.append(Capability.TOOLS)
        return tuple(found)

    def _open_sharing(self) -> Sharing:
        decoder = self._open_decoder()
        _refuse_other_kinds(self._loaded)
        if self._sharing is None:
            self._sharing = Sharing(self._loaded, decoder)
        return self._sharing

    def _open_decoder(self) -> Decoder:
        if self._loaded.context is None:
            raise EngineRefused("The model has been closed.")
        if self._decoder is None:
            self._decoder = Decoder(self._loaded)
        return self._decoder


def evaluate(session: LlamaSession, tokens: Sequence[int]) -> numpy.typing.NDArray[numpy.float32]:
    """Return the logits after each token of a fresh sequence: `tokens` rows, F32."""
    return session.evaluate(tokens)


def _refuse_other_kinds(loaded: LoadedModel) -> None:
    """Refuse models that do not write one token after the other."""
    llama = loaded.abi.llama
    if llama.llama_model_has_encoder(loaded.model):
        raise EngineRefused("This model has an encoder; moerun runs decoder-only models.")
    if llama.llama_model_is_diffusion(loaded.model):
        raise EngineRefused(
            "This is a diffusion model, which does not write one token after the other."
        )
