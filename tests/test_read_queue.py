"""The order of reads: what is waited for goes first, and finds room."""

from moerun.experts.read_queue import Fetch, Read, ReadQueue


def a_read(*fetches: Fetch, offset_bytes: int = 0) -> Read:
    return Read(0, 0, offset_bytes, 4096, fetches)


def reads(count: int) -> tuple[list[Fetch], list[Read]]:
    fetches = [Fetch(1, 0.0) for _ in range(count)]
    return fetches, [a_read(fetch, offset_bytes=n) for n, fetch in enumerate(fetches)]


def test_what_is_waited_for_goes_before_what_came_earlier():
    queue = ReadQueue(most_ahead=3)
    _, (one, two, three) = reads(3)
    assert queue.put([one], is_ahead=True) == 1
    assert queue.put([two, three], is_ahead=False) == 2
    assert [queue.take() for _ in range(4)] == [(two, False), (three, False), (one, True), None]


def test_no_more_is_read_ahead_at_once_than_leaves_room():
    queue = ReadQueue(most_ahead=2)
    _, (one, two, three, four) = reads(4)
    queue.put([one, two, three], is_ahead=True)
    assert queue.take() == (one, True)
    assert queue.take() == (two, True)
    assert queue.take() is None
    queue.put([four], is_ahead=False)
    assert queue.take() == (four, False)
    queue.note_ahead_done()
    assert queue.take() == (three, True)
    assert queue.take() is None


def test_what_becomes_urgent_needs_no_room():
    queue = ReadQueue(most_ahead=1)
    fetches, (one, two, three) = reads(3)
    queue.put([one, two, three], is_ahead=True)
    assert queue.take() == (one, True)
    queue.hasten(fetches[2:])
    assert queue.take() == (three, False)
    assert queue.take() is None


def test_only_what_nothing_else_waits_for_is_given_up():
    queue = ReadQueue(most_ahead=9)
    (fetch, other), (one, two) = reads(2)
    both = a_read(fetch, other)
    queue.put([one, both, two], is_ahead=True)
    assert queue.give_up(fetch) == 1
    assert queue.give_up(fetch) == 0
    assert queue.give_up_all() == (both, two)
    assert queue.take() is None


def test_a_fetch_is_done_with_its_last_piece():
    fetch = Fetch(2, 1.0)
    done: list[bool] = []
    for failure, at_s in ((None, 2.0), (OSError("no"), 3.0)):
        fetch.note(failure, at_s)
        done.append(fetch.is_done)
    assert done == [False, True]
    assert fetch.done_s == 3.0
    fetch.settle()
    assert isinstance(fetch.failure, OSError)
