"""Which queued dispatch may start next. The one place where limits hold (field notes 4.2: a cap enforced elsewhere
is bypassed). Pure: the engine gives the facts and acts on the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from coreagent.models.dispatch import Dispatch, State


@dataclass(frozen=True)
class Facts:
    """What a claim is decided from."""

    now: datetime
    limits: Mapping[str, int]
    """Pool -> most attempts at once, 0 = unlimited; pools not named are unlimited."""
    running: Mapping[str, int]
    """Pool -> slots held: preparing and running."""
    frozen: bool = False
    frozen_pools: frozenset[str] = field(default_factory=frozenset)
    draining: bool = False
    held: str = ""
    """Why nothing may start at all, when it is neither frozen nor draining: `settings`."""


def order(queued: Iterable[Dispatch]) -> list[Dispatch]:
    """Queue order: priority first, first in first out within it."""
    return sorted(queued, key=_rank)


def _rank(d: Dispatch) -> tuple[int, datetime, str]:
    return -d.priority, d.queued_at, d.id


def obstacle(dispatch: Dispatch, facts: Facts) -> str:
    """Return why `dispatch` may not start now, "" when it may: one of the words of `waiting_for`."""
    if facts.draining:
        return "shutdown"
    if facts.held:
        return facts.held
    if facts.frozen:
        return "frozen"
    if dispatch.pool in facts.frozen_pools:
        return "frozen_pool"
    if dispatch.waiting_until is not None and dispatch.waiting_until > facts.now:
        return dispatch.waiting_for or "time"
    limit = facts.limits.get(dispatch.pool, 0)
    if limit and facts.running.get(dispatch.pool, 0) >= limit:
        return "slot"
    return ""


def next_claim(queued: Iterable[Dispatch], facts: Facts) -> Dispatch | None:
    """The dispatch to claim now, or None."""
    free = (d for d in queued if d.state is State.QUEUED and not obstacle(d, facts))
    return min(free, key=_rank, default=None)


def next_time(queued: Iterable[Dispatch], now: datetime) -> datetime | None:
    """The earliest future moment at which a waiting dispatch may become claimable, for the engine's one timer."""
    times = [d.waiting_until for d in queued if d.waiting_until is not None and d.waiting_until > now]
    return min(times, default=None)
