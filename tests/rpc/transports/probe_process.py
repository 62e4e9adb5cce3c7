"""A process that serves ProbeService on a link, for tests that stop or kill it.

Owns printing its port; refuses everything else.
"""

import asyncio
import sys

from services.link.options import LinkOptions
from services.link.server import LinkListener
from tests.rpc.transports.probe_service import ProbeService, identify


async def main() -> None:
    """Serves until the process is killed."""
    service = ProbeService()
    listener = LinkListener(service.table, service.guard(), identify, options=LinkOptions())
    print(await listener.start("127.0.0.1:0"), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
    sys.exit(0)
