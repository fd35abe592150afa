"""Decisions that meet: two at once, one against the end of a turn, one against the clean-up."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room
from tests.unit.test_claim import NOW, queued

from coreagent.capabilities.dispatch import CONTINUE, _next_turn
from coreagent.capabilities.status import _headline
from coreagent.cli.views.event import message_line
from coreagent.cli.views.status import what_now
from coreagent.cli.views.text import Paint
from coreagent.dispatch import attached, cleanup, ending, environment, launch
from coreagent.dispatch import attempt as attempts_of_work
from coreagent.dispatch.verdict import Verdict
from coreagent.errors import CoreAgentError
from coreagent.models.agent import Cost, Outcome, Reason, Usage
from coreagent.models.dispatch import Attempt, Dispatch, Fate, State

WORK = "echo done >> made.txt; test ! -e ask || echo 'what now?' > BLOCKED.md"


def slugs(replies: list[Any]) -> list[str]:
    return sorted(r.slug if isinstance(r, CoreAgentError) else type(r).__name__ for r in replies)


def test_of_two_resumes_at_once_one_counts(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        both = (room.ask("resume", workspace="one", prompt=p) for p in ("first", "second"))
        replies = await asyncio.gather(*both, return_exceptions=True)
        assert slugs(list(replies)) == ["DispatchReply", "workspace_busy"]
        assert room.engine.find("one").next_prompt == "first"

    in_room(tmp_path, body)


def test_resume_and_reject_at_once(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        both = (room.ask("reject", workspace="one"), room.ask("resume", workspace="one"))
        replies = await asyncio.gather(*both, return_exceptions=True)
        assert slugs(list(replies)) == ["MoveReply", "workspace_gone"]
        assert made.id not in room.engine.board
        assert not room.checkout(made).exists()

    in_room(tmp_path, body)


def test_what_was_decided_is_told_before_the_state_it_was_decided_in(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        await room.ask("reject", workspace="one")
        assert (await room.ask("why", workspace="one")).headline == "It was paused and was rejected."
        (row,) = (await room.ask("status", workspace="one")).workspaces
        assert what_now(row, room.core.now()) == "Prepare a workspace."
        for state, told in (
            (State.BLOCKED, "was blocked"),
            (State.FAILED, "failed"),
            (State.CANCELLED, "was cancelled"),
            (State.COMPLETED, "completed"),
        ):
            decided = made.model_copy(update={"state": state, "fate": Fate.ACCEPTED, "question": "what now?"})
            assert _headline(room.engine, decided) == f"It {told} and was accepted."

    in_room(tmp_path, body)


def test_cleaning_looks_again_when_its_turn_comes(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        await room.engine.update(made, reason=Reason.PAUSED)
        room.core.settings = room.core.settings.model_copy(
            update={"dispatch": room.core.settings.dispatch.model_copy(update={"keep_days": 0})}
        )
        resumed, why = await asyncio.gather(
            room.ask("resume", workspace="one"), cleanup.let_go_if(room.engine, made.id)
        )
        assert resumed.state is State.QUEUED
        assert why == "it is queued"
        assert room.checkout(made).is_dir()

    in_room(tmp_path, body)


def test_while_somebody_is_attached_nothing_is_decided_and_nothing_expires(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        room.core.settings = room.core.settings.model_copy(
            update={"dispatch": room.core.settings.dispatch.model_copy(update={"keep_days": 0})}
        )
        person = replace(room.person, pid=os.getpid())
        await attached.take(room.engine, made, person)
        for verb in ("accept", "reject", "resume", "attach.done"):
            with pytest.raises(CoreAgentError) as caught:
                await room.ask(verb, workspace="one")
            assert caught.value.slug == "workspace_attached"
        with pytest.raises(CoreAgentError, match="attached"):
            await attached.take(room.engine, made, person)
        assert await cleanup.clean_expired(room.engine) == []
        assert (await room.ask("workspace.clean", workspace="one")).removed == []
        assert (await room.ask("status", workspace="one")).workspaces[0].attached_pid == os.getpid()
        await room.ask("attach.done", caller=person, workspace="one")
        assert not room.engine.controls
        assert await cleanup.clean_expired(room.engine) == [made.workspace]

    in_room(tmp_path, body)


def test_an_attached_sibling_is_asked_about_before_anything_lands(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        one, two = await room.prepare("one"), await room.prepare("two")
        for made in (one, two):
            options = made.options.model_copy(update={"batch": "b", "batch_key": "k"})
            await room.engine.update(made, options=options)
        await attached.take(room.engine, two, replace(room.person, pid=os.getpid()))
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("pick", workspace="one")
        assert (caught.value.slug, caught.value.data["workspace"]) == ("workspace_attached", two.workspace)

    in_room(tmp_path, body)


def test_the_next_attach_forgets_those_that_were_killed(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        one, two = await room.prepare("one"), await room.prepare("two")
        child = subprocess.Popen(["sleep", "60"])
        await attached.take(room.engine, one, replace(room.person, pid=child.pid))
        assert attached.holder(room.engine, one.id)
        child.kill()
        child.wait()
        assert attached.holder(room.engine, one.id) is None
        await attached.take(room.engine, two, replace(room.person, pid=os.getpid()))
        assert list(room.engine.controls) == [attached.KIND + two.id]

    in_room(tmp_path, body)


def test_a_workspace_that_is_gone_does_not_come_back(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        await room.ask("reject", workspace="one")
        with pytest.raises(CoreAgentError, match="let go"):
            await room.engine.update(made, waiting_for="")
        assert made.id not in room.engine.board

    in_room(tmp_path, body)


def test_a_change_that_cannot_be_written_is_taken_back_also_the_last_one(tmp_path: Path) -> None:
    class Full:
        """A store on a full disk."""

        async def commit(self, *_changes: object) -> None:
            raise CoreAgentError("no_space", "the disk is full")

    async def body(room: Room) -> None:
        made = await room.prepare("one")
        store, room.core.store = room.core.store, Full()  # type: ignore[assignment]
        for changes in ({"workspace_gone": True}, {"state": State.QUEUED}):
            with pytest.raises(CoreAgentError, match="full"):
                await room.engine.update(made, **changes)
            assert room.now(made) == made
        room.core.store = store

    in_room(tmp_path, body)


def test_an_environment_saved_for_the_next_turn_outlives_the_end_of_the_last(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        await asyncio.gather(room.ask("resume", workspace="one"), room.engine.forget_environment(made.id))
        assert environment.load(str(room.home), made.id)
        await asyncio.gather(room.ask("cancel", workspace="one"), room.ask("resume", workspace="one"))
        assert room.now(made).state is State.QUEUED
        assert environment.load(str(room.home), made.id)

    in_room(tmp_path, body)


def test_turns_of_a_real_agent(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        (room.checkout(made) / "ask").touch()
        await room.ask("resume", workspace="one")
        asked = await room.until(made, State.BLOCKED, State.COMPLETED, State.FAILED)
        assert (asked.state, asked.question, asked.runs) == (State.BLOCKED, "what now?", 1)
        (room.checkout(made) / "ask").unlink()
        await room.ask("resume", workspace="one", prompt="never mind")
        done = await room.until(made, State.BLOCKED, State.COMPLETED, State.FAILED)
        assert (done.state, done.runs, done.next_prompt) == (State.COMPLETED, 2, "")  # no stale question
        await room.ask("resume", workspace="one")
        again = await room.until(made, State.COMPLETED)
        assert again.runs == 3
        why = await room.ask("why", workspace="one")
        assert why.headline.startswith("The agent ended well")

    in_room(tmp_path, body, running=True, script=WORK)


def test_an_end_that_comes_late_touches_nothing_of_the_next_attempt(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        first = made.model_copy(update={"attempt_id": "A1"})
        room.engine.board[made.id] = made.model_copy(update={"state": State.RUNNING, "attempt_id": "A2"})
        room.engine.attempts[made.id] = Attempt(id="A2", dispatch_id=made.id, n=2, claimed_at=NOW)

        async def fails() -> None:
            raise OSError("while putting away")

        await attempts_of_work.guarded(room.engine, first, fails())
        assert room.now(made).state is State.RUNNING
        await attempts_of_work.guarded(room.engine, room.now(made), fails())
        ended = room.now(made)
        assert (ended.state, ended.reason, ended.detail) == (State.FAILED, Reason.ERROR, "OSError: while putting away")

    in_room(tmp_path, body)


def test_watch_misses_nothing_between_two_looks(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        since = room.engine.seq
        read = room.core.store.events

        async def slowly(*args: Any, **how: Any) -> Any:
            found = await read(*args, **how)
            if room.engine.seq == since:
                await room.engine.update(made, detail="in between")
            return found

        room.core.store.events = slowly  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            reply = await room.ask("watch", since=since, timeout_s=60)
        assert [e["seq"] for e in reply.events] == [since + 1]
        later = await room.ask("watch", since=10**9, timeout_s=0)  # of another store
        assert (later.timed_out, later.seq) == (True, since + 1)

    in_room(tmp_path, body)


def test_of_what_was_let_go_the_rest_is_told_and_then_that_it_is_over(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        since = room.engine.seq
        watching = asyncio.create_task(room.ask("watch", workspace="one", since=since, timeout_s=60))
        await asyncio.sleep(0)
        await room.ask("reject", workspace="one")
        async with asyncio.timeout(20):
            seq, told = since, []
            while not (reply := await room.ask("watch", workspace="one", since=seq, timeout_s=60)).over:
                seq, told = reply.seq, told + reply.events
            assert (await watching).events
        assert "local/project/one rejected" in message_line(told[0], 200, Paint(False))
        assert (reply.events, reply.timed_out) == ([], False)
        with pytest.raises(CoreAgentError):
            await room.ask("watch", workspace="none", timeout_s=60)

    in_room(tmp_path, body)


def dispatched(**more: Any) -> Dispatch:
    return queued(1, "claude", runs=1, session_id="s", next_kind="resume").model_copy(update=more)


@pytest.mark.parametrize(
    ("found", "said", "turn"),
    [
        ({}, "", ("resume", CONTINUE)),
        ({}, "more", ("resume", "more")),
        ({"next_prompt": CONTINUE}, "more", ("resume", "more")),
        ({"next_prompt": "unsaid"}, "more", ("resume", "unsaid\n\nmore")),
        ({"runs": 0}, "more", ("dispatch", "more")),
        ({"next_kind": "fresh", "next_prompt": "unsaid"}, "", ("fresh", "unsaid")),
        ({"session_id": ""}, "", ("fresh", "")),
        ({"session_id": "--x"}, "", ("fresh", "")),
        ({"session_id": "../x"}, "", ("fresh", "")),
        ({"reason": Reason.CONTEXT_OVERFLOW}, "", ("fresh", "")),
        ({"session_id": "", "question": "which?"}, "", ("fresh", "The earlier session asked:\nwhich?")),
    ],
)
def test_the_next_turn_says_what_was_never_said(found: dict[str, Any], said: str, turn: tuple[str, str]) -> None:
    assert _next_turn(dispatched(**found), "", said, False) == turn


TURNS = "turns:\n  - [{say: first}]\n  - [{say: second}]\n"


def test_a_lost_session_starts_fresh_by_itself_and_hears_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bytes] = []
    plan = launch.plan

    def noted(*args: Any) -> Any:
        said.append(plan(*args).stdin or b"")
        return plan(*args)

    monkeypatch.setattr(launch, "plan", noted)

    async def body(room: Room) -> None:
        made = await room.ask("dispatch", task="MARKERONE", name="one", agent="scripted", script=TURNS, ephemeral=True)
        first = await room.until(room.engine.board[made.dispatch_id], State.COMPLETED, State.FAILED)
        (known,) = room.home.rglob(f"scripted-{first.session_id}.json")
        known.unlink()
        await room.ask("resume", workspace="one", prompt="MARKERTWO")
        again = await room.until(first, State.COMPLETED, State.FAILED)
        assert (again.state, again.runs, again.alone) == (State.COMPLETED, 3, 1), again.detail
        assert again.session_id != first.session_id
        assert b"MARKERONE" not in said[1] and b"MARKERTWO" in said[1]
        assert b"MARKERONE" in said[2] and b"MARKERTWO" in said[2] and b"earlier session" in said[2]
        shown = await room.ask("workspace.show", workspace="one")
        assert [one["reason"] for one in shown.attempts] == ["no_changes", "session_lost", "no_changes"]
        lost, fresh = first.session_id, again.session_id
        assert [one["session_id"] for one in shown.attempts] == [lost, lost, fresh]

    in_room(tmp_path, body, running=True)


LOST, AUTH, DIED = Reason.SESSION_LOST, Reason.AUTH, Reason.DIED


@pytest.mark.parametrize(
    ("found", "turn", "ended", "then"),
    [
        ({}, {}, LOST, (State.QUEUED, "fresh", "said")),
        ({"alone": 1}, {}, LOST, (State.FAILED, "resume", "said")),  # once
        ({}, {"kind": "fresh", "resume_session": ""}, LOST, (State.FAILED, "resume", "said")),
        ({}, {"prompt": CONTINUE}, LOST, (State.QUEUED, "fresh", "")),
        ({}, {}, Reason.CONTEXT_OVERFLOW, (State.FAILED, "resume", "said")),
        ({}, {}, AUTH, (State.FAILED, "resume", "said")),
        ({}, {"outcome": Outcome(session_id="s")}, AUTH, (State.FAILED, "resume", "")),
        ({}, {"outcome": Outcome(usage=Usage(input=1))}, DIED, (State.FAILED, "resume", "")),
        ({"runner": "command"}, {}, DIED, (State.FAILED, "resume", "")),
        ({}, {}, None, (State.COMPLETED, "resume", "")),
    ],
)
def test_what_no_session_was_told_is_kept_for_the_next_turn(
    tmp_path: Path, found: dict[str, Any], turn: dict[str, Any], ended: Reason | None, then: tuple[Any, ...]
) -> None:
    async def body(room: Room) -> None:
        before = dispatched(state=State.RUNNING, **found)
        told: dict[str, Any] = {"kind": "resume", "prompt": "said", "resume_session": "s"} | turn
        attempt = Attempt(id="A", dispatch_id=before.id, n=2, claimed_at=NOW, **told)
        verdict = Verdict(State.FAILED if ended else State.COMPLETED, ended)
        after = before.model_copy(update=ending.changes(room.engine, before, attempt, verdict, "", {}))
        assert (after.state, after.next_kind, after.next_prompt) == then
        if after.state is State.FAILED:
            kind, text = _next_turn(after, "", "", False)
            assert text == (then[2] or CONTINUE if kind == "resume" else then[2])

    in_room(tmp_path, body)


@pytest.mark.parametrize(("session", "kept"), [("s", CONTINUE), ("", "said")])
def test_a_turn_that_was_sent_away_says_it_again_when_nothing_heard_it(tmp_path: Path, session: str, kept: str) -> None:
    async def body(room: Room) -> None:
        before = dispatched(state=State.RUNNING, runner="claude")
        told: dict[str, Any] = {"kind": "resume", "prompt": "said", "resume_session": "s"}
        outcome = Outcome(session_id=session)
        attempt = Attempt(id="A", dispatch_id=before.id, n=2, claimed_at=NOW, outcome=outcome, **told)
        park = {f"park:{before.pool}": {"until": NOW, "why": "rate_limit", "since": NOW}}
        verdict = Verdict(State.QUEUED, Reason.RATE_LIMIT)
        changes = ending.changes(room.engine, before, attempt, verdict, "", park)
        assert (changes["next_kind"], changes["next_prompt"]) == ("resume", kept)

    in_room(tmp_path, body)


def test_the_next_agent_hears_what_was_said_to_the_one_before(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        options = made.options.model_copy(update={"agents": ["command:work", "command:other"]})
        before = made.model_copy(update={"state": State.RUNNING, "runs": 2, "options": options})
        attempt = Attempt(id="A", dispatch_id=made.id, n=2, claimed_at=NOW, kind="resume", prompt="said")
        changes = ending.changes(room.engine, before, attempt, Verdict(State.FAILED, Reason.AUTH), "", {})
        assert (changes["agent"], changes["next_kind"], changes["next_prompt"]) == ("command:other", "fresh", "said")

    in_room(tmp_path, body)


def test_a_session_has_totals_of_its_own() -> None:
    paid = Cost(usd=5.0, source="reported")
    d = dispatched(session_usage=Usage(input=7), session_cost=paid)
    fresh = Attempt(id="A", dispatch_id=d.id, n=2, claimed_at=NOW)
    assert ending.session_totals(d, fresh) == (Usage(), Cost())
    goes_on = fresh.model_copy(update={"resume_session": "s"})
    assert ending.session_totals(d, goes_on) == (Usage(input=7), paid)
