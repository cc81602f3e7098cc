"""The OpenAPI document and the server agree: requests made from it, good ones and bad ones."""

import json
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core import NotSet
from starlette.routing import Route

from moerun.server.app import make_app
from moerun.server.backend import Backend
from moerun.server.openapi import document
from moerun.server.scheduler import Scheduler
from moerun.store.own_store import OwnStore
from tests.server.fakes import FakeLoader, FakeServer, FakeShelf, serving

SEED, EXAMPLES = 20, 25
DOCUMENT = document()
OPERATIONS = [(path, method) for path, found in DOCUMENT["paths"].items() for method in found]
WAYS = [
    (path, method, mode)
    for path, method in OPERATIONS
    for mode in GenerationMode
    if "requestBody" in DOCUMENT["paths"][path][method] or mode is GenerationMode.POSITIVE
]
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[FakeServer]:
    store = OwnStore(tmp_path_factory.mktemp("store"))
    with serving(store=store, fetch=lambda name, watcher: None) as running:
        yield running


@pytest.mark.parametrize(("path", "method", "mode"), WAYS)
def test_what_the_document_says_holds(server, path, method, mode):
    operation = SCHEMA[path][method.upper()]

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), is_known=st.booleans())
    def check(case, is_known):
        if is_known and isinstance(case.body, dict) and "model" in case.body:
            case.body = {**case.body, "model": "alpha"}
        content = None if isinstance(case.body, NotSet) else dumped(case.body)
        reply = client.request(method, path, content=content)
        said = f"{method} {path} {content!r:.300} -> {reply.status_code} {reply.text:.300}"
        answers = DOCUMENT["paths"][path][method]["responses"]
        assert str(reply.status_code) in answers, said
        assert reply.status_code != 500, said
        seen.add(reply.status_code)
        if reply.status_code != 200:
            error = reply.json()["error"]
            assert isinstance(error, dict if path.startswith("/v1") else str), said
        elif kinds := answers["200"].get("content"):
            assert reply.headers["content-type"].partition(";")[0] in kinds, said
        else:
            assert reply.content == b"", said

    seen: set[int] = set()
    with httpx.Client(base_url=server.url) as client:
        check()
        assert client.get("/api/version").status_code == 200
    if mode is GenerationMode.POSITIVE and path not in ("/api/create", "/api/copy", "/api/delete"):
        assert 200 in seen, "no request came through to what it asks for"


def dumped(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def test_every_route_is_told_and_none_besides():
    backend = Backend(shelf=FakeShelf(), scheduler=Scheduler(FakeLoader()))
    routed = {
        (route.path, method.lower())
        for route in make_app(backend).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    elsewhere = {
        ("/", "get"),
        ("/health", "get"),
        ("/openapi.json", "get"),
        ("/api/push", "post"),  # which is refused
        ("/api/blobs/{digest}", "post"),  # bytes, tested in test_blobs.py
        ("/v1/models/{name:path}", "get"),
    }
    assert routed == set(OPERATIONS) | elsewhere


def test_the_document_is_served(server):
    assert httpx.get(f"{server.url}/openapi.json").json() == DOCUMENT
