"""The daemon's side of the nursery: ask it for a shim, start it, and do without it when it is not there.

The dispatch engine comes in. The first shim of a burst is started alone, so that a single task pays for no second
process; the ones after it are forked from a process that has imported all they need.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time

from coreagent import firm
from coreagent import shim as shim_module
from coreagent.attempts import Shim, shim_environment, spawn

log = logging.getLogger(__name__)

ANSWER_S = 2.0
"""An agent of the same user can stop any process of ours; nobody waits longer for this one than that."""
SHUNNED_S = 60.0
"""After one that did not answer shims are started alone for so long: whoever stopped it would stop the next one too."""


class Nursery:
    """At most one nursery process of one home. Used on the daemon's event loop only."""

    def __init__(self, home: str, python: str = sys.executable) -> None:
        self._home, self._python = home, python
        self._link: socket.socket | None = None
        self._pid = 0
        self._shunned_until = 0.0

    def spawn(self, directory: str | os.PathLike[str]) -> Shim:
        """Start the shim of an attempt, detached; it outlives this process.

        Raises: shim_failed when the interpreter cannot be executed.
        """
        folder = os.path.abspath(directory)
        if self._link is None:
            shim = spawn(folder, self._python)
            self._open()
            return shim
        born_r, born_w = os.pipe()
        try:
            pid, start = self._ask(folder, born_w)
        except (OSError, ValueError) as error:
            # Whether it was forked all the same does not matter: two shims of one attempt settle it by their lock.
            log.warning("the nursery does not answer (%s); the shim is started alone", error)
            os.close(born_r)
            if isinstance(error, TimeoutError):
                self._shunned_until = time.monotonic() + SHUNNED_S
            self.close()
            return spawn(folder, self._python)
        finally:
            os.close(born_w)
        return Shim(folder, pid, start, child=False, born=born_r)

    def _ask(self, folder: str, born: int) -> tuple[int, int]:
        assert self._link is not None
        self._link.sendmsg(
            [os.fsencode(folder)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [born]).tobytes())]
        )
        pid, start = map(int, self._link.recv(64).split())
        return pid, start

    def _open(self) -> None:
        """Start the process; it is ready when it answers."""
        if not sys.platform.startswith("linux") or time.monotonic() < self._shunned_until:
            return  # without /proc it could not say when a process was born
        ours, theirs = socket.socketpair()
        try:
            self._pid = os.posix_spawn(
                self._python,
                [self._python, "-I", "-S", str(shim_module.__file__), "--nursery", self._home],
                shim_environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsigmask=(),
                setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD),
            )
        except OSError as error:
            log.warning("no nursery: %s", error)
            ours.close()
            return
        finally:
            theirs.close()
        ours.settimeout(ANSWER_S)
        self._link = ours
        # Answers are waited for where they are asked for, so what wakes the loop can only be its end.
        asyncio.get_running_loop().add_reader(ours, self.close)

    def close(self) -> None:
        """End the process, and bury it; the shims that came from it go on."""
        if self._link is None:
            return
        asyncio.get_running_loop().remove_reader(self._link)
        self._link.close()
        self._link = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
            firm.bury(self._pid, within_s=0.5)
