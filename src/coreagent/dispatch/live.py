"""A live attempt: the daemon's end of one shim. Reads the agent's output as it grows and knows what it amounts to.

Nothing here is the truth: after a restart the output file is read again from its start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from coreagent import attempts
from coreagent.dispatch.vigil import Limits, Vigil
from coreagent.errors import CoreAgentError
from coreagent.models.agent import AgentEvent, EventKind, Outcome
from coreagent.models.dispatch import Attempt, Event
from coreagent.plainfile import open_plain
from coreagent.runners.base import Parser

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

CHUNK = 1 << 20
LINE_MAX = 32 << 20
NEWEST = 64
STDERR_TAIL = 16 << 10
PROGRESS_INTERVAL_S = 0.1
STARTING_MOST_S = 10.0
"""An agent that says nothing for so long after its start does not hold up the next one."""


class OutputReader:
    """Feeds whole lines of an `out` file to a parser, from where it stopped."""

    def __init__(self, path: Path, parser: Parser) -> None:
        self._path = path
        self._parser = parser
        self._offset = 0
        self._rest = b""
        # A cancelled task leaves its read going on in its thread: the next one must not parse the same lines again.
        self._one_at_a_time = threading.Lock()

    def read(self, *, final: bool = False) -> list[AgentEvent]:
        """Parse what has come since the last call, with `final` also an unfinished last line; the newest events.

        Blocking. Only the newest, because a flood of a million lines is a gigabyte of events that nobody reads.
        """
        with self._one_at_a_time:
            return self._read(final)

    def _read(self, final: bool) -> list[AgentEvent]:
        events: deque[AgentEvent] = deque(maxlen=NEWEST)
        try:
            with open_plain(self._path) as file:
                file.seek(self._offset)
                while chunk := file.read(CHUNK):
                    self._offset += len(chunk)
                    *lines, self._rest = (self._rest + chunk).split(b"\n") if b"\n" in chunk else [self._rest + chunk]
                    if len(self._rest) > LINE_MAX:
                        lines, self._rest = [*lines, self._rest], b""
                    for line in lines:
                        events += self._parser.feed(line)
        except OSError:
            return list(events)  # not there, or no file: an agent can replace it
        if final and self._rest:
            events += self._parser.feed(self._rest)
            self._rest = b""
        return list(events)


class LiveAttempt:
    """One attempt that this daemon follows, from its claim until it is settled."""

    def __init__(self, engine: Engine, workspace: str, attempt: Attempt, directory: Path, parser: Parser) -> None:
        self._engine = engine
        self.workspace = workspace
        self.attempt = attempt
        self.directory = directory
        self.parser = parser
        self.shim: attempts.Shim | None = None
        self.limits = Limits()
        """What its shim is told to hold; watched here too."""
        self._vigil: Vigil | None = None
        self.stop_requested = ""
        """Why a person wants it stopped; honoured before the exec too."""
        self.stopping = asyncio.Event()
        """Set with that, for who waits before the exec."""
        self._reader = OutputReader(directory / "out", parser)
        self._more = asyncio.Event()
        self._said = False
        """There is, or was, something to read."""
        self._told = 0.0
        self._reading: asyncio.Task[None] | None = None
        self.settled_in = False
        """It has said something, or long enough has passed: it is not starting up any more."""
        self._windows: dict[str, tuple[float, float]] = {}

    @property
    def outcome(self) -> Outcome:
        return self.parser.outcome

    async def follow(self, shim: attempts.Shim) -> attempts.ShimExit:
        """Read along until the shim is gone, and return how it ended. Everything the agent said is parsed then."""
        self.shim = shim
        began = self.attempt.started_at
        self._vigil = Vigil(shim, self.limits, time.time() if began is None else began.timestamp())
        shim.on_output(self._grown)
        self._reading = asyncio.create_task(self._read_along())
        starting = asyncio.get_running_loop().call_later(STARTING_MOST_S, self.settle_in)
        try:
            if self.stop_requested:
                await shim.cancel(self.stop_requested, self.limits.grace_s)
            ended = await shim.wait()
        finally:
            starting.cancel()
            self._vigil.close()
            self._reading.cancel()
        await asyncio.wait([self._reading])
        if self._said:
            await asyncio.to_thread(self._reader.read, final=True)
        return ended

    def _grown(self, out: int, _err: int) -> None:
        if out:
            self._said = True
            self._more.set()
            if self._vigil is not None:
                self._vigil.heard()

    async def _read_along(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            found = await asyncio.shield(asyncio.to_thread(self._reader.read))
            if found:
                self.settle_in()
            await self.report()
            self._tell(found)

    def settle_in(self) -> None:
        """Note that it is up: the next agent may start."""
        if not self.settled_in:
            self.settled_in = True
            self._engine.poke()  # the next one may start

    async def report(self) -> None:
        """Hand on what the stream told of its provider's windows."""
        windows = self.outcome.windows
        if windows != self._windows:
            self._windows = dict(windows)
            engine, pool = self._engine, self.attempt.pool
            told = engine.pools.reported(pool, windows, engine.core.now(), engine.running()[pool])
            try:
                await engine.set_controls(told)
            except CoreAgentError as error:  # the disk is full; the next report, or the end of the turn, says it again
                log.warning("what %s reported of its pool could not be written: %s", self.workspace, error.message)

    def _tell(self, found: list[AgentEvent]) -> None:
        """Publish progress for those who watch; never stored. Says the newest few of a flood."""
        telling = [e for e in found if e.kind in (EventKind.TEXT, EventKind.TOOL_USE, EventKind.TOOL_RESULT)][-5:]
        now = time.monotonic()
        if not telling and now - self._told < PROGRESS_INTERVAL_S:
            return
        self._told = now
        at = self._engine.core.now()
        self._engine.core.bus.publish(
            *(
                Event(
                    at=at,
                    name="Progress",
                    dispatch_id=self.attempt.dispatch_id,
                    workspace=self.workspace,
                    data=event.model_dump(mode="json", exclude_defaults=True),
                )
                for event in telling
            )
        )

    async def stop(self, why: str) -> None:
        """Ask for the end of the turn: cancel, pause, attach or shutdown. Before the exec the wish is remembered."""
        # The shim keeps the first reason; what a person said last, and most firmly, is what counts.
        if why == "cancel" or not self.stop_requested:
            self.stop_requested = why
        self.stopping.set()
        if self.shim is not None:
            await self.shim.cancel(why, self.limits.grace_s)
        else:
            await asyncio.to_thread(attempts.sweep, self.attempt.id)  # a setup hook that runs for long

    def detach(self) -> None:
        """Let go without touching the agent; it goes on under its shim."""
        if self.shim is not None:
            self.shim.close()

    def stderr_tail(self) -> bytes:
        try:
            with open_plain(self.directory / "err") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - STDERR_TAIL))
                return file.read()
        except OSError:
            return b""
