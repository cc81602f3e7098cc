"""How large the cache of experts may be now, from what memory is left around it.

A pool is what bounds memory: the machine, and each control group with a limit. Of each some is
kept in reserve. What counts is the slack: what would be left of a pool were the cache filled to
its budget, so that a promise that cannot be kept is withdrawn before it is called in, and a cache
that is still filling does not look like pressure. Slack below the reserve takes from the cache at
once all that is missing, and a fall is taken to go on until the next look. Growing back is slow,
in steps, and begins only above a band in which nothing changes: what leads to one change never
leads to its opposite.

Time that tasks wait for memory tells of pressure before numbers do, but other groups' pressure as
well: it takes from the cache only where slack is small, too.

Knows: readings of memory, and budgets.
Does not know: where readings come from, clocks, or what a cache is.
"""

from dataclasses import dataclass, replace
from typing import Final

from moerun.errors import PlanError
from moerun.units import GIB, MIB, format_gib

# The reserve of a pool: a small share of it, within bounds. A burst of allocation between two
# looks has to fit in it.
_RESERVE_PARTS: Final = 64
_LEAST_RESERVE_BYTES: Final = 24 * MIB
_MOST_RESERVE_BYTES: Final = 512 * MIB
# In reserves: what a shrunken cache leaves, above which it may grow, below which waiting counts.
_LEFT_AFTER_SHRINKING: Final = 2
_GROWS_ABOVE: Final = 3
_WAITING_COUNTS_BELOW: Final = 4
_LOOK_AHEAD_S: Final = 0.2
_MOST_AHEAD: Final = 4  # in reserves: what falls at once need not go on falling
_STEP_PARTS: Final = 16  # of the ceiling: one step of growing, or of giving way to waiting tasks
_STALL_FRACTION: Final = 0.1
_STALL_PAUSE_S: Final = 1.0
_GROW_PAUSE_S: Final = 2.0
_GROW_AFTER_SHRINKING_S: Final = 10.0
# How fast others might take what is left: the next look comes before that.
_CALM_BYTES_PER_S: Final = 2 * GIB
_FALLING_BYTES_PER_S: Final = 4 * GIB
_CALM_LOOKS_S: Final = (0.05, 0.5)
_FALLING_LOOKS_S: Final = (0.01, 0.1)
_FALLS_ABOVE_BYTES_PER_S: Final = 32 * MIB
_CRITICAL_PARTS: Final = 4  # of the reserve: with less than one part left, memory has run out
_RUN_OUT_AFTER_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One bound on memory at one time.

    `available_bytes` is what could still be taken, file cache given up. `swap_bytes` could take
    more after that. `stall_fraction` is the share of the time since the last look in which a task
    waited for memory, and `falling_bytes_per_s` how fast others take what is left.
    """

    name: str
    total_bytes: int
    available_bytes: int
    swap_bytes: int = 0
    stall_fraction: float = 0.0
    falling_bytes_per_s: float = 0.0

    @property
    def reserve_bytes(self) -> int:
        """What is to be left of it at all times."""
        share_bytes = self.total_bytes // _RESERVE_PARTS
        return min(max(share_bytes, _LEAST_RESERVE_BYTES), _MOST_RESERVE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was read at one time.

    `held_bytes` are those of the cache that no pool counts as available: 0 for experts in the page
    cache, which every pool counts as such.
    """

    at_s: float
    held_bytes: int
    pools: tuple[Pool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBounds:
    """Between what and what a budget moves; not at all unless it is adaptive."""

    floor_bytes: int
    ceiling_bytes: int
    is_adaptive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the cache may hold, and how that came about.

    `missing_bytes` is how much more the cache should give and cannot, being at its floor;
    `short_since_s` since when there was not even memory for the floor. `because` says in words
    why the budget is below its ceiling.
    """

    cache_bytes: int
    changed_at_s: float
    shrunk_at_s: float | None = None
    missing_bytes: int = 0
    short_since_s: float | None = None
    has_run_out: bool = False
    because: str | None = None


def first_budget(bounds: CacheBounds, look: Look) -> Budget:
    """Return the budget to begin with: the ceiling, or what the pools leave of it.

    Raises PlanError when the bounds contradict each other.
    """
    if not 0 <= bounds.floor_bytes <= bounds.ceiling_bytes:
        raise PlanError(
            f"the experts' cache has room for {format_gib(bounds.ceiling_bytes)} and needs "
            f"{format_gib(bounds.floor_bytes)} at least; give more with --ram, or pass "
            "--streaming off"
        )
    start = Budget(cache_bytes=bounds.ceiling_bytes, changed_at_s=look.at_s)
    return next_budget(start, bounds, look)


def next_budget(now: Budget, bounds: CacheBounds, look: Look) -> Budget:
    """Return the budget after one look; the same value when nothing changes.

    It is monotone in what any pool has available, and never leaves its bounds.
    """
    if not bounds.is_adaptive or not look.pools:
        return now
    wanted, pool = min(
        ((_wanted_bytes(now, bounds, look, pool), pool) for pool in look.pools),
        key=lambda found: found[0],
    )
    cache_bytes = min(max(wanted, bounds.floor_bytes), bounds.ceiling_bytes)
    short_since_s = _short_since_s(now, bounds, look)
    changed = replace(
        now,
        cache_bytes=cache_bytes,
        missing_bytes=max(0, cache_bytes - wanted),
        short_since_s=short_since_s,
        has_run_out=short_since_s is not None and look.at_s - short_since_s >= _RUN_OUT_AFTER_S,
    )
    if cache_bytes != now.cache_bytes:
        changed = replace(changed, changed_at_s=look.at_s)
    if cache_bytes < now.cache_bytes:
        changed = replace(changed, shrunk_at_s=look.at_s)
    return replace(changed, because=_because(now, changed, bounds, pool))


def next_look_s(now: Budget, look: Look) -> float:
    """Return how long nobody need look: not long where little is left, or something falls."""
    waits = []
    for pool in look.pools:
        falls = pool.falling_bytes_per_s > _FALLS_ABOVE_BYTES_PER_S
        least_s, most_s = _FALLING_LOOKS_S if falls else _CALM_LOOKS_S
        rate = _FALLING_BYTES_PER_S if falls else _CALM_BYTES_PER_S
        slack_bytes = _slack_bytes(now.cache_bytes, look, pool)
        waits.append(min(max(slack_bytes / rate, least_s), most_s))
    return min(waits, default=_CALM_LOOKS_S[1])


def after_a_gap(now: Budget, at_s: float) -> Budget:
    """Return the budget after a time in which nobody looked: its waiting begins anew."""
    shrunk_at_s = now.shrunk_at_s if now.shrunk_at_s is None else at_s
    return replace(
        now, changed_at_s=at_s, shrunk_at_s=shrunk_at_s, short_since_s=None, has_run_out=False
    )


def _wanted_bytes(now: Budget, bounds: CacheBounds, look: Look, pool: Pool) -> int:
    """Return the budget that one pool allows, whatever the bounds."""
    reserve_bytes = pool.reserve_bytes
    slack_bytes = _slack_bytes(now.cache_bytes, look, pool)
    falling_bytes = int(max(0.0, pool.falling_bytes_per_s) * _LOOK_AHEAD_S)
    ahead_bytes = slack_bytes - min(falling_bytes, _MOST_AHEAD * reserve_bytes)
    step_bytes = max(1, bounds.ceiling_bytes // _STEP_PARTS)
    left_bytes = _LEFT_AFTER_SHRINKING * reserve_bytes
    is_waiting = pool.stall_fraction >= _STALL_FRACTION
    grows_above_bytes = _GROWS_ABOVE * reserve_bytes
    if is_waiting:  # so far above that the step leads to no waiting that counts
        grows_above_bytes = _WAITING_COUNTS_BELOW * reserve_bytes + step_bytes
    wanted_bytes = now.cache_bytes
    if ahead_bytes < reserve_bytes:
        wanted_bytes -= left_bytes - ahead_bytes
    elif ahead_bytes > grows_above_bytes and _may_grow(now, look):
        wanted_bytes += min(step_bytes, ahead_bytes - left_bytes)
    gives_way = is_waiting and ahead_bytes < _WAITING_COUNTS_BELOW * reserve_bytes
    if gives_way and look.at_s - now.changed_at_s >= _STALL_PAUSE_S:
        wanted_bytes = min(wanted_bytes, now.cache_bytes - step_bytes)
    return wanted_bytes


def _slack_bytes(cache_bytes: int, look: Look, pool: Pool) -> int:
    """Return what would be left of a pool were the cache full."""
    return pool.available_bytes + look.held_bytes - cache_bytes


def _may_grow(now: Budget, look: Look) -> bool:
    if look.at_s - now.changed_at_s < _GROW_PAUSE_S:
        return False
    return now.shrunk_at_s is None or look.at_s - now.shrunk_at_s >= _GROW_AFTER_SHRINKING_S


def _short_since_s(now: Budget, bounds: CacheBounds, look: Look) -> float | None:
    """Return since when some pool, its swap included, had no memory even for the floor."""
    is_short = any(
        _slack_bytes(bounds.floor_bytes, look, pool) + pool.swap_bytes
        < pool.reserve_bytes // _CRITICAL_PARTS
        for pool in look.pools
    )
    if not is_short:
        return None
    return look.at_s if now.short_since_s is None else now.short_since_s


def _because(now: Budget, changed: Budget, bounds: CacheBounds, pool: Pool) -> str | None:
    """Return why the budget is what it is; None at the ceiling."""
    if changed.missing_bytes:
        return (
            f"{pool.name} is short of memory by {format_gib(changed.missing_bytes)} more than the "
            f"experts' cache can give: it is at its least, {format_gib(bounds.floor_bytes)}"
        )
    if changed.cache_bytes == bounds.ceiling_bytes:
        return None
    share = f"{changed.cache_bytes / bounds.ceiling_bytes:.0%}"
    now_of = f"{share} of the {format_gib(bounds.ceiling_bytes)} planned for it"
    if changed.cache_bytes < now.cache_bytes:
        return (
            f"{pool.name} has only {format_gib(pool.available_bytes)} of memory left: the experts' "
            f"cache gave way to {now_of}"
        )
    if changed.cache_bytes > now.cache_bytes:
        return f"the experts' cache grows again: {now_of}"
    if now.missing_bytes:
        return f"the experts' cache is at its least: {now_of}"
    return now.because
