"""POST /v1/messages and /v1/messages/count_tokens: the Anthropic shape.

Owns which step each route takes; refuses to repeat what the pipeline does.
"""

from edge.anthropic.requests import read_count_tokens
from edge.exchange import Exchange
from edge.front import Route
from edge.pipeline import Pipeline
from edge.shapes import ANTHROPIC


def message_routes(pipeline: Pipeline) -> dict[tuple[str, str], Route]:
    """The routes, by method and path."""

    async def messages(exchange: Exchange) -> None:
        await pipeline.generate(exchange, ANTHROPIC)

    async def count_tokens(exchange: Exchange) -> None:
        async def work(digest: bytes) -> None:
            ask, _ = await pipeline.ask(exchange, digest, read_count_tokens)
            await pipeline.look_up(exchange, digest)
            count = await pipeline.inference.count_tokens(ask)
            await exchange.respond(200, b'{"input_tokens":%d}' % count, [])

        await pipeline.serve(exchange, ANTHROPIC, work)

    return {("POST", "/v1/messages"): messages, ("POST", "/v1/messages/count_tokens"): count_tokens}
