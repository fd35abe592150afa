"""A real engine with a real store in memory, real git and, where a test starts one, real agents, all in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from coreagent.capabilities import about, adopt, batch, compare, control, decide, dispatch, place, review, status
from coreagent.capability import Caller, call
from coreagent.core import Core
from coreagent.dispatch.engine import Engine
from coreagent.models.dispatch import Dispatch, State
from coreagent.store.store import Store
from tests.support.git_room import sh

ROOMS = (about, adopt, batch, compare, control, decide, dispatch, place, review, status)
"""Imported for what they register."""
PERSON = {f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER")
          for part, value in (("NAME", "Person"), ("EMAIL", "person@example.org"))}  # fmt: skip
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}


class Room:
    """One engine over one repository; `asks` are capabilities called as a person."""

    def __init__(self, tmp: Path, script: str = "true", settings: str = "") -> None:
        self.home = tmp / ".core"
        for name in ("run", "attempts", "pending"):
            (self.home / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.home / "agents.yaml").write_text(
            "version: 1\ndispatch: {default_agent: 'command:work'}\n"
            f"commands:\n  work: {{argv: [/bin/sh, -c, {json.dumps(script)}]}}\n"
            f"  other: {{argv: [/bin/sh, -c, {json.dumps(script)}, other]}}\n{settings}"
        )
        self.repo = tmp / "project"
        self.repo.mkdir(exist_ok=True)
        sh(self.repo, "init", "-q", "-b", "main")
        (self.repo / "a.txt").write_text("a\n")
        sh(self.repo, "add", "a.txt")
        sh(self.repo, "commit", "-q", "-m", "first")
        self.env = {**ENV, **PERSON, "HOME": str(tmp), "CORE_HOME": str(self.home), "GIT_CONFIG_GLOBAL": "/dev/null"}
        self.core = Core(str(self.home), self.env, Store.memory("a test"))
        self.engine = self.core.engine = Engine(self.core)
        self.person = Caller(cwd=str(self.repo), env=dict(self.env))

    async def ask(self, capability: str, /, caller: Caller | None = None, **arguments: Any) -> Any:
        return await call(self.core, capability, arguments, caller or self.person)

    async def prepare(self, name: str) -> Dispatch:
        """A workspace without an agent: nothing but git is started."""
        made = await self.ask("prep", name=name, ephemeral=True)
        return self.engine.board[made.dispatch_id]

    def checkout(self, found: Dispatch) -> Path:
        return self.home / "workspace" / found.org / found.repo / found.name / "repo"

    def now(self, found: Dispatch) -> Dispatch:
        return self.engine.board[found.id]

    async def until(self, found: Dispatch, *states: State) -> Dispatch:
        async with asyncio.timeout(30):
            while (now := self.engine.board[found.id]).state not in states:
                await self.engine.changed(30, self.engine.turns)
        return now

    def branch(self, found: Dispatch) -> str:
        return sh(self.repo, "rev-parse", "-q", "--verify", f"refs/heads/{found.branch}", ok=False)


@asynccontextmanager
async def opened(room: Room, *, running: bool = False) -> AsyncIterator[Room]:
    await room.engine.load()
    if running:
        await room.engine.start()
    try:
        yield room
    finally:
        await room.engine.stop("now")
        await asyncio.to_thread(room.core.store.close)


def in_room(tmp: Path, body: Callable[[Room], Awaitable[None]], *, running: bool = False, **how: str) -> None:
    async def main() -> None:
        async with opened(Room(tmp, **how), running=running) as room:
            await body(room)

    asyncio.run(main())
