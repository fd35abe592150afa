"""How long a dispatch has worked: its agents' turns together, never what it waited for in between."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from tests.support.engine_room import Room, in_room

from coreagent.models.dispatch import State
from coreagent.models.report import WorkspaceRow


def test_waiting_between_turns_is_no_work(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        async def look() -> WorkspaceRow:
            (row,) = (await room.ask("status", all=True)).workspaces
            return row

        real = room.core.now
        made = await room.ask("dispatch", task="go", name="one", ephemeral=True)
        found = room.engine.board[made.dispatch_id]
        await room.until(found, State.COMPLETED)
        first = await look()
        assert first.elapsed_s is not None
        assert first.elapsed_s < 30

        room.core.now = lambda: real() + timedelta(hours=1)  # type: ignore[method-assign]
        rested = await look()
        assert (rested.elapsed_s, rested.since) == (first.elapsed_s, first.since)
        await room.ask("resume", workspace="one", prompt="more")
        await room.until(found, State.RUNNING)
        running = await look()
        assert running.since >= first.since + timedelta(hours=1)
        assert running.elapsed_s is not None
        assert first.elapsed_s <= running.elapsed_s < first.elapsed_s + 30
        (tmp_path / "go").touch()
        await room.until(found, State.COMPLETED)
        assert room.now(found).runs == 2
        (past,) = await room.ask("history")
        assert past.worked_s is not None
        assert first.elapsed_s <= past.worked_s < 60

    wait = f"[ -e {tmp_path}/once ] && while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    script = f"{wait}; touch {tmp_path}/once; date >> f"
    in_room(tmp_path, body, running=True, script=script)
