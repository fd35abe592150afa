"""The home directory as the daemon needs it: ours alone, one daemon in it, a socket that only we can reach.

The daemon and whoever starts it come in. It knows neither the store nor a frame.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from coreagent import paths
from coreagent.errors import CoreAgentError, displaced, shell_word, told
from coreagent.plainfile import led_away, open_own

BACKLOG = 128


def check_length(home: str) -> None:
    """Refuse a home whose socket path the system cannot hold.

    Raises: socket_path_too_long.
    """
    path = paths.daemon_socket(home)
    size = len(os.fsencode(path))
    if size > paths.SOCKET_PATH_MAX:
        raise CoreAgentError(
            "socket_path_too_long",
            f"the socket's path is {size} bytes long, the system allows {paths.SOCKET_PATH_MAX}: {path}",
            hint="set CORE_HOME to a shorter directory",
        )


def prepare(home: str) -> None:
    """Make the home and its `run` directory when they are missing, and refuse one that others can change.

    Raises: no_home, socket_path_too_long, home_unsafe, daemon_start_failed.
    """
    if not home:
        raise CoreAgentError("no_home", paths.homeless())
    check_length(home)
    run = Path(home, "run")
    try:
        Path(home).mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(home)
        for name in paths.OWN:
            if laid := led_away(f"{home}/{name}", home):
                raise displaced(laid)
        run.mkdir(mode=0o700, exist_ok=True)
        _check(str(run))
        if stat.S_IMODE(run.stat().st_mode) != 0o700:
            run.chmod(0o700)
    except OSError as error:
        raise CoreAgentError(
            "daemon_start_failed",
            f"cannot use {home}",
            cause=error.strerror or told(error),
            hint="set CORE_HOME to a directory that you can write",
        ) from None


def _check(path: str) -> None:
    """Whoever can write here can put a socket, a script or settings under our hands."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise CoreAgentError("home_unsafe", f"{path} is not a directory")
    if status.st_uid != os.getuid():
        raise CoreAgentError(
            "home_unsafe",
            f"{path} belongs to user {status.st_uid}, not to you ({os.getuid()})",
            hint="set CORE_HOME to a directory of your own",
        )
    if status.st_mode & 0o022:
        raise CoreAgentError(
            "home_unsafe",
            f"others can write to {path} (mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"chmod go-w {shell_word(path)}",
        )


def open_file(path: str, flags: int = os.O_RDWR) -> int:
    """A descriptor of a file of ours, a lock or the log.

    Raises: home_unsafe where a link stands in its place, OSError.
    """
    try:
        return open_own(path, flags)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise displaced(path) from None


def lock(home: str) -> int:
    """Become the one daemon of this home; the descriptor holds it until it is closed.

    Raises: already_running, naming the process; home_unsafe.
    """
    descriptor = open_file(paths.daemon_lock(home))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise CoreAgentError(
            "already_running",
            f"a daemon (pid {holder(home) or 'unknown'}) already serves {home}",
            hint="core-agent daemon status",
        ) from None
    sign(descriptor)
    return descriptor


def sign(descriptor: int) -> None:
    """Write our pid into the lock."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)


def holder(home: str) -> int:
    """Pid of the daemon that holds the lock, 0 when nobody does."""
    try:
        descriptor = os.open(paths.daemon_lock(home), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        try:
            # Shared: two who only look never take each other for the daemon.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = os.pread(descriptor, 32, 0).strip()
            return int(text) if text.isdigit() else 0
        return 0
    finally:
        os.close(descriptor)


def listen(home: str) -> socket.socket:
    """Bind the daemon's socket, mode 0600 from its first moment. Only for the holder of the lock."""
    path = paths.daemon_socket(home)
    Path(path).unlink(missing_ok=True)  # a leftover: the lock says that nobody listens on it
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
