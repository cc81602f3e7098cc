"""From a node to a value: sizes, shares, switches, counts, pins.

Knows: how each kind of value is written, and the sentence for one that is not.
Does not know: which key it is for, or which layer wins.
"""

import os
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NoReturn, TypeVar

from moerun.planning.strategy import ExpertResidency, Limit, Pin, Tier, parse_limit
from moerun.settings.nodes import Entries, Items, Node, Text
from moerun.units import MIB, parse_bytes, parse_fraction

Choice = TypeVar("Choice", bound=StrEnum)
Value = TypeVar("Value")

AUTO: Final = "auto"
_LONGEST_TEXT: Final = 4096  # as long as a path may be
KV_ENCODINGS: Final = (
    # types llama.cpp has cache kernels for — common/arg.cpp, kv_cache_types @ 0.3.36
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1",
)  # fmt: skip
_SWITCHES: Final = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
_COUNT: Final = re.compile(r"\d{1,3}(?:_\d{3})+|\d+", re.ASCII)
_DEVICE: Final = re.compile(r"gpu\d+|cpu|ssd|gpu:\S+", re.ASCII)
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")


class BadValue(ValueError):
    """A value that cannot be understood; `origin` is where it stands."""

    def __init__(self, node: Node, why: str) -> None:
        super().__init__(why)
        self.origin = node.origin


def text_of(node: Node) -> str:
    """Return a scalar's text; BadValue for nothing, a list or a map."""
    if not isinstance(node, Text):
        _refuse(node, "a single value is wanted here, not a list or a map")
    if node.is_null or not node.text.strip():
        _refuse(node, "there is no value; remove the key or give it one")
    text = node.text.strip()
    if len(text) > _LONGEST_TEXT or len(text.splitlines()) > 1:
        _refuse(node, f"a value stands on one line, with at most {_LONGEST_TEXT:,} characters")
    return text


def auto_or(parse: Callable[[Node], Value]) -> Callable[[Node], Value | None]:
    """Return a parser that reads `auto` as None and anything else by `parse`."""

    def parse_or_auto(node: Node) -> Value | None:
        if isinstance(node, Text) and node.text.strip().lower() == AUTO:
            return None
        return parse(node)

    return parse_or_auto


def choice_of(kind: type[Choice]) -> Callable[[Node], Choice]:
    """Return a parser for a closed set of words."""

    def parse(node: Node) -> Choice:
        text = text_of(node).lower()
        try:
            return kind(text)
        except ValueError:
            words = ", ".join(member.value for member in kind)
            _refuse(node, f"'{text}' is none of {words}")

    return parse


def switch_of(node: Node) -> bool:
    """Read true or false, yes or no, on or off."""
    text = text_of(node).lower()
    if text not in _SWITCHES:
        _refuse(node, f"'{text}' is neither true nor false")
    return _SWITCHES[text]


def count_of(minimum: int, maximum: int) -> Callable[[Node], int]:
    """Return a parser for whole numbers within bounds."""

    def parse(node: Node) -> int:
        text = text_of(node)
        if not _COUNT.fullmatch(text) or len(text) > 15:
            _refuse(node, f"'{text}' is not a whole number")
        number = int(text)
        if not minimum <= number <= maximum:
            _refuse(node, f"{number:,} is not between {minimum:,} and {maximum:,}")
        return number

    return parse


def tokens_of(minimum: int, maximum: int) -> Callable[[Node], int]:
    """Return a parser for counts of tokens, where `8k` is 8,192."""
    count = count_of(minimum, maximum)

    def parse(node: Node) -> int:
        text = text_of(node)
        if text[-1] in "kK" and _COUNT.fullmatch(text[:-1]) and len(text) < 12:
            text = str(int(text[:-1]) * 1024)
        return count(Text(text=text, origin=node.origin))

    return parse


def size_of(node: Node) -> int:
    """Read `8G`, `512M`, `10GB`; a small number without a unit is taken for a slip."""
    text = text_of(node)
    try:
        size_bytes = parse_bytes(text)
    except ValueError as error:
        _refuse(node, str(error))
    _check_unit(node, text, size_bytes)
    return size_bytes


def limit_of(node: Node) -> Limit:
    """Read a size or a percentage of the total."""
    text = text_of(node)
    try:
        limit = parse_limit(text)
    except ValueError as error:
        if "%" in text:
            _refuse(node, str(error))
        _refuse(node, f"'{text}' is neither auto, nor a size such as 8G, nor a share such as 80%")
    if limit.limit_bytes is not None:
        _check_unit(node, text, limit.limit_bytes)
    return limit


def limits_of(node: Node) -> tuple[Limit, ...]:
    """Read one limit for all GPUs, or a list (also `8G,24G`) with one for each."""
    limits = tuple(limit_of(item) for item in _listed(node))
    if not limits:
        _refuse(node, "the list is empty; give one limit, or one for each GPU")
    return limits


def hierarchy_of(node: Node) -> tuple[Tier, ...]:
    """Read the tiers to use, in the order vram, ram, ssd."""
    tiers = tuple(choice_of(Tier)(item) for item in _listed(node))
    if not tiers:
        _refuse(node, "the list is empty; name at least one of vram, ram, ssd")
    if tiers != tuple(tier for tier in Tier if tier in tiers):
        _refuse(node, "tiers keep the order vram, ram, ssd, each at most once")
    return tiers


def residency_of(node: Node) -> ExpertResidency:
    """Read `{vram: 60%, ram: 40%}`, or a bare percentage meaning VRAM."""
    if not isinstance(node, Entries):
        return ExpertResidency(vram_fraction=_share_of(node))
    shares: dict[str, float] = {}
    for key, item in node.entries:
        if key.text not in (Tier.VRAM, Tier.RAM):
            _refuse(key, f"'{key.text}' is neither vram nor ram")
        shares[key.text] = _share_of(item)
    if not shares:
        _refuse(node, "the map is empty; give vram, ram or both a percentage")
    if sum(shares.values()) > 1 + 1e-9:
        _refuse(node, f"the shares add up to {sum(shares.values()) * 100:g}%, more than 100%")
    return ExpertResidency(vram_fraction=shares.get(Tier.VRAM), ram_fraction=shares.get(Tier.RAM))


def pins_of(node: Node) -> tuple[Pin, ...]:
    """Read a map of name patterns to devices, or a list of `PATTERN=DEVICE`."""
    if isinstance(node, Entries):
        return tuple(_pin(key.text, item, key) for key, item in node.entries)
    pins = []
    for item in _listed(node):
        pattern, separator, device = text_of(item).rpartition("=")
        if not separator:
            _refuse(item, f"'{text_of(item)}' is not PATTERN=DEVICE")
        pins.append(_pin(pattern, Text(text=device, origin=item.origin), item))
    return tuple(pins)


def encoding_of(node: Node) -> str:
    """Read a type of the KV cache."""
    text = text_of(node)
    if text.upper() not in KV_ENCODINGS:
        words = ", ".join(name.lower() for name in KV_ENCODINGS)
        _refuse(node, f"'{text}' is none of {words}")
    return text.upper()


def path_of(node: Node) -> str:
    """Read a path, with `~` for the home folder."""
    text = text_of(node)
    if "\0" in text:
        _refuse(node, "a path cannot hold the character NUL")
    return os.path.expanduser(text)


def workers_of(node: Node) -> tuple[str, ...]:
    """Read the addresses of workers, each HOST:PORT, or HOST:PORT=SIZE to use no more of it."""
    workers: dict[str, str] = {}
    for item in _listed(node):
        for worker in _listed(Text(text=text_of(item), origin=item.origin)):
            text = text_of(worker)
            endpoint, has_limit, size = (part.strip() for part in text.partition("="))
            match = _ADDRESS.fullmatch(endpoint)
            if match is None or not 0 < int(match["port"]) < 65536:
                _refuse(node, f"'{text}' is not an address such as 192.168.1.20:50052")
            if has_limit and not size_of(Text(text=size or "0", origin=worker.origin)):
                _refuse(node, f"'{text}' names no size; write {endpoint}=8G")
            if endpoint in workers:
                _refuse(node, f"'{endpoint}' stands twice")
            workers[endpoint] = f"{endpoint}={size}" if has_limit else endpoint
    return tuple(workers.values())


def _listed(node: Node) -> tuple[Node, ...]:
    """Return the items of a list, or of a text with commas."""
    if isinstance(node, Items):
        return node.items
    parts = text_of(node).split(",")
    return tuple(Text(text=part.strip(), origin=node.origin) for part in parts)


def _share_of(node: Node) -> float:
    text = text_of(node)
    try:
        return parse_fraction(text)
    except ValueError as error:
        _refuse(node, str(error))


def _pin(pattern: str, device: Node, place: Node) -> Pin:
    if not pattern.strip():
        _refuse(place, "a pin needs a pattern of tensor names, such as blk.3.ffn_*_exps.*")
    name = text_of(device)
    if not _DEVICE.fullmatch(name):
        _refuse(device, f"'{name}' is no device; write gpu0, gpu1, cpu, ssd or gpu:<id>")
    return Pin(pattern=pattern.strip(), device=name, origin=place.origin)


def _check_unit(node: Node, text: str, size_bytes: int) -> None:
    if 0 < size_bytes < MIB and text.strip()[-1].isdigit():
        _refuse(node, f"'{text}' means {size_bytes:,} bytes; write {text}G for gigabytes")


def _refuse(node: Node, why: str) -> NoReturn:
    raise BadValue(node, why)
