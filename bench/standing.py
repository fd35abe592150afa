"""Rows of the daemon by itself: how fast it is back with a long memory, and what it costs while nothing happens."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.measure import Row, interleave, timed
from bench.person import Person, person
from bench.terminal import resident_mb
from coreagent import paths
from coreagent.models.agent import Reason
from coreagent.models.dispatch import Attempt, Dispatch, Harvest, Repo, Stage, State
from coreagent.store.change import SaveAttempt, SaveDispatch, SaveRepo
from coreagent.store.store import Store

KNOWN = 10_000
WAITING = 500
"""How many of them wait for a person's decision and are shown by `status`."""


def restart(pairs: int) -> Row:
    """From the start of `core-agent status` without a daemon to its end, with 10,000 workspaces known."""
    with person() as me, person() as fresh:
        remember(me, KNOWN)

        def first_status(one: Person) -> float:
            one.stop()
            return timed(lambda: one.run("status"))

        first_status(me)
        measured = interleave(pairs, lambda: first_status(me), lambda: first_status(fresh))
        warm = interleave(pairs, lambda: timed(lambda: me.run("status")), lambda: timed(lambda: fresh.run("status")))
        size = resident_mb(me.daemon_pid)
    return Row.of_time(
        f"restart, {KNOWN:,} workspaces", 2000, "restart with an empty home", measured,
        parts={
            "warm status then, ms": warm.ours_ms,
            "warm status of the empty home, ms": warm.floor_ms,
            "daemon's memory, MB": size,
        },
        note=f"{WAITING} of them wait for a decision and are shown",
    )  # fmt: skip


def remember(me: Person, count: int) -> None:
    """Give a person a past: finished workspaces in the store and on the disk."""
    Path(me.core, "run").mkdir(mode=0o700)
    now = datetime.now(UTC)
    store = Store.open(paths.database(str(me.core)), copy_every_s=0)
    top = str(me.user / "project")
    store.commit_now(SaveRepo(Repo(org="local", name="project", path=top, added_at=now)))
    root = me.trees / "workspace" / "local" / "project"
    batch: list[SaveDispatch | SaveAttempt] = []
    for number in range(count):
        one, attempt = finished(number, top, now - timedelta(minutes=count - number))
        batch += [SaveDispatch(one), SaveAttempt(attempt)]
        for name in ("repo", ".meta"):
            (root / one.name / name).mkdir(parents=True)
        if len(batch) >= 1000:
            store.commit_now(*batch)
            batch.clear()
    if batch:
        store.commit_now(*batch)
    store.close()


def finished(number: int, top: str, at: datetime) -> tuple[Dispatch, Attempt]:
    """A dispatch of the past and its one attempt; every twentieth left work that waits for a decision."""
    waits = number % (KNOWN // WAITING) == 0
    key = f"01J{number:023d}"
    harvest = Harvest(status="complete", branch=f"agent/task-{number}", sha="0" * 40, files=3) if waits else Harvest()
    reason = None if waits else Reason.NO_CHANGES
    attempt = Attempt(
        id=f"01K{number:023d}", dispatch_id=key, n=1, session_id="s", claimed_at=at, started_at=at, ended_at=at,
        shim_pid=1, shim_start=1, exit_code=0, reason=reason, harvest=harvest,
    )  # fmt: skip
    one = Dispatch(
        id=key, org="local", repo="project", name=f"task-{number}", repo_path=top, base_ref="main", base_sha="0" * 40,
        start_sha="0" * 40, task=f"Change the thing with the number {number}.", agent="claude", runner="claude",
        pool="claude", state=State.COMPLETED, reason=reason, stage=Stage.HARVESTED if waits else Stage.NONE,
        harvest=harvest, runs=1, attempts=1, attempt_id=attempt.id, created_at=at, queued_at=at, started_at=at,
        ended_at=at, changed_at=at,
    )  # fmt: skip
    return one, attempt


SETTLED_S = 5
"""A daemon that was started starts to watch its settings and gives memory back; only then is it idle."""


def idle(seconds: float) -> Row:
    """Processor time of a daemon that nobody asks for anything, and its memory before the first MCP client."""
    with person() as me:
        pid = me.warm()
        me.run("status")
        time.sleep(SETTLED_S)
        before, began = busy(pid), time.monotonic()
        time.sleep(seconds)
        share = (busy(pid) - before) / (time.monotonic() - began) * 100
        size = resident_mb(pid)
    return Row(
        "idle daemon", share, "% CPU", 0.05, parts={"memory, MB (aim <= 110)": size}, note=f"over {seconds:g} s"
    )  # fmt: skip


def busy(pid: int) -> float:
    """Seconds of processor time that all threads of a process have had."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9
