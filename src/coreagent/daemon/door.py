"""The daemon's place in the file system: its lock and its socket, and how both come back when somebody removed them.

The daemon's main room comes in. An agent of the same user can delete or replace any file of the home; the daemon then
lives on where nobody finds it. Whoever looks for it sends SIGHUP, and it takes its place again. It knows no frame.
"""

from __future__ import annotations

import logging
import os
import socket

from coreagent import paths
from coreagent.daemon import house
from coreagent.errors import CoreAgentError

log = logging.getLogger(__name__)


class Door:
    """The held lock and the bound socket of one home."""

    def __init__(self, home: str, lock: int, listener: socket.socket) -> None:
        self._home = home
        self.lock = lock
        self.listener = listener
        self._bound = _identity(paths.daemon_socket(home))

    def renew(self) -> socket.socket | None:
        """Take the lock and the socket's path again where they are no longer ours; the new socket, if there is one.

        Raises: already_running when another daemon took the place; home_unsafe, daemon_start_failed.
        """
        house.prepare(self._home)
        held = os.fstat(self.lock)
        if _identity(paths.daemon_lock(self._home)) != (held.st_dev, held.st_ino):
            fresh = house.lock(self._home)
            os.close(self.lock)
            self.lock = fresh
            log.warning("the lock of %s was removed or replaced; taken again", self._home)
        elif house.holder(self._home) != os.getpid():
            house.sign(self.lock)  # the kernel keeps the lock, but what we wrote into it is anybody's to change
        if self._bound is not None and _identity(paths.daemon_socket(self._home)) == self._bound:
            return None
        self.listener = house.listen(self._home)
        self._bound = _identity(paths.daemon_socket(self._home))
        log.warning("the socket of %s was removed or replaced; listening anew", self._home)
        return self.listener


def renewed(door: Door) -> socket.socket | None:
    """As `Door.renew`, but a failure is only logged: the daemon goes on with the agents that it follows."""
    try:
        return door.renew()
    except (CoreAgentError, OSError) as error:
        log.error("cannot take the place of this daemon again: %s", error)
        return None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
