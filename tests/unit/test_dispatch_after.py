"""Tasks that wait for others: what holds them, what lets them go on, and what they start from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh

from coreagent.dispatch import after
from coreagent.dispatch.after import ending
from coreagent.dispatch.engine import Engine
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Dispatch, State
from coreagent.store.change import SaveDispatch

WORK = """
case "$CORE_AGENT_TASK" in
*fail*) exit 3;;
*nothing*) exit 0;;
*ask*) echo 'which one?' > BLOCKED.md;;
*) echo "$CORE_AGENT_TASK" >> made.txt; ls > seen.txt;;
esac
"""
SETTLED = (State.COMPLETED, State.FAILED, State.CANCELLED, State.BLOCKED)


async def give(room: Room, task: str, name: str, **more: Any) -> Dispatch:
    made = await room.ask("dispatch", task=task, name=name, ephemeral=True, **more)
    return room.engine.board[made.dispatch_id]


async def frozen(room: Room) -> None:
    await room.ask("queue.freeze")


async def thaw(room: Room) -> None:
    await room.ask("queue.start")


async def held(room: Room, found: Dispatch) -> Dispatch:
    """Wait until it is held up for a person."""
    async with asyncio.timeout(30):
        while (now := room.now(found)).waiting_for != after.FAILED:
            await room.engine.changed(30, room.engine.turns)
    return now


def test_it_starts_when_all_before_it_ended_well_and_not_earlier(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await frozen(room)
        first, second = await give(room, "a", "first"), await give(room, "b", "second")
        last = await give(room, "c", "last", after=["first", second.id[:10], "first"])
        assert last.options.after == [first.id, second.id]
        assert (last.waiting_for, last.detail) == ("after", "waits for first, second")
        assert "first (queued), second (queued)" in (await room.ask("why", workspace="last")).headline
        await thaw(room)
        done = await room.until(last, *SETTLED)
        assert done.state is State.COMPLETED
        assert all(room.now(d).ended_at <= done.started_at for d in (first, second))  # type: ignore[operator]
        assert "comes after first, second" in (await room.ask("why", workspace="last")).facts

    in_room(tmp_path, body, running=True, script=WORK)


@pytest.mark.parametrize(("task", "why"), [("fail", "failed: error"), ("nothing", "changed nothing")])
def test_when_one_does_not_end_well_a_person_is_asked(tmp_path: Path, task: str, why: str) -> None:
    async def body(room: Room) -> None:
        await give(room, task, "first")
        last = await held(room, await give(room, "b", "last", after=["first"]))
        assert last.detail == f"first {why}"
        row = (await room.ask("status")).workspaces[-1]
        assert (row.waiting_for, row.needs_me) == ("after_failed", True)
        told = await room.ask("why", workspace="last")
        assert f"first {why}" in told.headline
        assert told.next == ["core-agent queue start last", "core-agent queue drop last"]
        await room.ask("queue.start", workspace="last")
        assert (await room.until(last, *SETTLED)).state is State.COMPLETED

    in_room(tmp_path, body, running=True, script=WORK)


def test_what_ends_well_after_all_lets_it_go_on(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        first = await give(room, "fail", "first")
        last = await held(room, await give(room, "b", "last", after=["first"]))
        room.engine.board[first.id] = room.now(first).model_copy(update={"task": "works now"})
        resumed = await room.ask("resume", workspace="first")
        assert resumed.state is State.QUEUED
        assert room.now(last).waiting_for in ("after", "")
        assert (await room.until(last, *SETTLED)).state is State.COMPLETED

    in_room(tmp_path, body, running=True, script=WORK)


def test_a_question_holds_it_and_resume_goes_on_all_the_same(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        first = await give(room, "ask", "first")
        last = await give(room, "b", "last", after=["first"])
        await room.until(first, State.BLOCKED)
        assert room.now(last).waiting_for == "after"
        await room.ask("resume", workspace="last")
        assert (await room.until(last, *SETTLED)).state is State.COMPLETED

    in_room(tmp_path, body, running=True, script=WORK)


def test_rejected_cancelled_and_let_go(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await frozen(room)
        first = await give(room, "a", "first")
        last = await give(room, "b", "last", after=["first"])
        await room.ask("cancel", workspace="first")
        assert (room.now(last).waiting_for, room.now(last).detail) == ("after_failed", "first was cancelled")
        await room.ask("reject", workspace="first")
        assert room.now(last).detail == "first was rejected"
        assert first.id not in room.engine.board
        with pytest.raises(CoreAgentError, match="was rejected, so nothing can come after it"):
            await give(room, "c", "other", after=["first"])
        with pytest.raises(CoreAgentError, match="there is no workspace 'nobody'"):
            await give(room, "c", "other", after=["nobody"])
        assert (await room.ask("queue.drop", workspace="last")).state is State.CANCELLED

    in_room(tmp_path, body, script=WORK)


def test_paused_before_its_turn_it_is_asked_again_what_it_waits_for(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await frozen(room)
        await give(room, "a", "first")
        last = await give(room, "b", "last", after=["first"])
        await room.ask("pause", workspace="last")
        assert room.now(last).waiting_for == ""
        await room.ask("resume", workspace="last")
        assert room.now(last).waiting_for == "after"
        await room.ask("resume", workspace="last")
        assert room.now(last).waiting_for == "asked"

    in_room(tmp_path, body, script=WORK)


def test_on_top_of_it_the_result_is_there(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        first = await give(room, "a", "first")
        top = await give(room, "b", "top", after=["first"], on_top=True)
        same = await give(room, "c", "same", after=["first"], branch="agent/first")
        beside = await give(room, "d", "beside", after=["first"])
        for one in (top, same, beside):
            assert (await room.until(one, *SETTLED)).state is State.COMPLETED
        result = room.now(first).harvest.sha
        assert (room.now(top).base_sha, room.now(top).base_ref) == (result, "main")
        assert room.now(same).base_sha == result
        assert room.now(beside).base_sha == first.base_sha
        assert sh(room.repo, "show", "agent/top:made.txt").split() == ["a", "b"]
        assert sh(room.repo, "show", "agent/beside:made.txt").split() == ["d"]
        assert (await room.ask("diff", workspace="top")).insertions == room.now(top).harvest.insertions
        landed = await room.ask("accept", workspace="top")
        assert (landed.onto, landed.strategy) == ("main", "fast-forward")
        assert (room.repo / "made.txt").read_text().split() == ["a", "b"]

    in_room(tmp_path, body, running=True, script=WORK)


def test_on_top_of_what_was_accepted_by_squash_and_let_go(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        first = await give(room, "a", "first")
        await room.until(first, *SETTLED)
        await frozen(room)
        sha = room.now(first).harvest.sha
        await room.ask("accept", workspace="first", strategy="squash")
        top = await give(room, "b", "top", after=["first"], on_top=True)
        assert (top.waiting_for, top.base_sha) == ("", sha)
        await thaw(room)
        assert (await room.until(top, *SETTLED)).state is State.COMPLETED

    in_room(tmp_path, body, running=True, script=WORK)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await frozen(room)
        for name in ("one", "two"):
            await give(room, "a", name)
        for how in (
            {"on_top": True},
            {"on_top": True, "after": ["one", "two"]},
            {"on_top": True, "after": ["one"], "branch": "main"},
            {"on_top": True, "after": ["one"], "with_changes": True},
        ):
            with pytest.raises(CoreAgentError) as refused:
                await give(room, "b", "bad", **how)
            assert refused.value.slug == "conflicting_options"
        assert len(room.engine.board) == 2

    in_room(tmp_path, body, script=WORK)


def test_the_next_daemon_finds_out_again(tmp_path: Path) -> None:
    """Rows as a daemon left them that died between the end of a task and anything else."""

    async def body(room: Room) -> None:
        await frozen(room)
        done, bad = await give(room, "a", "done"), await give(room, "a", "bad")
        free = await give(room, "b", "free", after=["done"])
        stuck = await give(room, "b", "stuck", after=["bad"])
        waits = await give(room, "b", "waits", after=["free"])
        for found, state in ((done, State.COMPLETED), (bad, State.FAILED)):
            # Behind the back of the engine that is running.

            await room.core.store.commit(SaveDispatch(found.model_copy(update={"state": state})))
        room.engine = room.core.engine = Engine(room.core)
        await room.engine.load()
        await room.engine.after.look_again(room.engine)
        assert room.now(free).waiting_for == ""
        assert room.now(stuck).waiting_for == "after_failed"
        assert room.now(waits).waiting_for == "after"

    in_room(tmp_path, body, script=WORK)


def test_a_predecessors_end_that_cannot_be_written_frees_nobody(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await frozen(room)
        first = await give(room, "a", "first")
        last = await give(room, "b", "last", after=["first"])
        store, room.core.store = room.core.store, _Full()  # type: ignore[assignment]
        with pytest.raises(CoreAgentError, match="full"):
            await room.engine.update(first, state=State.CANCELLED)
        room.core.store = store
        assert (room.now(first).state, room.now(last).waiting_for) == (State.QUEUED, "after")
        await room.engine.update(first, state=State.CANCELLED)
        assert room.now(last).waiting_for == "after_failed"

    in_room(tmp_path, body, script=WORK)


class _Full:
    async def commit(self, *changes: Any) -> Any:
        raise CoreAgentError("no_space", "the disk is full")


def test_what_counts_as_an_end(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        assert ending(made) is None
        assert ending(made.model_copy(update={"workspace_gone": True})) == "was let go"
        assert ending(made.model_copy(update={"state": State.COMPLETED})) == ""

    in_room(tmp_path, body)


def test_what_is_let_go_on_while_the_whole_queue_is_frozen_says_so(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.ask("dispatch", task="x", name="one", ephemeral=True)
        await room.ask("queue.freeze")
        await room.ask("queue.freeze", pool="command")
        for asked in ({"workspace": "one"}, {"pool": "command"}):
            told = await room.ask("queue.start", **asked)
            assert told.frozen
            assert "the whole queue is frozen still" in told.note
        assert (await room.ask("queue.start")).note == ""

    in_room(tmp_path, body)
