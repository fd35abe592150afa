"""The world outside the daemon, made up: providers with their windows, agents that take their time, repositories.

It outlives every daemon of the week. An agent runs on however often the daemon is exchanged, is started by its
attempt's id, and remembers how often that happened.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from coreagent import paths
from coreagent.attempts import ShimExit
from coreagent.dispatch import attempt as attempts_of_work
from coreagent.dispatch import recovery
from coreagent.dispatch.bring import Home
from coreagent.dispatch.engine import Engine
from coreagent.dispatch.live import LiveAttempt
from coreagent.dispatch.verdict import Verdict
from coreagent.models.agent import Outcome, Reason
from coreagent.models.dispatch import Attempt, Dispatch, Harvest, State
from tests.support.virtual import Clock

BROKEN = "broken"
"""A repository where nothing ever works."""
STEPS = 3
"""So often an agent asks its model in one turn."""


@dataclass
class Meter:
    """One usage window of an account; it opens with the first use after its reset."""

    kind: str
    length: timedelta
    price: float
    """Share that one turn costs, on average."""
    begins: datetime | None = None
    """When the first one opens, where that is not the first use."""
    told: bool = True
    """Live runs report it; else nobody knows of it before its wall is hit."""
    used: float = 0.0
    resets: datetime | None = None
    past: list[tuple[datetime, float]] = field(default_factory=list)
    """(reset, share used by then) of every window that is over."""

    def roll(self, now: datetime) -> None:
        if self.resets is None:
            self.resets = (self.begins or now) + self.length
        while self.resets <= now:
            self.past.append((self.resets, self.used))
            self.used = 0.0
            self.resets = self.resets + self.length if self.begins else now + self.length


@dataclass
class Account:
    """What a provider holds against one pool."""

    meters: list[Meter] = field(default_factory=list)
    refusals: float = 0.0
    """Share of model calls that are refused though no window is full."""
    outages: list[tuple[datetime, datetime]] = field(default_factory=list)
    walls: list[datetime] = field(default_factory=list)
    """When a full window sent an agent away."""
    refused: int = 0


@dataclass
class Turn:
    """One agent at work: a process of the machine, not of the daemon."""

    attempt_id: str
    outcome: Outcome
    chance: random.Random
    seconds: float
    weight: float
    ended: ShimExit | None = None
    said: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        self.said.set()
        self.said = asyncio.Event()


class Parser:
    """In the place of a runner's parser: what the agent of a turn has said so far."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


class World:
    def __init__(self, clock: Clock, seed: int, accounts: dict[str, Account], minutes: float = 15) -> None:
        self.clock, self.accounts, self.minutes = clock, accounts, minutes
        self._seed = seed
        self.turns: dict[str, Turn] = {}
        self.executed: Counter[str] = Counter()
        """Attempt id -> how often an agent was executed for it."""
        self.at_work: Counter[str] = Counter()
        """Dispatch id -> agents in its workspace now."""
        self.trespasses: list[str] = []
        """Dispatches that ever had two."""
        self.sessions: dict[str, str] = {}
        """Attempt id -> the session that its agent was in."""
        self._processes: set[asyncio.Task[None]] = set()

    # -- the agents ----------------------------------------------------------------------------------------------

    def _chance(self, dispatch: Dispatch, attempt: Attempt) -> random.Random:
        """What falls to one attempt: its own, so that nothing hangs on what others draw meanwhile."""
        return random.Random(f"{self._seed} {dispatch.name} {attempt.n}")

    def execute(self, dispatch: Dispatch, attempt: Attempt, chance: random.Random) -> None:
        self.executed[attempt.id] += 1
        self.at_work[dispatch.id] += 1
        if self.at_work[dispatch.id] > 1:
            self.trespasses.append(dispatch.id)
        session = attempt.resume_session or attempt.session_id
        self.sessions[attempt.id] = session
        turn = Turn(
            attempt.id,
            Outcome(session_id=session),
            chance,
            60 * chance.uniform(0.2, 1.8) * self.minutes,
            chance.uniform(0.7, 1.3),
        )
        self.turns[attempt.id] = turn
        work = asyncio.create_task(self._live(dispatch, attempt.pool, turn))
        self._processes.add(work)
        work.add_done_callback(self._processes.discard)

    async def _live(self, dispatch: Dispatch, pool: str, turn: Turn) -> None:
        account = self.accounts[pool]
        ending: dict[str, object] = {}
        for _ in range(STEPS):
            await asyncio.sleep(20.0 if dispatch.repo == BROKEN else turn.seconds / STEPS)
            if dispatch.repo == BROKEN:
                ending = {"terminal": "none"}
                if turn.chance.random() < 0.5:  # as if it were the provider's fault
                    ending = {"terminal": "error", "reason": Reason.AUTH, "message": "no key"}
                break
            ending = self._ask(account, turn)
            turn.outcome = turn.outcome.model_copy(update=ending)
            if ending.get("terminal"):
                break
            turn.tell()
        else:
            ending = {"terminal": "success"}
        turn.outcome = turn.outcome.model_copy(update=ending)
        turn.ended = ShimExit(code=0, at=self.clock.shown().timestamp())
        self.at_work[dispatch.id] -= 1
        turn.tell()

    def _ask(self, account: Account, turn: Turn) -> dict[str, object]:
        """One call of the model, and what the stream says after it."""
        now = self.clock.true()
        if any(begin <= now < end for begin, end in account.outages):
            return {"terminal": "error", "reason": Reason.MODEL_ERROR, "message": "overloaded"}
        full = None
        for meter in account.meters:
            meter.roll(now)
            if meter.used >= 1.0:
                full = meter
            meter.used += meter.price * turn.weight / STEPS if full is None else 0.0
        if full is not None and full.resets is not None:
            account.walls.append(now)
            return {"terminal": "error", "reason": Reason.RATE_LIMIT, "resets_at": full.resets.timestamp()}
        if turn.chance.random() < account.refusals / STEPS:
            account.refused += 1
            named = turn.chance.random() < 0.5
            until = (now + timedelta(minutes=20)).timestamp() if named else None
            return {"terminal": "error", "reason": Reason.RATE_LIMIT, "resets_at": until}
        told = {
            m.kind: (round(min(m.used, 1.0), 2), m.resets.timestamp()) for m in account.meters if m.resets and m.told
        }
        return {"windows": told}

    # -- the hands of the daemon ---------------------------------------------------------------------------------

    async def run(self, engine: Engine, dispatch: Dispatch, attempt: Attempt) -> None:
        """In the place of `attempt.run`."""
        live = self._follow_it(engine, dispatch, attempt)
        chance = self._chance(dispatch, attempt)
        await asyncio.sleep(chance.uniform(0.1, 4))
        if dispatch.repo == BROKEN and chance.random() < 0.3:
            verdict = Verdict(State.FAILED, Reason.SETUP_FAILED, "the hook failed")
            await attempts_of_work._never_started(engine, dispatch, attempt, live, verdict)
            return
        self.execute(dispatch, attempt, chance)  # from here on it must never be executed again, whoever saw it
        await asyncio.sleep(chance.uniform(0.1, 1))
        dispatch, attempt = await attempts_of_work.mark_started(engine, dispatch, attempt, 1, 1)
        await self._follow(engine, dispatch, attempt, live)

    async def recover(self, engine: Engine, dispatch: Dispatch) -> None:
        """In the place of `recovery.recover`: the same decisions, from the world instead of from files."""
        attempt = engine.attempts[dispatch.id]
        if attempt.started_at is None:
            if attempt.id not in self.turns:
                await recovery.requeue(engine, dispatch, attempt, self._spool(engine, attempt))
                return
            dispatch, attempt = await attempts_of_work.mark_started(engine, dispatch, attempt, 1, 1)
        live = self._follow_it(engine, dispatch, attempt)
        engine.watch_over(dispatch, self._follow(engine, dispatch, attempt, live))

    @staticmethod
    def _spool(engine: Engine, attempt: Attempt) -> Path:
        return Path(paths.attempt_dir(engine.core.home, attempt.id))  # which is never made

    def _follow_it(self, engine: Engine, dispatch: Dispatch, attempt: Attempt) -> LiveAttempt:
        known = self.turns.get(attempt.id)
        parser = Parser(known.outcome if known else Outcome())
        live = LiveAttempt(engine, dispatch.workspace, attempt, self._spool(engine, attempt), parser)  # type: ignore[arg-type]
        engine.live[dispatch.id] = live
        return live

    async def _follow(self, engine: Engine, dispatch: Dispatch, attempt: Attempt, live: LiveAttempt) -> None:
        turn, parser = self.turns[attempt.id], live.parser
        live.attempt = attempt
        asyncio.get_running_loop().call_later(3.0, live.settle_in)
        while turn.ended is None:
            await turn.said.wait()
            parser.outcome = turn.outcome
            await live.report()
        await attempts_of_work.conclude(
            engine, dispatch, attempt, live, turn.ended, turn.outcome, Home(Harvest(), changed=True), ""
        )
