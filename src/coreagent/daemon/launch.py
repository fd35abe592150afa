"""Start the daemon once, whoever races, and know when it answers.

The terminal client comes in when nobody answers on the socket, and sessions outside the daemon. It must not import
what the daemon itself imports: the client pays for every module here.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from coreagent import paths, wire
from coreagent.daemon import house
from coreagent.errors import CoreAgentError
from coreagent.plainfile import read_plain

GIVE_WAY_S = 30.0
"""How long a daemon that stops may take before a new one gives up waiting for its lock."""
CALL_AGAIN_S = 1.0
READY_S = 60.0
LOG_MAX = 5 << 20

# The daemon serves many callers: it must not carry the first one's environment into agents. Callers send their own.
_NAMES = (
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR PYTHONPATH PYTHONHOME VIRTUAL_ENV SSL_CERT_FILE "
    "SSL_CERT_DIR COVERAGE_PROCESS_START"
)
_KEPT = frozenset(_NAMES.split())
_KEPT_PREFIXES = ("LC_", "XDG_", "CORE_")


def launch(home: str) -> None:
    """Return when a daemon listens: this call started it, or another one did meanwhile.

    Raises: what the daemon said when it could not start; daemon_start_failed, role_forbidden.
    """
    if os.environ.get("CORE_AGENT_ATTEMPT"):
        # It would live and die with the agent, and everyone below it would be taken for that agent.
        raise CoreAgentError(
            "role_forbidden",
            "the daemon is not running, and an agent may not start it",
            hint="leave this to the person: write what you need into BLOCKED.md and stop",
        )
    house.prepare(home)
    asked = time.monotonic()
    with _start_lock(home) as descriptor:
        if answers(home):
            return
        failure = _failure_since(descriptor, asked)
        if failure is not None:
            raise failure
        if call_back(home):
            return
        try:
            _spawn(home)
        except CoreAgentError as error:
            if _without_a_place(error, home) and call_back(home, error.data["pid"]):
                return
            _record(descriptor, error)
            raise


@contextmanager
def reach(home: str, *, start: bool = True) -> Iterator[socket.socket]:
    """A connection to the daemon, starting it when it is not there.

    Raises: as `launch`; daemon_unreachable; foreign_user.
    """
    house.check_length(home)
    if not start:
        call_back(home)
    for last in (not start, True):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                sock.connect(paths.daemon_socket(home))
            except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
                if last:
                    raise unreachable(home, error) from None
                if start:
                    launch(home)
                continue
            except OSError as error:
                raise unreachable(home, error) from None
            if wire.peer(sock)[1] not in (os.getuid(), 0, -1):
                raise CoreAgentError("foreign_user", f"the daemon of {home} belongs to another user")
            yield sock
            return
        finally:
            sock.close()


def unreachable(home: str, error: OSError | None) -> CoreAgentError:
    """Say why nobody answers at this home."""
    try:
        house.check_length(home)
    except CoreAgentError as too_long:
        return too_long
    return CoreAgentError(
        "daemon_unreachable",
        f"no daemon answers at {paths.daemon_socket(home)}",
        cause=(error.strerror or str(error)) if error else "it started and was gone again",
        hint="core-agent daemon start; core-agent daemon logs says why it ended",
    )


def answers(home: str) -> bool:
    """Whether somebody accepts connections on the socket now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(paths.daemon_socket(home))
        except OSError:
            return False
        return True


@contextmanager
def _start_lock(home: str) -> Iterator[int]:
    descriptor = house.open_file(paths.start_lock(home))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _record(descriptor: int, error: CoreAgentError) -> None:
    text = json.dumps({"at": time.monotonic(), **error.as_dict()}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)


def _failure_since(descriptor: int, asked: float) -> CoreAgentError | None:
    """The failure of whoever tried while we waited: fifty clients do not start a broken daemon fifty times."""
    try:
        body = json.loads(os.pread(descriptor, 65536, 0))
        return CoreAgentError.from_dict(body) if body["at"] > asked else None
    except (ValueError, KeyError, TypeError):
        return None


def call_back(home: str, known: int = 0) -> bool:
    """Wait until the daemon that holds this home answers (True) or is gone (False), the first of both.

    `known` is its pid where the lock does not tell. It may be starting, stopping, or live where nobody finds it,
    because someone removed its socket: a SIGHUP makes it take its place again, and means nothing to it otherwise.

    Raises: daemon_start_failed when it does neither in time.
    """
    deadline = time.monotonic() + GIVE_WAY_S
    call_at = 0.0
    while pid := known or house.holder(home):
        if answers(home):
            return True
        if time.monotonic() >= call_at:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
            call_at = time.monotonic() + CALL_AGAIN_S
        # The kernel tells when it ends; that it listens nobody tells, so that is looked at in between.
        if ended(pid, 0.02) and (known or house.holder(home) in (0, pid)):
            return False
        if time.monotonic() > deadline:
            raise CoreAgentError(
                "daemon_start_failed",
                f"the daemon (pid {pid}) holds {home} but does not answer",
                hint=f"core-agent daemon logs; if it hangs, kill {pid}: running agents are not touched",
            )
    return False


def _without_a_place(error: CoreAgentError, home: str) -> bool:
    """Whether the store is held by a daemon of this home whose lock was removed: no other process gets our signal."""
    return error.slug == "store_locked" and f"-m coreagent.daemon --home {home}" in str(error.data.get("command", ""))


def ended(pid: int, timeout_s: float) -> bool:
    """Wait until a process is gone; False when the time ran out."""
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        except OSError:
            return _ended_by_looking(pid, timeout_s)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(max(0, timeout_s * 1000)))
        finally:
            os.close(descriptor)
    return _ended_by_looking(pid, timeout_s)


def _ended_by_looking(pid: int, timeout_s: float) -> bool:
    # Where the kernel has no descriptor for a process (macOS through this module), looking is all there is.
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        time.sleep(0.02)
    return False


def command(home: str, python: str = "") -> list[str]:
    """The daemon's command line. `-P`: the directory that it runs in must not become a place to import from."""
    return [python or sys.executable, "-P", "-m", "coreagent.daemon", "--home", home]


def environment(home: str) -> dict[str, str]:
    """What of this process's environment the daemon starts with."""
    named = _named_in_settings(home)
    return {k: v for k, v in os.environ.items() if k in _KEPT or k in named or k.startswith(_KEPT_PREFIXES)}


def _named_in_settings(home: str) -> set[str]:
    """The variables that the daemon itself needs (secrets of notices), as the settings are now."""
    try:
        if b"headers" not in read_plain(paths.settings_file(home), follow=True):
            return set()  # most have none: reading them properly takes longer than all else here
    except OSError:
        return set()
    from coreagent import config

    try:
        return set(config.load(home).settings.notify.webhook.headers.values())
    except CoreAgentError:
        return _named_when_they_were_good(home)


def _named_when_they_were_good(home: str) -> set[str]:
    try:
        with open(paths.kept_names(home), encoding="utf-8") as file:
            return set(file.read(65536).split())
    except (OSError, UnicodeDecodeError):
        return set()


def _spawn(home: str) -> None:
    """Start the daemon detached, and wait for the word that it listens or why it cannot."""
    _turn_log(home)
    reading, writing = os.pipe()
    log = house.open_file(paths.daemon_log(home), os.O_WRONLY | os.O_APPEND)
    argv = [*command(home), "--ready-fd", str(writing)]
    env = environment(home)
    try:
        middle = os.fork()
        if middle == 0:
            _become_daemon(home, argv, env, log, writing)
        os.close(writing)
        writing = -1
        os.waitpid(middle, 0)
        said = _hear(reading)
    finally:
        os.close(reading)
        os.close(log)
        if writing >= 0:
            os.close(writing)
    if said == b"ready":
        return
    try:
        raise CoreAgentError.from_dict(json.loads(said))
    except ValueError:
        raise CoreAgentError(
            "daemon_start_failed",
            "the daemon ended before it could answer" if said is not None else "the daemon does not get ready",
            cause=_last_line(home),
            hint=f"the whole log: {paths.daemon_log(home)}",
        ) from None


def _hear(descriptor: int) -> bytes:
    heard = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + READY_S
    while poll.poll(max(0, (deadline - time.monotonic()) * 1000)):
        piece = os.read(descriptor, 65536)
        heard += piece
        if not piece or heard == b"ready":
            break
    return heard


def _become_daemon(home: str, argv: list[str], env: dict[str, str], log: int, ready: int) -> None:
    """In the child: leave the caller's session, terminal and descriptors behind, then execute. Never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir(home)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # What the caller's parents left open (a pipe of a build, a lock) must not stay open as long as we live.
        os.closerange(3, ready)
        os.closerange(ready + 1, 4096)
        os.set_inheritable(ready, True)
        os.execve(argv[0], argv, env)  # noqa: S606 - no shell wanted
    except BaseException as error:
        os.write(2, f"cannot start {argv}: {error}\n".encode("utf-8", "backslashreplace"))
    finally:
        os._exit(127)


def _turn_log(home: str) -> None:
    path = paths.daemon_log(home)
    try:
        if os.stat(path).st_size > LOG_MAX:
            os.replace(path, path + ".1")
    except OSError:
        return


def _last_line(home: str) -> str:
    try:
        with open(paths.daemon_log(home), "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
