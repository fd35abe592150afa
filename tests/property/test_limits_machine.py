"""Everything that a claim asks, against a plain model: a list that is sorted, and counters that are counted again.

Queue, pools and claim are the real ones; a restart builds them anew from rows and controls. The model knows every rule
and no trick: it sorts all that waits, and asks each task in turn.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coreagent.config import PoolLimit, RateSettings
from coreagent.dispatch import claim
from coreagent.dispatch.pools import Ending, Pools
from coreagent.dispatch.queue import Queue
from coreagent.models.agent import Outcome, Reason
from coreagent.models.dispatch import Dispatch, State

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BEGIN = datetime(2026, 3, 2, 4, tzinfo=UTC)
LIMITS = {"claude": PoolLimit(total=3, models={"opus": 1}), "codex": PoolLimit(total=1), "gemini": PoolLimit()}
RATES = {
    "codex": RateSettings(daily_limit=3, min_delay=60, reset_utc="06:00"),
    "gemini": RateSettings(sustained_delay=600, burst_window=1, burst_delay=30, reset_utc="05:30"),
}
POOLS = tuple(LIMITS)
BREAKER = 2
STARTING = 2
TARGET = 0.95
BACKOFF = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR)
PAUSES = (5 * MINUTE, 15 * MINUTE, HOUR, 4 * HOUR)
LOOKS = [n * unit for unit in (SECOND, MINUTE, HOUR) for n in (1, 2, 5, 10, 29, 31, 59)] + [DAY, 3 * DAY, 9 * DAY]


@dataclass
class Parked:
    until: datetime
    since: datetime
    outage: bool
    named: bool
    times: int


@dataclass
class Broken:
    failures: int = 0
    opened: int = 0
    until: datetime | None = None


@dataclass
class Model:
    waiting: list[Dispatch] = field(default_factory=list)
    running: list[tuple[Dispatch, str, datetime]] = field(default_factory=list)
    """With the id and the moment of the claim."""
    starts: list[tuple[str, datetime, str]] = field(default_factory=list)
    last: dict[str, datetime] = field(default_factory=dict)
    parks: dict[str, Parked] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[str]] = field(default_factory=dict)
    """Pool -> repositories whose model calls failed since something went well."""
    repos: dict[str, Broken] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    windows: dict[str, tuple[float, datetime, datetime, float]] = field(default_factory=dict)
    """Pool -> share used, reset, when it was told, price."""

    def order(self) -> list[Dispatch]:
        return sorted(self.waiting, key=lambda d: (d.queued_at.timestamp() - 3600 * d.priority, d.id))

    def held(self, pool: str) -> list[Dispatch]:
        return [d for d, _, _ in self.running if d.pool == pool]

    def why(self, d: Dispatch, now: datetime) -> str:
        if d.waiting_for == "after":
            return "after"
        if "" in self.frozen:
            return "frozen"
        own = d.waiting_for if d.waiting_until is not None and d.waiting_until > now else ""
        pool = self.why_pool(d.pool, now, asked=d.waiting_for == "asked")
        if own and pool in ("", "parked"):
            return own
        return pool or self.why_lane(d, now)

    def why_pool(self, pool: str, now: datetime, *, asked: bool = False) -> str:
        if pool in self.frozen:
            return "frozen_pool"
        running, park, total = len(self.held(pool)), self.parks.get(pool), LIMITS[pool].total
        if park and not asked and (park.until > now or (park.outage and running)):
            return "parked"
        if total and running >= total:
            return "slot"
        rate = RATES.get(pool)
        if rate is not None:
            hour, minute = map(int, rate.reset_utc.split(":"))
            day = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            day = day if day <= now else day - DAY
            made = [at for p, at, _ in self.starts if p == pool and day <= at < now + DAY]
            if rate.daily_limit and len(made) >= rate.daily_limit:
                return "daily_limit"
            burst = day + DAY - now <= rate.burst_window * HOUR
            pause = max(rate.min_delay, rate.burst_delay if burst else rate.sustained_delay)
            if pool in self.last and now - self.last[pool] < pause * SECOND:
                return "min_delay"
        return "pace" if not asked and self._is_paced(pool, now, running) else ""

    def _is_paced(self, pool: str, now: datetime, running: int) -> bool:
        if pool not in self.windows:
            return False
        used, resets, told, price = self.windows[pool]
        if not now < resets <= now + 8 * DAY:
            return False
        since = sum(p == pool and at >= told for p, at, _ in self.starts)
        unseen = max(since, running)
        left = max(0.0, (TARGET - used) / price - unseen)
        if left < 1 <= (1 - used) / price - unseen + 1e-6:
            left = 1.0
        if sum(d.pool == pool for d in self.waiting) <= left:
            return False
        last = self.last.get(pool, told)
        if left >= 1:
            return now < last + (resets - last) / (left + 1)
        known = max(last, told)
        return bool(running) or now < known + max(6 * HOUR, (resets - known) / 10)

    def why_lane(self, d: Dispatch, now: datetime) -> str:
        if "opus" in d.model and d.pool == "claude" and any("opus" in o.model for o in self.held("claude")):
            return "model_slot"
        repo = self.repos.get(d.repo, Broken())
        if repo.until is not None and (repo.until > now or any(o.repo == d.repo for o, _, _ in self.running)):
            return "breaker"
        if d.runner == "claude" and sum(o.runner == "claude" for o, _, _ in self.running) >= STARTING:
            return "starting"
        return ""

    def next(self, now: datetime) -> Dispatch | None:
        return next((d for d in self.order() if not self.why(d, now)), None)

    def ended(self, d: Dispatch, how: str, now: datetime, claimed: datetime, resets: datetime | None) -> None:
        park, pool = self.parks.get(d.pool), d.pool
        known = park is not None and park.until > now and claimed <= park.since
        if how == "rate_limit":
            times = park.times if park and known else self.refused[pool] + 1
            until = resets or (park.until if park and known else now + BACKOFF[min(times, 4) - 1])
            if park and park.named:
                until = max(until, park.until)
            since = park.since if park and park.until > now else now
            self._park(pool, Parked(until, since, False, resets is not None, times))
        elif how == "outage" and not known:
            repos = [*self.failed.get(pool, []), d.repo]
            self.failed[pool] = repos
            again = park is not None and park.outage and park.until <= now
            if len(set(repos)) >= 2 and (again or len(repos) >= 3):
                times = self.refused[pool] + 1
                for repo, failures in Counter(repos[:-1]).items():
                    self._forgive(repo, failures)
                self._park(pool, Parked(now + BACKOFF[min(times, 4) - 1], now, True, False, times))
            else:
                self._fails(d.repo, now, PAUSES[:3], at_once=again)
        elif how == "success":
            self.refused[pool], self.failed[pool] = 0, []
            if park and (park.outage or park.until <= now):
                del self.parks[pool]
            self.repos.pop(d.repo, None)
        elif how == "died":
            self._fails(d.repo, now, PAUSES)

    def _fails(self, name: str, now: datetime, pauses: tuple[timedelta, ...], *, at_once: bool = False) -> None:
        repo = self.repos.setdefault(name, Broken())
        repo.failures += 1
        under_way = repo.until is not None and repo.until > now  # when it opened: says nothing new
        if not under_way and (repo.failures >= BREAKER or repo.until is not None or at_once):
            repo.opened += 1
            repo.until = now + pauses[min(repo.opened, len(pauses)) - 1]

    def _forgive(self, name: str, failures: int) -> None:
        repo = self.repos.get(name, Broken())
        repo.failures -= failures
        if repo.failures < BREAKER:
            repo.opened, repo.until = 0, None
        if repo.failures <= 0:
            self.repos.pop(name, None)

    def _park(self, pool: str, made: Parked) -> None:
        self.parks[pool], self.refused[pool], self.failed[pool] = made, made.times, []


TASKS = st.tuples(
    st.sampled_from(("claude", *POOLS)),
    st.sampled_from(["", "opus", "claude-opus-4", "haiku"]),
    st.sampled_from(["a", "a", "b"]),
    st.integers(-1, 2),
    st.sampled_from(["claude", "command"]),
    st.sampled_from(["", "", "", "", "after", "rate_limit"]),
)
ENDINGS = st.tuples(
    st.integers(0, 5),
    st.sampled_from(["success", "died", "rate_limit", "rate_limit", "outage", "outage", "cancelled", "unborn"]),
    st.sampled_from([None, None, 90, 4000]),
)


class LimitsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.now, self.n = Model(), BEGIN, 0
        self.queue, self.pools = Queue(), Pools()
        self.controls: dict[str, Any] = {}

    def facts(self, now: datetime | None = None) -> claim.Facts:
        running = [d for d, _, _ in self.model.running]
        return claim.Facts(
            now=now or self.now,
            limits=LIMITS,
            rates=RATES,
            running=Counter(d.pool for d in running),
            models=Counter((d.pool, claim.cap_of(d.model, LIMITS[d.pool])) for d in running),
            repos=Counter(f"{d.org}/{d.repo}" for d in running),
            starts=self.pools.starts,
            parks=self.pools.parks,
            breakers=self.pools.breakers,
            windows=self.pools.windows,
            pace_target=TARGET,
            starting=sum(d.runner == "claude" for d in running),
            starting_most=STARTING,
            frozen="" in self.model.frozen,
            frozen_pools=self.model.frozen - {""},
        )

    def write(self, controls: dict[str, Any]) -> None:
        written = json.loads(json.dumps(controls))
        self.controls |= written
        self.pools.apply(written)

    @rule(tasks=st.lists(TASKS, min_size=1, max_size=6))
    def put(self, tasks: list[tuple[str, str, str, int, str, str]]) -> None:
        for task in tasks:
            self._put(*task)

    def _put(self, pool: str, model: str, repo: str, priority: int, runner: str, held: str) -> None:
        self.n += 1
        until = self.now + 7 * MINUTE if held == "rate_limit" else None
        made = Dispatch(
            id=f"{self.n:026}", org="o", repo=repo, name=f"n{self.n}", repo_path="/r", task="t", agent=pool,
            runner=runner, model=model, pool=pool, priority=priority, created_at=self.now, queued_at=self.now,
            changed_at=self.now, waiting_for=held, waiting_until=until,
        )  # fmt: skip
        self.model.waiting.append(made)
        self.queue.put(made)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data(), away=st.booleans(), word=st.sampled_from(["", "asked", "asked"]))
    def drop_or_let_go_on(self, data: st.DataObject, away: bool, word: str) -> None:
        chosen = data.draw(st.sampled_from(self.model.waiting))
        self.model.waiting.remove(chosen)
        if away:
            self.queue.drop(chosen.id)
            return
        free = chosen.model_copy(update={"waiting_for": word, "waiting_until": None})
        self.model.waiting.append(free)
        self.queue.put(free)

    @rule()
    def claim_all(self) -> None:
        while self.claim_one():
            pass

    def claim_one(self) -> bool:
        wanted = self.model.next(self.now)
        found = claim.next_claim(self.queue, self.facts())
        assert (found and found.name) == (wanted and wanted.name)
        if found is None:
            return False
        self.n += 1
        attempt = f"{self.n:026}"
        self.queue.drop(found.id)
        self.pools.started(found.pool, self.now, attempt)
        self.model.waiting = [d for d in self.model.waiting if d.id != found.id]
        self.model.running.append((found, attempt, self.now))
        self.model.starts.append((found.pool, self.now, attempt))
        self.model.last[found.pool] = self.now
        return True

    @precondition(lambda self: self.model.running or self.model.waiting)
    @rule(endings=st.lists(ENDINGS, min_size=1, max_size=8), wait=st.sampled_from([0, 1, 20, 90, 4000]))
    def work_goes_on(self, endings: list[tuple[int, str, int | None]], wait: int) -> None:
        """Claim, end one, let some time pass, and again: what a night is made of."""
        for which, how, resets in endings:
            self.claim_all()
            self.no_moment_is_missed()
            if self.model.running:
                self.end(self.model.running[which % len(self.model.running)], how, resets)
            self.now += wait * SECOND

    def end(self, one: tuple[Dispatch, str, datetime], how: str, resets: int | None) -> None:
        self.model.running.remove(one)
        found, attempt, claimed = one
        at = self.now + resets * SECOND if resets else None
        reason = {"died": Reason.DIED, "rate_limit": Reason.RATE_LIMIT, "outage": Reason.MODEL_ERROR}.get(how)
        state = {"success": State.COMPLETED, "rate_limit": State.QUEUED, "cancelled": State.CANCELLED}.get(how)
        terminal = "success" if how == "success" else "error" if reason else "none"
        outcome = Outcome(terminal=terminal, reason=reason, resets_at=at.timestamp() if at else None)
        if how == "unborn":
            self.pools.never_started(found.pool, attempt)
            self.model.starts = [s for s in self.model.starts if s[2] != attempt]
        else:
            said = Ending(state or State.FAILED, reason, "", outcome, claimed)
            self.write(self.pools.ended(found, said, self.now, BREAKER))
            self.model.ended(found, how, self.now, claimed, at)
        if how in ("rate_limit", "unborn"):
            park = self.model.parks.get(found.pool) if how == "rate_limit" else None
            word, until = ("rate_limit", park.until) if park else ("", None)
            again = found.model_copy(update={"waiting_for": word, "waiting_until": until})
            self.model.waiting.append(again)
            self.queue.put(again)

    @rule(used=st.sampled_from([0.1, 0.5, 0.9, 0.94, 1.0]), minutes=st.sampled_from([10, 200, 6000]))
    def a_window_is_told(self, used: float, minutes: int) -> None:
        resets, price = self.now + minutes * MINUTE, 0.1
        told = {"kind": "w", "used": used, "resets_at": resets.isoformat(), "seen_at": self.now.isoformat()}
        self.write({"window:claude:w": {**told, "price": price}})
        self.model.windows["claude"] = (used, resets, self.now, price)

    @rule(pool=st.sampled_from(["", *POOLS]))
    def freeze(self, pool: str) -> None:
        self.model.frozen |= {pool}

    @precondition(lambda self: self.model.frozen)
    @rule()
    def thaw(self) -> None:
        self.model.frozen = set()

    @rule(pool=st.sampled_from(POOLS))
    def a_person_unparks(self, pool: str) -> None:
        self.write(self.pools.unpark(pool))
        self.model.parks.pop(pool, None)
        self.model.refused[pool], self.model.failed[pool] = 0, []

    @rule(by=st.sampled_from([SECOND, 31 * SECOND, MINUTE, 5 * MINUTE, HOUR, 5 * HOUR, DAY]))
    def time_passes(self, by: timedelta) -> None:
        self.now += by

    @rule()
    def time_passes_to_the_next_look(self) -> None:
        found = claim.next_time(self.queue, self.facts())
        if found is not None:
            self.now = found

    @rule(by=st.sampled_from([SECOND, 10 * MINUTE, 2 * HOUR, 30 * HOUR]))
    def the_clock_is_set_back(self, by: timedelta) -> None:
        self.now -= by
        for pool in POOLS:  # a pause that began in the future begins now; the first look sees to it
            if pool in self.pools.starts:
                self.pools.starts[pool].last(self.now)
            if pool in self.model.last:
                self.model.last[pool] = min(self.model.last[pool], self.now)

    @rule()
    def restart(self) -> None:
        self.queue, self.pools = Queue(self.model.waiting), Pools()
        self.pools.load(self.controls, self.model.starts)
        self.model.last = {p: max(at for q, at, _ in self.model.starts if q == p) for p, _, _ in self.model.starts}
        self.model.last = {p: min(at, self.now) for p, at in self.model.last.items()}
        for starts in self.pools.starts.values():
            starts.last(self.now)

    @invariant()
    def the_words_agree(self) -> None:
        facts = self.facts()
        assert [d.name for d in self.queue] == [d.name for d in self.model.order()]
        for d in self.model.waiting:
            found = claim.obstacle(d, self.queue, facts)
            assert (found.word if found else "") == self.model.why(d, self.now), d.name
        assert all(self.queue.waiting(pool) == sum(d.pool == pool for d in self.model.waiting) for pool in POOLS)

    @invariant()
    def no_moment_is_missed(self) -> None:
        """As the engine does it: nothing may be claimed, so it sleeps until `next_time`."""
        if claim.next_claim(self.queue, self.facts()) is not None:
            return
        at = claim.next_time(self.queue, self.facts())
        assert at is None or at > self.now, "a busy loop"
        for moment in [self.now + wait for wait in LOOKS]:
            if at is None or moment < at:
                assert self.model.next(moment) is None, f"{moment} is missed; the next look is {at}"


TestLimits = LimitsMachine.TestCase
TestLimits.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
