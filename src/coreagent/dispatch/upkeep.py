"""What the daemon does by itself beside running tasks: letting old workspaces go, fetching, checkouts in advance.

The engine starts and stops it. Nothing here is needed for a task to run, and none of it may hold one up.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from coreagent.dispatch import cleanup
from coreagent.dispatch.sync import Sync
from coreagent.dispatch.warm import Warm

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

CLEAN_INTERVAL = timedelta(hours=1)
FIRST_CLEAN = timedelta(minutes=1)


class Upkeep:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cleaning: asyncio.Task[None] | None = None
        self.sync = Sync(engine)
        self.warm = Warm(engine)

    def start(self) -> None:
        self._cleaning = asyncio.create_task(self._clean(), name="clean")
        self.sync.start()
        self.warm.start()

    def stop(self) -> None:
        if self._cleaning is not None:
            self._cleaning.cancel()
        self.sync.stop()
        self.warm.stop()

    async def _clean(self) -> None:
        # Soon after the start too: a daemon need not live for an hour.
        wait = FIRST_CLEAN
        while True:
            await asyncio.sleep(wait.total_seconds())
            wait = CLEAN_INTERVAL
            try:
                await cleanup.clean_expired(self._engine)
            except Exception:
                log.exception("cleaning failed")
