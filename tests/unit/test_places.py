"""Settings that change hold for what waits already: its pool, its model, and so its limits."""

from __future__ import annotations

import functools
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room

from coreagent.core import Core
from coreagent.dispatch import rows
from coreagent.dispatch.engine import Engine
from coreagent.dispatch.queue import Queue
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Attempt, Dispatch

ONE, VARIANT = "concurrency: {scripted: 1}\n", "concurrency: {scripted: 4, scripted-opus: 1}\n"


async def _stands(engine: Engine, claimed: Dispatch, attempt: Attempt) -> None:
    """An agent that never says a word."""


def save(room: Room, text: str) -> None:
    (room.home / "agents.yaml").write_text(f"version: 1\n{text}# {os.urandom(4).hex()}\n")
    room.core.refresh_settings()


async def claim_all(room: Room) -> list[Dispatch]:
    room.engine.watch_over = lambda dispatch, work: work.close()  # type: ignore[method-assign]
    room.engine.free_memory = lambda: None
    while await room.engine._claim_one():
        pass
    return list(room.engine.board.active.values())


async def give(room: Room, count: int, agent: str, **more: Any) -> list[Dispatch]:
    script = "steps:\n- say: hello\n" if agent.startswith("scripted") else ""
    ask = functools.partial(room.ask, "dispatch", task="do", agent=agent, ephemeral=True, script=script)
    made = [await ask(name=f"t{n}", **more) for n in range(count)]
    return [room.engine.board[one.dispatch_id] for one in made]


def pool_rows(room: Room) -> dict[str, tuple[int, int]]:
    return {row.pool: (row.running, row.queued) for row in rows.pools(room.engine)}


def test_a_saved_file_holds_for_what_waits(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await give(room, 5, "scripted:opus")
        assert pool_rows(room) == {"scripted": (0, 5)}
        save(room, VARIANT)
        assert pool_rows(room) == {"scripted": (0, 0), "scripted-opus": (0, 5)}
        assert [d.pool for d in await claim_all(room)] == ["scripted-opus"]
        assert room.engine.attempts[next(iter(room.engine.board.active))].pool == "scripted-opus"
        # What runs counts where it belongs now, so that no cap is exceeded by what is claimed next.
        save(room, ONE)
        assert pool_rows(room) == {"scripted": (1, 4)}
        assert len(await claim_all(room)) == 1
        save(room, "concurrency: {scripted: 3}\n")
        assert len(await claim_all(room)) == 3
        save(room, VARIANT)
        assert pool_rows(room) == {"scripted": (0, 0), "scripted-opus": (3, 2)}
        assert len(await claim_all(room)) == 3
        await room.engine.places.write()
        written = {d.id: d.pool for d in room.core.store.load().dispatches}
        assert {written[i] for i in room.engine.board.active} == {"scripted-opus"}

    in_room(tmp_path, body, settings=ONE)


def test_settings_that_changed_while_no_daemon_looked(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await give(room, 5, "scripted:opus")
        save(room, VARIANT)
        core = Core(str(room.home), room.env, room.core.store)
        room.core, room.engine = core, Engine(core)
        core.engine = room.engine
        await room.engine.load()
        assert {d.pool for d in room.engine.board.queued} == {"scripted-opus"}
        assert len(await claim_all(room)) == 1

    in_room(tmp_path, body, settings=ONE)


def test_what_is_resumed_or_comes_in_between_is_placed(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        one, two = await give(room, 2, "scripted:opus")
        await room.ask("pause", workspace=one.id)
        save(room, VARIANT)
        assert pool_rows(room)["scripted-opus"] == (0, 1)
        await room.ask("resume", workspace=one.id)
        assert room.now(one).pool == "scripted-opus"
        # It was looked at before the file was saved, and comes to the queue after that was followed.
        late = two.model_copy(update={"id": "late", "name": "late", "pool": "scripted"})
        await room.engine.arrive([late])
        assert room.engine.board["late"].pool == "scripted-opus"

    in_room(tmp_path, body, settings=ONE)


def test_a_change_that_cannot_be_written_is_taken_back_though_settings_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(room: Room) -> None:
        (one,) = await give(room, 1, "scripted:opus")

        async def full(*changes: Any) -> None:
            save(room, VARIANT)
            room.engine.facts()
            raise CoreAgentError("no_space", "full")

        with monkeypatch.context() as patched:
            patched.setattr(room.core.store, "commit", full)
            with pytest.raises(CoreAgentError):
                await room.engine.update(one, priority=3)
        assert (room.now(one).priority, room.now(one).pool) == (0, "scripted-opus")
        assert pool_rows(room)["scripted-opus"] == (0, 1)

    in_room(tmp_path, body, settings=ONE)


def with_cli(room: Room, tmp: Path, name: str) -> None:
    program = tmp / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\necho 9.9.9\n")
    program.chmod(0o755)
    more = {"PATH": f"{program.parent}:{room.env['PATH']}", "ANTHROPIC_API_KEY": "x", "CODEX_API_KEY": "x"}
    room.env |= more
    room.person.env.update(more)


@pytest.mark.parametrize(
    ("cli", "agent", "settings", "env", "model", "most"),
    [
        ("claude", "claude", "{claude: {total: 3, opus: 1}}\nrunners: {claude: {model: opus}}", {}, "opus", 1),
        ("claude", "claude", "{claude: {total: 3, opus: 1}}", {"ANTHROPIC_MODEL": "claude-opus-4"}, "claude-opus-4", 1),
        ("claude", "claude", "{claude: {total: 3, opus: 1}}", {}, "", 2),
        ("codex", "codex", "{codex: {total: 3, gpt-5.4: 1}}", {}, "gpt-5.4", 1),
        ("codex", "codex", "{codex: 3, codex-gpt-5.4: 1}", {}, "gpt-5.4", 1),
        ("codex", "codex:gpt-6", "{codex: 3, codex-gpt-5.4: 1}", {}, "gpt-6", 2),
    ],
)
def test_the_model_that_runs_is_the_one_that_is_counted(
    tmp_path: Path, cli: str, agent: str, settings: str, env: dict[str, str], model: str, most: int
) -> None:
    async def body(room: Room) -> None:
        with_cli(room, tmp_path, cli)
        room.person.env.update(env)
        tried = await room.ask("dispatch", task="do", agent=agent, dry_run=True)
        told = [two for one, two in zip(tried.argv, tried.argv[1:], strict=False) if one == "--model"]
        assert told == ([model] if model else [])
        one, _ = await give(room, 2, agent)
        assert one.counted_model == model
        assert len(await claim_all(room)) == most

    in_room(tmp_path, body, settings=f"concurrency: {settings}\n")


def test_what_runs_keeps_the_model_that_it_was_started_with(tmp_path: Path) -> None:
    caps = "concurrency: {claude: {total: 3, opus: 1, haiku: 2}}\nrunners: {claude: {model: %s}}\n"

    async def body(room: Room) -> None:
        with_cli(room, tmp_path, "claude")
        await give(room, 5, "claude")
        (first,) = await claim_all(room)
        save(room, caps % "haiku" + "dispatch: {starting: 9}\n")
        assert room.engine.facts().models == {("claude", "opus"): 1}
        assert [d.runs_with for d in await claim_all(room)] == ["opus", "haiku", "haiku"]
        assert room.engine.board[first.id].runs_with == "opus"

    in_room(tmp_path, body, settings=caps % "opus")


@pytest.mark.parametrize("flag", ["--model=opus", "--fallback-model=opus"])
def test_no_argument_goes_around_the_caps(tmp_path: Path, flag: str) -> None:
    async def body(room: Room) -> None:
        with_cli(room, tmp_path, "claude")
        with pytest.raises(CoreAgentError) as caught:
            await give(room, 1, "claude", args=[flag])
        assert caught.value.slug == "blocked_flag"
        assert "--agent claude:MODEL" in caught.value.hint

    in_room(tmp_path, body)


@pytest.mark.parametrize("agents", ["scripted,scripted", "claude:opus,scripted,opus"])
def test_a_list_names_each_agent_once(tmp_path: Path, agents: str) -> None:
    async def body(room: Room) -> None:
        with pytest.raises(CoreAgentError, match="twice") as caught:
            await give(room, 1, agents)
        assert (caught.value.slug, bool(caught.value.hint)) == ("invalid_argument", True)

    in_room(tmp_path, body)


def test_who_escalates_names_to_whom(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        for agent in ("scripted", ""):
            with pytest.raises(CoreAgentError, match="escalate") as caught:
                await give(room, 1, agent, escalate=True)
            assert (caught.value.slug, bool(caught.value.hint)) == ("conflicting_options", True)
        (one,) = await give(room, 1, "scripted,command:work", escalate=True)
        assert one.options.escalate

    in_room(tmp_path, body)


@pytest.mark.parametrize("moved", [3, 400])
def test_a_queue_in_which_many_move_is_the_one_that_would_be_made_anew(moved: int) -> None:
    began = datetime(2026, 3, 2, tzinfo=UTC)
    words: list[tuple[str, timedelta | None]] = [
        ("", None),
        ("after", None),
        ("rate_limit", timedelta(1)),
        ("asked", None),
    ]
    made = []
    for n in range(500):
        word, until = words[n % 7 % 4]
        made.append(
            Dispatch(
                id=f"{n:04}", org="o", repo=f"r{n % 3}", name=f"n{n}", repo_path="/r", task="t", agent="a", runner="x",
                pool="x", model=f"m{n % 2}", priority=n % 5, created_at=began, queued_at=began, changed_at=began,
                waiting_for=word, waiting_until=began + until if until else None,
                options={"agents": ["a", "b"] if n % 11 == 0 else []},
            )
        )  # fmt: skip
    queue = Queue(made)
    queue.wake(began + timedelta(2))
    newer = [d.model_copy(update={"pool": f"x-{d.model}", "runs_with": d.model}) for d in made[:moved]]
    queue.replace(newer)
    anew = Queue([*newer, *made[moved:]])
    for one in (queue, anew):
        one.wake(began + timedelta(2))
    assert queue.pools == anew.pools
    for name in ("_counts", "_order"):
        assert getattr(queue, name) == getattr(anew, name)
    for mine, theirs in ((queue.flexible, anew.flexible), (queue.asked, anew.asked)):
        assert {k: v for k, v in mine.items() if v} == {k: v for k, v in theirs.items() if v}
