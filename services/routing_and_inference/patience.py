"""How long the first content of a stream is waited for, where the catalogue sets a limit.

Owns the limit of one attempt; refuses to choose who is tried next.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.ports import FailureKind, UpstreamFailure

Batches = AsyncGenerator[Sequence[GenerationEvent], None]


async def first_content_within(batches: Batches, limit_s: float) -> Batches:
    """The same batches. Raises UpstreamFailure if no content has come after `limit_s`; later waits are not limited."""
    deadline_s = asyncio.get_running_loop().time() + limit_s
    has_content = False
    try:
        while not has_content:
            async with asyncio.timeout_at(deadline_s):
                batch = await anext(batches, ())
            if not batch:
                return
            has_content = any(event.WhichOneof("kind") != "message_started" for event in batch)
            yield batch
        async for batch in batches:
            yield batch
    except TimeoutError:
        raise UpstreamFailure(FailureKind.TIMEOUT, retryable=True, accepted=True) from None
    finally:
        await batches.aclose()
