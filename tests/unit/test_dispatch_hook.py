"""What a setup hook is given, and what is said of it afterwards."""

from __future__ import annotations

from pathlib import Path

from tests.support.engine_room import Room, in_room

from coreagent.dispatch import environment
from coreagent.dispatch.workspace import layout
from coreagent.models.dispatch import Dispatch, State


def hook(run: str) -> str:
    return f"hooks: {{setup: {{run: {run!r}}}}}\n"


async def prepared(room: Room, saved: dict[str, str] | None) -> tuple[Dispatch, dict[str, str]]:
    """A task whose hook ran with this environment saved beside it, and the environment that the hook saw."""
    room.core.env["A_SECRET_OF_THE_DAEMON"] = "s3cret"
    made = await room.ask("dispatch", task="a task", ephemeral=True)
    environment.forget(str(room.home), made.dispatch_id)
    if saved is not None:
        environment.save(str(room.home), made.dispatch_id, saved)
    await room.engine.start()
    done = await room.until(room.engine.board[made.dispatch_id], State.COMPLETED, State.FAILED)
    said = layout(str(room.home), room.core.settings, done).setup_log.read_text(errors="replace")
    return done, dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def test_without_a_saved_environment_a_hook_gets_what_may_travel_of_the_daemons(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        done, seen = await prepared(room, None)
        assert done.state is State.COMPLETED
        assert seen["PATH"] == room.core.env["PATH"]
        assert seen["CORE_AGENT_DISPATCH"] == done.id
        assert "s3cret" not in seen.values()
        assert "CORE_HOME" not in seen

    in_room(tmp_path, body, settings=hook("env"))


def test_what_was_undone_is_told_after_the_end_too(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        done, _ = await prepared(room, None)
        assert "a.txt" not in done.detail
        report = await room.ask("why", workspace=done.id)
        assert "the setup hook's changes to tracked files were undone: a.txt" in report.facts

    in_room(tmp_path, body, settings=hook("echo more >> a.txt"))


def test_a_saved_environment_that_is_empty_stays_so(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        _, seen = await prepared(room, {})
        assert "HOME" not in seen
        assert "s3cret" not in seen.values()

    in_room(tmp_path, body, settings=hook("/usr/bin/env"))
