"""The channel whose calls travel on links.

Owns putting channel, balancing and identity together; refuses to resend a call.
"""

from collections.abc import Sequence

from services.link.balancing import Balancer, Resolver, resolver_of
from services.link.channel import CallChannel, TraceContext, no_trace
from services.link.connection import Identity
from services.link.options import LinkOptions


class LinkChannel(CallChannel):
    """Made in a running loop, for one service; it begins to connect at once.

    `endpoints` are the link ports of the service's processes, `host:port` or `dns:host:port`, or a function that
    names them.
    """

    def __init__(
        self,
        endpoints: Sequence[str] | Resolver,
        identity: Identity,
        *,
        options: LinkOptions | None = None,
        trace_context: TraceContext = no_trace,
    ) -> None:
        resolve = endpoints if callable(endpoints) else resolver_of(endpoints)
        self._balancer = Balancer(resolve, identity, options or LinkOptions())
        super().__init__(self._balancer.start, trace_context)

    @property
    def connected_endpoints(self) -> Sequence[str]:
        """The endpoints that new calls may go to now."""
        return self._balancer.endpoints

    async def wait_for_links(self, count: int = 1) -> None:
        """Returns once this many endpoints are connected. It has no deadline of its own."""
        await self._balancer.wait_for_links(count)

    async def close(self, grace: float | None = None) -> None:
        """Ends the links. Running calls get `grace` seconds, then they are cancelled with reason SHUTDOWN."""
        await self._balancer.close(grace or 0.0)
