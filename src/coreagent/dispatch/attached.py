"""Who sits in an agent's interactive session: meanwhile nobody lands, rejects, resumes or clears its workspace.

The hold is a control of the store: durable, and out of an agent's reach. It names the process of the person's
`attach` and counts for as long as exactly that process runs, so that no kill and no restart leaves one behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from coreagent import process
from coreagent.capability import Caller
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Dispatch

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

KIND = "attached:"


@dataclass(frozen=True)
class Hold:
    """The process of an `attach`, and since when it has the workspace."""

    pid: int
    start: int
    since: datetime

    def words(self) -> str:
        return f"pid {self.pid}, since {self.since:%Y-%m-%d %H:%M:%S} UTC"


def holder(engine: Engine, dispatch_id: str) -> Hold | None:
    """Who is attached to a workspace now."""
    return _living(engine, KIND + dispatch_id)


def check(engine: Engine, dispatch: Dispatch) -> None:
    """Raise workspace_attached while a person is attached to a workspace."""
    if (hold := holder(engine, dispatch.id)) is not None:
        raise CoreAgentError(
            "workspace_attached",
            f"somebody is attached to {dispatch.workspace}",
            cause=hold.words(),
            hint="leave that session first; what was done in it is brought home then",
            data={"workspace": dispatch.workspace, "pid": hold.pid, "since": hold.since.isoformat()},
        )


async def take(engine: Engine, dispatch: Dispatch, caller: Caller) -> None:
    """Give a workspace to the process that asks; called with the decision about it in hand.

    Raises: workspace_attached.
    """
    check(engine, dispatch)
    # Of those that were killed nobody took back what they held.
    left = {key: None for key in engine.controls if key.startswith(KIND) and _living(engine, key) is None}
    start = process.start_time(caller.pid)
    own = {"pid": caller.pid, "start": start, "since": engine.core.now().isoformat()}
    await engine.set_controls({**left, **({KIND + dispatch.id: own} if start else {})})


async def release(engine: Engine, dispatch_id: str) -> None:
    """Let everybody at a workspace again."""
    key = KIND + dispatch_id
    if key in engine.controls:
        await engine.set_controls({key: None})


def _living(engine: Engine, key: str) -> Hold | None:
    held = engine.controls.get(key)
    if held is None or not process.alive(held["pid"], held["start"]):
        return None
    return Hold(held["pid"], held["start"], datetime.fromisoformat(held["since"]))
