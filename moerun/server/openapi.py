"""The OpenAPI document of this server, at `/openapi.json`: what each endpoint takes and gives.

Requests are told by the fields that have an effect; others are passed over, as the APIs that are
spoken here have it. Answers are told by their kinds: what is in them is documented by those APIs.

Knows: paths, fields and their kinds.
Does not know: how anything is read or answered; tests/server/test_openapi.py compares the two.
"""

from typing import Any, Final

from moerun import __version__

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_FLAG: Final[Schema] = {"type": "boolean"}
_WHOLE: Final[Schema] = {"type": "integer"}
_NUMBER: Final[Schema] = {"type": "number"}
_OBJECT: Final[Schema] = {"type": "object"}
_TEXTS: Final[Schema] = {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_KEEP_ALIVE: Final[Schema] = {"type": ["string", "number"], "description": "5m, 0, -1, seconds"}
_FORMAT: Final[Schema] = {
    "oneOf": [{"type": "string", "enum": ["json", ""]}, _OBJECT],
    "description": "json, or a JSON schema",
}
_THINK: Final[Schema] = {
    "oneOf": [_FLAG, {"type": "string", "enum": ["low", "medium", "high", "max"]}]
}
_FUNCTION: Final[Schema] = {
    "type": "object",
    "properties": {"name": _TEXT, "description": _TEXT, "parameters": _OBJECT},
    "required": ["name"],
}
_TOOLS: Final[Schema] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"type": {"type": "string", "enum": ["function"]}, "function": _FUNCTION},
        "required": ["function"],
    },
}
_LOGPROBS: Final[dict[str, Schema]] = {
    "logprobs": _FLAG,
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
}
_OPTIONS: Final[Schema] = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("num_predict", "num_keep", "seed"), _WHOLE),
        **{name: {"type": "integer", "minimum": 0} for name in ("num_ctx", "num_batch")},
        "temperature": {"type": "number", "minimum": 0, "maximum": 100},
        "top_k": {"type": "integer", "minimum": -1, "maximum": 1_000_000},
        **{
            name: {"type": "number", "minimum": 0, "maximum": 1}
            for name in ("top_p", "min_p", "typical_p")
        },
        "repeat_penalty": {"type": "number", "minimum": 0, "maximum": 100},
        "repeat_last_n": {"type": "integer", "minimum": -1},
        "presence_penalty": {"type": "number", "minimum": -100, "maximum": 100},
        "frequency_penalty": {"type": "number", "minimum": -100, "maximum": 100},
        "stop": _TEXTS,
    },
}
_COMMON: Final[dict[str, Schema]] = {
    "options": _OPTIONS,
    "keep_alive": _KEEP_ALIVE,
    "stream": {"type": "boolean", "default": True},
    "format": _FORMAT,
    "think": _THINK,
    "truncate": _FLAG,
    "shift": _FLAG,
    **_LOGPROBS,
}


def _messages(roles: tuple[str, ...]) -> Schema:
    message = {
        "type": "object",
        "properties": {"role": {"type": "string", "enum": list(roles)}, "content": _TEXT},
        "required": ["role", "content"],
    }
    return {"type": "array", "items": message}


_ROLES: Final = ("system", "user", "assistant", "tool")
_OPENAI_SAMPLING: Final[dict[str, Schema]] = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "seed": _WHOLE,
    "stop": _TEXTS,
    "stream": {"type": "boolean", "default": False},
    "stream_options": {"type": "object", "properties": {"include_usage": _FLAG}},
    "n": {"type": "integer", "enum": [1]},
    "max_tokens": {"type": "integer", "minimum": 1},
}
_RESPONSE_FORMAT: Final[Schema] = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
        "json_schema": {"type": "object", "properties": {"schema": _OBJECT}},
    },
}
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# Method, path, what it does, its fields (those with a star are required), what it gives.
_ROWS: Final[tuple[tuple[str, str, str, dict[str, Schema] | None, str], ...]] = (
    ("post", "/api/generate", "Answer a prompt, or go on with raw text; none of both loads.",
     {"model*": _TEXT, "prompt": _TEXT, "suffix": _TEXT, "system": _TEXT, "raw": _FLAG, **_COMMON},
     "ndjson"),
    ("post", "/api/chat", "Go on with a conversation; none loads the model.",
     {"model*": _TEXT, "messages": _messages(_ROLES), "tools": _TOOLS, **_COMMON}, "ndjson"),
    ("post", "/api/embed", "Turn texts into vectors of length one.",
     {"model*": _TEXT, "input": _TEXTS, "truncate": _FLAG, "options": _OPTIONS,
      "dimensions": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
      "keep_alive": _KEEP_ALIVE}, "json"),
    ("post", "/api/embeddings", "Turn one text into a vector, in the older form.",
     {"model*": _TEXT, "prompt": _TEXT, "options": _OPTIONS, "keep_alive": _KEEP_ALIVE}, "json"),
    ("get", "/api/tags", "List the models of this machine.", None, "json"),
    ("get", "/api/ps", "List the models in memory.", None, "json"),
    ("get", "/api/version", "Tell the version of the API, and moerun's.", None, "json"),
    ("get", "/api/moerun/status", "Tell where the models in memory lie, and what their experts do.",
     None, "json"),
    ("post", "/api/show", "Tell all that is known of a model.",
     {"model*": _TEXT, "verbose": _FLAG, "system": _TEXT}, "json"),
    ("post", "/api/pull", "Download a model.", {"model*": _TEXT, "stream": _FLAG}, "ndjson"),
    ("post", "/api/create", "Make a model of one that is here, or of files that were sent.",
     {"model*": _TEXT, "from": _TEXT, "template": _TEXT, "system": _TEXT, "license": _TEXTS,
      "files": {"type": "object", "additionalProperties": _TEXT}, "parameters": _OBJECT,
      "adapters": {"type": "object", "additionalProperties": _TEXT},
      "messages": _messages(_ROLES[:3]), "stream": _FLAG}, "ndjson"),
    ("post", "/api/copy", "Give a model a second name.",
     {"source*": _TEXT, "destination*": _TEXT}, "nothing"),
    ("delete", "/api/delete", "Remove a model.", {"model*": _TEXT}, "nothing"),
    ("post", "/v1/chat/completions", "Go on with a conversation.",
     {"model*": _TEXT, "messages*": _messages((*_ROLES, "developer")), "tools": _TOOLS,
      "tool_choice": {"oneOf": [{"type": "string", "enum": ["auto", "none", "required"]}, _OBJECT]},
      "response_format": _RESPONSE_FORMAT, "max_completion_tokens": {"type": "integer"},
      "reasoning_effort": {"type": "string", "enum": list(_EFFORTS)}, **_LOGPROBS,
      **_OPENAI_SAMPLING}, "sse"),
    ("post", "/v1/completions", "Go on with raw text.",
     {"model*": _TEXT, "prompt*": _TEXT, "suffix": _TEXT,
      "logprobs": {"type": "integer", "minimum": 0, "maximum": 20}, **_OPENAI_SAMPLING}, "sse"),
    ("post", "/v1/embeddings", "Turn texts into vectors.",
     {"model*": _TEXT, "input*": _TEXTS, "dimensions": {"type": "integer", "minimum": 1},
      "encoding_format": {"type": "string", "enum": ["float", "base64"]}}, "json"),
    ("get", "/v1/models", "List the models of this machine.", None, "json"),
)  # fmt: skip
_JSON_TYPE: Final = "application/json"
_CONTENT: Final[dict[str, tuple[str, ...]]] = {
    "json": (_JSON_TYPE,),
    "ndjson": (_JSON_TYPE, "application/x-ndjson"),
    "sse": (_JSON_TYPE, "text/event-stream"),
    "nothing": (),
}
_REFUSALS: Final = {
    "400": "The request cannot be meant; a sentence says why.",
    "401": "The bearer token is missing or wrong (only where one is asked for).",
    "403": "The host or the origin may not ask.",
    "404": "There is no such model.",
    "408": "The body did not come.",
    "413": "The body is too large.",
    "500": "The model could not be loaded, or its process ended.",
    "501": "moerun does not do that.",
    "502": "A host that was asked for a model does not answer.",
    "503": "Too many requests wait; Retry-After says when to come again.",
    "507": "The disk is full.",
}


def document() -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, fields, gives in _ROWS:
        operation: dict[str, Any] = {"summary": summary, "responses": _responses(path, gives)}
        if fields is not None:
            content = {_JSON_TYPE: {"schema": _body(fields)}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "moerun",
            "version": __version__,
            "description": "The APIs of Ollama and OpenAI, as far as moerun serves them.",
        },
        "paths": paths,
    }


def _body(fields: dict[str, Schema]) -> Schema:
    return {
        "type": "object",
        "properties": {name.removesuffix("*"): schema for name, schema in fields.items()},
        "required": [name.removesuffix("*") for name in fields if name.endswith("*")],
    }


def _responses(path: str, gives: str) -> dict[str, Any]:
    kinds: dict[str, Any] = {kind: {} for kind in _CONTENT[gives]}
    answers: dict[str, Any] = {"200": {"description": "The answer."}}
    if kinds:
        answers["200"]["content"] = kinds
    error: Schema = _OBJECT if path.startswith("/v1") else _TEXT
    schema = {"type": "object", "properties": {"error": error}, "required": ["error"]}
    for status, said in _REFUSALS.items():
        answers[status] = {"description": said, "content": {_JSON_TYPE: {"schema": schema}}}
    return answers
