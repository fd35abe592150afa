"""Telling people, at least once, of what was committed: a task per channel, each with its own place in the events.

The engine starts and stops it. It reads the store and never the bus: what a daemon did not get to tell, the next one
does. A channel that fails is tried a few times and then passed over, so that one dead webhook holds up nothing; status
says so until something arrives again.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from coreagent.dispatch import couriers, notice, rows
from coreagent.dispatch.couriers import Channel
from coreagent.dispatch.notice import Notice
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Dispatch, Event

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 5.0, 25.0)
"""Between the tries of one notice. A channel that failed has one try only, until something arrives again."""
AGE_MOST = timedelta(days=1)
"""What is older is of no use any more: nobody wants a hundred old words after a week's sleep."""
PAGE = 500
KEY = rows.NOTICES
"""Control of a channel: the number of the last event that was looked at."""


class Notifier:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tasks: list[asyncio.Task[None]] = []
        self._failing: set[Channel] = set()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._serve(name), name=f"notify {name}") for name in couriers.CHANNELS]

    async def stop(self) -> None:
        """What is on its way is told again by the next daemon."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, channel: Channel) -> None:
        engine = self._engine
        while True:
            turns = engine.turns
            try:
                if await self._look(channel):
                    continue
            except CoreAgentError as error:
                log.warning("notices by %s wait: %s", channel, error.message)  # the store; the next event tries again
            except Exception:
                log.exception("notices by %s failed", channel)
            await engine.changed(None, turns)

    async def _look(self, channel: Channel) -> bool:
        """Tell what is new; whether there is more."""
        engine, key = self._engine, KEY + channel
        if not couriers.wanted(engine.core.settings.notify, channel):
            engine.troubles.pop(key, None)
            if key in engine.controls:
                await engine.set_controls({key: None})
            return False
        if not isinstance(engine.controls.get(key), int) or engine.controls[key] > engine.seq:
            await engine.set_controls({key: engine.seq})  # new, or of another store: told from now on
        after = int(engine.controls[key])
        if after >= engine.seq:
            return False
        found = await engine.core.store.events(after, PAGE)
        for event in found:
            made = await self._notice(event)
            if made is not None:
                await self._deliver(channel, made)
                await engine.set_controls({key: event.seq})
        if found and engine.controls.get(key) != found[-1].seq:
            # Nothing of it was told: that is not worth a transaction, and telling it again costs a look.
            engine.controls[key] = found[-1].seq
        return len(found) == PAGE

    async def _notice(self, event: Event) -> Notice | None:
        settings, core = self._engine.core.settings.notify, self._engine.core
        if core.now() - event.at > AGE_MOST:
            return None
        made = notice.of_pool(event, settings)
        if event.name == "DispatchChanged" and event.data.get("Moved"):
            about = self._engine.board.get(event.dispatch_id) or await self._past(event.dispatch_id)
            made = notice.of_task(event, about, settings) if about is not None else None
        return made.model_copy(update={"home": core.home}) if made is not None else None

    async def _past(self, dispatch_id: str) -> Dispatch | None:
        """One whose workspace went before anybody could be told."""
        return next((d for d in await self._engine.core.store.history(1000) if d.id == dispatch_id), None)

    async def _deliver(self, channel: Channel, made: Notice) -> None:
        engine, key = self._engine, KEY + channel
        pauses = () if channel in self._failing else PAUSES_S
        for pause in (*pauses, None):
            core = engine.core
            sent = await couriers.send(channel, made, core.settings.notify, core.env, core.home)
            if not sent.problem:
                self._failing.discard(channel)
                engine.troubles.pop(key, None)
                return
            if pause is None or not sent.passing:
                break
            await asyncio.sleep(pause)
        self._failing.add(channel)
        engine.troubles[key] = f"notices by {channel} do not arrive: {sent.problem}"
        log.warning("notice %s (%s) was not delivered by %s: %s", made.id, made.event, channel, sent.problem)
