"""Processes of this machine: who is alive, who is above and below whom, who is on the other end of a socket.

The daemon comes in (identity of callers, adoption, sweeping, its own memory). It must not know what an attempt is
beyond the marker in the environment. A process is always named by pid and start time: pids are reused.

Reads come from coreagent.procfs; without /proc (macOS) `ps` answers what it can.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from calendar import timegm
from collections.abc import Callable, Iterable

from coreagent.procfs import MARKER, Proc, below, look, marked, send, slurp, strike, table
from coreagent.shim_agent import PR_SET_PDEATHSIG, prctl

LINUX = sys.platform.startswith("linux")


def tied(number: signal.Signals) -> Callable[[], None]:
    """What a child does before its exec so that this signal reaches it when its parent is killed (Linux).

    Asked for in the thread that starts the child: the kernel takes the end of that thread for the parent's.
    """
    own = os.getpid()

    def in_child() -> None:
        signal.signal(number, signal.SIG_DFL)
        if prctl(PR_SET_PDEATHSIG, number) and os.getppid() != own:
            os._exit(128 + number)  # killed before the kernel was told

    return in_child


def start_time(pid: int) -> int:
    """When the process started (clock ticks since boot; elsewhere seconds); 0 when it is gone or hidden."""
    if pid <= 0:
        return 0
    if LINUX:
        proc = look(pid)
        return proc.start if proc else 0
    return _ps_start(pid)


def alive(pid: int, start: int) -> bool:
    """True when exactly this process still runs; a zombie does not."""
    if pid <= 0:
        return False
    if LINUX:
        proc = look(pid)
        return proc is not None and not proc.dead and proc.start == start
    return not _ps(pid, "stat").startswith("Z") and _ps_start(pid) == start


def open_pidfd(pid: int, start: int) -> int:
    """Return a descriptor that turns readable when exactly this process ends; -1 when it is gone or unsupported."""
    if pid <= 0 or not hasattr(os, "pidfd_open"):
        return -1
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return -1
    if start_time(pid) == start:  # asked after the open: from here on the descriptor cannot mean another process
        return fd
    os.close(fd)
    return -1


def ancestors(pid: int) -> list[tuple[int, int]]:
    """Parent, grandparent, ... as (pid, start), as far up as can be seen; without the process itself."""
    found: list[tuple[int, int]] = []
    seen = {pid}
    parent = _parent(pid)
    while parent and parent not in seen:
        seen.add(parent)
        if LINUX:
            proc = look(parent)
            found.append((parent, proc.start if proc else 0))
            parent = proc.ppid if proc else 0
        else:
            found.append((parent, _ps_start(parent)))
            parent = _parent(parent)
    return found


def descendants(pid: int) -> list[int]:
    """Pids of all living processes below `pid`."""
    return [proc.pid for proc in below(pid) if not proc.dead]


def by_marker(attempt: str) -> list[int]:
    """Pids of living processes that were executed with this attempt's marker, the caller excepted."""
    return [proc.pid for proc in marked(attempt)]


def in_session(pid: int, start: int, at: float) -> list[Proc]:
    """What runs in the session that exactly this process led, which lived at `at` (epoch); without itself."""
    if not LINUX or pid <= 1 or start <= 0:
        return []
    # A reboot, or a restart of the container, gives the same numbers to other people's sessions.
    init = look(1)
    if at < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) or (init and start < init.start):
        return []
    me = os.getpid()
    # A member's own group is never the leader's: the agent got one before it was executed. The children of a daemon
    # that has the number by now, and left them as daemons do, are in that group.
    found = [p for p in table().values() if p.session == pid != p.pgrp and p.start >= start and p.pid != me]
    # As long as a member lives, the kernel gives its session's number to no new process. If one has it, then all that
    # was ours is gone; asked last, so that it holds for everything found.
    leader = look(pid)
    return found if leader is None or leader.start == start else []


def environ_of(pid: int) -> dict[str, str]:
    """The environment the process was executed with; empty when it is gone or not ours to read."""
    try:
        raw = slurp(f"/proc/{pid}/environ")
    except OSError:
        return {}
    pairs = (item.decode("utf-8", "surrogateescape").partition("=") for item in raw.split(b"\0") if b"=" in item)
    return {name: value for name, _, value in pairs}


def kill_tree(pid: int, grace_s: float = 0.0, patience_s: float = 10.0, start: int = 0) -> list[int]:
    """End a process and all below it, first politely when there is a grace; blocks; return the pids that were struck.

    With `start`, only the process that started then.

    A child that was reparented away before is not found; give the process a marker and use `kill_found` for that.
    """
    root = look(pid)
    if root is None or root.dead or start not in (0, root.start):
        return []
    # Taken before the root dies: afterwards its children belong to somebody else.
    tree = {(proc.pid, proc.start): proc for proc in [root, *below(pid)]}
    if grace_s > 0:
        for proc in tree.values():
            send(proc, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        for proc in list(tree.values()):
            _wait_gone(proc, deadline - time.monotonic())

    def find() -> list[Proc]:
        for known in list(tree.values()):
            if (now := look(known.pid)) and now.start == known.start:
                tree.update({(proc.pid, proc.start): proc for proc in below(known.pid)})
        return [now for known in tree.values() if (now := look(known.pid)) and now.start == known.start]

    return kill_found(find, patience_s)


def kill_found(find: Callable[[], Iterable[Proc]], patience_s: float = 10.0) -> list[int]:
    """Freeze and kill whatever `find` returns until it returns nothing alive; blocks at most `patience_s`."""
    deadline = time.monotonic() + patience_s
    struck: dict[int, None] = {}
    while living := [proc for proc in find() if not proc.dead]:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        round_ = strike(find)
        struck |= {proc.pid: None for proc in round_}
        for proc in round_ or living:
            _wait_gone(proc, min(left, 0.5))
    return list(struck)


def rss_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, of this one by default; 0 when it cannot be told."""
    if LINUX:
        try:
            pages = int(slurp(f"/proc/{pid or os.getpid()}/statm").split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")
    text = _ps(pid or os.getpid(), "rss")
    return int(text) * 1024 if text.isdigit() else 0


def peer(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process that connected a Unix socket, as the kernel saw it; pid 0 when it is unknown.

    Raises: OSError when the socket has no peer.
    """
    if LINUX:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, gid = struct.unpack("=iII", raw)
        return pid, uid, gid
    _, uid, _, gid = struct.unpack_from("=IIh2xI", sock.getsockopt(0, 1, 76))  # LOCAL_PEERCRED: struct xucred
    with contextlib.suppress(OSError):
        return int.from_bytes(sock.getsockopt(0, 2, 4), sys.byteorder), uid, gid  # LOCAL_PEERPID
    return 0, uid, gid


def marker(attempt: str) -> dict[str, str]:
    """The environment variable every process of an attempt carries."""
    return {MARKER: attempt}


def _wait_gone(proc: Proc, timeout_s: float) -> None:
    fd = open_pidfd(proc.pid, proc.start)
    if fd < 0:
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, timeout_s) * 1000)
    finally:
        os.close(fd)


def _parent(pid: int) -> int:
    if LINUX:
        proc = look(pid)
        return proc.ppid if proc else 0
    text = _ps(pid, "ppid")
    return int(text) if text.isdigit() else 0


def _ps(pid: int, column: str) -> str:
    try:
        done = subprocess.run(
            ["ps", "-o", f"{column}=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=5,
            env={"PATH": "/bin:/usr/bin", "LC_ALL": "C", "TZ": "UTC"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _ps_start(pid: int) -> int:
    try:
        return timegm(time.strptime(_ps(pid, "lstart"), "%a %b %d %H:%M:%S %Y"))
    except ValueError:
        return 0
