"""Parked pools: why a provider is left alone for a while, until when, and how a park ends.

Two things park a pool: a provider's rate limit, until the reset it names; and an outage, when model calls fail in more
than one repository, because what fails in one only may be that repository's own fault. Pure values; the engine keeps
them as controls and the claim asks.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from coreagent.models.agent import Reason
from coreagent.plural import plural

BACKOFF = tuple(timedelta(minutes=n) for n in (1, 5, 15, 60))
"""How long after the n-th refusal in a row that names no time (domain.md)."""
RESET_MIN = timedelta(seconds=1)
RESET_MAX = timedelta(days=8)
"""A little more than the longest window a provider has; a reset further ahead is a mistake of somebody's clock."""
OUTAGE: frozenset[Reason] = frozenset({Reason.MODEL_ERROR, Reason.NETWORK, Reason.AUTH, Reason.BUDGET})
"""Endings by which nothing else of the pool would fare better: a night's queue must not fail task by task."""
OUTAGE_FAILURES = 3
OUTAGE_REPOS = 2


class Park(BaseModel):
    """A pool that starts nothing."""

    model_config = ConfigDict(frozen=True)
    until: datetime
    since: datetime
    why: Literal["rate_limit", "outage"]
    named: bool = True
    """The provider named the time."""
    times: int = 1
    """Parks in a row without a success between them."""
    detail: str = ""

    def covers(self, claimed_at: datetime | None, now: datetime) -> bool:
        """Whether a turn that ends badly now tells nothing new: it began before the pool was parked, and still is."""
        return self.until > now and claimed_at is not None and claimed_at <= self.since


class Trouble(BaseModel):
    """What the provider of a pool has answered since the last turn that went well."""

    model_config = ConfigDict(frozen=True)
    refused: int = 0
    """Parks in a row."""
    failed_in: dict[str, int] = Field(default_factory=dict)
    """Repository -> turns there whose model calls failed, since a turn went well or the pool was parked."""

    def failed(self, repo: str) -> Trouble:
        return self.model_copy(update={"failed_in": self.failed_in | {repo: self.failed_in.get(repo, 0) + 1}})

    @property
    def failures(self) -> int:
        return sum(self.failed_in.values())

    def is_outage(self, *, tried: bool) -> bool:
        """Whether this cannot be one repository's own fault; `tried`: what failed was tried after an outage."""
        return len(self.failed_in) >= OUTAGE_REPOS and (tried or self.failures >= OUTAGE_FAILURES)


def reset_of(resets_at: float | None, now: datetime) -> datetime | None:
    """The time a provider named, brought into bounds; None when it named none."""
    if resets_at is None or not 0 < resets_at < float("inf"):
        return None
    wait = timedelta(seconds=min(max(resets_at - now.timestamp(), 0.0), RESET_MAX.total_seconds()))
    return now + max(wait, RESET_MIN)


def backoff(times: int) -> timedelta:
    """How long to leave a provider alone after `times` refusals in a row that named no time."""
    return BACKOFF[min(max(times, 1), len(BACKOFF)) - 1]


def after_rate_limit(
    before: Park | None, trouble: Trouble, resets_at: float | None, now: datetime, claimed_at: datetime | None = None
) -> Park:
    """The park that a rate limit makes; a later end that is already known stays.

    Agents that ran side by side hit the same wall one after the other: that is one refusal, not several in a row.
    """
    named = reset_of(resets_at, now)
    same = before is not None and before.covers(claimed_at, now)
    times = before.times if before is not None and same else trouble.refused + 1
    until = named or (before.until if before is not None and same else now + backoff(times))
    if before is not None and before.named and before.until > until:
        until = before.until
    since = before.since if before is not None and before.until > now else now
    return Park(until=until, since=since, why="rate_limit", named=named is not None, times=times)


def after_outage(trouble: Trouble, now: datetime, reason: Reason) -> Park:
    """The park that failures in several repositories make: `trouble` is what failed since the last one, if any."""
    times = trouble.refused + 1
    turns, places = plural(trouble.failures, "turn"), plural(len(trouble.failed_in), "repository", "repositories")
    return Park(
        until=now + backoff(times),
        since=now,
        why="outage",
        named=False,
        times=times,
        detail=f"{turns} failed in {places} and none went well between them, the newest with {reason}",
    )
