"""The FastAPI application behind the hot routes: `/openapi.json` and `/docs`, written from the Structs that decode.

Owns the document; refuses to serve any API route.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from fastapi import FastAPI

from edge.anthropic import schema as anthropic
from edge.openai import document as openai_document
from edge.openai import schema as openai
from edge.routes.embeddings import EmbeddingsReply, EmbeddingsRequest
from edge.routes.models import Model, ModelList
from edge.routes.rerank import RerankReply, RerankRequest

_REF = "#/components/schemas/{name}"
LIMIT_HEADERS = {
    f"x-ratelimit-{what}-{unit}": {
        "schema": {"type": "string" if what == "reset" else "integer"},
        "description": {
            "limit": f"The account's {unit} per minute.",
            "remaining": f"How many {unit} may be used now.",
            "reset": "Time until the bucket is full again, such as `12ms` or `1m12.5s`.",
        }[what],
    }
    for unit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
}
_FAILURES = {
    400: "The body is invalid.",
    401: "The API key is missing, invalid or revoked.",
    402: "Out of credits: top up at /dashboard/credits.",
    413: "The body is over 32 MiB.",
    429: "A rate limit is reached; `Retry-After` says how long to wait.",
    500: "A defect of ours.",
    502: "The upstream provider broke off its answer.",
    503: "The service or the upstream provider is unavailable; retry with backoff.",
    504: "The upstream provider did not answer in time.",
}
_STRUCTS: dict[str, list[type[msgspec.Struct]]] = {
    "Anthropic": [
        anthropic.MessagesRequest,
        anthropic.CountTokensRequest,
        anthropic.MessageReply,
        anthropic.CountTokensReply,
        anthropic.ErrorReply,
    ],
    "OpenAI": [openai.ChatRequest, openai.ChatReply, openai.ErrorReply],
    "": [Model, ModelList, EmbeddingsRequest, EmbeddingsReply, RerankRequest, RerankReply],
}


_IDS = {
    name: {"schema": {"type": "string", "minLength": 1}, "description": text}
    for name, text in (
        ("request-id", "Our id of the call."),
        ("x-request-id", "The caller's own `x-request-id`, else ours."),
    )
}
_RETRY = {
    "retry-after": {
        "schema": {"type": "integer", "minimum": 1, "maximum": 60},
        "required": True,
        "description": "Seconds to wait.",
    },
    "retry-after-ms": {
        "schema": {"type": "integer", "minimum": 1, "maximum": 60_000},
        "required": True,
        "description": "Milliseconds to wait.",
    },
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "Makes a retry safe: the same key and body give the same answer, charged once.",
}


def documentation_app() -> FastAPI:
    """An application that serves the document and its pages, and 404 for everything else."""
    app = FastAPI(title="MWS API", version="1", openapi_url="/openapi.json", docs_url="/docs", redoc_url=None)
    document = openapi_document()

    def openapi() -> dict[str, Any]:
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to replace the document
    return app


def openapi_document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MWS API",
            "version": "1",
            "description": "One key, both shapes: Anthropic Messages and OpenAI Chat Completions.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "`mws_live_...`"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": _schemas(),
        },
    }


def _schemas() -> dict[str, Any]:
    """Components of both shapes; names that they share get the shape in front."""
    found: dict[str, Any] = {}
    for prefix, structs in _STRUCTS.items():
        _, components = msgspec.json.schema_components(
            structs, ref_template="#/components/schemas/" + prefix + "{name}"
        )
        found.update({prefix + name: schema for name, schema in components.items()})
    for schema in found.values():  # what the Structs do not name is kept or ignored, never refused
        schema.pop("additionalProperties", None)
    openai_document.refine(found)
    return found


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name)}}


def _failures(shape: str, *extra: int) -> dict[str, Any]:
    texts = {
        **_FAILURES,
        404: "There is no such model.",
        409: "The `Idempotency-Key` stands for another request, or for an answer that is not kept.",
        529: "Every upstream provider is overloaded.",
    }
    answers: dict[str, Any] = {}
    for status in sorted({*_FAILURES, *extra}):
        answers[str(status)] = {"description": texts[status], "content": _json(f"{shape}ErrorReply")}
    answers["429"]["headers"] = {
        **LIMIT_HEADERS,
        "retry-after": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds to wait."},
    }
    return answers


SSE_EVENT: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
"""Before OpenAPI 3.2 the schema of an event stream describes one event."""


def _operation(summary: str, tag: str, reply: str, failures: dict[str, Any]) -> dict[str, Any]:
    ok = {"description": "The answer.", "headers": dict(LIMIT_HEADERS), "content": _json(reply)}
    return {"summary": summary, "tags": [tag], "responses": {"200": ok, **failures}}


def _post(summary: str, shape: str, body: str, reply: str, *, streams: bool, charges: bool = True) -> dict[str, Any]:
    overloaded = (529,) if shape == "Anthropic" and streams else ()
    conflict = (409,) if charges else ()
    operation = _operation(summary, shape, reply, _failures(shape, *conflict, *overloaded))
    if charges:
        operation["parameters"] = [_IDEMPOTENCY_KEY]
    operation["requestBody"] = {"required": True, "content": _json(body)}
    if streams:
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": dict(SSE_EVENT)}
    return {"post": operation}


def _paths() -> dict[str, Any]:
    models = _operation("List the profiles", "Models", "ModelList", _failures("OpenAI"))
    models["parameters"] = [
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}},
        {"name": "after_id", "in": "query", "schema": {"type": "string"}},
        {"name": "before_id", "in": "query", "schema": {"type": "string"}},
        {
            "name": "lifecycle",
            "in": "query",
            "schema": {"type": "array", "items": {"type": "string", "enum": ["active", "deprecated", "retired"]}},
        },
    ]
    model = _operation("Get a profile by its slug or an alias", "Models", "Model", _failures("OpenAI", 404))
    model["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    return {
        "/v1/messages": _post(
            "Create a message", "Anthropic", "AnthropicMessagesRequest", "AnthropicMessageReply", streams=True
        ),
        "/v1/messages/count_tokens": _post(
            "Estimate the tokens of a prompt",
            "Anthropic",
            "AnthropicCountTokensRequest",
            "AnthropicCountTokensReply",
            streams=False,
            charges=False,
        ),
        "/v1/chat/completions": _post(
            "Create a chat completion", "OpenAI", "OpenAIChatRequest", "OpenAIChatReply", streams=True
        ),
        "/v1/embeddings": _post("Create embeddings", "OpenAI", "EmbeddingsRequest", "EmbeddingsReply", streams=False),
        **{
            path: _post("Rank documents", "OpenAI", "RerankRequest", "RerankReply", streams=False)
            for path in ("/v1/rerank", "/v2/rerank")
        },
        "/v1/models": {"get": models},
        "/v1/models/{id}": {"get": model},
    }
