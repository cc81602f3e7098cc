"""A jinja2 environment for programs from strangers: what they may use, and how much of it.

jinja2's immutable sandbox keeps a template from Python's insides; it does not keep it from taking
all memory or time. Here every loop, call, joined string and padded string is counted or measured
before it is made.

Knows: jinja2, and the helpers that templates of published models expect.
Does not know: conversations, or models.
"""

import json
import operator
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import datetime
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAXIMUM_TEXT_CHARACTERS: Final = 32_000_000
MAXIMUM_STEPS: Final = 1_000_000
MAXIMUM_S: Final = 10.0
_MAXIMUM_NUMBER_BITS: Final = 4096
_MAXIMUM_WIDTH: Final = 1000
# `%*d`, or a width of more than four digits, pads a text to any length.
_WIDE_PERCENT: Final = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")
_WIDE_SPECIFICATION: Final = re.compile(r"\d{5}|\{")


class TemplateRefusal(Exception):
    """The template itself says that it does not take this conversation."""


class TemplateLimit(TemplateError):
    """The template wants more than it may have."""


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox for one rendering at a time: `start` sets its meters back."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class: type[CodeGenerator]

    def __init__(self, *, now: Callable[[], datetime], monotonic_s: Callable[[], float]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, GenerationMark],
        )
        self._monotonic_s = monotonic_s
        self._steps = 0
        self._ends_s = 0.0
        self.globals.pop("lipsum")
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda pattern: now().strftime(_short(pattern))
        self.filters = {name: self._measured(name, f) for name, f in self.filters.items()}
        self.filters["tojson"] = to_json
        self.start()

    def start(self) -> None:
        """Set the meters of steps and time back."""
        self._steps = 0
        self._ends_s = self._monotonic_s() + MAXIMUM_S

    def count(self, steps: int) -> None:
        """Take note of work; TemplateLimit when it is too much."""
        self._steps += steps
        if self._steps > MAXIMUM_STEPS:
            raise TemplateLimit(f"it takes more than {MAXIMUM_STEPS:,} steps")
        if self._monotonic_s() > self._ends_s:
            raise TemplateLimit(f"it takes longer than {MAXIMUM_S:g} s")

    def counted(self, items: Any) -> Any:
        """Return what a loop goes over, with its steps counted."""
        if isinstance(items, Undefined):
            return items
        if isinstance(items, Sized):
            self.count(len(items))
            return items
        return self._counted_lazily(items)

    def concat(self, parts: Iterable[str]) -> str:
        """Join pieces of output, of a block or of a macro."""
        return "".join(self._measure_parts(parts))

    def join_values(self, parts: tuple[Any, ...]) -> str:
        """Join what stands around `~`."""
        return "".join(self._measure_parts(str(part) for part in parts))

    def call_binop(self, context: Any, operator_name: str, left: Any, right: Any) -> Any:
        """Compute one of the operators that can make much of little."""
        self.count(1)
        match operator_name:
            case "+":
                _bound(_length(left) + _length(right))
                return operator.add(left, right)
            case "*":
                _bound_product(left, right)
                return operator.mul(left, right)
            case "**":
                _bound_power(left, right)
                return operator.pow(left, right)
            case _:
                if isinstance(left, str):
                    _check_percent(left)
                return operator.mod(left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function or method of the template, measuring what methods of text make."""
        __self.count(1)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_text_call(getattr(__obj, "__name__", ""), owner, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return what stands for `str.format`, with the widths that it names checked."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def measured(*args: Any, **kwargs: Any) -> str:
            _check_braces(str(value.__self__))
            return wrapped(*args, **kwargs)

        return measured

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            counter = nodes.EnvironmentAttribute("counted")
            loop.iter = nodes.Call(counter, [loop.iter], [], None, None, lineno=loop.lineno)
        return tree

    def _counted_lazily(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.count(1)
            yield item

    def _measure_parts(self, parts: Iterable[str]) -> Iterator[str]:
        total = 0
        for part in parts:
            total += len(part)
            _bound(total)
            self.count(1)
            yield part

    def _measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.count(1)
            # jinja2 may put a context in front of the value.
            values = args[1:] if hasattr(function, "jinja_pass_arg") else args
            _check_filter(name, values, kwargs)
            return function(*args, **kwargs)

        if hasattr(function, "jinja_pass_arg"):
            run.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
        return run


class _MeasuredCode(CodeGenerator):
    """Compiles `~` into a call of the environment, which measures it first."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.join_values((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


TemplateEnvironment.code_generator_class = _MeasuredCode


class GenerationMark(Extension):
    """`{% generation %}` marks what a model wrote, for training; the text within counts here."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements between the marks."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """Render a template of a TemplateEnvironment with its meters at zero."""
    environment = template.environment
    assert isinstance(environment, TemplateEnvironment)
    environment.start()
    return environment.concat(template.generate(dict(variables)))


def to_json(
    value: Any,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = False,
) -> str:
    """Return JSON as published templates expect it: no HTML escapes, characters as they are."""
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateLimit("it indents JSON too far")
    return json.dumps(
        value,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        ensure_ascii=ensure_ascii,
    )


def _raise_exception(message: Any = "") -> NoReturn:
    raise TemplateRefusal(str(message))


def _short(pattern: Any) -> str:
    text = str(pattern)
    if len(text) > 200 or re.search(r"%\D?\d{3}", text):
        raise TemplateLimit("it formats a date too widely")
    return text


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _bound(length: int) -> None:
    if length > MAXIMUM_TEXT_CHARACTERS:
        raise TemplateLimit(f"it makes a text of more than {MAXIMUM_TEXT_CHARACTERS:,} characters")


def _bound_product(left: Any, right: Any) -> None:
    for items, times in ((left, right), (right, left)):
        if isinstance(items, str | list | tuple) and isinstance(times, int):
            _bound(len(items) * max(0, times))
    if isinstance(left, int) and isinstance(right, int):
        _bound_bits(left.bit_length() + right.bit_length())


def _bound_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _bound_bits(left.bit_length() * abs(right))


def _bound_bits(bits: int) -> None:
    if bits > _MAXIMUM_NUMBER_BITS:
        raise TemplateLimit("it computes with numbers that are too large")


def _check_percent(pattern: str) -> None:
    if _WIDE_PERCENT.search(pattern):
        raise TemplateLimit("it formats a text too widely")


def _check_braces(pattern: str) -> None:
    for _, _, specification, _ in string.Formatter().parse(pattern):
        if specification and _WIDE_SPECIFICATION.search(specification):
            raise TemplateLimit("it formats a text too widely")


def _check_text_call(name: str, owner: str, args: tuple[Any, ...], kwargs: Any) -> None:
    match name:
        case "replace":
            _bound_replacement(owner, args, kwargs)
        case "join":
            _bound_join(owner, args[0] if args else ())
        case "center" | "ljust" | "rjust" | "zfill" | "expandtabs":
            _check_widths((*args, *kwargs.values()))
        case _:
            pass


def _check_filter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    match name:
        case "replace" if args:
            _bound_replacement(str(args[0]), args[1:], kwargs)
        case "join" if args:
            _bound_join(str(args[1] if len(args) > 1 else kwargs.get("d", "")), args[0])
        case "format" if args:
            _check_percent(str(args[0]))
        case "batch" | "slice" | "center" | "indent" | "wordwrap" | "truncate" | "xmlattr":
            _check_widths((*args[1:], *kwargs.values()))
        case _:
            pass


def _check_widths(values: tuple[Any, ...]) -> None:
    for value in values:
        if isinstance(value, int) and value > _MAXIMUM_WIDTH:
            raise TemplateLimit(f"it pads a text by more than {_MAXIMUM_WIDTH:,} characters")
        if isinstance(value, str) and len(value) > _MAXIMUM_WIDTH:
            raise TemplateLimit(f"it pads with a text of more than {_MAXIMUM_WIDTH:,} characters")


def _bound_replacement(text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    values = [str(value) for value in (*args, *kwargs.values())]
    if len(values) >= 2:
        count = text.count(values[0])
        _bound(len(text) + count * max(len(value) for value in values[1:]))


def _bound_join(separator: str, items: Any) -> None:
    if isinstance(items, str | list | tuple):
        _bound(len(separator) * len(items) + sum(_length(item) for item in items))
