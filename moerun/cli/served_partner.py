"""A model of a server, as a prompt or a conversation asks it: over Ollama's API.

Knows: which request asks for what, and how replies become answers and cards.
Does not know: how lines are typed, or where the model lies.
"""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from moerun.engine.interface import (
    AnswerFormat,
    AnswerPart,
    FormatKind,
    GenerationResult,
    Message,
    StopReason,
    Thinking,
)
from moerun.errors import ModelNotFound, ServeError, UsageError
from moerun.repl.partner import ModelCard, Spoken
from moerun.repl.settings import ChatSettings
from moerun.runner.interruption import interrupts
from moerun.server.client import Client, require_ok
from moerun.store.parameters import PARAMETERS, Target

if TYPE_CHECKING:
    from moerun.runner.records import RunnerRecord

# The settings of placement that a request may carry.
_LOADING: Final = ("num_ctx", "num_batch", "num_thread")
_NS_PER_S: Final = 1e9
_OK: Final = 200
_NOT_FOUND: Final = 404
_SEED_BITS: Final = 31
_LARGEST_SEED: Final = (1 << _SEED_BITS) - 1  # what the API takes of a seed


class ServedPartner:
    """A model by its name. What it is asked holds it in the server's memory for a while."""

    def __init__(self, client: Client, name: str, *, keep_alive: str | float | None) -> None:
        self.name = name
        self._client = client
        self._keep_alive = keep_alive

    @property
    def place(self) -> str:
        """Return where the server is."""
        return self._client.place

    def answer(
        self,
        settings: ChatSettings,
        turns: Sequence[Message],
        on_part: Callable[[AnswerPart], None],
    ) -> Spoken:
        """Answer; Ctrl-C closes the connection, upon which the server ends the answer."""
        started_s = time.monotonic()
        seed = self._seed(settings)
        last: dict[str, Any] = {}
        body = self._chat(settings.with_parameter("seed", seed), turns)
        with self._client.stream("/api/chat", body) as stream, interrupts(stream.cancel):
            for chunk in stream.lines():
                last = chunk
                part = _part(chunk)
                if part != AnswerPart():
                    on_part(part)
        result = _result(last, seed=seed, is_cancelled=stream.is_cancelled)
        return Spoken(
            result=result,
            load_s=_seconds(last, "load_duration"),
            total_s=time.monotonic() - started_s,
        )

    def embed(
        self, text: str, settings: ChatSettings, *, truncates: bool, dimensions: int | None
    ) -> tuple[float, ...]:
        """Return the vector of a text."""
        options = self._options(settings, _LOADING)
        body = {**self._named(), "input": [text], "truncate": truncates, "options": options}
        if dimensions is not None:
            body["dimensions"] = dimensions
        content = self._ask("/api/embed", body)
        return tuple(float(value) for value in content["embeddings"][0])

    def makes_vectors(self) -> bool:
        """Whether the model writes no text."""
        return "completion" not in self._shown().get("capabilities", ())

    def can_think(self, settings: ChatSettings) -> bool:
        """Whether the model can think first."""
        return "thinking" in self._shown().get("capabilities", ())

    def document(self, answer: str, spoken: Spoken | None, *, total_s: float) -> dict[str, Any]:
        """Return what `--json` tells of an answer; how the model lies is not told by a server."""
        from moerun.report.run_document import served_document

        return served_document(
            answer,
            spoken.result if spoken is not None else None,
            name=self.name,
            server=self.place,
            load_s=spoken.load_s if spoken is not None else None,
            total_s=total_s,
        )

    def figures(self, spoken: Spoken) -> tuple[str, ...]:
        """Return the timing block, then where the server has the model."""
        from moerun.report.streaming_view import verbose_lines
        from moerun.report.timing_view import label_line, timing_lines

        lines = [*timing_lines(spoken.result, load_s=spoken.load_s, total_s=spoken.total_s)]
        lines += [label_line("server", self.place)]
        lines += [label_line("seed", str(spoken.result.seed))]
        record = self._record()
        if record is not None:
            lines += [label_line("mode", record.mode)]
            if record.last_streaming is not None:
                lines += verbose_lines(record.last_streaming)
        return tuple(lines)

    def card(self) -> ModelCard:
        """Ask the server what it knows of the model."""
        shown = self._shown()
        running = self._running()
        info = [*_info_lines(shown), "  Loaded", f"    server       {self.place}"]
        if running is not None:
            info += [f"    context      {running.get('context_length', 0):,} tokens"]
        record = self._record()
        if record is not None:
            info += [f"    placement    {record.mode}"]
        return ModelCard(
            info=tuple(info),
            license=str(shown.get("license", "")),
            modelfile=str(shown.get("modelfile", "")),
            parameters=tuple(str(shown.get("parameters", "")).splitlines()),
            system=str(shown.get("system", "")),
            template=str(shown.get("template", "")),
            turns=tuple(
                (str(turn.get("role")), str(turn.get("content")))
                for turn in shown.get("messages", ())
            ),
            can_think="thinking" in shown.get("capabilities", ()),
        )

    def check_parameter(self, name: str, value: object) -> None:
        """Refuse settings of memory, which the server took when it was started."""
        if PARAMETERS[name].target is not Target.SETTING:
            return
        if name not in _LOADING:
            raise UsageError(
                f"{name} is a setting of the server at {self.place}, and no request changes it",
                hint="/save and `moerun create` keep it with a model; `run --local` takes it",
            )
        if not str(value).isdecimal():
            raise UsageError(f"{name} takes a whole number here, not '{str(value)[:80]}'")

    def load(self, name: str, settings: ChatSettings) -> None:
        """Have the server load another model."""
        before, self.name = self.name, name
        try:
            self.warm_up(settings)
        except ModelNotFound as error:
            self.name = before
            raise ModelNotFound(f"Couldn't find model '{name[:80]}'", hint=error.hint) from error
        except BaseException:
            self.name = before
            raise

    def warm_up(self, settings: ChatSettings) -> None:
        """Have the server load the model, and answer nothing; Ctrl-C leaves it to the server."""
        body = {**self._named(), "options": self._options(settings, _LOADING), "stream": False}
        self._ask("/api/generate", body)

    def save(self, name: str, settings: ChatSettings, turns: Sequence[Message]) -> None:
        """Have the server make a model."""
        carried = list(self._shown().get("messages", ()))
        said = [{"role": turn.role, "content": turn.content} for turn in turns]
        body: dict[str, Any] = {"model": name, "from": self.name, "stream": False}
        body |= {"messages": [*carried, *said]} if carried or said else {}
        body |= {"parameters": dict(settings.parameters)} if settings.parameters else {}
        body |= {"system": settings.system} if settings.system is not None else {}
        self._ask("/api/create", body)

    def model_names(self) -> tuple[str, ...]:
        """Return the names that the server lists."""
        status, content = self._client.ask("GET", "/api/tags")
        return tuple(str(model["name"]) for model in require_ok(status, content)["models"])

    def show_memory(self) -> None:
        """Print what `stat --memory` shows of the server's runner."""
        from moerun.cli.stat import print_memory

        running = self._running()
        pid = int(running.get("pid", 0)) if running is not None else 0
        if not print_memory(frozenset({pid})):
            why = "is not in memory" if running is None else "runs where its memory cannot be seen"
            raise ServeError(f"{self.name} of the server at {self.place} {why}.")

    def is_known(self) -> bool:
        """Whether the server has the model."""
        status, content = self._client.ask("POST", "/api/show", {"model": self.name})
        if status == _NOT_FOUND:
            return False
        require_ok(status, content)
        return True

    def _seed(self, settings: ChatSettings) -> int:
        """Return the seed that is set or that the model carries; else draw one that can be told."""
        typed = settings.of_target(Target.SAMPLING).get("seed")
        if typed is not None:
            return int(typed) & _LARGEST_SEED
        shown = self._shown()
        rows = [line.split() for line in str(shown.get("parameters", "")).splitlines()]
        carried = next((row[1] for row in rows if row[:1] == ["seed"]), "")
        return int(carried) if carried.isdecimal() else random.getrandbits(_SEED_BITS)

    def _shown(self) -> dict[str, Any]:
        shown = self._ask("/api/show", {"model": self.name})
        return shown if isinstance(shown, dict) else {}

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        return require_ok(*self._client.ask("POST", path, body, timeout_s=None))

    def _named(self) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.name}
        if self._keep_alive is not None:
            body["keep_alive"] = self._keep_alive
        return body

    def _chat(self, settings: ChatSettings, turns: Sequence[Message]) -> dict[str, Any]:
        body = {
            **self._named(),
            "messages": [
                {"role": turn.role, "content": turn.content} for turn in settings.messages(turns)
            ],
            "options": self._options(settings, None),
            "stream": True,
            "truncate": settings.goes_on,
            "shift": settings.goes_on,
        }
        if settings.think is not None:
            body["think"] = _think(settings.think)
        if (form := _format(settings.format)) is not None:
            body["format"] = form
        return body

    def _options(self, settings: ChatSettings, names: tuple[str, ...] | None) -> dict[str, Any]:
        """Return the parameters as options; settings of placement are whole numbers there."""
        return {
            name: int(value) if name in _LOADING else value
            for name, value in settings.parameters
            if names is None or name in names
        }

    def _running(self) -> dict[str, Any] | None:
        """Return what the server tells of the model while it is in memory."""
        status, content = self._client.ask("GET", "/api/ps")
        tagged = self.name if ":" in self.name.rpartition("/")[2] else f"{self.name}:latest"
        rows = require_ok(status, content)["models"]
        return next((row for row in rows if row["name"].lower() == tagged.lower()), None)

    def _record(self) -> "RunnerRecord | None":
        """Return what the runner left on this machine, None for one elsewhere."""
        from moerun.places import state_folder
        from moerun.runner.records import read_records

        running = self._running()
        if running is None:
            return None
        records = read_records(state_folder()).records
        return next((each for each in records if each.pid == running.get("pid")), None)


def _part(chunk: Mapping[str, Any]) -> AnswerPart:
    message = chunk.get("message", {})
    return AnswerPart(
        text=str(message.get("content", "")), thinking=str(message.get("thinking", ""))
    )


def _result(last: Mapping[str, Any], *, seed: int, is_cancelled: bool) -> GenerationResult:
    """Return how an answer went; of one that was cancelled the server tells nothing."""
    reason = StopReason.LENGTH if last.get("done_reason") == "length" else StopReason.END
    return GenerationResult(
        stop_reason=StopReason.CANCELLED if is_cancelled else reason,
        prompt_tokens=int(last.get("prompt_eval_count", 0)),
        reused_tokens=0,
        answer_tokens=int(last.get("eval_count", 0)),
        prompt_s=_seconds(last, "prompt_eval_duration"),
        answer_s=_seconds(last, "eval_duration"),
        seed=seed,
    )


def _seconds(chunk: Mapping[str, Any], key: str) -> float:
    return float(chunk.get(key, 0)) / _NS_PER_S


def _think(level: Thinking) -> bool | str:
    match level:
        case Thinking.ON:
            return True
        case Thinking.OFF:
            return False
        case _:
            return level.value


def _format(form: AnswerFormat) -> Any:
    match form.kind:
        case FormatKind.JSON:
            return "json"
        case FormatKind.SCHEMA:
            return json.loads(form.source)
        case _:
            return None


def _info_lines(shown: Mapping[str, Any]) -> tuple[str, ...]:
    details, facts = shown.get("details", {}), shown.get("model_info", {})
    architecture = str(facts.get("general.architecture", details.get("family", "")))
    rows = (
        ("architecture", architecture),
        ("parameters", str(details.get("parameter_size", ""))),
        ("quantization", str(details.get("quantization_level", ""))),
        ("trained for", f"{facts.get(f'{architecture}.context_length', 0):,} tokens"),
        ("experts", str(facts.get(f"{architecture}.expert_count", "none"))),
    )
    lines = ["  Model", *(f"    {name:<15}  {text}" for name, text in rows if text)]
    lines += ["", "  Capabilities", *(f"    {each}" for each in shown.get("capabilities", ())), ""]
    return tuple(lines)
