"""A week in the life of a daemon that is left alone: its tasks, its weather, and the daemons that follow each other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from coreagent import config
from coreagent.capability import Caller, call
from coreagent.dispatch.engine import Engine
from coreagent.models.dispatch import Dispatch
from coreagent.store.change import Change, SetControl
from tests.simulation.world import Account, Meter, World
from tests.support.engine_room import ROOMS
from tests.support.virtual import Clock, ClockCore, TalliedStore, VirtualLoop

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
PERSON = Caller(env={"PATH": "/usr/bin"})
SETTINGS = """\
version: 1
dispatch: {keep_days: 36500, turns_alone: 0, starting: 4, memory_reserve_mib: 0}
concurrency:
  claude: {total: 4, opus: 1, sonnet: 3}
  codex: 3
  codex-spark: 2
  gemini: 2
  opencode: 3
rates:
  claude: {min_delay: 30}
  codex: {daily_limit: {codex}, sustained_delay: 300, burst_window: 3, burst_delay: 60, reset_utc: "18:30"}
  codex-spark: {daily_limit: {spark}, min_delay: 10}
  gemini: {daily_limit: {gemini}, reset_utc: "06:00"}
"""
DAILY = {"codex": 100, "spark": 60, "gemini": 110}
POOLS = {
    "claude": ("claude:sonnet", "claude:opus", "claude"),
    "codex": ("codex",),
    "codex-spark": ("codex:gpt-5.3-codex-spark",),
    "gemini": ("gemini",),
    "opencode": ("opencode",),
}
TASKS = {"claude": 1300, "codex": 650, "codex-spark": 380, "gemini": 370, "opencode": 300}
OUTAGE = (MONDAY + 3 * DAY + 19 * HOUR, MONDAY + 3 * DAY + 21 * HOUR)
SLEEP = (MONDAY + 2 * DAY + 13 * HOUR, 3 * HOUR)
SET_BACK = (MONDAY + 4 * DAY + 19 * HOUR, timedelta(hours=-1, minutes=-30), 4 * HOUR)
"""When the clock is set back, by how much, and how long it stays wrong: over the reset of codex."""
FROZEN = (MONDAY + DAY + 20 * HOUR, HOUR)
FROZEN_POOL = ("codex-spark", MONDAY + 5 * DAY, 3 * HOUR)


def accounts() -> dict[str, Account]:
    return {
        "claude": Account(
            [Meter("five_hour", 5 * HOUR, 1 / 40), Meter("seven_day", 7 * DAY, 1 / 3000, MONDAY - 3 * DAY)]
        ),
        "codex": Account(outages=[OUTAGE]),
        "codex-spark": Account([Meter("hidden", 5 * HOUR, 1 / 14, told=False)]),
        "gemini": Account(refusals=0.08),
        "opencode": Account([Meter("seven_day", 7 * DAY, 1 / 160, MONDAY - 2 * DAY)]),
    }


@dataclass
class Week:
    """What is asked for, and what was seen."""

    scale: float = 1.0
    """Share of the tasks that are given."""
    days: float = 6.0
    """Over so many days."""
    daily: float = 1.0
    """Share of the daily limits."""
    seed: int = 7
    upgrades: int = 8
    controls: list[tuple[datetime, str, Any]] = field(default_factory=list)
    """(true time, key, value) of every control that was written."""
    unparked: list[datetime] = field(default_factory=list)
    ended: datetime = MONDAY


class Life:
    """One run of the week."""

    def __init__(self, home: Path, week: Week, loop: VirtualLoop) -> None:
        assert ROOMS
        self.home, self.week, self.loop = home, week, loop
        self.clock = Clock(loop, MONDAY)
        self.world = World(self.clock, week.seed, accounts())
        (home / "run").mkdir(parents=True)
        text = SETTINGS
        for pool, limit in DAILY.items():
            text = text.replace(f"{{{pool}}}", str(round(limit * week.daily)))
        (home / "agents.yaml").write_text(text)
        self.given = 0

    def _chance(self, what: str) -> random.Random:
        """Of each its own, so that nothing hangs on the order in which they are drawn."""
        return random.Random(f"{self.week.seed} {what}")

    async def live(self) -> World:
        await self._open()
        weather = [asyncio.create_task(part) for part in (self._work(), self._upgrades(), self._weather())]
        await asyncio.gather(*weather)
        async with asyncio.timeout(20 * 86400):
            while self.engine.board.queued or self.engine.board.active:
                await asyncio.sleep(600)
        self.week.ended = self.clock.true()
        await self._close()
        return self.world

    async def _open(self) -> None:
        self.store = TalliedStore.open(str(self.home / "db.duckdb"), copy_every_s=0)
        self.store.loop = self.loop
        self.store.heard = self._hear
        self.core = ClockCore(str(self.home), {"HOME": str(self.home)}, self.store)
        self.core.clock = self.clock
        self.engine = self.core.engine = Engine(self.core)
        self.engine.free_memory = lambda: None
        self.engine.run_attempt = self.world.run
        self.engine.recover_attempt = self.world.recover
        await self.engine.load()
        await self.engine.start()

    async def _close(self) -> None:
        await self.engine.stop("leave")
        while self.loop.in_flight:
            await asyncio.sleep(0.01)
        self.store.close()

    def _hear(self, changes: tuple[Change, ...]) -> None:
        now = self.clock.true()
        self.week.controls += [(now, c.key, c.value) for c in changes if isinstance(c, SetControl)]

    async def _until(self, moment: datetime) -> None:
        while (left := (moment - self.clock.true()).total_seconds()) > 0:
            await asyncio.sleep(left)

    # -- what people want ----------------------------------------------------------------------------------------

    def _tasks(self) -> list[tuple[datetime, str, str, str]]:
        """(when, pool, agent, repository), sorted."""
        found, chance = [], self._chance("tasks")
        for pool, count in TASKS.items():
            for n in range(round(count * self.week.scale)):
                at = MONDAY + self.week.days * DAY * chance.random() ** 1.3
                repo = chance.choice(("alpha", "beta", "gamma"))
                if n % 50 == 49:
                    repo = "broken"
                found.append((at, pool, chance.choice(POOLS[pool]), repo))
        return sorted(found)

    async def _work(self) -> None:
        """People come by every quarter of an hour and give what has come to their minds."""
        tasks = self._tasks()
        while tasks:
            await self._until(tasks[0][0] + timedelta(minutes=15))
            now = self.clock.true()
            due = [task for task in tasks if task[0] <= now]
            del tasks[: len(due)]
            await asyncio.gather(*(self._give(*task[1:]) for task in due))

    async def _give(self, pool: str, agent: str, repo: str) -> None:
        core, engine = self.core, self.engine
        chosen = config.resolve_agent(agent, core.settings)
        now, n = core.now(), self.given
        self.given += 1
        made = Dispatch(
            id=core.new_id(), org="o", repo=repo, name=f"t{n}", repo_path=f"/{repo}", task="t", agent=agent,
            runner=chosen.runner, model=chosen.model, pool="",
            priority=self._chance(f"t{n}").choice((0, 0, 0, 1, 3)), created_at=now, queued_at=now, changed_at=now,
        )  # fmt: skip
        made = engine.places.placed(made)
        assert made.pool == pool
        if n % 20 == 0 and pool == "gemini":
            made.options.agents = [agent, "codex"]
        engine.board[made.id] = made
        engine.arriving.add(made.id)
        await asyncio.shield(engine.update(made))
        engine.arriving.discard(made.id)
        engine.poke()

    # -- what comes over it --------------------------------------------------------------------------------------

    async def _upgrades(self) -> None:
        span, chance = self.week.days * DAY, self._chance("upgrades")
        moments = sorted(MONDAY + span * chance.random() for _ in range(self.week.upgrades))
        for moment in moments:
            await self._until(moment)
            await self._close()
            await asyncio.sleep(2)
            await self._open()

    async def _weather(self) -> None:
        events = [
            (SLEEP[0], self._sleep()),
            (SET_BACK[0], self._set_back()),
            (FROZEN[0], self._freeze("", FROZEN[1])),
            (FROZEN_POOL[1], self._freeze(FROZEN_POOL[0], FROZEN_POOL[2])),
            (MONDAY + 2 * DAY, self._unpark("codex-spark")),
        ]
        last = MONDAY + self.week.days * DAY

        async def at(moment: datetime, what: Any) -> None:
            if moment > last:
                what.close()
                return
            await self._until(moment)
            await what

        await asyncio.gather(*(at(moment, what) for moment, what in events))

    async def _sleep(self) -> None:
        self.clock.sleep(SLEEP[1])

    async def _set_back(self) -> None:
        self.clock.set_wrong(SET_BACK[1])
        await asyncio.sleep(SET_BACK[2].total_seconds())
        self.clock.set_wrong(timedelta())

    async def _ask(self, name: str, **arguments: Any) -> None:
        await call(self.core, name, arguments, PERSON)

    async def _freeze(self, pool: str, length: timedelta) -> None:
        await self._ask("queue.freeze", pool=pool)
        await asyncio.sleep(length.total_seconds())
        await self._ask("queue.start", pool=pool)

    async def _unpark(self, pool: str) -> None:
        """A person who looks now and then lets a pool go on that is parked for more than ten minutes."""
        for _ in range(200):
            park = self.engine.pools.parks.get(pool)
            if park is not None and park.until > self.core.now() + timedelta(minutes=10):
                self.week.unparked.append(self.clock.true())
                await self._ask("queue.start", pool=pool)
                return
            await asyncio.sleep(300)


@contextmanager
def lived(home: Path, week: Week) -> Iterator[World]:
    """The week has passed; its store is closed."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        yield loop.run_until_complete(Life(home, week, loop).live())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
