"""A policy with a bound in bytes: the books of a cache, without its memory.

Knows: what every request hits, misses and drives out.
Does not know: addresses, reads, or which policy it asks.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from moerun.experts.interface import CachePolicy, ExpertKey


class Request(NamedTuple):
    """What one layer's request comes to, in order: first the victims leave, then the rest enters.

    `entering` are the missing experts that there is room for, `passing` those that are used once
    and not held, since all of what is held is asked for as well.
    """

    hits: tuple[ExpertKey, ...]
    entering: tuple[ExpertKey, ...]
    passing: tuple[ExpertKey, ...]
    victims: tuple[ExpertKey, ...]

    @property
    def misses(self) -> tuple[ExpertKey, ...]:
        """The experts that have to be read."""
        return self.entering + self.passing


class CacheBook:
    """What is held within so many bytes, and what a request changes of it.

    The simulator replays traces through it; a mechanism that drives the same book decides the
    same.
    """

    def __init__(
        self, policy: CachePolicy, *, slot_bytes: Mapping[int, int], cache_bytes: int
    ) -> None:
        self._policy = policy
        self._slot_bytes = dict(slot_bytes)
        self._largest_slot_bytes = max(self._slot_bytes.values(), default=1)
        self._cache_bytes = cache_bytes
        self._held_bytes = 0

    @property
    def policy(self) -> CachePolicy:
        """The policy; who changes it other than by this book breaks the sums."""
        return self._policy

    @property
    def held_bytes(self) -> int:
        """Bytes of what is held."""
        return self._held_bytes

    @property
    def cache_bytes(self) -> int:
        """The bound."""
        return self._cache_bytes

    def request(self, layer: int, experts: Iterable[int]) -> Request:
        """Note that a layer needs these different experts now."""
        hits: list[ExpertKey] = []
        missing: list[ExpertKey] = []
        touch = self._policy.touch
        for expert in experts:
            key = ExpertKey(layer, expert)
            (hits if touch(key) else missing).append(key)
        if not missing:
            return Request(tuple(hits), (), (), ())
        slot_bytes = self._slot_bytes[layer]
        victims = self._make_room(len(missing) * slot_bytes, keep={*hits, *missing})
        room = (self._cache_bytes - self._held_bytes) // slot_bytes
        entering = tuple(missing[: max(0, room)])
        for key in entering:
            self._policy.insert(key)
        self._held_bytes += len(entering) * slot_bytes
        return Request(tuple(hits), entering, tuple(missing[len(entering) :]), victims)

    def foretell(
        self,
        layer: int,
        experts: Iterable[int],
        *,
        keep: Collection[ExpertKey] = frozenset(),
        may_drive_out: bool = True,
    ) -> Request:
        """Take in experts that may be needed soon; no use is noted.

        What is wanted least leaves for them, but nothing of `keep`;
        without `may_drive_out` nothing leaves at all. `hits` are held already, `passing` find no
        room.
        """
        hits: list[ExpertKey] = []
        missing: list[ExpertKey] = []
        for expert in experts:
            key = ExpertKey(layer, expert)
            (hits if key in self._policy else missing).append(key)
        slot_bytes = self._slot_bytes[layer]
        victims: tuple[ExpertKey, ...] = ()
        if may_drive_out and missing:
            victims = self._make_room(len(missing) * slot_bytes, keep={*keep, *hits, *missing})
        room = max(0, self._cache_bytes - self._held_bytes) // slot_bytes
        for key in missing[:room]:
            self._policy.insert(key)
            self._held_bytes += slot_bytes
        return Request(tuple(hits), tuple(missing[:room]), tuple(missing[room:]), victims)

    def resize(
        self, cache_bytes: int, *, keep: Collection[ExpertKey] = frozenset()
    ) -> tuple[ExpertKey, ...]:
        """Set the bound anew and return what has to leave; what is kept leaves at a later call."""
        self._cache_bytes = cache_bytes
        return self._make_room(0, keep=keep)

    def drop(self, key: ExpertKey) -> None:
        """Let an expert go that could not be read, or whose memory was taken."""
        self._policy.remove(key)
        self._held_bytes -= self._slot_bytes[key.layer]

    def _make_room(
        self, needed_bytes: int, *, keep: Collection[ExpertKey]
    ) -> tuple[ExpertKey, ...]:
        gone: list[ExpertKey] = []
        while (excess_bytes := self._held_bytes + needed_bytes - self._cache_bytes) > 0:
            # So many it takes at least, and more where the slots are small: then ask again.
            named = self._policy.victims(-(-excess_bytes // self._largest_slot_bytes), keep=keep)
            if not named:
                break
            for key in named:
                self.drop(key)
                gone.append(key)
        return tuple(gone)
