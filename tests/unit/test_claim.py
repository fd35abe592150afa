"""The claim is the only place where limits hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from coreagent.config import PoolLimit, RateSettings
from coreagent.dispatch import admission, claim, pacing
from coreagent.dispatch.breaker import Breaker
from coreagent.dispatch.limits import Starts
from coreagent.dispatch.park import Park
from coreagent.dispatch.queue import Queue
from coreagent.models.dispatch import Dispatch, State

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


def queued(n: int, pool: str = "claude", priority: int = 0, **more: object) -> Dispatch:
    at = NOW + timedelta(seconds=n)
    made = Dispatch(
        id=f"{n:026}", org="o", repo="r", name=f"n{n}", repo_path="/r", task="t", agent=pool, runner="scripted",
        pool=pool, priority=priority, created_at=at, queued_at=at, changed_at=at,
    )  # fmt: skip
    return made.model_copy(update=more)


def facts(**more: object) -> claim.Facts:
    return claim.Facts(**{"now": NOW, **more})  # type: ignore[arg-type]


def word(dispatch: Dispatch, **more: object) -> str:
    found = claim.obstacle(dispatch, Queue([dispatch]), facts(**more))
    return found.word if found else ""


def chosen(*waiting: Dispatch, **more: object) -> str:
    found = claim.next_claim(Queue(waiting), facts(**more))
    return found.name if found else ""


def test_first_in_first_out_within_a_priority() -> None:
    assert [d.name for d in Queue([queued(3), queued(1), queued(2, priority=5)])] == ["n2", "n1", "n3"]


def test_waiting_an_hour_is_worth_a_step_of_priority() -> None:
    old = queued(1, queued_at=NOW - timedelta(hours=2))
    assert [d.name for d in Queue([queued(2, priority=1), old, queued(3, priority=3)])] == ["n3", "n1", "n2"]


def test_a_full_pool_does_not_hold_up_another() -> None:
    full = {"claude": PoolLimit(total=1)}
    assert chosen(queued(1), queued(2, "codex"), limits=full, running={"claude": 1}) == "n2"
    assert word(queued(1), limits=full, running={"claude": 1}) == "slot"


def test_zero_is_unlimited() -> None:
    assert word(queued(1), limits={"claude": PoolLimit(total=0)}, running={"claude": 99}) == ""


def test_a_cap_of_a_model_holds_beside_the_pools() -> None:
    limit = PoolLimit(total=3, models={"opus": 1, "opus-4": 2})
    assert claim.cap_of("claude-opus-4-1", limit) == "opus-4"
    opus, sonnet = queued(1, model="opus"), queued(2, model="sonnet")
    how = {"limits": {"claude": limit}, "running": {"claude": 1}, "models": {("claude", "opus"): 1}}
    assert chosen(opus, sonnet, **how) == "n2"
    assert word(opus, **how) == "model_slot"


def test_why_it_waits() -> None:
    assert word(queued(1), frozen=True) == "frozen"
    assert word(queued(1), frozen_pools={"claude"}) == "frozen_pool"
    assert word(queued(1), draining=True) == "shutdown"
    assert word(queued(1), held="settings") == "settings"
    waits = queued(1, waiting_until=LATER, waiting_for="rate_limit")
    assert word(waits) == "rate_limit"
    assert word(waits, now=LATER) == ""
    assert claim.next_time(Queue([waits, queued(2)]), facts()) == LATER
    assert claim.next_claim(Queue([waits]), facts(now=LATER)) is waits


def test_a_parked_pool_starts_nothing_until_then() -> None:
    park = Park(until=LATER, since=NOW, why="rate_limit")
    assert word(queued(1), parks={"claude": park}) == "parked"
    assert claim.next_time(Queue([queued(1)]), facts(parks={"claude": park})) == LATER
    assert chosen(queued(1), parks={"claude": park}, now=LATER) == "n1"


def test_what_a_person_asks_for_does_not_wait_for_a_parked_pool() -> None:
    park = {"claude": Park(until=LATER, since=NOW, why="rate_limit")}
    asked = queued(2, waiting_for="asked")
    assert chosen(queued(1), asked, parks=park) == "n2"
    assert word(asked, parks=park) == ""
    full = {"claude": PoolLimit(total=1)}
    assert chosen(asked, parks=park, limits=full, running={"claude": 1}) == ""
    assert word(asked, parks=park, limits=full, running={"claude": 1}) == "slot"
    queue = Queue([asked])
    queue.put(queued(2))
    assert claim.next_claim(queue, facts(parks=park)) is None


def test_what_a_person_asks_for_passes_pace_and_memory_and_nothing_that_is_set() -> None:
    asked, other = queued(2, waiting_for="asked", runner="claude"), queued(1, runner="claude")
    window = {"claude": [pacing.Window(kind="w", used=1.0, resets_at=LATER, seen_at=NOW, price=0.01)]}
    tight = {"free_memory": lambda: 10 << 20, "running": {"codex": 1}}
    for how in ({"windows": window}, tight):
        assert chosen(other, **how) == ""
        assert chosen(other, asked, **how) == "n2"
        assert word(asked, **how) == ""
    used_up = {"rates": {"claude": RateSettings(daily_limit=1)}, "starts": {"claude": Starts([(NOW, "A")])}}
    assert word(asked, windows=window, **used_up) == "daily_limit"
    broken = {"o/r": Breaker(failures=5, opened=1, until=LATER)}
    assert word(asked, windows=window, breakers=broken) == "breaker"
    assert claim.next_time(Queue([asked]), facts(windows=window, breakers=broken)) == LATER
    assert word(asked, starting=2, starting_most=2) == "starting"
    assert word(asked, frozen_pools={"claude"}) == "frozen_pool"


def test_after_an_outage_one_is_tried_first() -> None:
    park = Park(until=NOW, since=NOW, why="outage")
    assert chosen(queued(1), parks={"claude": park}) == "n1"
    assert chosen(queued(2), parks={"claude": park}, running={"claude": 1}) == ""


def test_a_repository_that_fails_is_left_alone_and_then_tried_once() -> None:
    tripped = {"o/r": Breaker(failures=5, opened=1, until=LATER, last="setup_failed")}
    other = queued(2, repo="fine")
    assert chosen(queued(1), other, breakers=tripped) == "n2"
    assert word(queued(1), breakers=tripped) == "breaker"
    assert chosen(queued(1), breakers=tripped, now=LATER) == "n1"
    assert chosen(queued(1), breakers=tripped, now=LATER, repos={"o/r": 1}) == ""


def test_the_last_start_of_a_day() -> None:
    rates = {"claude": RateSettings(daily_limit=2)}
    one = Starts([(NOW, "A")])
    assert chosen(queued(1), rates=rates, starts={"claude": one}) == "n1"
    one.note(NOW, "B")
    assert chosen(queued(1), rates=rates, starts={"claude": one}) == ""
    assert claim.next_time(Queue([queued(1)]), facts(rates=rates, starts={"claude": one})) == NOW + timedelta(days=1)


def test_an_agent_that_would_not_fit_waits_and_a_light_one_does_not() -> None:
    heavy, light = queued(1, runner="claude"), queued(2)
    how = {"free_memory": lambda: 600 << 20, "memory_reserve": 400 << 20, "running": {"codex": 1}}
    assert word(heavy, **how) == "memory"
    assert chosen(heavy, light, **how) == "n2"
    assert claim.next_time(Queue([heavy]), facts(**how)) == NOW + claim.MEMORY_LOOK
    assert chosen(heavy, **{**how, "free_memory": lambda: 900 << 20}) == "n1"
    assert chosen(heavy, **{**how, "free_memory": lambda: None}) == "n1"


def test_what_was_once_seen_to_take_much_starts_when_nothing_else_runs() -> None:
    big = queued(1, runner="command", model="big")
    how = {"free_memory": lambda: 800 << 20, "memory_reserve": 700 << 20, "sizes": {"command:big": 900 << 20}}
    assert chosen(big, **how) == "n1"
    assert chosen(big, **how, running={"codex": 1}) == ""
    found = claim.obstacle(big, Queue([big]), facts(**{**how, "memory_reserve": 900 << 20}))
    assert found is not None
    assert found.detail == "800 MiB are free, and 900 MiB stay free (dispatch.memory_reserve_mib)"


def test_a_command_is_known_by_its_name() -> None:
    known = {"command:big": 900 << 20}
    big, small = queued(1, runner="command", model="big"), queued(2, runner="command", model="small")
    how = {"free_memory": lambda: 800 << 20, "memory_reserve": 500 << 20, "sizes": known, "running": {"codex": 1}}
    found = claim.obstacle(big, Queue([big]), facts(**how))
    assert found is not None
    assert found.word == "memory"
    assert found.detail == (
        "command:big takes about 900 MiB, 800 MiB are free, and 500 MiB stay free (dispatch.memory_reserve_mib); "
        "it starts all the same when no other agent runs"
    )
    assert word(big, **{**how, "sizes": {}}) == ""
    assert chosen(big, small, **how) == "n2"


@pytest.mark.parametrize("runner", ["claude", "command", "scripted", "some.module:Class"])
def test_a_reserve_larger_than_the_machine_lets_nothing_start(runner: str) -> None:
    assert word(queued(1, runner=runner), free_memory=lambda: 8 << 30, memory_reserve=9 << 30) == "memory"
    assert word(queued(1, runner=runner), free_memory=lambda: 8 << 30, memory_reserve=1 << 30) == ""


def test_not_all_start_at_once() -> None:
    heavy, command = queued(1, runner="claude"), queued(1, runner="command", model="c")
    assert word(heavy, starting=2, starting_most=2) == "starting"
    assert word(queued(1), starting=2, starting_most=2) == ""
    full = {"starting": 2, "starting_most": 2}
    assert word(command, **full, sizes={"command:c": admission.HEAVY - 1, "command:other": 900 << 20}) == ""
    assert word(command, **full, sizes={"command:c": admission.HEAVY}) == "starting"
    assert word(heavy, **full, sizes={"claude": 10 << 20}) == "starting"


def test_what_is_not_durable_or_held_is_passed_over() -> None:
    first, second = queued(1), queued(2)
    found = claim.next_claim(Queue([first, second]), facts(), {first.id})
    assert found is second
    held = queued(3, waiting_for="after")
    assert chosen(held) == ""
    assert word(held) == "after"


def test_a_queue_follows_what_moves() -> None:
    queue = Queue([queued(1), queued(2), queued(3, "codex")])
    queue.put(queued(1, waiting_until=LATER))
    assert claim.next_claim(queue, facts()) == queued(2)
    queue.drop(queued(2).id)
    queue.drop("nobody")
    assert [d.name for d in queue] == ["n1", "n3"]
    assert (len(queue), queue.waiting("claude"), queue.waiting("codex")) == (2, 1, 1)
    assert queue.position(queued(3, "codex")) == 2
    found = claim.next_claim(queue, facts(now=LATER))
    assert found is not None
    assert found.name == "n1"
    queue.drop(found.id)
    queue.drop(queued(3).id)
    assert (list(queue), queue.pools, queue.next_time()) == ([], {}, None)


def test_only_queued_ones_stand_in_the_queue() -> None:
    from coreagent.dispatch.board import Board

    board = Board([queued(1), queued(2, state=State.RUNNING)])
    assert [d.name for d in board.queued] == ["n1"]
    board[queued(1).id] = queued(1, state=State.PREPARING)
    assert (list(board.queued), len(board.active)) == ([], 2)
    board.pop(queued(1).id)
    assert len(board.active) == 1
