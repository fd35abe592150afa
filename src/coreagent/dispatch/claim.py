"""Which queued dispatch may start next. The one place where limits hold (field notes 4.2: a cap enforced elsewhere
is bypassed). Pure: the engine gives the facts and acts on the answer.

What stops everything is asked first, then what stops a pool, then a lane (one runner, model and repository), then one
task, so that a full pool with ten thousand tasks costs one look.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from coreagent.config import PoolLimit, RateSettings
from coreagent.dispatch import admission, limits, pacing
from coreagent.dispatch.breaker import Breaker
from coreagent.dispatch.limits import Obstacle, Starts
from coreagent.dispatch.park import Park
from coreagent.dispatch.queue import ASKED, HELD, Key, Lane, Queue, key_of, lane_of
from coreagent.models.dispatch import Dispatch
from coreagent.plural import plural

MEMORY_LOOK = timedelta(seconds=5)
"""No event tells that memory has become free."""
NO_STARTS = Starts()
PASSED = frozenset({"parked", "rate_limit", "pace", "memory"})
"""Words of what does not hold up a task that a person asked for."""


def _unknown() -> int | None:
    return None


@dataclass(frozen=True)
class Facts:
    """What a claim is decided from. Pools, runners and repositories that are not named have no limit."""

    now: datetime
    limits: Mapping[str, PoolLimit] = field(default_factory=dict)
    rates: Mapping[str, RateSettings] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    """Pool -> slots held: preparing and running."""
    models: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(pool, name of a cap) -> slots held under that cap."""
    repos: Mapping[str, int] = field(default_factory=dict)
    """org/repo -> slots held."""
    starts: Mapping[str, Starts] = field(default_factory=dict)
    parks: Mapping[str, Park] = field(default_factory=dict)
    breakers: Mapping[str, Breaker] = field(default_factory=dict)
    windows: Mapping[str, list[pacing.Window]] = field(default_factory=dict)
    pace_target: float = 0.95
    """Share of a provider's window that may be used by its reset; 0 paces nothing."""
    starting: int = 0
    """Heavy agents that were claimed and have not said a word yet."""
    starting_most: int = 0
    """0 is unlimited."""
    free_memory: Callable[[], int | None] = _unknown
    memory_reserve: int = 0
    """Bytes that stay free."""
    memory_promised: int = 0
    """Bytes that agents that are starting have not taken yet."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Name (`admission.called`) -> bytes that agents of that name were seen to take."""
    frozen: bool = False
    frozen_pools: Collection[str] = frozenset()
    draining: bool = False
    held: str = ""
    """Why nothing may start at all, when it is neither frozen nor draining: `settings`."""


def cap_of(model: str, limit: PoolLimit) -> str:
    """The per-model cap that holds for a model: the longest name that it is or contains; "" none."""
    return max(
        (name for name in limit.models if name and name in model), key=lambda name: (len(name), name), default=""
    )


def obstacle(dispatch: Dispatch, queue: Queue, facts: Facts) -> Obstacle | None:
    """Why `dispatch` may not start now; None when only its turn has not come."""
    own = _own(dispatch, facts)
    if own is not None and dispatch.waiting_for in HELD:
        return own
    asked = dispatch.waiting_for == ASKED
    found = _everything(facts) or of_pool(dispatch.pool, queue.waiting(dispatch.pool), facts, asked=asked)
    # A task that waits for a rate limit says so, not that its pool is parked for the same reason.
    if own is not None and (found is None or found.word == "parked"):
        return own
    return found or _Lanes(facts).held(lane_of(dispatch), asked=asked)


def next_claim(queue: Queue, facts: Facts, arriving: Collection[str] = ()) -> Dispatch | None:
    """The dispatch to claim now, or None. Those whose id is in `arriving` are not durable yet."""
    if _everything(facts):
        return None
    queue.wake(facts.now)
    chosen: Key | None = None
    too_early: list[Dispatch] = []
    of_lanes = _Lanes(facts)
    for pool, lanes in queue.pools.items():
        if key := _asked(pool, queue, facts, of_lanes, arriving):
            chosen = min(chosen or key, key)
        if of_pool(pool, queue.waiting(pool), facts):
            continue
        for lane, keys in lanes.items():
            if (chosen is not None and keys[0] > chosen) or of_lanes.held(lane):
                continue
            for key in keys:
                if chosen is not None and key > chosen:
                    break
                if key[1] in arriving:
                    continue
                own = _own(queue[key[1]], facts)
                if own is None:
                    chosen = key
                    break
                too_early.append(queue[key[1]])
    for dispatch in too_early:
        queue.put(dispatch)  # its time had come, and the clock was set back: it waits for it again
    return queue[chosen[1]] if chosen else None


def _asked(pool: str, queue: Queue, facts: Facts, of_lanes: _Lanes, arriving: Collection[str]) -> Key | None:
    """The first one of a pool that a person asked for, when nothing is in its way that it does not pass."""
    if not queue.asked.get(pool) or of_pool(pool, queue.waiting(pool), facts, asked=True):
        return None
    waiting = (queue[dispatch_id] for dispatch_id in queue.asked[pool] if dispatch_id not in arriving)
    return min((key_of(d) for d in waiting if not of_lanes.held(lane_of(d), asked=True)), default=None)


def next_time(queue: Queue, facts: Facts) -> datetime | None:
    """The earliest moment at which time alone may let something start, for the engine's one timer."""
    times: list[datetime | None] = [queue.next_time()]
    of_lanes = _Lanes(facts)
    for pool, lanes in queue.pools.items():
        if queue.asked.get(pool):
            waits = of_pool(pool, queue.waiting(pool), facts, asked=True)
            asked = {lane_of(queue[dispatch_id]) for dispatch_id in queue.asked[pool]}
            of_asked = [waits] if waits else [of_lanes.held(lane, asked=True) for lane in asked]
            times += [found.until for found in of_asked if found is not None]
        stopped = of_pool(pool, queue.waiting(pool), facts)
        if stopped is not None:
            times.append(stopped.until)
            continue
        times += [found.until for lane in lanes if (found := of_lanes.held(lane)) is not None]
    return min((at for at in times if at is not None and at > facts.now), default=None)


def _everything(facts: Facts) -> Obstacle | None:
    if facts.draining:
        return Obstacle("shutdown")
    if facts.held:
        return Obstacle(facts.held)
    return Obstacle("frozen") if facts.frozen else None


def of_pool(pool: str, waiting: int, facts: Facts, *, asked: bool = False) -> Obstacle | None:
    """What holds up a whole pool in which so many tasks wait; None when nothing does.

    With `asked`, as it is for a task that a person asked for now: neither parks nor the pace count.
    """
    if pool in facts.frozen_pools:
        return Obstacle("frozen_pool")
    running = facts.running.get(pool, 0)
    park = None if asked else facts.parks.get(pool)
    if park is not None:
        if park.until > facts.now:
            return Obstacle("parked", park.until, park.detail or park.why.replace("_", " "))
        if park.why == "outage" and running:
            return Obstacle("parked", None, "after an outage one turn is tried first")
    limit = facts.limits.get(pool)
    if limit is not None and limit.total and running >= limit.total:
        return Obstacle("slot", None, f"{running} of {limit.total} in use")
    starts = facts.starts.get(pool, NO_STARTS)
    rate = facts.rates.get(pool)
    found = limits.rate_obstacle(facts.now, rate, starts) if rate is not None else None
    if found is None and not asked and facts.pace_target and pool in facts.windows:
        found = pacing.pace_obstacle(facts.windows[pool], facts.now, starts, running, waiting, facts.pace_target)
    return found


class _Lanes:
    """What holds a lane up. Lanes share models, repositories and agents: each of these is looked at once."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._models: dict[tuple[str, str], Obstacle | None] = {}
        self._repos: dict[str, Obstacle | None] = {}
        self._agents: dict[tuple[str, bool], Obstacle | None] = {}

    def held(self, lane: Lane, *, asked: bool = False) -> Obstacle | None:
        pool, runner, model, repo = lane
        if (pool, model) not in self._models:
            self._models[pool, model] = _model(pool, model, self._facts)
        if found := self._models[pool, model]:
            return found
        if repo not in self._repos:
            self._repos[repo] = _repo(repo, self._facts)
        if found := self._repos[repo]:
            return found
        name = admission.called(runner, model)
        if (name, asked) not in self._agents:
            self._agents[name, asked] = _starting(name, self._facts) or (None if asked else _memory(name, self._facts))
        return self._agents[name, asked]


def _model(pool: str, model: str, facts: Facts) -> Obstacle | None:
    limit = facts.limits.get(pool)
    if limit is None or not limit.models:
        return None
    cap = cap_of(model, limit)
    most, held = limit.models.get(cap, 0), facts.models.get((pool, cap), 0)
    return Obstacle("model_slot", None, f"{held} of {most} for {cap} in use") if most and held >= most else None


def _repo(repo: str, facts: Facts) -> Obstacle | None:
    breaker = facts.breakers.get(repo)
    if breaker is None or not breaker.tripped:
        return None
    if breaker.open_at(facts.now):
        said = f"{plural(breaker.failures, 'failure')} in a row in {repo}: {breaker.last}"
        return Obstacle("breaker", breaker.until, said)
    return Obstacle("breaker", None, f"one task of {repo} is tried first") if facts.repos.get(repo, 0) else None


def _own(dispatch: Dispatch, facts: Facts) -> Obstacle | None:
    if dispatch.waiting_for in HELD:
        return Obstacle(dispatch.waiting_for)
    if dispatch.waiting_until is not None and dispatch.waiting_until > facts.now:
        return Obstacle(dispatch.waiting_for or "time", dispatch.waiting_until)
    return None


def _starting(name: str, facts: Facts) -> Obstacle | None:
    if not facts.starting_most or facts.starting < facts.starting_most or not admission.heavy(name, facts.sizes):
        return None
    return Obstacle("starting", None, plural(facts.starting, "agent is starting", "agents are starting"))


def _memory(name: str, facts: Facts) -> Obstacle | None:
    # What it was seen to take is held against what runs beside it. Alone, no later run could ever show that it takes
    # less: then only the reserve counts.
    alone = not any(facts.running.values())
    needed = admission.UNKNOWN_GUESS if alone else admission.needed(name, facts.sizes)
    free = facts.free_memory()
    if free is None or free - facts.memory_promised - facts.memory_reserve >= needed:
        return None
    mib = admission.MEBI
    said = f"{max(0, free) // mib} MiB are free"
    if not alone:
        said = f"{name} takes about {needed // mib} MiB, {said}"
    if facts.memory_promised:
        said += f", {facts.memory_promised // mib} MiB of that for agents that are starting"
    if facts.memory_reserve:
        said += f", and {facts.memory_reserve // mib} MiB stay free (dispatch.memory_reserve_mib)"
    if not alone and free - facts.memory_reserve >= admission.UNKNOWN_GUESS:
        said += "; it starts all the same when no other agent runs"
    return Obstacle("memory", facts.now + MEMORY_LOOK, said)
