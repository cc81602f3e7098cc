"""Each policy against a slow and plain one, and what each is for."""

from collections.abc import Callable, Collection, Iterable
from math import inf, log2
from random import Random

import pytest

from moerun.experts.interface import CachePolicy, ExpertKey
from moerun.experts.order import PolicyName
from moerun.experts.policy import (
    HALF_LIFE_PASSES,
    Belady,
    FadingFrequency,
    LeastRecentlyUsed,
    make_policy,
)

SEEDS = range(60)


class PlainPolicy:
    """Keeps all it is told and looks at everything each time."""

    def __init__(self) -> None:
        self.keys: set[ExpertKey] = set()

    def order(self, key: ExpertKey) -> object:
        raise NotImplementedError

    def note(self, key: ExpertKey) -> None:
        raise NotImplementedError

    def touch(self, key: ExpertKey) -> bool:
        self.note(key)
        return key in self.keys

    def insert(self, key: ExpertKey) -> None:
        self.keys.add(key)

    def victims(self, count: int, *, keep: Collection[ExpertKey]) -> list[ExpertKey]:
        return [key for key in self.held() if key not in keep][: max(0, count)]

    def remove(self, key: ExpertKey) -> None:
        self.keys.remove(key)

    def held(self) -> list[ExpertKey]:
        return sorted(self.keys, key=self.order)  # type: ignore[arg-type]


class PlainRecency(PlainPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.clock = 0
        self.last: dict[ExpertKey, int] = {}

    def note(self, key: ExpertKey) -> None:
        # one that is not held is about to be read, and counts as used when it is inserted
        if key in self.keys:
            self.stamp(key)

    def insert(self, key: ExpertKey) -> None:
        super().insert(key)
        self.stamp(key)

    def stamp(self, key: ExpertKey) -> None:
        self.clock += 1
        self.last[key] = self.clock

    def order(self, key: ExpertKey) -> object:
        return self.last[key]


class PlainFrequency(PlainPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.passes: dict[int, list[set[int]]] = {}
        self.stamps: dict[int, int] = {}
        self.places: list[int] = []
        self.last_layer: int | None = None
        self.clock = 0
        self.uses: dict[ExpertKey, float] = {}
        self.lent: dict[ExpertKey, float] = {}

    def now(self, layer: int) -> float:
        return len(self.passes[layer]) / HALF_LIFE_PASSES

    def note(self, key: ExpertKey) -> None:
        layer, expert = key
        self.know(layer)
        if layer != self.last_layer or expert in self.passes[layer][-1]:
            self.clock += 1
            self.stamps[layer] = self.clock
            self.passes[layer].append(set())
            self.last_layer = layer
        self.passes[layer][-1].add(expert)
        before = self.lent.pop(key, self.uses.get(key, -inf))
        self.uses[key] = self.now(layer) + log2(1 + 2 ** (before - self.now(layer)))

    def know(self, layer: int) -> None:
        if layer not in self.passes:
            self.passes[layer] = []
            self.places.append(layer)
            self.stamps[layer] = 0

    def insert(self, key: ExpertKey) -> None:
        self.know(key.layer)
        super().insert(key)
        if self.uses.get(key, -inf) < self.now(key.layer):
            self.lent[key] = self.uses.get(key, -inf)
            self.uses[key] = self.now(key.layer)

    def remove(self, key: ExpertKey) -> None:
        super().remove(key)
        if key in self.lent:
            self.uses[key] = self.lent.pop(key)

    def order(self, key: ExpertKey) -> object:
        layer = key.layer
        weight = self.uses[key] - self.now(layer)
        return (weight, -self.stamps[layer], self.places.index(layer), key.expert)


class PlainForesight(PlainPolicy):
    def __init__(self, uses: Iterable[ExpertKey]) -> None:
        super().__init__()
        self.uses = list(uses)
        self.position = 0

    def note(self, key: ExpertKey) -> None:
        assert self.uses[self.position] == key
        self.position += 1

    def order(self, key: ExpertKey) -> object:
        for position in range(self.position, len(self.uses)):
            if self.uses[position] == key:
                return (-position, key)
        return (-inf, key)


def random_requests(random: Random) -> list[list[ExpertKey]]:
    """Return passes over some layers, skewed, a layer missing now and then, and batches."""
    layers, experts = random.randint(1, 6), random.randint(2, 24)
    requests = []
    for _ in range(random.randint(5, 60)):
        for layer in range(layers):
            if random.random() < 0.1:
                continue
            count = random.randint(1, experts if random.random() < 0.1 else min(4, experts))
            chosen = {int(experts * random.random() ** 2) for _ in range(count)}
            requests.append([ExpertKey(layer * 2, expert) for expert in sorted(chosen)])
    return requests


def replay(
    policy: CachePolicy, plain: PlainPolicy, requests: list[list[ExpertKey]], random: Random
) -> None:
    """Drive both and compare every answer; what is foretold comes in without a use."""
    capacity = random.randint(1, 40)
    for number, keys in enumerate(requests):
        missing = []
        for key in keys:
            is_held = policy.touch(key)
            assert is_held == plain.touch(key)
            if not is_held:
                missing.append(key)
        if random.random() < 0.2:
            missing += [key for key in random.choice(requests) if key not in plain.keys]
            missing = list(dict.fromkeys(missing))
        for key in missing:
            policy.insert(key)
            plain.insert(key)
        asked = random.choice([0, len(policy) - capacity, len(policy)])
        named = list(policy.victims(asked, keep=keys))
        assert named == plain.victims(asked, keep=keys)
        for key in named[: max(0, len(policy) - capacity)]:
            policy.remove(key)
            plain.remove(key)
            assert key not in policy
        assert len(policy) == len(plain.keys)
        if number % 7 == 0:
            assert list(policy.held()) == plain.held()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("policy", "plain"),
    [(LeastRecentlyUsed, PlainRecency), (FadingFrequency, PlainFrequency)],
)
def test_a_quick_policy_names_what_a_plain_one_names(
    policy: Callable[[], CachePolicy], plain: Callable[[], PlainPolicy], seed: int
):
    random = Random(seed)
    replay(policy(), plain(), random_requests(random), random)


@pytest.mark.parametrize("seed", SEEDS)
def test_foresight_names_what_a_plain_one_names(seed: int):
    random = Random(seed)
    requests = random_requests(random)
    uses = [key for keys in requests for key in keys]
    replay(Belady(uses), PlainForesight(uses), requests, random)


def key(expert: int, layer: int = 0) -> ExpertKey:
    return ExpertKey(layer, expert)


def use(policy: CachePolicy, *keys: ExpertKey) -> None:
    for each in keys:
        if not policy.touch(each):
            policy.insert(each)


@pytest.mark.parametrize("name", PolicyName)
def test_a_policy_starts_empty_and_counts_what_it_holds(name: PolicyName):
    policy = make_policy(name)
    assert len(policy) == 0
    assert list(policy.victims(3, keep=())) == []
    use(policy, key(1), key(2))
    assert len(policy) == 2
    assert key(1) in policy
    policy.remove(key(1))
    assert key(1) not in policy
    assert list(policy.held()) == [key(2)]
    with pytest.raises(KeyError):
        policy.remove(key(1))


@pytest.mark.parametrize("name", PolicyName)
def test_naming_victims_changes_nothing(name: PolicyName):
    policy = make_policy(name)
    for step in range(20):
        use(policy, key(step % 7), key(step % 5 + 10))
    first = list(policy.victims(4, keep={key(3)}))
    assert first == list(policy.victims(4, keep={key(3)}))
    assert key(3) not in policy.victims(100, keep={key(3)})
    assert list(policy.held()) == list(policy.victims(100, keep=()))


def test_one_late_use_does_not_outweigh_many():
    recent, frequent = make_policy(PolicyName.LRU), make_policy(PolicyName.FREQUENCY)
    for policy in (recent, frequent):
        for _ in range(4):
            use(policy, key(1))
            use(policy, key(0, layer=1))
        use(policy, key(2))
    # expert 1 was used four times, expert 2 once and last
    assert recent.victims(1, keep={key(0, layer=1)}) == [key(1)]
    assert frequent.victims(1, keep={key(0, layer=1)}) == [key(2)]


def test_old_uses_fade():
    policy = make_policy(PolicyName.FREQUENCY)
    for _ in range(4):
        use(policy, key(1))
        use(policy, key(0, layer=1))
    for _ in range(3 * HALF_LIFE_PASSES):
        use(policy, key(3))
        use(policy, key(0, layer=1))
    use(policy, key(2))
    assert next(iter(policy.held())) == key(1)
    assert policy.victims(1, keep=()) == [key(1)]


def test_a_layer_still_to_come_has_not_passed_its_experts_over():
    policy = make_policy(PolicyName.FREQUENCY)
    for layer in range(3):
        use(policy, key(1, layer))
    use(policy, key(2, layer=0))
    # by time, expert 1 of layer 0 is as old as those of layers 1 and 2; those are due soon
    assert policy.victims(1, keep=()) == [key(1, layer=0)]


def test_of_equals_the_layer_leaves_whose_turn_comes_last():
    policy = make_policy(PolicyName.FREQUENCY)
    for layer in range(3):
        use(policy, key(1, layer))
    assert list(policy.held()) == [key(1, 2), key(1, 1), key(1, 0)]


def test_what_came_in_unused_leaves_after_what_was_passed_over():
    policy = make_policy(PolicyName.FREQUENCY)
    use(policy, key(1))
    use(policy, key(0, layer=1))
    use(policy, key(2))
    policy.insert(key(3))
    assert policy.victims(1, keep=()) == [key(1)]
    # having left unused it weighs nothing, and coming in again as much as before
    policy.remove(key(3))
    assert not policy.touch(key(4))
    policy.insert(key(4))
    policy.insert(key(3))
    assert list(policy.victims(2, keep=())) == [key(1), key(2)]
