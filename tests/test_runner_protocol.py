import pytest

from moerun.engine.interface import GenerationRequest, Message, Sampling
from moerun.errors import (
    AddressInUse,
    ConfigError,
    DoesNotFit,
    EngineCrashed,
    EngineOutOfMemory,
    EngineRefused,
    MoerunError,
)
from moerun.runner import protocol
from moerun.runner.protocol import Failed, RunnerFault


def test_a_request_comes_back_as_it_was():
    request = protocol.Generate(
        request=GenerationRequest(
            messages=(Message(role="user", content='two\nlines "quoted" \ud800'),),
            sampling=Sampling(temperature=0, seed=4),
            stop=("###",),
        )
    )
    line = protocol.encode(3, request)
    assert line.count(b"\n") == 1
    assert protocol.decode_request(line) == (3, request)


def test_text_takes_the_short_way_to_the_same_value():
    event = protocol.Text(text="é\n")
    assert protocol.decode_event(protocol.encode(9, event)) == (9, event)
    with pytest.raises(ValueError, match="text"):
        protocol.decode_event(b'{"number":1,"type":"text","text":4}\n')


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\n", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]\n", "not an object"),
        (b'{"number":true,"type":"close"}\n', "not an integer"),
        (b'{"number":1}\n', "no type"),
        (b'{"number":1,"type":"dance"}\n', "dance"),
        (b'{"type":"close"}\n', "no number"),
        (b'{"number":1,"type":"cancel","target":"x"}\n', "target"),
    ],
)
def test_a_line_that_is_no_request_is_named(line, reason):
    with pytest.raises(ValueError, match=reason):
        protocol.decode_request(line)


@pytest.mark.parametrize(
    "error",
    [
        MoerunError("plain", hint="try"),
        EngineRefused("refused", log_tail="the\nend", hint="h"),
        EngineCrashed("died", log_tail="x"),
        EngineOutOfMemory("full", device="gpu:0", requested_bytes=5),
        ConfigError("bad", key="a.b", origin="file:3"),
        AddressInUse("taken"),
        DoesNotFit("too large"),
    ],
)
def test_an_error_is_rebuilt_with_all_its_fields(error):
    line = protocol.encode(1, protocol.failure_of(error))
    _, event = protocol.decode_event(line)
    assert isinstance(event, Failed)
    rebuilt = protocol.error_of(event)
    assert type(rebuilt) is type(error)
    assert vars(rebuilt) == vars(error)
    assert str(rebuilt) == str(error)


def test_a_fault_and_an_unknown_kind_are_bugs():
    assert isinstance(protocol.error_of(protocol.fault_of("Traceback ...")), RunnerFault)
    assert isinstance(protocol.error_of(Failed(kind="EXIT_BUG", message="m")), RunnerFault)
