"""Who is alive, above, below, marked, on the other end; against real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from coreagent import process
from coreagent.procfs import Proc

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A shell with two children, all marked; one child has a session of its own. The shell printed their pids."""
    child = subprocess.Popen(
        ["sh", "-c", "sleep 900 & a=$!; setsid sleep 901 & echo $a $!; wait"],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], **process.marker(f"T{os.getpid()}"), "ODD": "a=b", "BAD": "\udcff"},
        start_new_session=True,
    )
    yield child
    process.kill_tree(child.pid)
    child.wait()
    assert child.stdout
    child.stdout.close()


def children_of(family: subprocess.Popen[str]) -> list[int]:
    assert family.stdout
    return [int(word) for word in family.stdout.readline().split()]


def test_a_process_is_its_pid_and_its_start(family: subprocess.Popen[str]) -> None:
    start = process.start_time(family.pid)
    assert start > 0 and process.alive(family.pid, start)
    assert not process.alive(family.pid, start + 1), "a reused pid is another process"
    assert process.open_pidfd(family.pid, start + 1) == -1
    fd = process.open_pidfd(family.pid, start)
    assert fd >= 0
    os.close(fd)
    assert process.start_time(0) == 0 and not process.alive(0, 0) and not process.alive(-1, 0)


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    start = process.start_time(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.start_time(child.pid) == start and not process.alive(child.pid, start)
    child.wait()
    assert process.start_time(child.pid) == 0


@pytest.mark.parametrize(
    ("name", "stat"),
    [
        ("plain", b"7 (plain) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 4242 0"),
        ("a) R (b", b"7 (a) R (b) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 4242 0"),
        ("x y", b"7 (x y) Z 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 4242 0"),
    ],
)
def test_names_with_spaces_and_parentheses(name: str, stat: bytes) -> None:
    proc = Proc(7, stat)
    assert (proc.name, proc.ppid, proc.pgrp, proc.start, proc.dead) == (name, 1, 7, 4242, False)
    assert Proc(7, stat.replace(b" S ", b" Z ").replace(b" 20 0 3 ", b" 20 0 1 ")).dead


def test_above_and_below(family: subprocess.Popen[str]) -> None:
    children = children_of(family)
    assert sorted(process.descendants(family.pid)) == sorted(children)
    above = process.ancestors(children[0])
    assert above[:2] == [(pid, process.start_time(pid)) for pid in (family.pid, os.getpid())]
    assert children[0] not in dict(above)


def test_the_marker_finds_all_and_the_environment_is_read_whole(family: subprocess.Popen[str]) -> None:
    children = children_of(family)
    assert sorted(process.by_marker(f"T{os.getpid()}")) == sorted([family.pid, *children])
    assert process.by_marker(f"T{os.getpid()}0") == []
    env = process.environ_of(family.pid)
    assert env["ODD"] == "a=b" and env["BAD"] == "\udcff"
    assert process.environ_of(1 << 30) == {}


def test_a_tree_is_ended_politely_when_there_is_a_grace_and_surely_in_any_case() -> None:
    deaf = "trap '' TERM; sleep 900 & echo up; while :; do sleep 900; done"
    child = subprocess.Popen(["sh", "-c", deaf], stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "up\n"
    below = process.descendants(child.pid)
    starts = {pid: process.start_time(pid) for pid in below}
    struck = process.kill_tree(child.pid, grace_s=0.05)
    assert child.pid in struck and child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert not [pid for pid, start in starts.items() if process.alive(pid, start)]
    assert process.kill_tree(child.pid) == []


def test_the_kernel_says_who_is_on_the_other_end() -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert process.peer(left) == (os.getpid(), os.geteuid(), os.getegid())
    assert process.rss_bytes() > 1 << 20 and process.rss_bytes(1 << 30) == 0
