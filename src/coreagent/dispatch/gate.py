"""The pause between two executions of a pool.

A claim keeps the pause too, but how long a workspace takes to prepare differs, so that agents claimed one after the
other may be ready at the same moment. Here each waits its turn; nothing is polled, and a stop ends the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING

from coreagent.dispatch import limits
from coreagent.models.dispatch import Attempt

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine


class Gate:
    def __init__(self) -> None:
        self._turns: dict[str, asyncio.Lock] = {}
        self._last: dict[str, datetime] = {}
        """Pool -> its newest execution."""
        self.waiting: dict[str, datetime | None] = {}
        """Attempt id -> when its agent may be executed; None: after those that came before it."""

    @contextlib.asynccontextmanager
    async def turn(self, engine: Engine, attempt: Attempt, stop: asyncio.Event) -> AsyncIterator[None]:
        """Come in when an agent of the attempt's pool may be executed, or at once when `stop` is set.

        Nobody else of the pool comes in before this one has left.
        """
        rate = engine.core.settings.rates.get(attempt.pool)
        if rate is None or not limits.pause(engine.core.now(), rate):
            yield
            return
        lock = self._turns.setdefault(attempt.pool, asyncio.Lock())
        self.waiting[attempt.id] = None
        try:
            held = await _acquire(lock, stop)
        finally:
            del self.waiting[attempt.id]
        if not held:
            yield
            return
        try:
            await self._pause(engine, attempt, stop)
            yield
        finally:
            lock.release()

    def executed(self, pool: str, at: datetime) -> None:
        """An agent was executed."""
        self._last[pool] = at

    async def _pause(self, engine: Engine, attempt: Attempt, stop: asyncio.Event) -> None:
        pool = attempt.pool
        try:
            while not stop.is_set():
                now, rate = engine.core.now(), engine.core.settings.rates.get(pool)
                last = self._newest(engine, pool, now)
                if rate is None or last is None or (until := limits.after_pause(now, rate, last)) <= now:
                    return
                self.waiting[attempt.id] = until
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), (until - now).total_seconds())
        finally:
            self.waiting.pop(attempt.id, None)

    def _newest(self, engine: Engine, pool: str, now: datetime) -> datetime | None:
        """The newest execution of a pool, also by an earlier daemon; never in the future."""
        if pool not in self._last:
            known = [a.started_at for a in engine.attempts.values() if a.pool == pool and a.started_at is not None]
            if not known:
                return None
            self._last[pool] = max(known)
        self._last[pool] = min(self._last[pool], now)
        return self._last[pool]


async def _acquire(lock: asyncio.Lock, stop: asyncio.Event) -> bool:
    """Take a lock; False when `stop` was set first."""
    taken, stopped = asyncio.ensure_future(lock.acquire()), asyncio.ensure_future(stop.wait())
    held = False
    try:
        await asyncio.wait({taken, stopped}, return_when=asyncio.FIRST_COMPLETED)
        held = taken.done()
    finally:
        stopped.cancel()
        if not held and not taken.cancel():
            lock.release()  # it was taken in the moment in which its taker was cancelled
    return held
