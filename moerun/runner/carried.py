"""What a model carries and what was typed, as a request is made of both; what was typed wins.

Knows: which parameter of a model becomes which field of a request, and when its template is used.
Does not know: where parameters are kept, or how an answer is made.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from moerun.engine.interface import GenerationRequest, Message, Sampling

if TYPE_CHECKING:
    from moerun.store.go_template import PromptTemplate
    from moerun.store.profile import ModelProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """All that goes with each request of a run.

    `template` replaces the one of the GGUF, or, as one that only came with the model, stands in
    where the GGUF has none.
    """

    sampling: Sampling = field(default_factory=Sampling)
    maximum_tokens: int | None = None
    keep_tokens: int | None = None
    stop: tuple[str, ...] = ()
    system: str | None = None
    messages: tuple[Message, ...] = ()
    template: "PromptTemplate | None" = None
    replaces_template: bool = True

    def request(self, system: str | None, turns: Sequence[Message]) -> GenerationRequest:
        """Return the request for the next answer, with the messages that the model carries."""
        request = GenerationRequest(
            sampling=self.sampling,
            maximum_tokens=self.maximum_tokens,
            keep_tokens=self.keep_tokens,
            stop=self.stop,
        )
        return self._asking(request, system, turns)

    def applied_to(self, request: GenerationRequest) -> GenerationRequest:
        """Return a request of somebody else with what it leaves open; its own system message wins.

        A raw prompt stays as it is. A template of Go's takes no tools here, so a request with tools
        goes the way of the GGUF's own.
        """
        if request.maximum_tokens is None:
            request = replace(request, maximum_tokens=self.maximum_tokens)
        if request.keep_tokens is None:
            request = replace(request, keep_tokens=self.keep_tokens)
        request = replace(
            request,
            sampling=_with_defaults(request.sampling, asdict(self.sampling)),
            stop=request.stop or self.stop,
        )
        if not request.messages:
            return request
        system, turns = self.system, request.messages
        if turns[0].role == "system":
            system, turns = turns[0].content, turns[1:]
        return self._asking(request, system, turns)

    def _asking(
        self, request: GenerationRequest, system: str | None, turns: Sequence[Message]
    ) -> GenerationRequest:
        head = (Message(role="system", content=system),) if system else ()
        messages = (*head, *self.messages, *turns)
        if self.template is None or request.tools:
            return replace(request, messages=messages)
        said = [(message.role, message.content) for message in messages]
        return replace(
            request,
            messages=messages,
            template_prompt=self.template.render(said),
            replaces_template=self.replaces_template,
        )


def carried_by(
    profile: "ModelProfile | None",
    *,
    sampling: Sampling | None = None,
    maximum_tokens: int | None = None,
    is_limit_given: bool = False,
    system: str | None = None,
) -> Carried:
    """Return what was typed, with what the model carries where nothing was typed."""
    sampling = sampling or Sampling()
    if profile is None:
        return Carried(sampling=sampling, maximum_tokens=maximum_tokens, system=system)
    from moerun.store.parameters import Target

    of_model = profile.values(Target.SAMPLING)
    of_answer = profile.values(Target.ANSWER)
    limit = maximum_tokens if is_limit_given else _limit(of_answer.get("maximum_tokens"))
    return Carried(
        sampling=_with_defaults(sampling, of_model),
        maximum_tokens=limit,
        keep_tokens=of_answer.get("keep_tokens"),
        stop=tuple(of_answer.get("stop", ())),
        system=profile.system if system is None else system,
        messages=tuple(Message(role=role, content=text) for role, text in profile.messages),
        template=_template(profile),
        replaces_template=profile.own_template is not None,
    )


def _with_defaults(sampling: Sampling, of_model: dict[str, Any]) -> Sampling:
    """Return the sampling with the model's values in the fields that nobody typed."""
    absent = {one.name for one in fields(sampling) if getattr(sampling, one.name) is None}
    known = {name for name, value in of_model.items() if value is not None}
    return replace(sampling, **{name: of_model[name] for name in absent & known})


def _limit(maximum_tokens: int | None) -> int | None:
    """Return the model's own limit; ollama's -1 and -2 both mean until the context is full."""
    return maximum_tokens if maximum_tokens is not None and maximum_tokens > 0 else None


def _template(profile: "ModelProfile") -> "PromptTemplate | None":
    """Return the template that a Modelfile gave, else the one that came with the model.

    None where neither can be followed: a stranger's template may use all of Go's language.
    """
    text = profile.own_template or profile.template
    if text is None:
        return None
    from moerun.errors import UsageError
    from moerun.store.go_template import parse_template

    try:
        return parse_template(text)
    except UsageError:
        if profile.own_template is not None:
            raise
        return None
