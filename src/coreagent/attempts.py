"""The daemon's side of shims: start one, find one again after a restart, wait for its end, stop it, void a claim.

The dispatch engine comes in. Waiting costs nothing: a pidfd in the event loop, and the shim's own notices of output.
It must not know queues, states or what the agent's lines mean; it reports what the kernel and the files say.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coreagent import firm
from coreagent import shim as shim_module
from coreagent.errors import CoreAgentError, told
from coreagent.plainfile import open_plain, read_plain, write_plain
from coreagent.process import alive, in_session, kill_found, open_pidfd, peer, start_time
from coreagent.procfs import below, marked
from coreagent.spool import claim, remove

log = logging.getLogger(__name__)

OutputCallback = Callable[[int, int], None]

# What a Python needs to start at all; the agent's environment comes from spec.json alone.
_SHIM_ENV = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE")

_SMALL = 1 << 20
"""More than a shim writes into `started` or `exit`."""


ANSWER_S = 2.0
"""An agent of the same user can stop its shim; nobody waits longer for one answer than that."""
BIRTH_S = 30.0
"""What a shim may take from its start to its claim."""
FIRST_LOOK_S = 0.02
"""An attempt that ends sooner is not worth a connection; its output is read at the end."""


@dataclass(frozen=True)
class Started:
    """The claim of an attempt. `void`: the daemon took it, nothing was or will be executed."""

    pid: int = 0
    shim_pid: int = 0
    shim_start: int = 0
    at: float = 0.0
    void: bool = False
    socket: str = ""


@dataclass(frozen=True)
class ShimUsage:
    cpu_s: float = 0.0
    max_rss_bytes: int = 0


@dataclass(frozen=True)
class ShimExit:
    """How an attempt ended, as the shim saw it, or as it had to be concluded when the shim left no word."""

    code: int | None = None
    signal: int | None = None
    stopped_by: str = ""
    """cancel, pause, attach, shutdown (asked for), timeout, idle_timeout (a limit), or "" when it ended by itself."""
    spawn_error: str = ""
    """Why the agent could not be executed."""
    died: bool = False
    """The shim itself was killed and left no `exit`; what it had below was swept."""
    forced: bool = False
    """We had to kill it, because it did not do what `stopped_by` asked for."""
    executed: bool = True
    """False when it is certain that the agent never ran, so that the attempt may be repeated."""
    at: float = 0.0
    """Seconds since the epoch."""
    killed: tuple[str, ...] = ()
    """`pid name` of what the agent left running. The names are the agent's text."""
    left: tuple[str, ...] = ()
    """What could not be killed: another user's, or in uninterruptible sleep."""
    dropped_bytes: int = 0
    problem: str = ""
    """Something about the spool: no space left on device, ..."""
    usage: ShimUsage = field(default_factory=ShimUsage)


def read_started(directory: str | Path) -> Started | None:
    """The claim, or None when nobody made one. An unreadable one counts as made: it may have run."""
    try:
        raw = read_plain(f"{directory}/started", _SMALL)
    except FileNotFoundError:
        return None
    except OSError:
        raw = b""
    body = _parse(raw)
    try:
        return Started(
            int(body.get("pid", 0)),
            int(body.get("shim_pid", 0)),
            int(body.get("shim_start", 0)),
            float(body.get("at", 0.0)),
            body.get("void") is True,
            str(body.get("socket", "")),
        )
    except (TypeError, ValueError):
        return Started()


def read_exit(directory: str | Path) -> ShimExit | None:
    """What the shim wrote at the end, or None while there is nothing."""
    try:
        body = _parse(read_plain(f"{directory}/exit", _SMALL))
    except OSError:
        return None
    if not body:
        return None
    usage = body.get("usage") or {}
    return ShimExit(
        code=body.get("code"),
        signal=body.get("signal"),
        stopped_by=str(body.get("stopped_by", "")),
        spawn_error=str(body.get("spawn_error", "")),
        executed=not body.get("spawn_error"),
        at=float(body.get("at", 0.0)),
        killed=tuple(map(str, body.get("killed", ()))),
        left=tuple(map(str, body.get("left", ()))),
        dropped_bytes=int(body.get("dropped_bytes", 0)),
        problem=str(body.get("problem", "")),
        usage=ShimUsage(float(usage.get("cpu_s", 0.0)), int(usage.get("max_rss_bytes", 0))),
    )


def void(directory: str | Path) -> bool:
    """Make sure that this attempt is never executed; False when it was started already (by a shim, or voided)."""
    if not claim(str(directory), {"void": True, "at": time.time()}):
        return False
    remove(f"{directory}/spec.json")  # it holds the agent's secrets, and nobody will read it any more
    return True


def sweep(attempt: str, pid: int = 0, start: int = 0, at: float = 0.0) -> list[int]:
    """Kill all that carries the attempt's marker or is of the session of its dead shim, which lived at `at` (epoch),
    and everything below; blocks; return the pids struck."""

    def find() -> list[Any]:
        roots = marked(attempt) + in_session(pid, start, at)
        return roots + [proc for root in roots for proc in below(root.pid) if proc.pid != os.getpid()]

    return kill_found(find)


def shim_environment() -> dict[str, str]:
    """The environment of a shim."""
    return {name: os.environ[name] for name in _SHIM_ENV if name in os.environ}


def spawn(directory: str | Path, python: str = sys.executable) -> Shim:
    """Start the shim of an attempt, detached; it outlives this process.

    Raises: shim_failed when the interpreter cannot be executed.
    """
    folder = str(Path(directory).absolute())
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    born_r, born_w = os.pipe()
    try:
        pid = os.posix_spawn(
            python,
            [python, "-I", "-S", str(shim_module.__file__), folder],
            shim_environment(),  # it leaves our session and closes what else it inherited by itself
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, born_w, 1),  # it says there when the attempt is started
                (os.POSIX_SPAWN_OPEN, 2, f"{folder}/shim.log", append, 0o600),
            ],
            setsigmask=(),
            setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD),
        )
    except OSError as error:
        os.close(born_r)
        raise CoreAgentError("shim_failed", f"the shim of {folder} could not be started", cause=told(error)) from error
    finally:
        os.close(born_w)
    return Shim(folder, pid, start_time(pid), child=True, born=born_r)


def adopt(directory: str | Path, pid: int = 0, start: int = 0) -> Shim | None:
    """Find the living shim of an attempt again; None when it is gone (then `read_exit` and `read_started` tell).

    Without a pid, the shim's own note in `lock` says who it is.
    """
    folder = str(Path(directory).absolute())
    if pid <= 0:
        pid, start = _locked_by(folder)
    if not alive(pid, start):
        return None
    return Shim(folder, pid, start, child=False)


class Shim:
    """A living shim as the daemon holds it. Letting go of it (`close`) ends nothing."""

    def __init__(self, directory: str, pid: int, start: int, *, child: bool, born: int = -1) -> None:
        self.dir, self.pid, self.start = directory, pid, start
        self._child = child
        self._born = born
        self._status: int | None = None
        self._why = ""
        self._pidfd = open_pidfd(pid, start)
        self._met = child or self._pidfd >= 0
        self._conclusion: asyncio.Task[ShimExit] | None = None
        self._follower: asyncio.Task[None] | None = None
        self._callbacks: list[OutputCallback] = []
        self._told = (-1, -1)
        self._known_socket = ""
        self.forced = ""
        """Why it is being killed, with all below, because it did not end when it should have."""
        self._insisting: asyncio.Task[None] | None = None
        self._insist_at = 0.0
        self._silent = False
        """It let itself be called and did not answer."""

    @property
    def _socket(self) -> str:
        """Looked up when it is needed: most attempts end before anybody wants to talk to their shim."""
        self._known_socket = self._known_socket or _socket_of(self.dir)
        return self._known_socket

    async def started(self) -> Started | None:
        """Wait until the claim stands and return it; None when the shim ended without it, so that nothing ran."""
        if self._born >= 0:
            loop, told = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(self._born, told.set)
            said = b""
            try:
                async with asyncio.timeout(BIRTH_S):
                    await told.wait()
                said = os.read(self._born, 1)
            except TimeoutError:
                log.warning("the shim of %s does not come up; it is killed", self.dir)
                await asyncio.to_thread(firm.kill, self.pid, self.start)
            finally:
                loop.remove_reader(self._born)
                os.close(self._born)
                self._born = -1
            if said:
                # Its word counts, and not the file: an agent may have removed that already.
                return read_started(self.dir) or Started(shim_pid=self.pid, shim_start=self.start)
        found = read_started(self.dir)
        return None if found is None or found.void else found

    async def wait(self) -> ShimExit:
        """Return how the attempt ended, once nothing of it runs any more; may be called many times."""
        if self._conclusion is None:
            self._conclusion = asyncio.create_task(self._conclude())
        return await asyncio.shield(self._conclusion)

    async def cancel(self, why: str, grace_s: float = 5.0) -> bool:
        """Ask for the end: the stop signal, then after the grace SIGKILL to everything. False when it had ended.

        Over the socket; when that is gone, by a note and a SIGTERM. A shim so young that it catches no signal yet dies
        of it before it executes anything. One that does not end in time, because its agent stopped it, is killed.
        """
        self._why = self._why or why
        reply = await self.ask({"op": "cancel", "why": why, "grace_s": grace_s})
        if not alive(self.pid, self.start):
            return False
        self._see_to_it(why, grace_s, 0.0 if self._silent else grace_s + firm.MARGIN_S)
        if reply.get("ok") is True or reply.get("error") == "ended":
            return reply.get("ok") is True
        with contextlib.suppress(OSError):
            write_plain(f"{self.dir}/cancel", json.dumps({"why": why, "grace_s": grace_s}).encode())
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            else:
                os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            return False
        return True

    def _see_to_it(self, why: str, grace_s: float, after_s: float) -> None:
        """Have it killed when it has not ended by then; of several such wishes the earliest holds."""

        async def later() -> None:
            if not await firm.ends(self, after_s):
                log.warning("the shim of %s was told to stop (%s) and has not; it is made to", self.dir, why)
                await firm.insist(self, why, grace_s)

        at = time.monotonic() + after_s
        if self._insisting is not None and self._insist_at <= at:
            return
        if self._insisting is not None:
            self._insisting.cancel()
        self._insisting, self._insist_at = asyncio.create_task(later()), at

    async def status(self) -> dict[str, Any]:
        """What the shim says of itself; empty when it does not answer."""
        return await self.ask({"op": "status"})

    def on_output(self, callback: OutputCallback) -> None:
        """Call `callback(out_size, err_size)` in the loop whenever the spool grew, and once more at the end."""
        self._callbacks.append(callback)
        if self._follower is None:
            self._follower = asyncio.create_task(self._follow())
        elif self._told != (-1, -1):
            callback(*self._told)

    def close(self) -> None:
        """Forget the shim; it and its agent go on."""
        for task in (self._follower, self._conclusion, self._insisting):
            if task:
                task.cancel()
        self._forget_pidfd()

    # -- the end

    async def _conclude(self) -> ShimExit:
        await self._gone()
        self._reap()
        self._forget_pidfd()
        if self._follower:
            self._follower.cancel()
        self._tell(*_sizes(self.dir))
        found = read_exit(self.dir)
        return found if found else await asyncio.to_thread(self._autopsy)

    async def _gone(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        if self._pidfd >= 0:
            loop.add_reader(self._pidfd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(self._pidfd)
        elif self._child or alive(self.pid, self.start):
            # No pidfd on this system: a thread blocks for us.
            threading.Thread(target=self._block, args=(loop, ended), daemon=True).start()
            await ended.wait()

    def _block(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
        if self._child:
            with contextlib.suppress(ChildProcessError):
                self._status = os.waitpid(self.pid, 0)[1]
        while not self._child and alive(self.pid, self.start):
            with contextlib.suppress(OSError), open_plain(f"{self.dir}/lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)  # granted when the shim has ended
            time.sleep(0.05)
        with contextlib.suppress(RuntimeError):  # the loop closed meanwhile
            loop.call_soon_threadsafe(ended.set)

    def _reap(self) -> None:
        if self._child and self._status is None:
            self._status = firm.bury(self.pid)

    def _autopsy(self) -> ShimExit:
        """The shim left no `exit`: find out whether the agent ran, and leave nothing of it running."""
        if _locked(self.dir) and not self.forced:
            return ShimExit(executed=False, spawn_error="another shim owns this attempt", at=time.time())
        spec = _parse(_bytes(f"{self.dir}/spec.json"))
        started = read_started(self.dir)
        executed = started is not None and not started.void
        at = time.time() if self._met or started is None else started.at
        attempt = str(spec.get("attempt") or Path(self.dir).name)
        killed = sweep(attempt, self.pid, self.start, at) if executed else []
        for path in (f"{self.dir}/spec.json", self._socket):
            if path and executed:
                remove(path)
        return ShimExit(
            stopped_by=self.forced or ("" if executed else self._why),
            forced=bool(self.forced),
            spawn_error="" if executed or self._why else self._last_words(),
            died=True,
            executed=executed,
            at=time.time(),
            killed=tuple(map(str, killed)),
        )

    def _last_words(self) -> str:
        code = "" if self._status is None else f" with {os.waitstatus_to_exitcode(self._status)}"
        words = _bytes(f"{self.dir}/shim.log")[-400:].decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"the shim ended{code} before it executed anything{': ' if words else ''}{words}"

    def _forget_pidfd(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    # -- the control socket

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The shim's own answer, whoever else may have bound its socket; empty when none comes in time."""
        self._silent = False
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    if peer(writer.get_extra_info("socket"))[0] not in (0, self.pid):
                        return {}
                    writer.write(json.dumps(request).encode() + b"\n")
                    return _parse(await reader.readline())
                finally:
                    writer.close()
        except TimeoutError:  # an OSError too
            self._silent = True
        except (OSError, ValueError):
            pass
        return {}

    async def _follow(self) -> None:
        delay = 0.01
        await asyncio.sleep(FIRST_LOOK_S)
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(b'{"op": "watch"}\n')
                    while "out" in (sizes := _parse(await reader.readline())):
                        delay = 0.01
                        self._tell(int(sizes["out"]), int(sizes["err"]))
                finally:
                    writer.close()
            except (OSError, ValueError, TypeError, KeyError):
                pass
            # Not bound yet, or lost, or removed by an agent that runs as the same user: the files tell as well.
            self._tell(*_sizes(self.dir))
            await asyncio.sleep(delay)
            delay = min(delay * 2, 1.0)

    def _tell(self, out: int, err: int) -> None:
        if (out, err) == self._told:
            return
        self._told = (out, err)
        for callback in self._callbacks:
            try:
                callback(out, err)
            except Exception:
                log.exception("an output callback of attempt %s failed", Path(self.dir).name)


def _socket_of(directory: str) -> str:
    spec = _parse(_bytes(f"{directory}/spec.json"))
    started = read_started(directory)
    return str(spec.get("socket") or (started.socket if started else ""))


def _locked_by(directory: str) -> tuple[int, int]:
    words = _bytes(f"{directory}/lock").split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return 0, 0
    return int(words[0]), int(words[1])


def _locked(directory: str) -> bool:
    try:
        with open_plain(f"{directory}/lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _sizes(directory: str) -> tuple[int, int]:
    sizes = []
    for name in ("out", "err"):
        try:
            sizes.append(Path(directory, name).stat().st_size)
        except OSError:
            sizes.append(0)
    return sizes[0], sizes[1]


def _bytes(path: str) -> bytes:
    try:
        return read_plain(path)
    except OSError:
        return b""


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
