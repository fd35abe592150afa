"""The store: what is committed is there, what is read does not wait, and every way of not opening has its error."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coreagent.errors import CoreAgentError
from coreagent.models.agent import Cost, Outcome, Reason, Usage
from coreagent.models.dispatch import Attempt, Dispatch, Event, Harvest, Options, Repo, State
from coreagent.models.report import RescueRow
from coreagent.store import opening
from coreagent.store.change import (
    DropRepo,
    SaveAttempt,
    SaveDispatch,
    SaveEvent,
    SaveRepo,
    SaveRescue,
    SetControl,
)
from coreagent.store.schema import Migration, migrations, tables
from coreagent.store.store import Store

NOW = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)


def dispatch(i: int = 1, **changes: Any) -> Dispatch:
    values: dict[str, Any] = {
        "id": f"01J{i:023d}",
        "org": "acme",
        "repo": "shop",
        "name": f"task-{i}",
        "repo_path": "/src/shop",
        "task": "make it work",
        "agent": "claude:opus",
        "runner": "claude",
        "model": "opus",
        "pool": "claude",
        "created_at": NOW + timedelta(seconds=i),
        "queued_at": NOW,
        "changed_at": NOW,
    }
    return Dispatch(**(values | changes))


def attempt(i: int = 1, n: int = 1, **changes: Any) -> Attempt:
    values: dict[str, Any] = {"id": f"01K{i:020d}{n:03d}", "dispatch_id": f"01J{i:023d}", "n": n, "claimed_at": NOW}
    return Attempt(**(values | changes))


def event(name: str = "AgentStarted", i: int = 1) -> Event:
    return Event(
        at=NOW, name=name, dispatch_id=f"01J{i:023d}", workspace=f"acme/shop/task-{i}", data={"Agent": "claude"}
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "home" / "db.duckdb")


@pytest.fixture
def store(path: str):
    store = Store.open(path, copy_every_s=0)
    yield store
    store.close()


def reopened(store: Store) -> Store:
    store.close()
    return Store.open(store.path, copy_every_s=0)


FULL = dispatch(
    7,
    state=State.BLOCKED,
    reason=Reason.BLOCKED,
    options=Options(variables={"a": "b"}, issue=7, args=["--x"], timeout_s=1.5, script="steps: []"),
    question="which one? ☃ \x00 'quoted' \"",
    waiting_until=NOW + timedelta(hours=2),
    usage=Usage(input=1, output=2, cache_read=3),
    cost=Cost(usd=0.25, source="reported"),
    harvest=Harvest(status="complete", branch="agent/task-7", sha="ab" * 20, files=3),
    denied_tools=["Bash"],
    started_at=NOW,
    runs=2,
)


def test_everything_comes_back_as_it_was(store: Store) -> None:
    last = attempt(
        7, 2, outcome=Outcome(terminal="error", reason=Reason.AUTH, message="no"), exit_code=0, shim_pid=4, shim_start=9
    )
    repo = Repo(org="acme", name="shop", path="/src/shop", default_branch="main", bypass_consent=True, added_at=NOW)
    store.commit_now(
        SaveDispatch(FULL),
        SaveDispatch(dispatch(1)),
        SaveAttempt(attempt(7, 1)),
        SaveAttempt(last),
        SaveRepo(repo),
        SetControl("frozen", ["claude", {"until": None}]),
        SaveEvent(event()),
    )
    store = reopened(store)
    snapshot = store.load()
    assert snapshot.dispatches == [dispatch(1), FULL]
    assert snapshot.attempts == {FULL.id: last}
    assert snapshot.repos == [repo]
    assert snapshot.controls == {"frozen": ["claude", {"until": None}]}
    assert (snapshot.last_seq, snapshot.problems) == (1, [])
    store.close()


def test_every_field_of_a_model_is_kept_in_a_column_or_in_the_rest() -> None:
    for table in tables().values():
        if table.model and table.rest:
            assert set(table.types) <= set(table.model.model_fields)
            assert set(table.types) | table.rest_fields == set(table.model.model_fields)


def test_a_later_save_replaces_and_the_last_of_one_transaction_wins(store: Store) -> None:
    store.commit_now(SaveDispatch(dispatch(1)), SaveDispatch(dispatch(1, state=State.PREPARING)))
    store.commit_now(*[SaveDispatch(dispatch(i)) for i in range(2, 40)])
    store.commit_now(*[SaveDispatch(dispatch(i, state=State.CANCELLED)) for i in range(2, 40)])
    loaded = store.load().dispatches
    assert [d.state for d in loaded] == [State.PREPARING] + [State.CANCELLED] * 38


def test_what_is_saved_is_what_stood_there_when_commit_was_called(store: Store) -> None:
    async def main() -> None:
        d = dispatch(1)
        waiting = asyncio.ensure_future(store.commit(SaveDispatch(d)))
        await asyncio.sleep(0)
        d.state = State.CANCELLED
        await waiting

    asyncio.run(main())
    assert store.load().dispatches[0].state is State.QUEUED


def test_events_are_numbered_without_gaps_and_survive(store: Store) -> None:
    async def main() -> list[int]:
        answers = await asyncio.gather(
            *(store.commit(SaveEvent(event(i=i)), SaveEvent(event("X", i))) for i in range(20))
        )
        return [e.seq for answer in answers for e in answer]

    assert asyncio.run(main()) == list(range(1, 41))
    store = reopened(store)
    assert store.commit_now(SaveEvent(event()))[0].seq == 41
    found = asyncio.run(store.events(after=38))
    assert [e.seq for e in found] == [39, 40, 41]
    assert found[2] == event().model_copy(update={"seq": 41})
    assert [e.name for e in asyncio.run(store.events(dispatch_id=f"01J{3:023d}"))] == ["AgentStarted", "X"]
    store.close()


def test_what_waits_is_one_transaction(store: Store) -> None:
    async def main() -> None:
        await asyncio.gather(*(store.commit(SaveDispatch(dispatch(i))) for i in range(100)))

    before = store._link.tx
    asyncio.run(main())
    assert len(store.load().dispatches) == 100
    assert store._link.tx - before < 100


def test_one_bad_batch_does_not_sink_its_neighbours(store: Store) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(
            store.commit(SaveDispatch(dispatch(1)), SaveEvent(event(i=1))),
            store.commit(SaveDispatch(dispatch(2, priority=2**70)), SaveEvent(event(i=2))),
            store.commit(SaveDispatch(dispatch(3)), SaveEvent(event(i=3))),
            return_exceptions=True,
        )

    first, bad, third = asyncio.run(main())
    assert isinstance(bad, CoreAgentError) and bad.slug == "store_write_failed"
    assert [first[0].seq, third[0].seq] == [1, 2]
    assert [d.name for d in store.load().dispatches] == ["task-1", "task-3"]


def test_text_that_is_no_unicode_is_kept_as_well_as_it_can_be(store: Store) -> None:
    bad = b"caf\xe9".decode("utf-8", "surrogateescape")
    store.commit_now(
        SaveDispatch(dispatch(1, task=bad, question=bad)), SaveEvent(Event(at=NOW, name="X", data={"t": bad}))
    )
    loaded = store.load().dispatches[0]
    assert loaded.task.startswith("caf") and loaded.question.startswith("caf") and "\udce9" not in loaded.question


def test_repositories_and_controls_can_go(store: Store) -> None:
    repo = Repo(org="a", name="b", path="/p", added_at=NOW)
    store.commit_now(SaveRepo(repo), SetControl("k", 1))
    store.commit_now(DropRepo("a", "b"), SetControl("k", None))
    store = reopened(store)
    snapshot = store.load()
    assert (snapshot.repos, snapshot.controls) == ([], {})
    store.close()


def test_history_attempts_and_rescues(store: Store) -> None:
    rows = [RescueRow(workspace="acme/shop/a", n=n, ref=f"r{n}", sha="s", reason="died", at=NOW) for n in (1, 2)]
    other = RescueRow(workspace="acme/shop/b", n=1, ref="r", sha="s", reason="died", at=NOW)
    store.commit_now(
        *(SaveDispatch(dispatch(i)) for i in range(5)), SaveAttempt(attempt(1, 2)), SaveAttempt(attempt(1, 1))
    )
    store.commit_now(*(SaveRescue(row) for row in (*rows, other)))

    async def main() -> None:
        assert [d.name for d in await store.history(2)] == ["task-4", "task-3"]
        assert [a.n for a in await store.attempts_of(dispatch(1).id)] == [1, 2]
        assert await store.rescues("acme/shop/a") == rows
        assert len(await store.rescues()) == 3

    asyncio.run(main())


def test_the_groups_of_the_contract_are_views(store: Store) -> None:
    store.commit_now(
        SaveDispatch(dispatch(1, priority=3)),
        SaveDispatch(dispatch(2, state=State.RUNNING, attempt_id=attempt(2).id)),
        SaveDispatch(dispatch(3, state=State.FAILED, name="task-2", created_at=NOW - timedelta(days=1))),
        SaveAttempt(attempt(2, shim_pid=77)),
        SetControl("limit:claude", 3),
        SetControl("limit:codex", 2),
    )

    async def main() -> None:
        (queued,) = await store.query("SELECT * FROM queue")
        assert queued["key"] == "acme/shop/agent/task-1"
        assert queued["value"] == {"task": "make it work", "agent": "claude:opus", "status": "queued", "priority": 3}
        assert queued["queued_at"] == NOW
        pools = await store.query("SELECT key, value FROM concurrency ORDER BY key")
        assert pools == [
            {"key": "claude", "value": {"running": 1, "limit": 3}},
            {"key": "codex", "value": {"running": 0, "limit": 2}},
        ]
        rows = await store.query("SELECT key, value FROM registry ORDER BY key")
        assert [row["key"] for row in rows] == ["acme/shop/task-1", "acme/shop/task-2"]
        assert rows[1]["value"] == {"status": "running", "pid": 77, "agent": "claude:opus", "branch": "agent/task-2"}

    asyncio.run(main())


def test_a_query_cannot_write_and_says_what_was_wrong(store: Store) -> None:
    store.commit_now(SaveDispatch(dispatch(1)))
    for sql in ("DELETE FROM dispatches", "SELECT nonsense FROM dispatches"):
        with pytest.raises(CoreAgentError) as caught:
            asyncio.run(store.query(sql))
        assert caught.value.slug == "internal"
    assert len(store.load().dispatches) == 1


def test_reading_does_not_wait_for_a_writer(store: Store) -> None:
    store.commit_now(SaveDispatch(dispatch(1)))
    connection = store._link.connection
    connection.execute("BEGIN")
    connection.execute("DELETE FROM dispatches")
    try:
        assert len(store.load().dispatches) == 1
    finally:
        connection.execute("ROLLBACK")


def test_a_row_that_this_program_cannot_read_does_not_hide_the_others(store: Store) -> None:
    store.commit_now(SaveDispatch(dispatch(1)), SaveDispatch(dispatch(2)))
    store._link.connection.execute("UPDATE dispatches SET state = 'levitating' WHERE name = 'task-1'")
    snapshot = store.load()
    assert [d.name for d in snapshot.dispatches] == ["task-2"]
    assert "state" in snapshot.problems[0] and dispatch(1).id in snapshot.problems[0]


def test_memory_says_so() -> None:
    store = Store.memory("disk on fire")
    store.commit_now(SaveDispatch(dispatch(1)))
    assert store.ephemeral and store.why == "disk on fire" and len(store.load().dispatches) == 1
    with pytest.raises(CoreAgentError) as caught:
        store.backup()
    assert caught.value.slug == "store_ephemeral"
    store.close()


def test_closing_writes_what_waits_and_ends_the_threads(path: str) -> None:
    before = set(threading.enumerate())
    store = Store.open(path)

    async def main() -> None:
        tasks = [asyncio.ensure_future(store.commit(SaveDispatch(dispatch(i)))) for i in range(30)]
        await asyncio.sleep(0)
        await asyncio.to_thread(store.close)
        await asyncio.gather(*tasks)
        with pytest.raises(CoreAgentError):
            await store.commit(SaveDispatch(dispatch(99)))

    asyncio.run(main())
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("store")]
    store = Store.open(path, copy_every_s=0)
    assert len(store.load().dispatches) == 30
    store.close()


def test_files_are_private(store: Store) -> None:
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600
    assert sorted(p.name for p in Path(store.path).parent.iterdir() if p.suffix != ".wal") == [
        "db.duckdb",
        "db.duckdb.mark",
    ]


def test_locked_here_and_by_another_process(store: Store) -> None:
    with pytest.raises(CoreAgentError) as caught:
        Store.open(store.path)
    assert caught.value.slug == "store_locked" and caught.value.data["pid"] == os.getpid()
    code = (
        "import sys\nfrom coreagent.store.store import Store\nfrom coreagent.errors import CoreAgentError\n"
        "try: Store.open(sys.argv[1])\nexcept CoreAgentError as e: print(e.slug, e.data['pid'], e.cause)"
    )
    done = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"store_locked {os.getpid()} found by the kernel's lock"), done.stderr


def test_a_newer_version_is_refused_and_left_alone(path: str) -> None:
    later = (*migrations(), Migration(2, "later", ("ALTER TABLE repos ADD COLUMN colour VARCHAR",)))
    opening.open_file(path, later).connection.close()
    bytes_before = Path(path).read_bytes()
    with pytest.raises(CoreAgentError) as caught:
        Store.open(path)
    assert caught.value.slug == "store_newer" and "version is 2" in caught.value.cause
    assert Path(path).read_bytes() == bytes_before


def test_a_field_that_this_program_does_not_know_is_newer_too(path: str) -> None:
    opened = opening.open_file(path)
    opened.connection.execute("INSERT INTO known_fields VALUES ('dispatches.colour')")
    opened.connection.close()
    with pytest.raises(CoreAgentError) as caught:
        Store.open(path)
    assert caught.value.slug == "store_newer" and "dispatches.colour" in caught.value.cause


def test_an_older_version_is_copied_and_migrated(path: str) -> None:
    store = Store.open(path, copy_every_s=0)
    store.commit_now(SaveRepo(Repo(org="a", name="b", path="/p", added_at=NOW)))
    store.close()
    later = (*migrations(), Migration(2, "colours", ("ALTER TABLE migrations ADD COLUMN colour VARCHAR",)))
    opened = opening.open_file(path, later)
    assert opened.migrated_from == 1
    names = opened.connection.execute("SELECT name FROM migrations ORDER BY version").fetchall()
    opened.connection.close()
    assert names == [("first",), ("colours",)]
    old = opening.open_file(f"{path}.v1.bak")
    assert old.connection.execute("SELECT count(*) FROM repos").fetchone() == (1,)
    old.connection.close()


def test_a_failing_migration_changes_nothing(path: str) -> None:
    Store.open(path, copy_every_s=0).close()
    later = (*migrations(), Migration(2, "bad", ("CREATE TABLE half (x INT)", "SELECT no_such_thing")))
    with pytest.raises(CoreAgentError) as caught:
        opening.open_file(path, later)
    assert caught.value.slug == "store_write_failed" and "no_such_thing" in caught.value.cause
    store = Store.open(path, copy_every_s=0)
    assert asyncio.run(store.query("SELECT max(version) AS v FROM migrations")) == [{"v": 1}]
    assert asyncio.run(store.query("SELECT count(*) AS n FROM duckdb_tables() WHERE table_name = 'half'")) == [{"n": 0}]
    store.close()


def test_a_copy_is_whole_and_made_while_others_commit(store: Store) -> None:
    async def main() -> None:
        await store.commit(*(SaveDispatch(dispatch(i)) for i in range(300)))
        copying = asyncio.ensure_future(asyncio.to_thread(store.backup))
        n = 300
        while not copying.done():
            await store.commit(SaveDispatch(dispatch(n)))
            n += 1
        await copying
        await asyncio.to_thread(store.backup)

    asyncio.run(main())
    total = len(store.load().dispatches)
    newest = opening.open_file(store.path + ".bak")
    older = opening.open_file(store.path + ".bak.1")
    assert newest.connection.execute("SELECT count(*) FROM dispatches").fetchone() == (total,)
    assert 300 <= older.connection.execute("SELECT count(*) FROM dispatches").fetchone()[0] <= total
    newest.connection.close()
    older.connection.close()


def test_copies_are_made_by_themselves(path: str) -> None:
    store = Store.open(path, copy_every_s=1e-9)
    store.commit_now(SaveDispatch(dispatch(1)))
    asyncio.run(store.commit(SaveDispatch(dispatch(2))))
    store.close()
    copy = opening.open_file(path + ".bak")
    assert copy.connection.execute("SELECT count(*) FROM dispatches").fetchone() == (2,)
    copy.connection.close()
