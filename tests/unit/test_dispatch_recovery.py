"""What a restart makes of what it finds, and what cleaning may take away."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room
from tests.unit.test_claim import NOW

from coreagent.dispatch import cleanup, recovery
from coreagent.dispatch.engine import Engine
from coreagent.dispatch.logbook import Place, read_page, tail_place
from coreagent.models.agent import Reason
from coreagent.models.dispatch import Attempt, Fate, State
from coreagent.runners import load


async def claimed(room: Room, **more: object) -> Attempt:
    """A workspace whose attempt was claimed by a daemon that is gone."""
    made = await room.prepare("one")
    attempt = Attempt(id=room.core.new_id(), dispatch_id=made.id, n=1, claimed_at=NOW, **more)  # type: ignore[arg-type]
    queued = await room.engine.update(made, state=State.QUEUED)
    await room.engine.update(
        queued, attempt=attempt, state=State.PREPARING, attempts=1, attempt_id=attempt.id, next_prompt="", runs=0
    )
    return attempt


async def restarted(room: Room) -> Engine:
    engine = room.core.engine = room.engine = Engine(room.core)
    await engine.load()
    room.core.store.ephemeral = False  # one in memory does not judge what is on disk
    try:
        await recovery.reconcile(engine)
    finally:
        room.core.store.ephemeral = True
    return engine


def test_a_claim_that_came_to_nothing_is_queued_again(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        attempt = await claimed(room)
        d = (await restarted(room)).board[attempt.dispatch_id]
        assert (d.state, d.waiting_for, d.runs, d.attempts) == (State.QUEUED, "restart", 0, 1)
        assert room.engine.attempts[d.id].ended_at is not None

    in_room(tmp_path, body)


def test_what_a_claim_without_an_exec_was_to_say_is_said_later(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        attempt = await claimed(room, kind="fresh", prompt="also this")
        held = room.engine.board[attempt.dispatch_id]
        await room.engine.update(held, next_kind="fresh", next_prompt="also this")
        directory = room.home / "attempts" / attempt.id
        directory.mkdir()
        (directory / "spec.json").write_text("{}")
        d = (await restarted(room)).board[attempt.dispatch_id]
        assert (d.state, d.runs, d.next_kind, d.next_prompt) == (State.QUEUED, 0, "fresh", "also this")
        assert not directory.exists()

    in_room(tmp_path, body)


def test_what_is_known_to_have_run_is_never_queued_again(tmp_path: Path) -> None:
    """Its files may be gone: an agent of the same user can delete them."""

    async def body(room: Room) -> None:
        attempt = await claimed(room, started_at=NOW, shim_pid=2**22 - 1, shim_start=1)
        await room.engine.update(room.engine.board[attempt.dispatch_id], state=State.RUNNING, runs=1)
        d = (await restarted(room)).board[attempt.dispatch_id]
        assert d.state is not State.QUEUED
        assert d.runs == 1

    in_room(tmp_path, body)


def test_one_workspace_that_cannot_go_does_not_keep_the_daemon_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(room: Room) -> None:
        one, two = await room.prepare("one"), await room.prepare("two")
        archive = room.home / "archive"
        archive.mkdir()
        (archive / one.id).write_text("in the way")
        for found in (one, two):
            await room.engine.update(found, fate=Fate.REJECTED)
        engine = await restarted(room)
        assert set(engine.board) == {one.id}
        assert room.checkout(one).is_dir()

    in_room(tmp_path, body)
    assert "could not be let go" in caplog.text


@pytest.mark.parametrize("wrong", ["no attempt", "older attempt", "runner", "runner module"])
def test_a_row_that_makes_no_sense_fails_alone(tmp_path: Path, wrong: str) -> None:
    async def body(room: Room) -> None:
        if wrong == "no attempt":
            queued = await room.engine.update(await room.prepare("one"), state=State.QUEUED)
            held = await room.engine.update(queued, state=State.PREPARING, attempt_id=room.core.new_id())
        else:
            bad = await claimed(room, started_at=NOW, shim_pid=2**22 - 1, shim_start=1)
            held = room.engine.board[bad.dispatch_id]
        made = await room.engine.update(held, state=State.RUNNING, runs=1)
        (room.checkout(made) / "made.txt").write_text("work")
        if wrong == "older attempt":
            made = await room.engine.update(made, attempt_id=room.core.new_id())
        elif "runner" in wrong:
            made = await room.engine.update(made, runner="nobody" if wrong == "runner" else "no.such:Runner")
        good = await room.prepare("two")
        attempt = Attempt(id=room.core.new_id(), dispatch_id=good.id, n=1, claimed_at=NOW)
        queued = await room.engine.update(good, state=State.QUEUED)
        await room.engine.update(queued, attempt=attempt, state=State.PREPARING, attempts=1, attempt_id=attempt.id)

        await restarted(room)
        assert room.now(good).state is State.QUEUED
        ended = await room.until(made, State.FAILED)
        reason = Reason.ERROR if "attempt" in wrong else Reason.CONFIGURATION
        assert (ended.reason, ended.harvest.status) == (reason, "complete")
        assert ended.detail
        assert room.branch(ended), "its work was lost"
        if "runner" in wrong:
            assert room.engine.attempts[made.id].ended_at is not None

    in_room(tmp_path, body)


def test_what_lies_where_files_are_expected_does_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        (room.home / "pending" / "x.env" / "y").mkdir(parents=True)
        (room.home / "attempts" / "x").write_text("")
        (room.home / "attempts" / "y").mkdir()
        (room.home / "archive").write_text("in the way")
        (room.home / "workspace" / "local" / "project" / "old").mkdir()
        assert set((await restarted(room)).board)
        assert not (room.home / "pending" / "x.env").exists()

    in_room(tmp_path, body)


def test_directories_that_no_row_knows_are_set_aside(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        orphan = room.home / "workspace" / "local" / "project" / "old"
        (orphan / ".meta").mkdir(parents=True)
        (orphan / "work.txt").write_text("work")
        half = orphan.with_name(".going-x-1")
        half.mkdir()
        await restarted(room)
        assert not orphan.exists()
        assert not half.exists()
        assert (room.home / "archive" / "orphans" / "local-project-old" / "work.txt").read_text() == "work"

    in_room(tmp_path, body)


def test_remove_tree_does_not_follow_links_and_takes_what_is_read_only(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    root = tmp_path / "root"
    (root / "locked").mkdir(parents=True)
    (root / "locked" / "file").write_text("x")
    (root / "link").symlink_to(outside)
    (root / "locked").chmod(0o500)
    cleanup.remove_tree(root)
    assert os.listdir(tmp_path) == ["outside"]
    assert (outside / "mine.txt").read_text() == "mine"


def test_pages_of_a_log_join_to_the_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"".join(b"line %d\n" % n for n in range(50)) + b"unfinished")
    runner = load("command")
    whole = read_page(out, runner.parser(), 1, Place(), 1000, whole_lines=False).entries
    assert len(whole) == 51
    joined, place, more = [], Place(), True
    while more:
        page = read_page(out, runner.parser(), 1, place, 7, whole_lines=False)
        joined += page.entries
        place, more = Place.parse(str(page.next)), page.more
    assert [(e.offset, e.event.text) for e in joined] == [(e.offset, e.event.text) for e in whole]
    assert len(read_page(out, runner.parser(), 1, Place(), 1000, whole_lines=True).entries) == 50
    start, skipped = tail_place(out, 3)
    assert skipped == start.offset
    assert out.read_bytes()[start.offset :].count(b"\n") <= 3
    assert Place.parse("rubbish") == Place.parse("-1:2") == Place()


def test_stop_of_an_idle_engine_ends_and_wakes_nobody_for_ever(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        async with asyncio.timeout(5):
            assert not await room.engine.changed(0.01, room.engine.turns)
            await room.engine.stop("drain")

    in_room(tmp_path, body, running=True)
