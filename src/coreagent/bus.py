"""The bus: what was committed is told here, afterwards, to whoever listens in this process.

A slow listener never holds up the daemon: its queue is bounded, the oldest messages fall out, and it is told how many.
Nothing on the bus is needed for correctness; whoever must not miss a message reads the store by sequence number.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from coreagent.models.dispatch import Event

QUEUE_MAX = 4096


class Subscription:
    """An async iterator over messages published since it was made; `close` ends it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: deque[Event] = deque(maxlen=QUEUE_MAX)
        self._wake = asyncio.Event()
        self._closed = False
        self.missed = 0

    def offer(self, event: Event) -> None:
        if len(self._waiting) == QUEUE_MAX:
            self.missed += 1
        self._waiting.append(event)
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        self._closed = True
        self._bus.drop(self)
        self._wake.set()


class Bus:
    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def subscribe(self) -> Subscription:
        """Start to listen now; must be called on the daemon's loop."""
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    def drop(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def publish(self, *events: Event) -> None:
        for subscription in list(self._subscriptions):
            for event in events:
                subscription.offer(event)

    def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()
