"""What is told of an ending is true of it: exit codes, next steps, consent that nobody gave."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room

from coreagent.capabilities import control
from coreagent.cli.views import answer
from coreagent.cli.views.status import hint_lines
from coreagent.cli.views.text import Paint
from coreagent.dispatch import rows
from coreagent.models.agent import Reason
from coreagent.models.dispatch import State
from coreagent.models.report import StatusReport
from coreagent.runners.base import Plan


def test_work_that_was_not_brought_home_is_no_success_to_a_script() -> None:
    assert answer.exit_code(State.COMPLETED) == 0
    assert answer.exit_code(State.COMPLETED, "too_many_files") == 1
    assert answer.exit_code(State.FAILED, "too_many_files") == 10


def test_accept_is_not_offered_where_nothing_changed(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        row = rows.row(room.engine, made).model_copy(
            update={"state": State.COMPLETED, "reason": Reason.NO_CHANGES, "needs_me": True}
        )
        said = "\n".join(hint_lines(StatusReport(now=datetime.now(UTC), workspaces=[row]), 100, Paint(False)))
        assert "core-agent resume one" in said.replace(row.workspace, "one")
        assert "accept" not in said

    in_room(tmp_path, body)


def test_programs_and_scripts_ask_nobody_so_nobody_agreed(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        reply = await room.ask("dispatch", task="x", name="one", permissions="bypass", ephemeral=True)
        assert not [note for note in reply.notes if "agreed" in note]
        made = room.engine.board[reply.dispatch_id]
        assert not rows.row(room.engine, made).bypass
        assert rows.bypasses(made.model_copy(update={"runner": "claude"}))

    in_room(tmp_path, body)


def test_attach_tells_the_task_as_every_turn_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_interactive", lambda *_: Plan(argv=["agent"], env={}, session_id=""))

    async def body(room: Room) -> None:
        made = await room.ask("prep", name="one", task="mend it", ephemeral=True)
        told = await room.ask("attach.plan", workspace="one", dry_run=True)
        assert told.env["CORE_AGENT_TASK"] == room.engine.board[made.dispatch_id].task == "mend it"

    in_room(tmp_path, body)


def test_a_warning_names_the_open_workspaces_that_were_made_so(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        note = "without the setup hook of local/p3: its settings are not trusted; `core-agent repo trust` shows it"
        made = await room.prepare("v3")
        await room.engine.update(made, settings_note=note)
        (said,) = [line for line in (await room.ask("status")).warnings if "hook" in line]
        assert said == "v3 was prepared without the setup hook of local/p3: its settings were not trusted then"
        await room.ask("reject", workspace="v3")
        assert not [line for line in (await room.ask("status")).warnings if "hook" in line]

    in_room(tmp_path, body)
