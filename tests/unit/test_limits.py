"""What a claim asks: days and pauses, parks, breakers, learned windows, memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_claim import NOW, chosen, facts, queued

from coreagent.config import RateSettings
from coreagent.dispatch import admission, breaker, claim, pacing, park
from coreagent.dispatch.breaker import Breaker
from coreagent.dispatch.limits import Starts, day_start, next_reset, pause, rate_obstacle
from coreagent.dispatch.park import Trouble
from coreagent.dispatch.pools import Ending, Pools
from coreagent.dispatch.queue import Queue
from coreagent.models.agent import Outcome, Reason
from coreagent.models.dispatch import State

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def test_a_day_begins_at_its_reset_wherever_the_machine_stands() -> None:
    at = datetime(2026, 3, 29, 5, 59, tzinfo=UTC)
    assert day_start(at, "06:00") == datetime(2026, 3, 28, 6, tzinfo=UTC)
    assert day_start(at + MINUTE, "06:00") == datetime(2026, 3, 29, 6, tzinfo=UTC)
    tokyo = (at + MINUTE).astimezone(timezone(timedelta(hours=9)))
    assert day_start(tokyo, "06:00") == datetime(2026, 3, 29, 6, tzinfo=UTC)
    assert next_reset(at, RateSettings(reset_utc="06:00")) == at + MINUTE


def test_pauses_of_the_day_and_of_its_last_hours() -> None:
    rate = RateSettings(min_delay=30, sustained_delay=60, burst_window=5, burst_delay=300)
    assert pause(NOW, rate) == timedelta(seconds=60)
    assert pause(NOW + 20 * HOUR, rate) == timedelta(seconds=300)
    assert pause(NOW, RateSettings(min_delay=30, sustained_delay=10)) == timedelta(seconds=30)


def test_a_pause_may_end_with_the_burst_hours() -> None:
    rate = RateSettings(sustained_delay=3600, burst_window=1, burst_delay=10)
    at = NOW + 22.9 * HOUR
    found = rate_obstacle(at, rate, Starts([(at, "A")]))
    assert found is not None
    assert found.until == NOW + 23 * HOUR
    assert rate_obstacle(NOW + 23 * HOUR, rate, Starts([(at, "A")])) is None


def test_a_claim_that_came_to_nothing_is_no_start() -> None:
    starts = Starts([(NOW, "A"), (NOW, "B")])
    starts.take_back("A")
    assert starts.since(NOW) == 1
    assert starts.since(NOW + MINUTE) == 0
    starts.forget_before(NOW + MINUTE)
    assert starts.since(NOW - HOUR) == 0


def test_a_clock_that_is_set_back_gives_no_second_day_and_no_endless_pause() -> None:
    rate = RateSettings(daily_limit=2, min_delay=30)
    starts = Starts([(NOW + 5 * HOUR, "A"), (NOW + 6 * HOUR, "B")])
    found = rate_obstacle(NOW, rate, starts)
    assert found is not None
    assert found.word == "daily_limit"
    free = RateSettings(min_delay=30)
    assert rate_obstacle(NOW, free, starts) is not None
    assert rate_obstacle(NOW + timedelta(seconds=30), free, starts) is None


@pytest.mark.parametrize("resets_at", [None, float("nan"), float("inf"), -1.0, 0.0])
def test_a_limit_that_names_no_time_waits_longer_each_time(resets_at: float | None) -> None:
    trouble, waits = Trouble(), []
    for _ in range(6):
        made = park.after_rate_limit(None, trouble, resets_at, NOW)
        waits.append((made.until - NOW) / MINUTE)
        trouble = Trouble(refused=made.times)
    assert waits == [1, 5, 15, 60, 60, 60]


def test_the_reset_that_was_named_counts_within_reason() -> None:
    at = NOW.timestamp()
    assert park.reset_of(at + 90, NOW) == NOW + timedelta(seconds=90)
    assert park.reset_of(at - 500, NOW) == NOW + park.RESET_MIN
    assert park.reset_of(at + 1e9, NOW) == NOW + park.RESET_MAX
    long = park.after_rate_limit(None, Trouble(), at + 7200, NOW)
    assert park.after_rate_limit(long, Trouble(refused=1), None, NOW).until == long.until


def failed(pools: Pools, repo: str, reason: Reason, now: datetime = NOW, **more: Any) -> dict[str, Any]:
    said = Ending(State.FAILED, reason, "it broke", Outcome(terminal="error", reason=reason), **more)
    controls = pools.ended(queued(1, repo=repo), said, now, 5)
    pools.apply(controls)
    return controls


def went_well(pools: Pools, repo: str = "r", now: datetime = NOW) -> None:
    said = Ending(State.COMPLETED, None, "", Outcome(terminal="success"))
    pools.apply(pools.ended(queued(1, repo=repo), said, now, 5))


def test_one_repository_never_parks_a_pool_and_two_do() -> None:
    pools = Pools()
    for _ in range(20):
        failed(pools, "broken", Reason.MODEL_ERROR)
    assert pools.parks == {}
    failed(pools, "fine", Reason.NETWORK)
    assert pools.parks["claude"].why == "outage"
    assert pools.parks["claude"].until == NOW + MINUTE
    assert pools.parks["claude"].detail == (
        "21 turns failed in 2 repositories and none went well between them, the newest with network"
    )
    assert pools.breakers == {}


def test_an_outage_ends_with_the_first_turn_that_goes_well() -> None:
    pools = Pools()
    for repo in ("a", "b", "a"):
        failed(pools, repo, Reason.MODEL_ERROR)
    failed(pools, "a", Reason.MODEL_ERROR, NOW + MINUTE)
    failed(pools, "b", Reason.MODEL_ERROR, NOW + MINUTE)
    assert pools.parks["claude"].until == NOW + 6 * MINUTE
    assert "2 turns failed in 2 repositories" in pools.parks["claude"].detail
    went_well(pools, now=NOW + 6 * MINUTE)
    assert (pools.parks, pools.troubles, pools.breakers) == ({}, {}, {})


def test_what_is_tried_after_an_outage_and_fails_holds_up_its_repository_only() -> None:
    pools = Pools()
    for repo in ("broken", "fine", "broken"):
        failed(pools, repo, Reason.AUTH)
    assert pools.breakers == {}
    at = NOW + MINUTE
    failed(pools, "broken", Reason.AUTH, at)
    assert pools.parks["claude"].until == at
    waiting = queued(1, repo="broken"), queued(2, repo="fine")
    how = {"parks": pools.parks, "breakers": pools.breakers, "now": at}
    assert chosen(*waiting, **how) == "n2"
    held = claim.obstacle(waiting[0], Queue(waiting), facts(**how))
    assert held is not None
    assert (held.word, held.until) == ("breaker", at + 5 * MINUTE)
    assert held.detail == "1 failure in a row in o/broken: auth: it broke"
    went_well(pools, "fine", at)
    assert (pools.parks, pools.troubles) == ({}, {})
    assert pools.breakers["o/broken"].tripped


def test_an_outage_with_one_repository_in_use_does_not_fail_its_whole_queue() -> None:
    pools, at, ran = Pools(), NOW, 0
    for _ in range(12):
        if chosen(queued(1), parks=pools.parks, breakers=pools.breakers, now=at):
            failed(pools, "r", Reason.MODEL_ERROR, at)
            ran += 1
    assert (ran, pools.parks) == (5, {})
    waits = []
    for _ in range(5):
        until = pools.breakers["o/r"].until
        assert until is not None
        waits.append((until - at) / MINUTE)
        at = until
        failed(pools, "r", Reason.MODEL_ERROR, at)
    assert waits == [5, 15, 60, 60, 60]
    went_well(pools, "r", at)
    assert (pools.breakers, pools.troubles) == ({}, {})


def test_what_was_an_outage_is_taken_back_from_the_repositories() -> None:
    pools = Pools()
    failed(pools, "r", Reason.DIED)
    for _ in range(6):
        failed(pools, "r", Reason.NETWORK)
    assert pools.breakers["o/r"].tripped
    failed(pools, "other", Reason.NETWORK)
    assert pools.parks["claude"].why == "outage"
    left = pools.breakers.pop("o/r")
    assert (left.failures, left.opened, left.until, pools.breakers) == (1, 0, None, {})
    for _ in range(5):
        failed(pools, "bad", Reason.DIED)
    failed(pools, "bad", Reason.NETWORK, NOW + 6 * MINUTE)
    failed(pools, "other", Reason.NETWORK, NOW + 6 * MINUTE)
    assert pools.breakers["o/bad"].failures == 5
    assert pools.breakers["o/bad"].tripped


def test_a_failure_that_another_agent_mends_costs_its_repository_nothing() -> None:
    pools = Pools()
    for _ in range(9):
        failed(pools, "r", Reason.MODEL_ERROR, goes_on=True)
    assert pools.breakers == {}
    for _ in range(9):
        failed(pools, "r", Reason.MODEL_ERROR, unusable=True)
    assert pools.breakers == {}


def test_an_ending_changes_nothing_until_it_is_written() -> None:
    pools = Pools()
    said = Ending(State.QUEUED, Reason.RATE_LIMIT, "", Outcome(terminal="error", reason=Reason.RATE_LIMIT))
    once = pools.ended(queued(1), said, NOW, 5)
    assert pools.ended(queued(1), said, NOW, 5) == once
    assert pools.parks == {}
    pools.apply(once)
    other = Pools()
    other.load(once, [])
    assert other.parks == pools.parks
    pools.apply(pools.unpark("claude"))
    assert (pools.parks, pools.troubles, pools.unpark("claude")) == ({}, {}, {})


def test_a_repository_trips_recovers_and_is_closed_by_a_person() -> None:
    pools = Pools()
    for _ in range(4):
        failed(pools, "r", Reason.SETUP_FAILED)
    assert not pools.breakers["o/r"].tripped
    failed(pools, "r", Reason.SETUP_FAILED)
    assert pools.breakers["o/r"].until == NOW + 5 * MINUTE
    failed(pools, "r", Reason.SETUP_FAILED, NOW + 5 * MINUTE)
    assert pools.breakers["o/r"].until == NOW + 20 * MINUTE
    assert pools.close_breaker("o/other") == {}
    went_well(pools)
    assert pools.breakers == {}


def test_those_under_way_when_it_trips_do_not_make_it_longer() -> None:
    pools = Pools()
    for _ in range(12):
        failed(pools, "r", Reason.TIMEOUT)
    assert pools.breakers["o/r"].until == NOW + 5 * MINUTE
    assert pools.breakers["o/r"].failures == 12
    failed(pools, "r", Reason.TIMEOUT, NOW + 5 * MINUTE)
    assert pools.breakers["o/r"].until == NOW + 20 * MINUTE


def test_a_persons_stop_and_what_is_the_machines_do_not_count_against_a_repository() -> None:
    before = Breaker(failures=4)
    for state, reason in (
        (State.CANCELLED, Reason.CANCELLED),
        (State.PAUSED, None),
        (State.FAILED, Reason.SPAWN_FAILED),
    ):
        assert breaker.after(before, state, reason, "", NOW, 5) == before
    assert breaker.after(before, State.FAILED, Reason.DIED, "", NOW, 0) == before
    assert breaker.after(before, State.BLOCKED, Reason.BLOCKED, "", NOW, 5) == Breaker()


def test_the_price_of_a_start_is_learned_and_starts_are_spread() -> None:
    starts = Starts()
    end = NOW + 5 * HOUR
    window = pacing.learn(None, "five_hour", 0.10, end, NOW, starts, 0)
    assert pacing.pace_obstacle([window], NOW, starts, 0, 100, 0.95) is None
    for n in range(5):
        starts.note(NOW + n * MINUTE, str(n))
    at = NOW + 10 * MINUTE
    window = pacing.learn(window, "five_hour", 0.20, end + timedelta(seconds=3), at, starts, 0)
    assert window.price == pytest.approx(0.02)
    # 0.75 are left: 37 starts; what waits fits, then it does not.
    assert pacing.pace_obstacle([window], at, starts, 0, 30, 0.95) is None
    found = pacing.pace_obstacle([window], at, starts, 0, 100, 0.95)
    assert found is not None
    assert found.until is not None
    assert found.until - (NOW + 4 * MINUTE) == pytest.approx(
        (window.resets_at - (NOW + 4 * MINUTE)) / 38.5, abs=timedelta(seconds=1)
    )
    assert pacing.pace_obstacle([window], window.resets_at, starts, 0, 100, 0.95) is None


def test_a_window_that_is_nearly_used_waits_for_its_reset() -> None:
    starts = Starts([(NOW, "A")])
    window = pacing.Window(kind="five_hour", used=0.94, resets_at=NOW + HOUR, seen_at=NOW - MINUTE, price=0.02)
    found = pacing.pace_obstacle([window], NOW, starts, 0, 1, 0.95)
    assert found is not None
    assert found.until == NOW + HOUR


def test_the_last_start_that_a_window_pays_for_is_made() -> None:
    starts = Starts([(NOW, "A")])
    reset, at = NOW + timedelta(seconds=500_000), NOW + MINUTE
    window = pacing.Window(kind="seven_day", used=0.9, resets_at=reset, seen_at=at, price=0.1)
    assert pacing.pace_obstacle([window], at, starts, 0, 1, 0.95) is None
    full = window.model_copy(update={"used": 0.95})
    assert pacing.affordable(full, at, starts, 0, 0.95) == 0
    fine = window.model_copy(update={"used": 0.94, "price": 0.02})
    assert pacing.affordable(fine, at, starts, 0, 0.95) == pytest.approx(0.5)


def test_runs_that_used_a_tenth_each_leave_room_for_one_more() -> None:
    pools, at, reset = Pools(), NOW, NOW.timestamp() + 500_000
    for n, used in enumerate((0.5, 0.6, 0.7, 0.8, 0.9)):
        pools.started("claude", at, str(n))
        pools.apply(pools.reported("claude", {"seven_day": (used, reset)}, at + MINUTE / 2, 1))
        at += MINUTE
    how = {"windows": pools.windows, "starts": pools.starts, "now": at}
    assert chosen(queued(1), **how) == "n1"
    pools.started("claude", at, "last")
    pools.apply(pools.reported("claude", {"seven_day": (0.99, reset)}, at + MINUTE / 2, 1))
    at += MINUTE
    assert chosen(queued(1), **how | {"now": at}) == ""
    pools.apply(pools.forget_windows("claude"))
    assert chosen(queued(1), **how | {"now": at}) == "n1"


def test_a_pool_in_which_nothing_runs_is_looked_at_again_before_its_reset() -> None:
    starts = Starts([(NOW, "A")])
    reset = NOW + 100 * HOUR
    window = pacing.Window(kind="seven_day", used=0.97, resets_at=reset, seen_at=NOW + HOUR, price=0.1)
    found = pacing.pace_obstacle([window], NOW + 2 * HOUR, starts, 0, 3, 0.95)
    assert found is not None
    assert found.until == NOW + HOUR + 9.9 * HOUR
    assert found.detail == "97% of the seven day window is used, dispatch.pace_target is 0.95"
    assert pacing.pace_obstacle([window], NOW + 10.9 * HOUR, starts, 0, 3, 0.95) is None
    busy = pacing.pace_obstacle([window], NOW + 10.9 * HOUR, starts, 1, 3, 0.95)
    assert busy is not None
    assert busy.until == reset
    starts.note(NOW + 11 * HOUR, "B")
    again = pacing.pace_obstacle([window], NOW + 11 * HOUR, starts, 0, 3, 0.95)
    assert again is not None
    assert again.until == NOW + 11 * HOUR + 8.9 * HOUR
    short = window.model_copy(update={"resets_at": NOW + 5 * HOUR})
    found = pacing.pace_obstacle([short], NOW + 2 * HOUR, Starts(), 0, 3, 0.95)
    assert found is not None
    assert found.until == NOW + 5 * HOUR


def test_a_new_window_keeps_the_price_and_begins_a_new_measure() -> None:
    starts = Starts([(NOW, "A")])
    old = pacing.Window(
        kind="w", used=0.9, resets_at=NOW, seen_at=NOW - MINUTE, price=0.05, mark_used=0.1, mark_at=NOW - HOUR
    )
    new = pacing.learn(old, "w", 0.0, NOW + 5 * HOUR, NOW + MINUTE, starts, 0)
    assert (new.price, new.mark_used, new.used) == (0.05, 0.0, 0.0)
    assert pacing.learn(new, "w", 0.0, NOW + 5 * HOUR, NOW + 2 * MINUTE, starts, 0).price == 0.05


def test_what_live_runs_report_is_kept_when_it_says_something_new() -> None:
    pools = Pools()
    told = {"five_hour": (0.25, (NOW + HOUR).timestamp()), "seven_day": (0.1, float("nan"))}
    first = pools.reported("claude", told, NOW, 0)
    assert list(first) == ["window:claude:five_hour"]
    pools.apply(first)
    assert pools.windows["claude"][0].used == 0.25
    assert pools.reported("claude", told, NOW + MINUTE, 0) == {}


def test_memory_is_the_least_of_machine_and_container(tmp_path: Path) -> None:
    assert admission.free_memory(str(tmp_path), str(tmp_path)) is None
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemAvailable:    2048 kB\n")
    assert admission.free_memory(str(tmp_path), str(tmp_path / "none")) == 2048 * 1024
    for name, text in (("max", "1000000\n"), ("current", "900000\n"), ("stat", "anon 1\ninactive_file 400000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert admission.free_memory(str(tmp_path), str(tmp_path)) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert admission.free_memory(str(tmp_path), str(tmp_path)) == 2048 * 1024


def test_the_size_of_an_agent_is_what_its_runs_took() -> None:
    pools = Pools()
    said = Ending(State.COMPLETED, None, "", Outcome(terminal="success"), max_rss=900 << 20)
    pools.apply(pools.ended(queued(1, runner="claude"), said, NOW, 5))
    assert admission.needed("claude", pools.sizes) == 900 << 20
    assert admission.needed("command:big", pools.sizes) == admission.UNKNOWN_GUESS
    pools.apply(pools.ended(queued(1, runner="command", model="big"), said, NOW, 5))
    assert admission.needed(admission.called("command", "big"), pools.sizes) == 900 << 20
    assert admission.heavy("command:big", pools.sizes)
    assert not admission.heavy("command:small", pools.sizes)
    assert admission.heavy_ones(pools.sizes) == {*admission.FIRST_GUESS, "command:big"}
    again = Pools()
    again.load({"size:command:big": 900 << 20}, [])
    assert again.sizes == {"command:big": 900 << 20}


def test_a_control_that_makes_no_sense_is_passed_over() -> None:
    pools = Pools()
    pools.load({"park:claude": {"until": "never"}, "frozen": "1", "window:claude:w": 7}, [("claude", NOW, "A")])
    assert pools.parks == {}
    assert pools.starts["claude"].since(NOW) == 1


def test_agents_side_by_side_hit_one_wall() -> None:
    pools = Pools()
    said = Ending(State.QUEUED, Reason.RATE_LIMIT, "", Outcome(terminal="error", reason=Reason.RATE_LIMIT), NOW)
    for second in (60, 61, 62):
        pools.apply(pools.ended(queued(1), said, NOW + timedelta(seconds=second), 5))
    assert (pools.parks["claude"].times, pools.parks["claude"].until) == (1, NOW + 2 * MINUTE)
    outage = Ending(State.FAILED, Reason.NETWORK, "", Outcome(terminal="error", reason=Reason.NETWORK), NOW)
    assert pools.ended(queued(1), outage, NOW + timedelta(seconds=70), 5) == {}
    again = Ending(said.state, said.reason, "", said.outcome, NOW + 3 * MINUTE)
    pools.apply(pools.ended(queued(1), again, NOW + 4 * MINUTE, 5))
    assert (pools.parks["claude"].times, pools.parks["claude"].until) == (2, NOW + 9 * MINUTE)


def test_starts_of_a_clock_that_was_far_ahead_use_up_no_day() -> None:
    starts = Starts([(NOW + timedelta(days=300), "A"), (NOW + HOUR, "B")])
    assert starts.of_day(NOW, "00:00") == 1


def test_what_agents_at_work_still_have_to_use_is_kept_for_them() -> None:
    window = pacing.Window(kind="w", used=0.85, resets_at=NOW + HOUR, seen_at=NOW, price=0.03)
    assert pacing.affordable(window, NOW, Starts(), 0, 0.95) == pytest.approx(10 / 3)
    assert pacing.affordable(window, NOW, Starts(), 3, 0.95) == pytest.approx(1 / 3)
    far = window.model_copy(update={"resets_at": NOW + timedelta(days=40)})
    assert pacing.affordable(far, NOW, Starts(), 0, 0.95) is None
