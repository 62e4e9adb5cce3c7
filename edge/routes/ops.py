"""What operators and their probes ask: liveness, readiness, metrics, and a greeting at `/`.

Owns those few answers; refuses to look into any dependency for liveness.
"""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from edge.exchange import Exchange
from edge.front import Route
from services.runtime.process import Readiness

_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_GREETING = b'{"name":"MWS API","docs":"/docs","openapi":"/openapi.json"}'


def ops_routes(
    readiness: Readiness, is_stopping: Callable[[], bool], registry: CollectorRegistry
) -> dict[tuple[str, str], Route]:
    """The routes, by method and path."""

    async def greet(exchange: Exchange) -> None:
        await exchange.respond(200, _GREETING, [])

    async def healthz(exchange: Exchange) -> None:
        await exchange.respond(200, b"ok\n", [], kind=_TEXT)

    async def readyz(exchange: Exchange) -> None:
        missing = ["draining"] if is_stopping() else readiness.missing()
        if missing:
            await exchange.respond(503, "".join(f"not ready: {name}\n" for name in missing).encode(), [], kind=_TEXT)
        else:
            await exchange.respond(200, b"ready\n", [], kind=_TEXT)

    async def metrics(exchange: Exchange) -> None:
        await exchange.respond(
            200, generate_latest(registry), [], kind=(b"content-type", CONTENT_TYPE_LATEST.encode("latin-1"))
        )

    handlers = {"/": greet, "/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    return {(method, path): handler for path, handler in handlers.items() for method in ("GET", "HEAD")}
