"""The limits of an attempt, watched by the daemon too: an agent can stop the shim that should hold them.

A live attempt comes in. The shim's word is the normal way, and is asked for before anything is done; one timer an
attempt, which rings only when the shim is overdue. It must not know what an ending means.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from coreagent import firm
from coreagent.attempts import Shim

log = logging.getLogger(__name__)

AGAIN_S = 30.0
"""When to look again after a shim that answers and has other limits: the settings changed since it was started."""

clock = time.monotonic


@dataclass(frozen=True)
class Limits:
    """In seconds; 0 is none."""

    wall_s: float = 0.0
    idle_s: float = 0.0
    grace_s: float = 5.0


class Vigil:
    """Watches from its making until `close`; `heard` tells it of output."""

    def __init__(self, shim: Shim, limits: Limits, began: float) -> None:
        """`began`: when the agent was executed, in seconds since the epoch."""
        self._shim, self._limits = shim, limits
        now = clock()
        self._began = now - max(0.0, time.time() - began)
        self._last = max(self._began, now - max(0.0, time.time() - _written(Path(shim.dir, "out"))))
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    def heard(self) -> None:
        """The agent has said something."""
        self._last = clock()

    def close(self) -> None:
        """Watch no longer."""
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()

    def _due(self) -> tuple[float, str]:
        slack = self._limits.grace_s + firm.MARGIN_S
        ways = (
            (self._began, self._limits.wall_s, "timeout"),
            (self._last, self._limits.idle_s, "idle_timeout"),
        )
        return min(((since + limit + slack, name) for since, limit, name in ways if limit), default=(0.0, ""))

    def _arm(self, least_s: float = 0.0) -> None:
        due, name = self._due()
        if name:
            after = max(least_s, due - clock())
            self._timer = asyncio.get_running_loop().call_later(after, self._ring)

    def _ring(self) -> None:
        due, name = self._due()
        if clock() < due:
            self._arm()
        else:
            self._task = asyncio.create_task(self._look(name))

    async def _look(self, name: str) -> None:
        try:
            said = await self._shim.status()
            if said.get("state") != "running":
                log.warning("the shim of %s is past its limit (%s) and has not ended it", self._shim.dir, name)
                # One that is at it already has all the time that it was given.
                if said and await firm.ends(self._shim, self._limits.grace_s + firm.MARGIN_S):
                    return
                if await firm.insist(self._shim, name, self._limits.grace_s):
                    return
                said = await self._shim.status()
            now = clock()
            self._began = now - float(said.get("age_s", now - self._began))
            self._last = now - float(said.get("silent_s", now - self._last))
        except Exception:
            log.exception("the limits of %s could not be looked after", self._shim.dir)
        self._arm(0.0 if self._due()[0] > clock() else AGAIN_S)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
