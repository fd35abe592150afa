"""How a shim is made to end that does not end by itself: stopped by its agent, or out of its mind.

A shim as the daemon holds it (attempts.py) comes in. The shim's own word stays the normal way: it is woken and asked
first, and killed only when it does not answer, or says that it ends and does not. It must not know why an attempt is
to end, beyond the word that goes into its record.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from coreagent.process import alive, kill_tree
from coreagent.procfs import below, look, send

if TYPE_CHECKING:
    from coreagent.attempts import Shim, ShimExit

MARGIN_S = 2.0
"""What a shim may take beyond its agent's grace before anybody looks after it."""
ENDING_S = 35.0
"""What a shim that answers may take for an agent that not even SIGKILL ends; it then gives up on it by itself."""
LIMITS = ("timeout", "idle_timeout")


async def insist(shim: Shim, why: str, grace_s: float) -> bool:
    """Wake the shim and ask again; kill it with all below when that does not end it. Takes bounded time.

    False when it goes on rightfully: a limit that is not reached as the shim counts, which heard what we did not.
    """
    await asyncio.to_thread(wake, shim.pid, shim.start)
    if why not in LIMITS:
        said = await shim.ask({"op": "cancel", "why": why, "grace_s": grace_s})
    elif (said := await shim.status()).get("state") == "running":
        return False
    # One that cannot be reached has a SIGTERM, or its own limit, to heed.
    if await ends(shim, grace_s + MARGIN_S if said else MARGIN_S):
        return True
    deadline = time.monotonic() + ENDING_S
    while said and time.monotonic() < deadline and (await shim.status()).get("state") == "ending":
        if await ends(shim, MARGIN_S):
            return True
    shim.forced = shim.forced or why
    await asyncio.to_thread(kill, shim.pid, shim.start)
    return await ends(shim, MARGIN_S)


async def ends(shim: Shim, within_s: float) -> bool:
    """Wait for the end of the attempt, so long at most."""
    waiting: asyncio.Task[ShimExit] = asyncio.ensure_future(shim.wait())
    try:
        return bool((await asyncio.wait([waiting], timeout=within_s))[0])
    finally:
        waiting.cancel()


def wake(pid: int, start: int) -> None:
    """Let a shim and everything below it go on, if somebody stopped it."""
    root = look(pid)
    if root is not None and root.start == start:
        for proc in [root, *below(pid)]:
            send(proc, signal.SIGCONT)
    elif root is None and alive(pid, start):  # no /proc
        with suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def kill(pid: int, start: int) -> None:
    """End a shim and everything below it, frozen first, so that nothing of it gets away; blocks for a bounded time."""
    root = look(pid)
    if root is not None and root.start == start:
        kill_tree(pid, start=start)
    elif root is None and alive(pid, start):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def bury(pid: int, within_s: float = 0.0) -> int | None:
    """Collect a child that has ended or was killed: its wait status, or None when somebody who traces it keeps it."""
    fd = os.pidfd_open(pid) if within_s and hasattr(os, "pidfd_open") else -1
    if fd >= 0:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(within_s * 1000)
        os.close(fd)
    with suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        threading.Thread(target=_bury, args=(pid,), daemon=True).start()
    return None


def _bury(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
