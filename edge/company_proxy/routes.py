"""Everything below `/proxy/`: the messages route, its page, and this surface's own 404, 405 and 410.

Owns the order of a request's steps here and which failure wins; the pipeline relays, auth-and-limits decides who may.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping

from mws.common.v1.credential_pb2 import Credential
from mws.inference.v1 import forward_service_pb2 as forward_pb

from edge.ask import Ask
from edge.bodies import read_body
from edge.company_proxy import BASE
from edge.company_proxy.cors import Cors
from edge.company_proxy.documentation import Page
from edge.company_proxy.errors import DiscontinuedError, InvalidBodyError, detail
from edge.company_proxy.requests import Problem, read_application, read_messages
from edge.company_proxy.rules import ProxyRules
from edge.company_proxy.shape import PROXY
from edge.exchange import Exchange
from edge.gate import key_of
from edge.pipeline import LARGE_BODY_BYTES, Pipeline
from services.runtime.errors import InvalidCredentialError, InvalidRequestError, MessageTooLargeError

_IDEMPOTENCY_KEY_MAX = 255
_HEADER_MAX = 1024
_TOKEN_MAX = 16 << 10
Handler = Callable[[Exchange], Awaitable[None]]


class CompanyProxy:
    """The route of all paths below `/proxy/`."""

    def __init__(self, pipeline: Pipeline, rules: ProxyRules, page: Page) -> None:
        self._pipeline = pipeline
        self._rules = rules
        self._cors = Cors(rules.cors_origins)
        self._large_body = asyncio.Lock()
        self._routes: Mapping[str, Mapping[str, Handler]] = {
            f"{BASE}/v1/messages": {"POST": self._messages},
            f"{BASE}/docs": {"GET": page.show, "HEAD": page.show},
            f"{BASE}/openapi.json": {"GET": page.document, "HEAD": page.document},
        }

    async def __call__(self, exchange: Exchange) -> None:
        """Serves any request below `/proxy/`."""
        exchange.extra_headers = self._cors.headers(exchange)
        if self._cors.is_preflight(exchange):
            await self._cors.answer(exchange)
            return
        path = _plain_path(exchange.scope["path"])
        if self._rules.is_gone(path):
            await exchange.respond(410, detail("This endpoint is discontinued"), [])
            return
        handlers = self._routes.get(path)
        if handlers is None:
            await exchange.respond(404, detail("Not Found"), [])
            return
        exchange.route = path
        handler = handlers.get(exchange.scope["method"])
        if handler is None:
            allowed = ", ".join(sorted(handlers)).encode()
            await exchange.respond(405, detail("Method Not Allowed"), [(b"allow", allowed)])
            return
        await handler(exchange)

    async def _messages(self, exchange: Exchange) -> None:
        async def work(_digest: bytes) -> None:
            credential = _credential_of(exchange)
            request, ask = await self._read(exchange, credential)
            await self._pipeline.relay(exchange, PROXY, ask, self._pipeline.inference.forward(request))

        await self._pipeline.serve(exchange, PROXY, work)

    async def _read(self, exchange: Exchange, credential: Credential) -> tuple[forward_pb.ForwardRequest, Ask]:
        """The request. When it is refused, a bad token is worse news, and the limits are still told."""
        try:
            body = await read_body(exchange, self._pipeline.rules.body_limit_bytes)
            if len(body) > LARGE_BODY_BYTES:
                async with self._large_body:  # decoding does not yield: large bodies queue, others get a turn between
                    await asyncio.sleep(0)
            application, ask = _parse(exchange, body)
            request = forward_pb.ForwardRequest(
                call_id=exchange.call_id,
                credential=credential,
                model=ask.model,
                body_json=body,
                max_output_tokens=ask.generation.max_output_tokens,
                stream=ask.generation.stream,
                application=application,
                anthropic_version=_text(exchange, b"anthropic-version"),
                anthropic_beta=_text(exchange, b"anthropic-beta"),
            )
            request.idempotency_key, request.body_sha256 = _idempotency(exchange, body)
            self._rules.check_model(ask.model)
        except (InvalidRequestError, MessageTooLargeError, DiscontinuedError):
            await self._look_up(exchange, credential)
            raise
        return request, ask

    async def _look_up(self, exchange: Exchange, credential: Credential) -> None:
        """Notes who pays, and the limits for the answer's headers."""
        answer = await self._pipeline.admission.limits_of(credential)
        exchange.account_id = answer.account_id
        exchange.limits = answer.limits


def _credential_of(exchange: Exchange) -> Credential:
    token = key_of(exchange) or b""
    if len(token) > _TOKEN_MAX:
        raise InvalidCredentialError("no access token is that long")
    return Credential(staff_token=token.decode("latin-1"))


def _plain_path(path: str) -> str:
    """The path with a repeated `/v1` made one: SDKs append theirs to a base URL that may have it already."""
    while path.startswith(f"{BASE}/v1/v1/"):
        path = BASE + path[len(BASE) + 3 :]
    return path


def _parse(exchange: Exchange, body: bytes) -> tuple[str, Ask]:
    """The application's name and the body, read; what is wrong with either is told in one list."""
    problems: list[Problem] = []
    application = ""
    try:
        application = read_application(exchange.header(b"x-application-name"))
    except InvalidBodyError as error:
        problems += error.problems
    try:
        ask = read_messages(body)
    except InvalidBodyError as error:
        raise InvalidBodyError([*problems, *error.problems]) from None
    if problems:
        raise InvalidBodyError(problems)
    return application, ask


def _idempotency(exchange: Exchange, body: bytes) -> tuple[str, bytes]:
    key = exchange.header(b"idempotency-key")
    if not key:
        return "", b""
    if len(key) > _IDEMPOTENCY_KEY_MAX:
        raise InvalidRequestError(f"Idempotency-Key may have at most {_IDEMPOTENCY_KEY_MAX} characters")
    return key.decode("latin-1"), hashlib.sha256(body).digest()


def _text(exchange: Exchange, name: bytes) -> str:
    """A header that is passed on, if it is one that may be."""
    values = [value for key, value in exchange.request_headers if key == name]
    text = b",".join(values).decode("latin-1").strip()
    return text if len(text) <= _HEADER_MAX and text.isascii() and text.isprintable() else ""
