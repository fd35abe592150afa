"""A real agent of the Agent Client Protocol for tests: its turn runs under a real shim, as a dispatch's would."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coreagent import attempts, process
from coreagent.models.agent import AgentEvent, Outcome
from coreagent.runners.acp import Acp
from coreagent.runners.base import Launch, lay_out


@dataclass
class Turn:
    """One turn, as far as it has come."""

    events: list[AgentEvent]
    outcome: Outcome = field(default_factory=Outcome)
    end: attempts.ShimExit = field(default_factory=attempts.ShimExit)
    notes: list[dict[str, Any]] = field(default_factory=list)


def run(
    launch: Launch,
    prompt: str,
    *,
    resume: str = "",
    stop_at: Callable[[AgentEvent], bool] | None = None,
    stop_after: Callable[[], object] | None = None,
    why: str = "pause",
    **changes: Any,
) -> Turn:
    """Run one turn to its end, or until an event at which it is to be stopped, or until `stop_after` returns."""
    env = {**launch.env, **changes.pop("env", {})}
    asked = replace(launch, prompt=prompt, resume_session=resume, env=env, **changes)
    with tempfile.TemporaryDirectory(prefix="ca") as base:
        return asyncio.run(_turn(asked, Path(base) / "A1", stop_at, stop_after, why))


async def _turn(
    launch: Launch,
    folder: Path,
    stop_at: Callable[[AgentEvent], bool] | None,
    stop_after: Callable[[], object] | None,
    why: str,
) -> Turn:
    runner = Acp()
    plan = runner.plan(launch)
    lay_out(plan, launch.workspace_dir)
    folder.mkdir(mode=0o700)
    (folder / "stdin").write_bytes(plan.stdin or b"")
    attempt = f"{folder.parent.name}{folder.name}"
    spec = {
        "v": 1,
        "attempt": attempt,
        "argv": plan.argv,
        "cwd": launch.repo_dir,
        "env": plan.env,
        "stdin": str(folder / "stdin"),
        "idle_s": 120,
        "wall_s": 120,
        "out_max": 1 << 24,
        "stop_signal": plan.stop_signal,
        "grace_s": 10,
        "socket": str(folder / "s"),
        "acp": dict(plan.acp or {}),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    parser = runner.parser()
    turn = Turn([])
    read = 0
    stopped = asyncio.Event()

    def look(*_: int) -> None:
        nonlocal read
        if not (folder / "out").exists():
            return
        *lines, _rest = (folder / "out").read_bytes()[read:].split(b"\n")
        for line in lines:
            read += len(line) + 1
            found = parser.feed(line)
            turn.events.extend(found)
            if not line.startswith(b"<"):
                turn.notes.append(json.loads(line))
            if stop_at and any(stop_at(event) for event in found):
                stopped.set()

    shim = attempts.spawn(folder)
    shim.on_output(look)
    async with asyncio.timeout(120):
        if stop_at or stop_after:
            reached = asyncio.to_thread(stop_after) if stop_after else stopped.wait()
            waiting = [asyncio.create_task(reached), asyncio.create_task(shim.wait())]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting[0].cancel()
            await shim.cancel(why, 10)
        turn.end = await shim.wait()
    look()
    assert not process.by_marker(attempt)
    turn.outcome = parser.end(turn.end.code, turn.end.signal, (folder / "err").read_bytes()[-16384:])
    return turn
