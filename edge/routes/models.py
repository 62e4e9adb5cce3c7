"""GET /v1/models and /v1/models/{id}: one object per profile that satisfies the SDKs of both vendors.

Owns that object and its paging; refuses to know profiles of its own.
"""

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta, Struct
from mws.inference.v1 import catalog_service_pb2 as catalog_pb

from edge.exchange import Exchange
from edge.front import Route, shape_for
from edge.pipeline import Pipeline
from edge.problems import bad_value
from services.runtime.errors import NotFoundError

_encode = msgspec.json.Encoder().encode
_LIMIT_MAX = 1000


class Model(Struct):
    """A profile, as both vendors' SDKs read it."""

    id: str
    display_name: str
    max_input_tokens: int
    max_tokens: int
    object: str = "model"
    type: str = "model"
    created: int = 1767225600
    created_at: str = "2026-01-01T00:00:00Z"
    owned_by: str = "mws"
    lifecycle: str = "active"
    line: None = None
    capabilities: None = None
    deprecated_at: None = None
    retires_at: None = None
    shutdown_date: None = None


class ModelList(Struct):
    """A page of profiles."""

    data: list[Model]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"


class Page(Struct):
    """How Anthropic's SDKs ask for a page. Without a limit, everything fits one page."""

    limit: Annotated[int, Meta(ge=1, le=_LIMIT_MAX)] = _LIMIT_MAX
    after_id: str | None = None
    before_id: str | None = None
    lifecycle: list[str] = []


def model_of(profile: catalog_pb.Profile, name: str = "") -> Model:
    """The public object of a profile, under the name that was asked for."""
    return Model(
        id=name or profile.slug,
        display_name=profile.display_name or profile.slug,
        max_input_tokens=profile.context_tokens,
        max_tokens=profile.max_output_tokens,
    )


def page_of(models: Sequence[Model], page: Page) -> ModelList:
    """The part of the list that was asked for.

    A cursor whose model is gone is as good as none: a reader between two pages sees some models twice, not too few.
    """
    if page.lifecycle:
        models = [model for model in models if model.lifecycle in page.lifecycle]
    places = {model.id: at for at, model in enumerate(models)}
    start = places.get(page.after_id or "", -1) + 1
    end = places.get(page.before_id or "", len(models))
    chosen = list(models[start:end])
    has_more = len(chosen) > page.limit
    backwards = page.before_id in places and page.after_id is None
    chosen = chosen[-page.limit :] if backwards else chosen[: page.limit]
    return ModelList(chosen, has_more, chosen[0].id if chosen else None, chosen[-1].id if chosen else None)


def page_from(query: bytes) -> Page:
    """Reads the query string; what is not about paging is ignored."""
    given = parse_qs(query.decode("latin-1"))
    known: dict[str, Any] = {name: given[name][-1] for name in ("limit", "after_id", "before_id") if name in given}
    known["lifecycle"] = [*given.get("lifecycle", ()), *given.get("lifecycle[]", ())]
    try:
        return msgspec.convert(known, Page, strict=False)
    except msgspec.ValidationError:
        raise bad_value(("limit",), f"Input should be an integer from 1 to {_LIMIT_MAX}") from None


def model_routes(pipeline: Pipeline) -> dict[tuple[str, str], Route]:
    """The routes, by method and path."""

    async def answer(exchange: Exchange, name: str | None) -> None:
        async def work(digest: bytes) -> None:
            await pipeline.look_up(exchange, digest)
            if name is None:
                page = page_from(exchange.scope["query_string"])
                models = [model_of(profile) for profile in await pipeline.inference.profiles()]
                body = _encode(page_of(models, page))
            else:
                body = _encode(model_of(await _find(pipeline, name), name))
            await exchange.respond(200, body, [])

        await pipeline.serve(exchange, shape_for(exchange), work)

    async def list_models(exchange: Exchange) -> None:
        await answer(exchange, None)

    async def get_model(exchange: Exchange) -> None:
        await answer(exchange, exchange.scope.get("rest", ""))

    return {("GET", "/v1/models"): list_models, ("GET", "/v1/models/"): get_model}


async def _find(pipeline: Pipeline, name: str) -> catalog_pb.Profile:
    try:
        return await pipeline.inference.profile(name or "/")  # nothing is called nothing; the default is not meant
    except NotFoundError:
        raise NotFoundError(f"The model '{name[:100]}' does not exist.", metadata={"resource": "model"}) from None
