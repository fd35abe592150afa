"""The processes of this machine as /proc shows them, and how to end some of them for certain.

Ground floor, standard library only: the shim (which can import nothing else of the package) and process.py come in.
It must not know what an attempt is, beyond the one environment variable every process of an attempt carries.
Without /proc (macOS) nothing is found here; callers fall back to process groups.
"""

from __future__ import annotations

import errno
import os
import time

TYPE_CHECKING = False  # `typing` would cost the shim more than all of its other imports
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable
else:
    import _signal as signal  # without its enums: 3 ms

MARKER = "CORE_AGENT_ATTEMPT"


class Proc:
    """What /proc/<pid>/stat says of one process. `dead`: a zombie, with no thread left running."""

    __slots__ = ("dead", "kernel", "name", "pgrp", "pid", "ppid", "session", "start")

    def __init__(self, pid: int, text: bytes) -> None:
        # The name may hold spaces and parentheses itself, so the last ")" closes it.
        left, right = text.index(b"("), text.rindex(b")")
        rest = text[right + 2 :].split()
        self.pid, self.name = pid, text[left + 1 : right].decode("utf-8", "replace")
        self.ppid, self.pgrp, self.start = int(rest[1]), int(rest[2]), int(rest[19])
        self.session = int(rest[3])
        self.kernel = bool(int(rest[6]) & 0x200000)  # PF_KTHREAD
        # A main thread that ended shows "Z" although its other threads run on and may fork.
        self.dead = rest[0] in (b"Z", b"X", b"x") and int(rest[17]) <= 1


def slurp(path: str, limit: int = 1 << 22) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # an agent may have put a pipe into its attempt's directory
    try:
        parts = []
        while limit > 0 and (data := os.read(fd, min(limit, 1 << 16))):
            parts.append(data)
            limit -= len(data)
        return b"".join(parts)
    finally:
        os.close(fd)


def look(pid: int) -> Proc | None:
    """One process, or None when it is gone or hidden from us."""
    try:
        return Proc(pid, slurp(f"/proc/{pid}/stat"))
    except (OSError, ValueError, IndexError):
        return None


def table() -> dict[int, Proc]:
    """Every process that can be seen; not a snapshot, processes come and go while it is read."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return {}
    return {proc.pid: proc for name in names if name.isdigit() and (proc := look(int(name)))}


def below(root: int) -> list[Proc]:
    """All processes under `root`, without itself, zombies included."""
    children: dict[int, list[Proc]] = {}
    for proc in table().values():
        children.setdefault(proc.ppid, []).append(proc)
    found, frontier = [], [root]
    while frontier:
        for proc in children.pop(frontier.pop(), ()):
            found.append(proc)
            frontier.append(proc.pid)
    return found


def brood(root: int) -> list[Proc]:
    """What `below` finds, by the kernel's lists of children: as fast on a machine of thousands as on an empty one.

    Such a list may lack a child while another is being reaped, so only who asks again until nothing is left may ask
    here; and `root` must be a subreaper, because an orphan is looked for nowhere else.
    """
    if not os.path.exists("/proc/thread-self/children"):  # a kernel without CONFIG_PROC_CHILDREN
        return below(root)
    found, frontier = [], [root]
    while frontier:
        parent = frontier.pop()
        for pid in children(parent):
            # A pid that ended since the list was read may belong to anybody now; an orphan went to the root.
            if (proc := look(pid)) and proc.ppid in (parent, root):
                found.append(proc)
                if not proc.dead:
                    frontier.append(pid)
    return found


def children(pid: int) -> list[int]:
    """The children of all threads of a process; of one that is gone, none."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            found += map(int, slurp(f"/proc/{pid}/task/{thread}/children").split())
        except OSError:
            continue
    return found


def is_below(pid: int, root: int) -> bool:
    """True when `root` is an ancestor of `pid`, and when that cannot be told because `pid` is gone."""
    for _ in range(4096):
        proc = look(pid)
        if proc is None or proc.ppid == root:
            return True
        if proc.ppid <= 1:
            return False
        pid = proc.ppid
    return True


def suspect(pid: int, want: bytes) -> bool:
    """False for what surely has not `want` in its environment, with as few calls as can tell it."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except OSError as error:
        # A kernel thread, or dead. Any other error hides the path and perhaps nothing else.
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return False
    try:
        environ = slurp(f"/proc/{pid}/environ")
    except OSError:
        return False
    return not environ or want in environ.split(b"\0")


def marked(attempt: str) -> list[Proc]:
    """Living processes, the caller excepted, that were executed with this attempt's marker in their environment."""
    want, me = f"{MARKER}={attempt}".encode(), os.getpid()
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    procs = [look(pid) for pid in pids if pid != me and suspect(pid, want)]
    # Looked at before its environment is read once more: then it is this process that carries it, not a former one.
    found, unsure = [], [proc for proc in procs if proc and not proc.dead and not proc.kernel]
    for _ in range(50):
        todo, unsure = unsure, []
        for proc in todo:
            try:
                environ = slurp(f"/proc/{proc.pid}/environ")
                if want in environ.split(b"\0"):
                    found.append(proc)
                elif not environ and not slurp(f"/proc/{proc.pid}/cmdline") and look(proc.pid):
                    unsure.append(proc)  # in the middle of an exec there is neither: look again
            except OSError:
                continue
        if not unsure:
            break
        time.sleep(0.001)
    return found


def send(proc: Proc, number: int) -> bool:
    """Signal exactly this process, never another that got its pid meanwhile; False when it may not be signalled."""
    try:
        if not hasattr(os, "pidfd_open"):
            os.kill(proc.pid, number)
            return True
        fd = os.pidfd_open(proc.pid)
    except OSError as error:
        return error.errno != errno.EPERM
    try:
        now = look(proc.pid)
        if now and now.start == proc.start:
            signal.pidfd_send_signal(fd, number)
        return True
    except OSError as error:
        return error.errno != errno.EPERM
    finally:
        os.close(fd)


def strike(find: Callable[[], Iterable[Proc]]) -> list[Proc]:
    """Freeze whatever `find` finds until it finds nothing new, then kill it; return what was struck.

    Freezing first, because a parent that sees a child die may start another, and two that watch each other never end.
    """
    seen: dict[tuple[int, int], Proc] = {}
    for _ in range(20):
        fresh = [proc for proc in find() if not proc.dead and (proc.pid, proc.start) not in seen]
        for proc in fresh:
            seen[proc.pid, proc.start] = proc
            send(proc, signal.SIGSTOP)
        if not fresh:
            break
    for proc in seen.values():
        # One call ends a whole group, atomically against fork; the frozen member keeps the group's number taken.
        if proc.pgrp not in (0, 1, os.getpgrp()) and (now := look(proc.pid)) and now.pgrp == proc.pgrp:
            groupkill(proc.pgrp, signal.SIGKILL)
        send(proc, signal.SIGKILL)
    return list(seen.values())


def groupkill(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except OSError:
        pass
