"""Who may ask: hosts, origins, tokens, sizes; and a seeded storm of bodies."""

import http.client
import json
import random

import httpx
import pytest

from moerun.errors import AddressInUse, UsageError
from moerun.server.bodies import parse_body
from moerun.server.durations import FOREVER_S, expiry, parse_keep_alive
from moerun.server.listening import (
    Address,
    open_socket,
    read_address,
    read_server_record,
    remove_server_record,
    url_of,
    write_server_record,
)
from moerun.server.management import fetch_from_public_hosts
from moerun.server.refusals import Refused
from moerun.server.security import Access, is_allowed_origin
from moerun.server.serving import read_server_settings
from tests.server.fakes import serving

SECRET = "a-token-of-some-length"


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def status_of(server, headers: dict[str, str], path: str = "/api/tags") -> int:
    return httpx.get(server.url + path, headers=headers).status_code


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:11434", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("192.168.0.7", 200),
        ("my.localhost", 200),
        ("evil.test", 403),
        ("evil.test:11434", 403),
        ("127.0.0.1.evil.test", 403),
        ("8.8.8.8", 403),
        ("[::1", 403),
    ],
)
def test_the_host_must_be_this_machine(server, host, status):
    assert status_of(server, {"Host": host}) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://127.0.0.1", 200),
        ("app://obsidian.md", 200),
        ("vscode-webview://abc", 200),
        ("https://evil.test", 403),
        ("http://localhost.evil.test", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_foreign_origins_are_refused(server, origin, status):
    reply = httpx.get(f"{server.url}/api/tags", headers={"Origin": origin})
    assert reply.status_code == status
    allowed = reply.headers.get("access-control-allow-origin")
    assert allowed == (origin if status == 200 else None)
    assert "access-control-allow-credentials" not in reply.headers


def test_a_simple_write_of_a_foreign_page_is_refused(server):
    reply = httpx.post(
        f"{server.url}/api/generate",
        content='{"model": "alpha"}',
        headers={"Origin": "https://evil.test", "Content-Type": "text/plain"},
    )
    assert (reply.status_code, "error" in reply.json()) == (403, True)


def test_a_preflight_is_answered_for_those_who_may_ask(server):
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{server.url}/v1/chat/completions", headers=headers).status_code == 204


def test_origins_may_be_added():
    assert is_allowed_origin("https://a.test", ("https://a.test",), host="")
    assert is_allowed_origin("https://b.test", ("*",), host="")
    assert not is_allowed_origin("https://b.test", ("https://a.test",), host="")


def test_a_token_is_asked_for_in_each_apis_shape():
    with serving(access=Access(api_key=SECRET)) as server:
        assert status_of(server, {}) == 401
        assert status_of(server, {"Authorization": f"Bearer {SECRET}"}) == 200
        assert status_of(server, {"Authorization": "Bearer wrong"}) == 401
        assert status_of(server, {"Authorization": SECRET}) == 401
        assert status_of(server, {}, "/") == 200
        refused = httpx.get(f"{server.url}/v1/models").json()["error"]
        assert refused["type"] == "authentication_error"
        for method, path in (
            ("HEAD", f"/api/blobs/sha256:{'0' * 64}"),
            ("POST", f"/api/blobs/sha256:{'0' * 64}"),
            ("DELETE", "/api/delete"),
            ("GET", "/api/moerun/status"),
            ("GET", "//"),
        ):
            assert httpx.request(method, server.url + path).status_code == 401
        page = {"Origin": "http://localhost:3000"}
        reply = httpx.get(f"{server.url}/api/tags", headers=page)
        assert reply.headers["access-control-allow-origin"] == page["Origin"]


def test_a_token_is_never_shown():
    assert SECRET not in repr(Access(api_key=SECRET))
    assert SECRET not in repr(read_server_settings({"MOERUN_API_KEY": SECRET}))


@pytest.mark.parametrize("name", ["127.0.0.1:1/a/b", "ollama://10.0.0.1/a/b:c", "evil.test/a/b"])
def test_a_server_that_others_reach_asks_no_host_of_their_choice(name):
    with (
        serving(fetch=fetch_from_public_hosts) as server,
        httpx.stream("POST", f"{server.url}/api/pull", json={"model": name}) as reply,
    ):
        assert "pulls from registry.ollama.ai and Hugging Face alone" in reply.read().decode()


def test_headers_are_bounded(server):
    headers = {f"X-{index}": "x" * 4000 for index in range(10)}
    assert status_of(server, headers) == 431


def test_a_body_is_refused_before_it_is_read(server):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.putrequest("POST", "/api/chat")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"[]",
        b"nope",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b"[" * 100_000,
        b'{"model": 1}',
        b'{"model": ""}',
        b'{"model": "alpha", "options": []}',
        b'{"model": "alpha", "prompt": "x", "options": {"num_ctx": 1e999}}',
        b'{"model": "alpha", "prompt": "x", "options": {"temperature": "warm"}}',
        b'{"model": "alpha", "prompt": "x", "keep_alive": "soon"}',
        b'{"model": "alpha", "prompt": "x", "format": 3}',
        b'{"model": "alpha", "prompt": "x", "think": "deeply"}',
        b'{"model": "alpha", "prompt": "x", "suffix": 1}',
        b'{"model": "\\u0000"}',
    ],
)
def test_a_bad_body_is_a_400_with_a_sentence(server, body):
    reply = httpx.post(f"{server.url}/api/generate", content=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]


def test_half_a_surrogate_pair_breaks_nothing(server):
    body = b'{"model": "alpha", "prompt": "say \\ud800x", "stream": false}'
    assert httpx.post(f"{server.url}/api/generate", content=body).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("HEAD", "/api/tags", 200),
        ("HEAD", "/api/version", 200),
        ("GET", "/api/chat", 405),
        ("GET", "/nothing", 404),
        ("GET", "/health", 200),
    ],
)
def test_methods_and_paths(server, method, path, status):
    assert httpx.request(method, server.url + path).status_code == status


def test_the_greeting_is_what_tools_look_for(server):
    assert httpx.get(server.url).text == "Ollama is running"


NAMES = (
    "model", "prompt", "messages", "role", "content", "stream", "options", "format", "keep_alive",
    "think", "tools", "type", "function", "name", "parameters", "arguments", "tool_calls", "input",
    "stop", "seed", "n", "temperature", "top_p", "logit_bias", "response_format", "json_schema",
    "schema", "tool_choice", "stream_options", "images", "suffix", "raw", "context", "num_ctx",
    "max_tokens", "logprobs", "top_logprobs", "dimensions", "encoding_format", "reasoning",
    "verbose",
)  # fmt: skip
SCALARS: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 1.5, 2**63, -(2**70), 1e308, "", "alpha", "alpha:latest", "gamma",
    "user", "text", "json", "json_object", "function", "\x00", "\ud83d\ude00", "../x", "a" * 300,
    "5m", "say hi", [], {}, "object", "required",
)  # fmt: skip
PATHS = (
    "/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/show",
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings",
)  # fmt: skip
CASES = 5_000


def random_value(chance: random.Random, depth: int) -> object:
    kind = chance.random()
    if depth > 3 or kind < 0.5:
        return chance.choice(SCALARS)
    if kind < 0.75:
        return [random_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return random_object(chance, depth + 1)


def random_object(chance: random.Random, depth: int) -> dict[str, object]:
    return {chance.choice(NAMES): random_value(chance, depth) for _ in range(chance.randrange(7))}


def random_body(chance: random.Random) -> bytes:
    body = random_object(chance, 0)
    if chance.random() < 0.8:
        body["model"] = "alpha"
    if chance.random() < 0.5:
        body["messages"] = [{"role": "user", "content": "say hi", **random_object(chance, 2)}]
    if chance.random() < 0.5:
        body["prompt"] = body["input"] = "say hi"
    text = json.dumps(body).encode()
    if chance.random() < 0.1:
        position = chance.randrange(len(text) + 1)
        text = text[:position] + bytes(chance.randrange(256) for _ in range(3)) + text[position:]
    return text


def test_no_body_meets_a_fault(server):
    seed, statuses = 5, set()
    chance = random.Random(seed)
    with httpx.Client() as client:
        for case in range(CASES):
            path, body = chance.choice(PATHS), random_body(chance)
            reply = client.post(server.url + path, content=body)
            statuses.add(reply.status_code)
            assert reply.status_code in (200, 400, 404), f"seed {seed}, case {case}: {body!r}"
            assert b"Traceback" not in reply.content
    assert statuses == {200, 400, 404}
    assert httpx.get(f"{server.url}/api/version").status_code == 200


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("100ms", 0.1),
        ("0", 0.0),
        (0, 0.0),
        (30, 30.0),
        ("-1", FOREVER_S),
        (-1, FOREVER_S),
        ("-1m", FOREVER_S),
        (1e300, FOREVER_S),
    ],
)
def test_keep_alive(text, seconds):
    assert parse_keep_alive(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5", "5x", "m", True, None, [], "1h 2m"])
def test_what_is_no_keep_alive(text):
    if text == "5":  # seconds
        assert parse_keep_alive(text) == 5.0
        return
    with pytest.raises(ValueError, match="keep_alive"):
        parse_keep_alive(text)


def test_forever_is_a_date_that_can_be_written():
    assert expiry(1_795_255_620.5, FOREVER_S).startswith("2126")
    assert expiry(0.0, 1.5) == "1970-01-01T00:00:01.500000Z"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("", "127.0.0.1", None),
        ("0.0.0.0", "0.0.0.0", None),
        (":8080", "127.0.0.1", 8080),
        ("http://[::1]:99", "::1", 99),
        ("localhost:5", "localhost", 5),
    ],
)
def test_addresses(text, host, port):
    address = read_address({"MOERUN_HOST": text})
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize("text", ["127.0.0.1:99999", "[::1", "a:b"])
def test_bad_addresses_are_told(text):
    with pytest.raises(UsageError, match="MOERUN_HOST"):
        read_address({"MOERUN_HOST": text})


@pytest.mark.parametrize(
    "variable", ["MOERUN_NUM_PARALLEL", "MOERUN_MAX_QUEUE", "MOERUN_KEEP_ALIVE"]
)
def test_bad_variables_are_told(variable):
    with pytest.raises(UsageError, match=variable):
        read_server_settings({variable: "many"})


def test_a_taken_port_is_told_with_a_way_out():
    with open_socket(Address(host="127.0.0.1", port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=str(port)) as caught:
            open_socket(Address(host="127.0.0.1", port=port))
        assert "MOERUN_HOST" in (caught.value.hint or "")


def test_clients_find_a_server_by_its_record(tmp_path):
    assert read_server_record(tmp_path) is None
    with open_socket(Address(host="127.0.0.1", port=0)) as listening:
        write_server_record(tmp_path, url_of(listening))
        record = read_server_record(tmp_path)
        assert record is not None
        assert record.url == url_of(listening)
    remove_server_record(tmp_path)
    assert read_server_record(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99}', '{"schema": 1, "pid": "x"}'])
def test_a_record_that_says_nothing_names_no_server(tmp_path, text):
    (tmp_path / "server.json").write_text(text)
    assert read_server_record(tmp_path) is None


def test_fields_say_what_they_should_be():
    fields = parse_body(b'{"options": {"num_ctx": 4096.0, "top_k": 1.5}}').child("options")
    assert fields.integer("num_ctx") == 4096
    with pytest.raises(Refused, match=r"options.top_k must be a whole number"):
        fields.integer("top_k")
