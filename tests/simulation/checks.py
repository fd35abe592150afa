"""What the store tells of a week that is over, held against what was promised. The engine's memory is not asked."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path

from coreagent import config
from coreagent.config import Settings
from coreagent.dispatch import claim, limits
from coreagent.dispatch.queue import PRIORITY_STEP_S
from coreagent.models.agent import Reason
from coreagent.models.dispatch import ACTIVE, Attempt, Dispatch, State
from coreagent.store import reading
from coreagent.store.store import Store


@dataclass
class Record:
    """The rows of a store: dispatches, their attempts first to last, and their moves as they were told."""

    settings: Settings
    dispatches: dict[str, Dispatch]
    attempts: dict[str, list[Attempt]]
    moves: list[tuple[str, State, datetime]] = field(default_factory=list)
    """(dispatch id, state, when), in the order of the event log."""

    @classmethod
    def read(cls, home: Path) -> Record:
        store = Store.open(str(home / "db.duckdb"), copy_every_s=0)
        try:
            return asyncio.run(cls._read(store, home))
        finally:
            store.close()

    @classmethod
    async def _read(cls, store: Store, home: Path) -> Record:
        dispatches = {d.id: d for d in store.load().dispatches}
        attempts: dict[str, list[Attempt]] = defaultdict(list)
        every = reading.select("attempts", "ORDER BY dispatch_id, n")
        for attempt in await store._models("attempts", Attempt, every, []):
            attempts[attempt.dispatch_id].append(attempt)
        sql = "SELECT dispatch_id, data, \"at\" FROM events WHERE name = 'DispatchChanged' ORDER BY seq"
        moves = [(r["dispatch_id"], State(r["data"]["State"]), r["at"]) for r in await store.query(sql)]
        return cls(config.load(str(home)).settings, dispatches, attempts, moves)

    @cached_property
    def claims(self) -> list[Attempt]:
        """Every attempt in the order in which the log tells of it, whatever the clock said."""
        return [attempt for attempt, _ in self.slots() if attempt is not None]

    @property
    def executed(self) -> Iterator[Attempt]:
        return (a for a in self.claims if a.started_at is not None)

    def slots(self) -> Iterator[tuple[Attempt | None, dict[str, Attempt]]]:
        """Each claim of the log (None: another move), and what holds a slot after it."""
        held: dict[str, Attempt] = {}
        seen: Counter[str] = Counter()
        for dispatch_id, state, _ in self.moves:
            new = None
            if state is State.PREPARING:
                assert dispatch_id not in held, "claimed while it held a slot"
                new = held[dispatch_id] = self.attempts[dispatch_id][seen[dispatch_id]]
                seen[dispatch_id] += 1
            elif state not in ACTIVE:
                held.pop(dispatch_id, None)
            yield new, held


def caps_hold_at_every_instant(record: Record) -> Counter[str]:
    """Return the most that ever ran at once, by pool."""
    most: Counter[str] = Counter()
    settings = record.settings
    for new, held in record.slots():
        if new is None:
            continue
        running = Counter(a.pool for a in held.values())
        most[new.pool] = max(most[new.pool], running[new.pool])
        limit = settings.concurrency[new.pool]
        assert not limit.total or running[new.pool] <= limit.total, f"{new.pool} at {new.claimed_at}"
        cap = claim.cap_of(config.resolve_agent(new.agent, settings).model, limit)
        if cap:
            models = [config.resolve_agent(a.agent, settings).model for a in held.values() if a.pool == new.pool]
            assert sum(claim.cap_of(m, limit) == cap for m in models) <= limit.models[cap], f"{cap} at {new.claimed_at}"
    return most


def starts_by_day(record: Record, pool: str) -> Counter[datetime]:
    """How many agents were executed on each day of a pool; the daily limit is never exceeded."""
    rate = record.settings.rates[pool]
    days = Counter(limits.day_start(a.claimed_at, rate.reset_utc) for a in record.executed if a.pool == pool)
    assert all(count <= rate.daily_limit for count in days.values()), days
    assert all(f"{day.astimezone(UTC):%H:%M}" == rate.reset_utc for day in days)
    return days


def pauses_are_kept(record: Record) -> None:
    """Between two claims of a pool lies its pause, unless the clock was set back between them."""
    for pool, rate in record.settings.rates.items():
        for one, two in pairwise(a for a in record.claims if a.pool == pool):
            gap = two.claimed_at - one.claimed_at
            assert gap < timedelta() or gap >= limits.pause(two.claimed_at, rate), f"{pool}: {one.id}, {two.id}"


def key(dispatch: Dispatch) -> float:
    return dispatch.queued_at.timestamp() - dispatch.priority * PRIORITY_STEP_S


def nobody_is_overtaken(record: Record) -> int:
    """First come, first served among those that the same limits hold for; return how many pairs were looked at.

    A priority counts as waiting longer. What came while a clock was wrong stands where that clock put it.
    """
    came: dict[str, tuple[int, datetime]] = {}
    claimed: dict[str, tuple[int, datetime]] = {}
    for n, (dispatch_id, state, at) in enumerate(record.moves):
        came.setdefault(dispatch_id, (n, at))
        if state is State.PREPARING:
            claimed.setdefault(dispatch_id, (n, at))
    lanes: dict[tuple[str, str, str], list[Dispatch]] = defaultdict(list)
    for dispatch_id in sorted(claimed, key=claimed.__getitem__):
        dispatch, first = record.dispatches[dispatch_id], record.attempts[dispatch_id][0]
        model = config.resolve_agent(first.agent, record.settings).model
        lanes[first.pool, model, dispatch.repo].append(dispatch)
    looked = 0
    for lane in lanes.values():
        for sooner, later in combinations(lane, 2):
            there, taken = came[later.id], claimed[sooner.id]
            # What comes at the very moment of a claim is not durable yet, and is not looked at.
            if there[0] < taken[0] and there[1] != taken[1]:
                looked += 1
                assert key(sooner) <= key(later), f"{sooner.name} overtook {later.name}"
    return looked


def parked_sessions_go_on_once(record: Record, unparked: list[datetime]) -> int:
    """Every turn that a provider sent away is followed by one turn of the same session, not before its time."""
    parked = 0
    for dispatch_id, attempts in record.attempts.items():
        ran = [a for a in attempts if a.started_at is not None]
        for one, two in pairwise(ran):
            assert one.ended_at is not None
            if one.reason is not Reason.RATE_LIMIT or two.agent != one.agent:
                continue
            parked += 1
            assert two.resume_session == one.outcome.session_id, dispatch_id
            assert two.kind == "resume"
            resets_at = one.outcome.resets_at
            if resets_at is not None and not any(one.ended_at <= at <= two.claimed_at for at in unparked):
                early = resets_at - two.claimed_at.timestamp()
                assert early <= 1, (
                    f"{one.pool}: {dispatch_id} of {one.ended_at:%d %H:%M:%S} went on {early:.0f} s early"
                )
        if ran and ran[-1].reason is Reason.RATE_LIMIT:
            raise AssertionError(f"{dispatch_id} was never resumed")
    return parked


def nothing_is_lost_or_run_twice(record: Record, executed: Counter[str]) -> None:
    assert set(executed.values()) <= {1}
    rows = {a.id for attempts in record.attempts.values() for a in attempts if a.started_at is not None}
    assert rows == set(executed)
    for dispatch in record.dispatches.values():
        attempts = record.attempts.get(dispatch.id, [])
        assert [a.n for a in attempts] == list(range(1, len(attempts) + 1))
        assert dispatch.runs == sum(a.started_at is not None for a in attempts)
        assert dispatch.attempts == len(attempts)
        assert dispatch.state in (State.COMPLETED, State.FAILED), f"{dispatch.name} is {dispatch.state}"
        assert all(a.ended_at is not None for a in attempts)
        done = [a for a in attempts if a.outcome.terminal == "success"]
        assert len(done) == (dispatch.state is State.COMPLETED), dispatch.name
