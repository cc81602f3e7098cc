"""The table of models in memory, and the client that asks for it."""

import pytest

from moerun.cli.app import main
from moerun.errors import ServeError
from moerun.report.ps_view import RunningModel, processor_text, ps_lines, size_text, until_text
from moerun.server.client import Client, find_client, require_ok
from moerun.server.listening import write_server_record
from tests.server.fakes import serving


@pytest.mark.parametrize(
    ("size_bytes", "vram_bytes", "text"),
    [
        (0, 0, "Unknown"),
        (10, 11, "Unknown"),
        (10, 0, "100% CPU"),
        (10, 10, "100% GPU"),
        (1000, 520, "48%/52% CPU/GPU"),
    ],
)
def test_processors(size_bytes, vram_bytes, text):
    assert processor_text(size_bytes, vram_bytes) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (18_600_000_000, "18 GB"),
        (4_700_000_000, "4.7 GB"),
        (637_000_000, "637 MB"),
        (2_000_000, "2 MB"),
        (12, "12 B"),
    ],
)
def test_sizes(size_bytes, text):
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("left_s", "text"),
    [
        (-1.0, "Stopping..."),
        (0.5, "Less than a second from now"),
        (1.0, "1 second from now"),
        (59.0, "59 seconds from now"),
        (61.0, "About a minute from now"),
        (299.0, "4 minutes from now"),
        (4000.0, "About an hour from now"),
        (90_000.0, "25 hours from now"),
        (300_000.0, "3 days from now"),
        (3e9, "Forever"),
    ],
)
def test_times(left_s, text):
    assert until_text(left_s) == text


def test_the_table_can_be_cut_into_words():
    model = RunningModel(
        name="a-rather-long-name-of-a-model-that-goes-on-and-on:latest",
        digest="0123456789abcdef",
        size_bytes=5_000_000_000,
        vram_bytes=0,
        context_tokens=4096,
        expires_at_s=1300.0,
        pid=1,
    )
    header, row = ps_lines([model], now_s=1000.0)
    assert header.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert row.split()[:2] == [model.name, "0123456789ab"]
    assert row.endswith("5 minutes from now")


def test_ps_and_stop_ask_the_server(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOERUN_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("MOERUN_HOST", raising=False)
    assert main(["ps"]) == 0
    assert capsys.readouterr().out.split() == [
        "NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL",
    ]  # fmt: skip
    with serving() as server:
        write_server_record(tmp_path, server.url)
        client = find_client(tmp_path, {})
        assert client is not None
        client.ask("POST", "/api/generate", {"model": "alpha", "keep_alive": -1})
        assert main(["ps"]) == 0
        row = capsys.readouterr().out.splitlines()[1]
        assert row == "alpha:latest    dddddddddddd    100 B    100% CPU     100        Forever"
        assert main(["stop", "alpha"]) == 0
        assert capsys.readouterr().out == ""
        assert not server.loader.alive
        assert main(["stop", "nope"]) == 3
        assert 'couldn\'t find model "nope" to stop' in capsys.readouterr().err


def test_a_server_that_is_gone_is_told_with_a_way_out():
    with serving() as server:
        client = Client(host=server.host, port=server.port, api_key="a secret")
    with pytest.raises(ServeError, match="does not answer") as caught:
        client.ask("GET", "/api/ps")
    assert "moerun serve" in (caught.value.hint or "")
    assert "secret" not in repr(client)
    with pytest.raises(ServeError, match="token"):
        require_ok(401, {"error": "the token is wrong"})
