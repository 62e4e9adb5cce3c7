"""The way to Redis: a connection to the primary, kept up; and a breaker, so that nobody waits for one that is away.

Owns connecting, Redis's time and the one attempt that a decision has; refuses to know what the scripts decide.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import hiredis
import structlog

from services.auth_and_limits.adapters.redis_scripts import Code, Script
from services.auth_and_limits.adapters.redis_url import RedisNodes
from services.auth_and_limits.adapters.redis_wire import Argument, Wire, ask, away, connect, pack
from services.runtime.errors import StoreUnavailableError

_PAUSE_S = 0.1
_PROBE_S = 1.0
_ROLE_CHANGED = ("READONLY", "MASTERDOWN", "LOADING", "NOSCRIPT", "NOAUTH")
Asked = tuple[Argument, ...]
"""A script's name, its key, and its arguments."""

_LATE = int(Code.LATE)  # members of an enum cost a look-up each time they are named
_log = structlog.get_logger()


def monotonic_us() -> int:
    """The local clock. What it shows does not matter, only how far it goes on."""
    return time.monotonic_ns() // 1000


class RedisLink:
    """Runs scripts on whichever node is the primary. `on_up` hears of the server's run before anybody else may ask."""

    def __init__(
        self,
        nodes: RedisNodes,
        scripts: Mapping[str, Script],
        *,
        patience_s: float = 0.25,
        now_us: Callable[[], int] = monotonic_us,
    ) -> None:
        self._nodes = nodes
        self._scripts = scripts
        self._sha1_of: Mapping[Argument, bytes] = {name: script.sha1 for name, script in scripts.items()}
        self._patience_s = patience_s
        self._patience_us = int(patience_s * 1_000_000)
        self._now_us = now_us
        self._ahead_us = 0  # of the local clock, as of the latest answer
        self._wire: Wire | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self.on_up: Callable[[str], Awaitable[None]] | None = None

    async def open(self) -> None:
        """Begins to connect; returns after the first try, however it went."""
        # Its own task: the connection outlives whoever opened it. `close` ends it.
        self._keeper = asyncio.get_running_loop().create_task(self._keep_up(), name="redis")
        await self._tried.wait()

    async def close(self) -> None:
        """Ends the connection."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    @property
    def is_up(self) -> bool:
        """Whether Redis answers."""
        return self._wire is not None and self._wire.is_open

    def redis_us(self) -> int:
        """Redis's time, as far as this process can tell: a little behind, never ahead."""
        return self._now_us() + self._ahead_us

    def send(self, *command: Argument) -> "asyncio.Future[Any]":
        """Sends a plain command. Raises StoreUnavailableError at once while Redis is away."""
        wire = self._wire
        if wire is None:
            raise away()
        return wire.send(pack(command))

    def start(self, name: Argument, key: Argument, *arguments: Argument) -> "asyncio.Future[Any]":
        """Sends a script that does nothing once its caller has stopped waiting."""
        wire = self._wire
        if wire is None:
            raise away()
        not_after_us = self._now_us() + self._ahead_us + self._patience_us
        return wire.send(pack(("EVALSHA", self._sha1_of[name], 1, key, not_after_us, *arguments)))

    async def ask(self, *command: Argument) -> Any:
        """The answer to a plain command. Raises StoreUnavailableError."""
        answer = await self.send(*command)
        if isinstance(answer, hiredis.ReplyError):
            self._checked(answer)
        return answer

    async def run(self, name: str, key: Argument, *arguments: Argument) -> list[Any]:
        """A script's answer: its code, Redis's time, and what it says. Raises StoreUnavailableError."""
        began_us = self._now_us()
        answer = self._checked(await self.start(name, key, *arguments))
        return answer if answer[0] != _LATE else await self._again(began_us, (name, key, *arguments))

    async def run_all(self, asked: Sequence[Asked]) -> list[list[Any]]:
        """The answers of scripts that are sent together. Any failure fails them all, whatever was done."""
        began_us = self._now_us()
        running = [self.start(*one) for one in asked]
        answers = [self._checked(await answer) for answer in running]
        return [
            answer if answer[0] != _LATE else await self._again(began_us, one)
            for answer, one in zip(answers, asked, strict=True)
        ]

    async def _again(self, began_us: int, one: Asked) -> list[Any]:
        """Once more what was refused as too late. If that was said in time, it was the clock that had been set.

        Nothing was done, and Redis's time is known by now.
        """
        if self._now_us() - began_us >= self._patience_us:
            raise away()
        answer = self._checked(await self.start(*one))
        if answer[0] == _LATE:
            raise away()
        return answer

    def _checked(self, answer: Any) -> list[Any]:
        if type(answer) is list:
            self._ahead_us = answer[1] - self._now_us()
            return answer
        kind = str(answer).partition(" ")[0]
        _log.warning("redis.refused", kind=kind)
        if kind in _ROLE_CHANGED and self._wire is not None:
            self._wire.abort()
        raise away() from (answer if isinstance(answer, hiredis.ReplyError) else None)

    async def _keep_up(self) -> None:
        """Connects, watches, connects again."""
        was_up = True
        try:
            while True:
                wire = await self._primary()
                if wire is None:
                    if was_up:
                        _log.warning("redis.away", nodes=len(self._nodes.nodes))
                    was_up = False
                else:
                    was_up = True
                    _log.info("redis.up")
                    self._tried.set()
                    await self._watch(wire)
                self._tried.set()
                await asyncio.sleep(_PAUSE_S)
        finally:
            self._tried.set()
            if self._wire is not None:
                self._wire.abort()
                self._wire = None

    async def _watch(self, wire: Wire) -> None:
        """Returns when the connection is lost, or Redis does not answer, or is the primary no more."""
        try:
            while wire.is_open:
                await asyncio.wait([wire.closed], timeout=_PROBE_S)
                if wire.is_open:
                    (role,) = await ask(wire, [("ROLE",)])
                    if role[0] != b"master":
                        return
        except StoreUnavailableError:
            return
        finally:
            self._wire = None
            wire.abort()

    async def _primary(self) -> Wire | None:
        for node in self._nodes.nodes:
            try:
                wire = await connect(node, self._nodes, self._patience_s)
            except (OSError, TimeoutError, StoreUnavailableError):
                continue
            try:
                if await self._greet(wire):
                    return wire
            except StoreUnavailableError:
                pass
            except BaseException:
                wire.abort()
                raise
            self._wire = None
            wire.abort()
        return None

    async def _greet(self, wire: Wire) -> bool:
        """Whether it is a primary; if so it knows the scripts, and its run and time are known here."""
        (role,) = await ask(wire, [("ROLE",)])
        if role[0] != b"master":
            return False
        loads = [("SCRIPT", "LOAD", script.text) for script in self._scripts.values()]
        info, clock, *_ = await ask(wire, [("INFO", "server"), ("TIME",), *loads])
        self._ahead_us = int(clock[0]) * 1_000_000 + int(clock[1]) - self._now_us()
        run_id = next(line[7:] for line in bytes(info).decode().splitlines() if line.startswith("run_id:"))
        self._wire = wire
        if self.on_up is not None:
            await self.on_up(run_id)
        return wire.is_open
