"""The company proxy's OpenAPI document and the page on which a request can be tried.

Owns both as bytes made at the start; refuses to serve the route that they describe.
"""

from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Header, Security
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.security import HTTPBearer

from edge.company_proxy import BASE
from edge.company_proxy.schema import ApplicationName, ErrorReply, MessageReply, MessagesRequest, ProblemsReply
from edge.documentation import LIMIT_HEADERS, SSE_EVENT
from edge.exchange import Exchange

_HTML = (b"content-type", b"text/html; charset=utf-8")
_FAILURES = {
    400: "An invalid combination of inputs, a model that is not offered, or a request that the upstream refuses.",
    401: "Not authenticated: the access token is missing, malformed, expired, or of another issuer or audience.",
    402: "The account that pays is out of credits.",
    403: "Not authorised: the access token has none of the roles that may call.",
    409: "The `Idempotency-Key` stands for another request, or for an answer that is not kept.",
    410: "A model or an endpoint that is discontinued.",
    413: "The body is too large.",
    429: "Rate limit exceeded; `Retry-After` says how long to wait.",
    500: "A defect of ours.",
    502: "Bad gateway: the upstream does not respond, or its answer cannot be read.",
    503: "The service is unavailable; retry with backoff.",
    504: "Gateway timeout: the upstream is too slow.",
}


class Page:
    """`assets_url` is where `swagger-ui.css` and `swagger-ui-bundle.js` are served from."""

    def __init__(self, assets_url: str) -> None:
        self._document = msgspec.json.encode(openapi_document())
        assets = assets_url.rstrip("/")
        page = get_swagger_ui_html(
            openapi_url=f"{BASE}/openapi.json",
            title="Company proxy",
            swagger_js_url=f"{assets}/swagger-ui-bundle.js",
            swagger_css_url=f"{assets}/swagger-ui.css",
            swagger_favicon_url="data:,",
            swagger_ui_parameters={"persistAuthorization": True, "tryItOutEnabled": True},
        )
        self._page = bytes(page.body)

    async def show(self, exchange: Exchange) -> None:
        """The interactive page."""
        await exchange.respond(200, self._page, [], kind=_HTML)

    async def document(self, exchange: Exchange) -> None:
        """The OpenAPI document."""
        await exchange.respond(200, self._document, [])


def openapi_document() -> dict[str, Any]:
    """The document, written by FastAPI from the models that check the requests."""
    app = FastAPI(
        title="Company proxy",
        version="1",
        description="Anthropic Messages for staff: models under their own names, paid by the company's account.",
        servers=[{"url": "/"}],
    )
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorReply, "description": text} for status, text in _FAILURES.items()
    }
    responses[422] = {"model": ProblemsReply, "description": "The request breaks the schema."}
    bearer = HTTPBearer(bearerFormat="JWT", description="An access token of the company's realm.")

    @app.post(
        f"{BASE}/v1/messages",
        summary="Create a message",
        tags=["Messages"],
        responses=responses,
        response_model=MessageReply,
        operation_id="create_message",
        dependencies=[Security(bearer)],
    )
    async def create_message(
        body: MessagesRequest, x_application_name: Annotated[ApplicationName | None, Header()] = None
    ) -> None:
        """Passes the request to the model's upstream. With `stream: true` the answer is Anthropic's event stream."""

    document = app.openapi()
    answers = document["paths"][f"{BASE}/v1/messages"]["post"]["responses"]
    answers["200"]["content"]["text/event-stream"] = {"schema": dict(SSE_EVENT)}
    for status in ("200", "429"):
        answers[status]["headers"] = dict(LIMIT_HEADERS)
    answers["429"]["headers"]["retry-after"] = {"schema": {"type": "integer", "minimum": 1}}
    return document
