"""A week of 3,000 tasks in seconds: the real engine and store, made-up providers, agents, weather and people."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from coreagent.models.agent import Reason
from coreagent.models.dispatch import State
from tests.simulation import checks
from tests.simulation.checks import Record
from tests.simulation.week import DAY, FROZEN, HOUR, MONDAY, OUTAGE, SET_BACK, SLEEP, Week, lived
from tests.simulation.world import BROKEN, World

MINUTE = timedelta(minutes=1)
DISTURBED = (
    (SLEEP[0], SLEEP[0] + SLEEP[1]),
    (SET_BACK[0], SET_BACK[0] + SET_BACK[2]),
    (FROZEN[0], FROZEN[0] + FROZEN[1]),
)
"""When no pace can be kept: nothing ran, or the clock was wrong."""


@pytest.fixture
def home() -> Iterator[Path]:
    """In memory where there is some: it is the engine that is looked at, not the disk."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="week-", dir=memory if memory.is_dir() else None))
    try:
        yield made / "home"
    finally:
        shutil.rmtree(made)


@pytest.fixture
def zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """The machine stands somewhere else."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def always(record: Record, world: World, week: Week) -> None:
    """What holds of every week."""
    checks.nothing_is_lost_or_run_twice(record, world.executed)
    assert world.trespasses == []
    checks.caps_hold_at_every_instant(record)
    checks.pauses_are_kept(record)
    for pool, rate in record.settings.rates.items():
        if rate.daily_limit:
            checks.starts_by_day(record, pool)
    checks.nobody_is_overtaken(record)
    checks.parked_sessions_go_on_once(record, week.unparked)
    failed = [d for d in record.dispatches.values() if d.state is State.FAILED and d.repo != BROKEN]
    assert all(d.reason is Reason.MODEL_ERROR for d in failed)


@pytest.mark.timeout(400)
def test_a_week_alone(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    week = Week()
    with caplog.at_level(logging.WARNING), lived(home, week) as world:
        record = Record.read(home)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert len(record.dispatches) == 3000
    always(record, world, week)

    # Nobody starves: each is overtaken by none of its own kind, and there were many to overtake.
    assert checks.nobody_is_overtaken(record) > 10_000

    # Every slot was used.
    most = checks.caps_hold_at_every_instant(record)
    assert most == {"claude": 4, "codex": 3, "codex-spark": 2, "gemini": 2, "opencode": 3}

    # What a day gives is used up to the last start while more waits, and not one more.
    full = [day for day, count in checks.starts_by_day(record, "codex").items() if count == 100]
    assert len(full) >= 5
    spark = checks.starts_by_day(record, "codex-spark")
    assert max(spark.values()) == 60

    # A wall whose height is told is never hit; one that nobody told of parks the pool until its reset.
    assert world.accounts["claude"].walls == []
    assert world.accounts["opencode"].walls == []
    assert len(world.accounts["codex-spark"].walls) >= 20
    assert world.accounts["gemini"].refused >= 10
    assert checks.parked_sessions_go_on_once(record, week.unparked) >= 40
    assert week.unparked

    # Near the limit at each reset.
    last = MONDAY + week.days * DAY
    five_hours = world.accounts["claude"].meters[0].past
    told = [u for at, u in five_hours if at < last and not any(a < at and at - 5 * HOUR < b for a, b in DISTURBED)]
    assert len(told) >= 20
    assert min(told) >= 0.85
    assert max(used for _, used in five_hours) <= 0.97
    assert 0.85 <= world.accounts["opencode"].meters[0].past[0][1] <= 0.97

    # An outage costs few tasks, and work goes on soon after it.
    lost = [d for d in record.dispatches.values() if d.reason is Reason.MODEL_ERROR]
    assert 3 <= len(lost) <= 14
    after = [a.claimed_at for a in record.claims if a.pool == "codex" and a.claimed_at > OUTAGE[1]]
    assert min(after) <= OUTAGE[1] + 61 * MINUTE

    # A repository that always fails is left alone, and parks nobody.
    broken = [d for d in record.dispatches.values() if d.repo == BROKEN]
    assert all(d.state is State.FAILED for d in broken)
    parks = [(at, key, value) for at, key, value in week.controls if key.startswith("park:") and value]
    outages = [(at, key) for at, key, value in parks if value["why"] == "outage"]
    assert {key for _, key in outages} == {"park:codex"}
    assert max(at for at, _ in outages) <= OUTAGE[1] + 61 * MINUTE
    assert {key for _, key, _ in parks} == {"park:codex", "park:codex-spark", "park:gemini"}
    shortly = [
        a for a in record.executed if record.dispatches[a.dispatch_id].repo == BROKEN and a.claimed_at < MONDAY + DAY
    ]
    assert len(shortly) <= 24


@pytest.mark.timeout(200)
def test_the_same_seed_is_the_same_week(home: Path) -> None:
    told = []
    for n in range(2):
        week = Week(scale=0.11, days=1.8, upgrades=5, daily=0.2)
        with lived(home / str(n), week) as world:
            record = Record.read(home / str(n))
        moves = [(record.dispatches[i].name, state, at) for i, state, at in record.moves]
        refused = {name: (account.refused, account.walls) for name, account in world.accounts.items()}
        told.append((moves, week.controls, week.unparked, refused))
    assert told[0] == told[1]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("zone", "seed"), [("Asia/Kolkata", 11), ("America/New_York", 12), ("Pacific/Kiritimati", 13)], indirect=["zone"]
)
def test_two_days_of_another_place(home: Path, zone: None, seed: int) -> None:
    week = Week(scale=0.11, days=1.8, seed=seed, upgrades=5, daily=0.2)
    with lived(home, week) as world:
        record = Record.read(home)
    assert len(record.dispatches) == 331
    always(record, world, week)
    assert list(checks.starts_by_day(record, "codex").values()).count(20) >= 2
