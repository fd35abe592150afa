"""Agents that run and that the store does not know: it is an older copy, or it cannot be used now.

Recovery comes in once, before anything is claimed. They are left alone, since what nobody knows of may still be
somebody's work; the slots of their pools are taken all the same. It must not know what becomes of their work.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreagent import attempts, process
from coreagent.plainfile import read_plain
from coreagent.plural import plural
from coreagent.procfs import marked

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

LOOK_S = 1.0
"""How often it is looked whether they still run."""
TROUBLE = "strangers"


@dataclass(frozen=True)
class Stranger:
    """One such agent, as its shim's files and its processes tell."""

    attempt: str
    workspace: str
    """"" when neither says it."""
    pool: str
    """"" when it cannot be told."""
    pid: int
    start: int

    @property
    def called(self) -> str:
        return self.workspace or self.attempt


class Strangers:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._living: list[Stranger] = []
        self._ended: list[Stranger] = []
        self._follower: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._living)

    def running(self) -> Counter[str]:
        """Slots that they hold, by pool."""
        return Counter(one.pool for one in self._living if one.pool)

    def names(self, pool: str) -> list[str]:
        """Those that hold a slot of a pool."""
        return [one.called for one in self._living if one.pool == pool]

    def go_on(self) -> str:
        """That no stop of the daemon ends them; "" for none."""
        one = "running agent that the store does not know goes on"
        return plural(len(self), one, one.replace("agent", "agents").replace("goes", "go")) if self._living else ""

    async def look(self) -> dict[str, str]:
        """Find them: the attempt of each, with its workspace as far as that is known."""
        known = {attempt.id for attempt in self._engine.attempts.values()}
        self._living = await asyncio.to_thread(_find, self._engine.core.home, known)
        self._tell()
        if self._living:
            self._follower = asyncio.create_task(self._follow(), name="strangers")
        return {one.attempt: one.workspace for one in self._living}

    def stop(self) -> None:
        if self._follower is not None:
            self._follower.cancel()

    async def _follow(self) -> None:
        while self._living:
            await asyncio.sleep(LOOK_S)
            gone = [one for one in self._living if not process.alive(one.pid, one.start)]
            if gone:
                self._living = [one for one in self._living if one not in gone]
                self._ended += gone
                self._tell()
                self._engine.poke()  # a slot is free

    def _tell(self) -> None:
        troubles = self._engine.troubles
        later = (
            "found again when the store can be used"
            if self._engine.core.store.ephemeral
            else "kept in archive/orphans by the next daemon that starts after their end"
        )
        said = []
        if self._living:
            count = plural(len(self), "agent that runs", "agents that run")
            said.append(f"the store knows nothing of {count}: {_names(self._living)}; what is left of them is {later}")
        if unplaced := [one for one in self._living if not one.pool]:
            said.append(f"no limit of a pool counts {_names(unplaced)}: its pool cannot be told")
        if self._ended:
            said.append(f"ended, and unknown to the store: {_names(self._ended)}; what is left of them is {later}")
        if said:
            troubles[TROUBLE] = "; ".join(said)
        else:
            troubles.pop(TROUBLE, None)


def _names(some: list[Stranger]) -> str:
    return ", ".join(sorted(one.called for one in some))


def living(home: str, known: Collection[str] = ()) -> Iterator[tuple[Path, attempts.Shim]]:
    """The spools of a home whose shims live, but for those of `known` attempts. Letting go of a shim ends nothing."""
    root = Path(home, "attempts")
    for directory in root.iterdir() if root.is_dir() else ():
        shim = attempts.adopt(directory) if directory.name not in known else None
        if shim is not None:
            shim.close()
            yield directory, shim


def _find(home: str, known: Collection[str]) -> list[Stranger]:
    found = []
    for directory, shim in living(home, known):
        spec = _spec(directory)
        env = spec.get("env")
        told = [process.environ_of(proc.pid).get("CORE_AGENT_WORKSPACE", "") for proc in marked(directory.name)]
        told.append(str(env.get("CORE_AGENT_WORKSPACE", "")) if isinstance(env, dict) else "")
        workspace = next((name for name in told if name), "")
        found.append(Stranger(directory.name, workspace, str(spec.get("pool", "")), shim.pid, shim.start))
    return found


def _spec(directory: Path) -> dict[str, Any]:
    """What the shim was told to execute; nothing when its agent took that away."""
    try:
        spec = json.loads(read_plain(directory / "spec.json"))
    except (OSError, ValueError):
        return {}
    return spec if isinstance(spec, dict) else {}
