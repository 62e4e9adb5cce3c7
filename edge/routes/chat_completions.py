"""POST /v1/chat/completions: the OpenAI shape.

Owns the path only; refuses to repeat what the pipeline does.
"""

from edge.exchange import Exchange
from edge.front import Route
from edge.pipeline import Pipeline
from edge.shapes import OPENAI


def chat_routes(pipeline: Pipeline) -> dict[tuple[str, str], Route]:
    """The routes, by method and path."""

    async def chat_completions(exchange: Exchange) -> None:
        await pipeline.generate(exchange, OPENAI)

    return {("POST", "/v1/chat/completions"): chat_completions}
