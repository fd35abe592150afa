"""Start, stop and look at the daemon from outside: what the `daemon` commands and `doctor` call.

The person's own process comes in. It speaks J frames and signals; it opens neither the store nor a Core.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from coreagent import paths
from coreagent.capability import Caller
from coreagent.cli.session import ask, exchange
from coreagent.daemon import house, launch
from coreagent.errors import CoreAgentError
from coreagent.models.report import DaemonStatus, StopReply

STOP_S = 30.0


def status(home: str) -> DaemonStatus | None:
    """Ask the daemon about itself; None when none runs. Never starts one.

    Raises: daemon_unreachable when one runs but does not answer.
    """
    if not house.holder(home):
        return None
    return DaemonStatus.model_validate(ask(home, "daemon.status", {}, Caller(), start=False))


def start(home: str) -> bool:
    """Start the daemon when it does not run; whether this call had to.

    Raises: as `launch.launch`.
    """
    if house.holder(home) and launch.answers(home):
        return False
    launch.launch(home)
    return True


def stop(home: str, mode: str = "leave") -> StopReply | None:
    """Stop the daemon and return when it is gone; None when none ran.

    `leave`: agents go on. `drain`: returns at once, the daemon ends when the last agent does. `now`: stops them too.
    `restart`: as `leave`, and whoever follows something waits for the next daemon.
    """
    pid = house.holder(home)
    if not pid:
        return None
    with launch.reach(home, start=False) as sock:
        body = exchange(sock, {"call": "daemon.stop", "arguments": {"mode": mode}}, Caller())
    if body is None:
        return stop(home, mode)  # it became another release meanwhile
    if "error" in body:
        raise CoreAgentError.from_dict(body)
    if mode != "drain":
        wait_gone(home, pid)
    return StopReply.model_validate(body["result"])


def terminate(home: str) -> bool:
    """Stop a daemon that does not answer, by signal; agents go on. Whether one was there."""
    pid = house.holder(home)
    if not pid:
        return False
    os.kill(pid, signal.SIGTERM)
    wait_gone(home, pid)
    return True


def wait_gone(home: str, pid: int) -> None:
    """Wait for the end of a daemon that was told to stop.

    Raises: daemon_unreachable when it does not end in time.
    """
    if not launch.ended(pid, STOP_S) and house.holder(home) == pid:
        raise CoreAgentError(
            "daemon_unreachable",
            f"the daemon (pid {pid}) was told to stop and is still there after {STOP_S:.0f} s",
            hint=f"core-agent daemon logs; kill -9 {pid} is safe: running agents are not touched",
        )


def restart(home: str) -> None:
    """Replace the daemon with a new one of this program; running agents do not notice."""
    stop(home, "restart")
    launch.launch(home)


def run_foreground(home: str) -> int:
    """Be the daemon in this process, until Ctrl-C; for service managers and for looking on."""
    command = launch.command(home)
    sys.stdout.flush()
    os.execve(command[0], command, launch.environment(home))  # noqa: S606 - no shell wanted


def logs(home: str, lines: int = 200) -> Iterator[str]:
    """The last lines of the daemon's log."""
    try:
        text = Path(paths.daemon_log(home)).read_text(errors="replace")
    except FileNotFoundError:
        return
    yield from text.splitlines()[-lines:]
