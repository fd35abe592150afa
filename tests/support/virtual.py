"""An event loop whose time is made up: it jumps to the next timer when nothing is ready and nothing is in flight.

A week passes in seconds. What a thread does for a coroutine is done on the spot; a store's writer has a thread of its
own, and the whole loop stands still until it has answered: no thread has a say in who goes on first.
"""

from __future__ import annotations

import asyncio
import queue
import selectors
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from coreagent.core import Core
from coreagent.models.dispatch import Event
from coreagent.store.change import Change
from coreagent.store.store import Store
from coreagent.store.writer import Batch

STUCK_S = 60.0
"""A write that takes longer is not coming."""


class _Selector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if timeout is None:
            raise AssertionError("nothing is ready and no timer is set: the end of time")
        self.loop.passed += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.passed = 0.0
        self.in_flight = 0
        """Writes that were asked for and have not been answered."""
        super().__init__(selector)

    def time(self) -> float:
        return self.passed

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class Clock:
    """What the machine's clock shows, and what time it is: two things once somebody has set it."""

    def __init__(self, loop: VirtualLoop, begin: datetime) -> None:
        self._loop, self._begin = loop, begin
        self._slept = self._wrong = timedelta()

    def true(self) -> datetime:
        return self._begin + timedelta(seconds=self._loop.passed) + self._slept

    def shown(self) -> datetime:
        return self.true() + self._wrong

    def sleep(self, length: timedelta) -> None:
        """The lid is closed: the world goes on, and no timer of this machine does."""
        self._slept += length

    def set_wrong(self, by: timedelta) -> None:
        self._wrong = by


class TalliedStore(Store):
    """A store that answers all that was asked for in one turn of the loop together, in that order, and in the next.

    It notes what was written with what.
    """

    loop: VirtualLoop
    heard: Callable[[tuple[Change, ...]], None] | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._asked: list[tuple[tuple[Change, ...], asyncio.Future[list[Event]]]] = []

    async def commit(self, *changes: Change) -> list[Event]:
        answer: asyncio.Future[list[Event]] = self.loop.create_future()
        if not self._asked:
            self.loop.call_soon(self._write)
        self._asked.append((changes, answer))
        self.loop.in_flight += 1
        return await answer

    def _write(self) -> None:
        asked, self._asked = self._asked, []
        written: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        for changes, _ in asked:
            self._submit(changes, written.put)
        for changes, answer in asked:
            batch = written.get(timeout=STUCK_S)
            self.loop.in_flight -= 1
            if self.heard is not None and batch.error is None:
                self.heard(changes)
            if answer.done():
                continue  # whoever asked was cancelled; it is written all the same
            if batch.error is None:
                answer.set_result(batch.numbered)
            else:
                answer.set_exception(batch.error)


class ClockCore(Core):
    """A core whose clock is set by hand, and whose ids come in their order."""

    clock: Clock
    made = 0

    def now(self) -> datetime:
        return self.clock.shown() if hasattr(self, "clock") else super().now()

    def new_id(self) -> str:
        ClockCore.made += 1
        return f"{ClockCore.made:026}"
