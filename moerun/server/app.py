"""The server's routes, put together.

Knows: which path and method leads where, and the shape of what leads nowhere.
Does not know: what any endpoint does, or sockets.
"""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from moerun.server import ollama_shapes, openai_shapes, openapi
from moerun.server.backend import Backend
from moerun.server.blobs import BlobEndpoint
from moerun.server.endpoints import Endpoint, ErrorShape, Handler, write_json
from moerun.server.management import ManagementApi
from moerun.server.ollama_api import OllamaApi
from moerun.server.openai_api import OpenAiApi
from moerun.server.page import StatusApi, root
from moerun.server.refusals import Refusal


def make_app(backend: Backend, management: ManagementApi | None = None) -> Starlette:
    """Return the application; it ends every model when it stops."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await backend.scheduler.close()

    return Starlette(
        routes=[
            Route("/", root, methods=["GET"]),
            Route("/health", _health, methods=["GET"]),
            Route("/openapi.json", _openapi, methods=["GET"]),
            *_ollama_routes(backend, management or ManagementApi(backend)),
            *_openai_routes(backend),
        ],
        exception_handlers={HTTPException: _refuse},
        lifespan=lifespan,
    )


def _ollama_routes(backend: Backend, management: ManagementApi) -> list[BaseRoute]:
    api = OllamaApi(backend)
    blobs = Route("/api/blobs/{digest}", BlobEndpoint(management.store), methods=["HEAD", "POST"])
    rows: tuple[tuple[str, str, Callable[..., Awaitable[Any]]], ...] = (
        ("POST", "/api/generate", api.generate),
        ("POST", "/api/chat", api.chat),
        ("POST", "/api/embed", api.embed),
        ("POST", "/api/embeddings", api.embeddings),
        ("POST", "/api/show", api.show),
        ("GET", "/api/tags", api.tags),
        ("GET", "/api/ps", api.ps),
        ("GET", "/api/version", api.version),
        ("GET", "/api/moerun/status", StatusApi(backend).status),
        ("POST", "/api/pull", management.pull),
        ("POST", "/api/push", management.push),
        ("POST", "/api/create", management.create),
        ("POST", "/api/copy", management.copy),
        ("DELETE", "/api/delete", management.delete),
    )
    named = [_route(method, path, handler, ollama_shapes.SHAPE) for method, path, handler in rows]
    return [*named, blobs]


def _route(method: str, path: str, handler: Handler, shape: ErrorShape) -> Route:
    endpoint = Endpoint(handler, shape, reads_body=method != "GET")
    return Route(path, endpoint, methods=[method])


def _openai_routes(backend: Backend) -> list[BaseRoute]:
    api = OpenAiApi(backend)
    rows: tuple[tuple[str, str, Callable[..., Awaitable[Any]]], ...] = (
        ("POST", "/v1/chat/completions", api.chat),
        ("POST", "/v1/completions", api.completion),
        ("POST", "/v1/embeddings", api.embeddings),
        ("GET", "/v1/models", api.models),
        ("GET", "/v1/models/{name:path}", api.model),
    )
    return [_route(method, path, handler, openai_shapes.SHAPE) for method, path, handler in rows]


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi.document())


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer a path that is none, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return PlainTextResponse("404 page not found", status_code=404)
    refusal = Refusal(status=error.status_code, message=error.detail.lower())
    shape = openai_shapes.SHAPE if request.url.path.startswith("/v1") else ollama_shapes.SHAPE
    return Response(
        write_json(shape.body(refusal)),
        status_code=error.status_code,
        headers=error.headers,
        media_type="application/json",
    )
