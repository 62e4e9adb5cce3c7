"""The ASGI application in front of FastAPI: finds the route, runs hot ones itself, ends every request in one log line.

Owns paths, methods and the last resort for defects; refuses to know what any route does.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import structlog

from edge.company_proxy import PREFIX
from edge.company_proxy.shape import PROXY
from edge.exchange import ClientGoneError, Exchange, Receive, Scope, Send
from edge.metrics import EdgeMetrics
from edge.shapes import ANTHROPIC, OPENAI, Shape
from services.runtime.errors import GatewayError, InvalidRequestError, NotFoundError, reason_name
from services.runtime.ids import new_id
from services.runtime.logging import EventLog, timestamp
from services.runtime.telemetry import TRACEPARENT, Tracing, parse_traceparent, set_traceparent

Route = Callable[[Exchange], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_log = structlog.get_logger()
_TRACEPARENT = TRACEPARENT.encode()
_DOCUMENTATION = frozenset({"/openapi.json", "/docs", "/docs/oauth2-redirect"})
_NO_PREFIXES: Mapping[str, Route] = MappingProxyType({})
CLIENT_GONE_STATUS = 499  # for the log and the metrics only: nobody receives it


class Front:
    """Routes are exact paths; `/a/` takes what follows it, slashes too, which then stands in the scope as `rest`.

    All that begins with one of `prefixes` belongs to its route, whatever the method.
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Route],
        documentation: App,
        log: EventLog,
        metrics: EdgeMetrics,
        tracing: Tracing,
        *,
        prefixes: Mapping[str, Route] = _NO_PREFIXES,
    ) -> None:
        self._routes = dict(routes)
        self._prefixes = dict(prefixes)
        self._methods: dict[str, list[str]] = {}
        for method, path in self._routes:
            self._methods.setdefault(path, []).append(method)
        self._open = [path for path in self._methods if path.endswith("/") and path != "/"]
        self._documentation = documentation
        self._log = log
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = plain_path(scope["path"])
        method = scope["method"]
        route = self._routes.get((method, path))
        if route is None:
            if path in _DOCUMENTATION:
                await self._documentation(scope, receive, send)
                return
            route, path = self._find(method, path, scope)
        exchange = Exchange(scope, receive, send, new_id(), time.perf_counter())
        exchange.route = path
        await self._run(exchange, route)

    def _find(self, method: str, path: str, scope: Scope) -> tuple[Route, str]:
        """A route with a rest, or the answer to a path or method that does not exist."""
        for start, owner in self._prefixes.items():
            if path.startswith(start):
                return owner, start
        prefix = next((known for known in self._open if path.startswith(known)), path)
        if path != prefix:
            scope["rest"], path = path[len(prefix) :], prefix
        route = self._routes.get((method, path))
        if route is not None:
            return route, path
        if path in self._methods:
            allowed = sorted(self._methods[path])
            return lambda exchange: _refuse_method(exchange, allowed), path
        return _refuse_path, "unknown"

    async def _run(self, exchange: Exchange, route: Route) -> None:
        set_traceparent(_callers_trace(exchange) or (None if self._tracing.is_on else _own_trace(exchange)))
        self._metrics.in_flight += 1
        try:
            if self._tracing.is_on:
                with self._tracing.span(
                    f"{exchange.scope['method']} {exchange.route}", **{"http.route": exchange.route}
                ):
                    await route(exchange)
            else:
                await route(exchange)
        except ClientGoneError:
            exchange.reason = "CLIENT_GONE"
        except asyncio.CancelledError:
            exchange.reason = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001  # the ASGI boundary: a defect must not end a stream in silence
            await self._answer_defect(exchange, error)
        finally:
            self._metrics.in_flight -= 1
            self._finish(exchange)

    async def _answer_defect(self, exchange: Exchange, error: Exception) -> None:
        _log.error("http.failed", request_id=exchange.call_id, route=exchange.route, exc_info=error)
        if exchange.is_complete or exchange.is_gone:
            return
        shape, failure = shape_for(exchange), GatewayError()
        exchange.reason = reason_name(failure)
        if exchange.has_started:
            await exchange.send_frames(shape.render_event(failure, exchange.call_id), is_last=True)
        else:
            reply = shape.render(failure, exchange.call_id)
            await exchange.respond(reply.status, reply.body, reply.headers)

    def _finish(self, exchange: Exchange) -> None:
        duration_s = time.perf_counter() - exchange.started
        status = exchange.status or CLIENT_GONE_STATUS
        self._metrics.observe(exchange.route, status, duration_s)
        line: dict[str, Any] = {
            "timestamp": timestamp(),
            "level": "info",
            "event": "http.finished",
            "method": exchange.scope["method"],
            "route": exchange.route,
            "status": status,
            "duration_ms": round(duration_s * 1000, 3),
            "request_id": exchange.call_id,
        }
        if exchange.account_id:
            line["account_id"] = exchange.account_id
        if exchange.profile:
            line["profile"] = exchange.profile
            line["input_tokens"] = exchange.input_tokens
            line["output_tokens"] = exchange.output_tokens
        if exchange.reason:
            line["reason"] = exchange.reason
        if exchange.is_stream:
            line["stream"] = True
        self._log.write(line, level=logging.INFO)


def _callers_trace(exchange: Exchange) -> str | None:
    sent = exchange.header(_TRACEPARENT)
    return parse_traceparent(sent.decode("latin-1")) if sent is not None else None


def _own_trace(exchange: Exchange) -> str:
    """A trace whose id is the call's, so that either finds the log lines of both."""
    digits = exchange.call_id.replace("-", "")
    return f"00-{digits}-{digits[16:]}-01"


def plain_path(path: str) -> str:
    """The path with repeated leading `/v1` made one: SDKs append theirs to a base URL that has it already."""
    while path.startswith(("/v1/v1/", "/v1/v2/")):
        path = path[3:]
    return path


def shape_for(exchange: Exchange) -> Shape:
    """The shape in which to word a failure that no route's own shape settles: by the path, else by the headers."""
    path = exchange.scope["path"]
    if path.startswith(PREFIX):
        return PROXY
    if "/messages" in path or "/complete" in path:
        is_anthropic = "/chat/" not in path
    else:
        is_anthropic = exchange.header(b"anthropic-version") is not None
    return ANTHROPIC if is_anthropic else OPENAI


async def _refuse_path(exchange: Exchange) -> None:
    reply = shape_for(exchange).render(NotFoundError("There is nothing at this path."), exchange.call_id)
    await exchange.respond(404, reply.body, reply.headers)


async def _refuse_method(exchange: Exchange, allowed: list[str]) -> None:
    words = f"Method {exchange.scope['method']} is not allowed here; use {' or '.join(allowed)}."
    reply = shape_for(exchange).render(InvalidRequestError(words), exchange.call_id)
    await exchange.respond(405, reply.body, [*reply.headers, (b"allow", ", ".join(allowed).encode())])
