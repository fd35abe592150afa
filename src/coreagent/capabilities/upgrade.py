"""What an upgrade asks of the daemon: a copy of its store, and to become another release."""

from __future__ import annotations

import asyncio
import os

from coreagent.capability import capability
from coreagent.core import Core
from coreagent.errors import CoreAgentError, told
from coreagent.models.report import BecomeReply, StoreCopy

LOOK_S = 60.0
BECOME = "daemon.become"
PERSON_ALONE = frozenset({"person"})
_SAY = "import coreagent.daemon.main; from coreagent.paths import VERSION; print(VERSION)"


@capability("store.copy", roles=PERSON_ALONE)
async def store_copy(core: Core, target: str) -> StoreCopy:
    """Copy the whole store to a new file, while it is in use, and tell what it holds."""
    place = await asyncio.to_thread(core.store.backup, target)
    counted = await core.store.query("SELECT count(*) AS n FROM dispatches")
    return StoreCopy(path=place, dispatches=int(counted[0]["n"]))


@capability(BECOME, roles=PERSON_ALONE, destructive=True)
async def daemon_become(core: Core, executable: str) -> BecomeReply:
    """Become the release that this Python brings, in place: running agents and waiting clients do not notice."""
    if not os.path.isabs(executable) or not os.access(executable, os.X_OK):
        raise CoreAgentError("invalid_argument", f"{executable} cannot be executed")
    try:
        process = await asyncio.create_subprocess_exec(
            executable, "-P", "-c", _SAY, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise CoreAgentError("invalid_argument", f"{executable} cannot be executed", cause=told(error)) from error
    try:
        async with asyncio.timeout(LOOK_S):
            said, complaint = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CoreAgentError("upgrade_failed", f"{executable} does not answer") from None
    if process.returncode:
        last = (complaint.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
        raise CoreAgentError("upgrade_failed", f"{executable} brings no core-agent that starts", cause=last[:300])
    return BecomeReply(version=said.decode("utf-8", "replace").strip(), executable=executable)
