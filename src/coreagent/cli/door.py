"""What an agent may not do in a process of its own: commands that write for the person ask here first.

Most commands are refused by the daemon, which the kernel tells who asks. These run without it.
"""

from __future__ import annotations

import os

from coreagent import process
from coreagent.cli.session import ask, session
from coreagent.errors import CoreAgentError


def no_agent(what: str) -> None:
    """Refuse a process below an attempt. `what` it may not do, as in "an agent may not ...".

    Raises: role_forbidden.
    """
    home, cause = session().home, ""
    try:
        if home and os.path.isdir(home):
            ask(home, "queue.list", {}, session().caller, start=False)
    except CoreAgentError as error:
        if error.slug == "role_forbidden":
            cause = error.cause or error.message
        elif error.slug not in ("daemon_unreachable", "daemon_stopping"):
            raise
    if not cause and _marked():
        cause = "this process was started by one"
    if cause:
        raise CoreAgentError(
            "role_forbidden",
            f"an agent may not {what}",
            cause=cause,
            hint="leave this to the person: write what you need into BLOCKED.md and stop",
        )


def _marked() -> bool:
    """Whether this process, or one above it, carries the mark of an attempt: all there is without a daemon to ask."""
    chain = [os.getpid(), *(pid for pid, _ in process.ancestors(os.getpid()))]
    return any(process.environ_of(pid).get("CORE_AGENT_ATTEMPT") for pid in chain)
