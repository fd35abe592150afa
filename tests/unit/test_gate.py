"""The pause of a pool lies between executions, however long each workspace takes to prepare."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.virtual import Clock, VirtualLoop

from coreagent.config import RateSettings
from coreagent.dispatch import prep
from coreagent.dispatch.gate import Gate
from coreagent.models.dispatch import Attempt, State

BEGIN = datetime(2026, 3, 2, tzinfo=UTC)


def attempt(n: int, pool: str = "command", **more: Any) -> Attempt:
    return Attempt(id=f"{n}", dispatch_id=f"{n}", n=1, session_id="s", pool=pool, claimed_at=BEGIN, **more)


class Door:
    """A gate of made-up time, and who came in when, in seconds."""

    def __init__(self, loop: VirtualLoop, **rate: float) -> None:
        self.gate, self.clock = Gate(), Clock(loop, BEGIN)
        self.settings = SimpleNamespace(rates={"command": RateSettings(**rate)})  # type: ignore[arg-type]
        self.core = SimpleNamespace(now=self.clock.shown, settings=self.settings)
        self.attempts: dict[str, Attempt] = {}
        self.came: dict[str, float] = {}

    async def go(self, one: Attempt, at: float, stop_at: float | None = None, takes: float = 0.0) -> None:
        await asyncio.sleep(at)
        stop = asyncio.Event()
        if stop_at is not None:
            asyncio.get_running_loop().call_later(stop_at - at, stop.set)
        async with self.gate.turn(self, one, stop):  # type: ignore[arg-type]
            self.came[one.id] = round((self.clock.shown() - BEGIN).total_seconds(), 3)
            if not stop.is_set():
                await asyncio.sleep(takes)
                self.gate.executed(one.pool, self.clock.shown())


def passed(body: Callable[[VirtualLoop], Awaitable[None]]) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(body(loop))  # type: ignore[arg-type]
    finally:
        loop.close()


def test_those_that_are_ready_at_once_are_executed_one_after_the_other() -> None:
    async def body(loop: VirtualLoop) -> None:
        door = Door(loop, min_delay=4)
        ready = ((1, 4.0), (2, 4.1), (3, 4.2))
        await asyncio.gather(*(door.go(attempt(n), at, takes=0.5) for n, at in ready))
        # From one execution to the next, not from one spawn to the next.
        assert door.came == {"1": 4.0, "2": 8.5, "3": 13.0}
        assert door.gate.waiting == {}

    passed(body)


def test_who_is_stopped_waits_no_longer_and_holds_nobody_up() -> None:
    async def body(loop: VirtualLoop) -> None:
        door = Door(loop, min_delay=10)
        await asyncio.gather(
            door.go(attempt(1), 0),
            door.go(attempt(2), 1, stop_at=3),
            door.go(attempt(3), 2, stop_at=2.5),
            door.go(attempt(4), 2.2),
        )
        assert door.came == {"1": 0.0, "3": 2.5, "2": 3.0, "4": 10.0}

    passed(body)


def test_a_daemon_that_leaves_while_some_wait_leaves_the_gate_free() -> None:
    async def body(loop: VirtualLoop) -> None:
        door = Door(loop, min_delay=10)
        await door.go(attempt(1), 0)
        waiting = [asyncio.create_task(door.go(attempt(n), 0)) for n in (2, 3)]
        await asyncio.sleep(1)
        assert door.gate.waiting == {"2": BEGIN + timedelta(seconds=10), "3": None}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert door.gate.waiting == {}
        await door.go(attempt(4), 0)
        assert door.came == {"1": 0.0, "4": 10.0}

    passed(body)


def test_an_execution_by_an_earlier_daemon_counts_and_a_pool_without_a_pause_waits_for_nobody() -> None:
    async def body(loop: VirtualLoop) -> None:
        door = Door(loop, min_delay=4)
        door.attempts = {"0": attempt(0, started_at=BEGIN - timedelta(seconds=1)), "9": attempt(9)}
        await asyncio.gather(door.go(attempt(1), 0), door.go(attempt(2, "codex"), 0), door.go(attempt(3, "codex"), 0))
        assert door.came == {"1": 3.0, "2": 0.0, "3": 0.0}
        # A clock that was set back stretches no pause.
        door.clock.set_wrong(timedelta(hours=-1))
        before = loop.passed
        await door.go(attempt(4), 0)
        assert loop.passed - before == pytest.approx(4)

    passed(body)


def test_a_workspace_that_took_long_to_prepare_is_executed_a_pause_after_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = asyncio.Event()
    spawned: list[float] = []
    prepare = prep.prepare

    async def slowly(engine: Any, dispatch: Any, one: Attempt) -> Any:
        if dispatch.name == "second":
            both.set()
        await both.wait()  # the first is ready when the second is
        return await prepare(engine, dispatch, one)

    async def body(room: Room) -> None:
        monkeypatch.setattr(prep, "prepare", slowly)
        spawn = room.engine.nursery.spawn

        def noted(directory: Any) -> Any:
            spawned.append(asyncio.get_running_loop().time())
            return spawn(directory)

        monkeypatch.setattr(room.engine.nursery, "spawn", noted)
        await room.engine.start()
        for name in ("first", "second"):
            await room.ask("dispatch", task="x", name=name, agent="command:work", ephemeral=True)
        while sum(d.state in (State.COMPLETED, State.FAILED) for d in room.engine.board.values()) < 2:
            assert await room.engine.changed(30, room.engine.turns)
        one, two = spawned
        assert two - one >= 0.99

    in_room(tmp_path, body, settings="rates: {command: {min_delay: 1}}\n")
