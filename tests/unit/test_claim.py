"""The claim is the only place where limits hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from coreagent.dispatch import claim
from coreagent.models.dispatch import Dispatch, State

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def queued(n: int, pool: str = "claude", priority: int = 0, **more: object) -> Dispatch:
    at = NOW + timedelta(seconds=n)
    return Dispatch(
        id=f"{n:026}", org="o", repo="r", name=f"n{n}", repo_path="/r", task="t", agent=pool, runner=pool, pool=pool,
        priority=priority, created_at=at, queued_at=at, changed_at=at, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def facts(**more: object) -> claim.Facts:
    return claim.Facts(**{"now": NOW, "limits": {}, "running": {}, **more})  # type: ignore[arg-type]


def test_first_in_first_out_within_a_priority() -> None:
    waiting = [queued(3), queued(1), queued(2, priority=5)]
    assert [d.name for d in claim.order(waiting)] == ["n2", "n1", "n3"]


def test_a_full_pool_does_not_hold_up_another() -> None:
    chosen = claim.next_claim([queued(1), queued(2, "codex")], facts(limits={"claude": 1}, running={"claude": 1}))
    assert chosen is not None
    assert chosen.pool == "codex"


def test_zero_is_unlimited() -> None:
    assert claim.obstacle(queued(1), facts(limits={"claude": 0}, running={"claude": 99})) == ""


def test_why_it_waits() -> None:
    assert claim.obstacle(queued(1), facts(frozen=True)) == "frozen"
    assert claim.obstacle(queued(1), facts(frozen_pools=frozenset({"claude"}))) == "frozen_pool"
    assert claim.obstacle(queued(1), facts(draining=True)) == "shutdown"
    later = NOW + timedelta(minutes=1)
    parked = queued(1, waiting_until=later, waiting_for="rate_limit")
    assert claim.obstacle(parked, facts()) == "rate_limit"
    assert claim.obstacle(parked, facts(now=later)) == ""
    assert claim.next_time([parked, queued(2)], NOW) == later


def test_only_queued_ones_are_claimed() -> None:
    assert claim.next_claim([queued(1, state=State.RUNNING)], facts()) is None
