"""A command that follows something, and the person at its other end who goes away or steps aside."""

from __future__ import annotations

import signal
import sys

import pytest
from tests.support.home import COMMAND, Home
from tests.support.screen import Screen
from tests.support.world import World


@pytest.mark.parametrize("words", [("status", "--watch"), ("status", "--watch", "--json"), ("watch", "--since", "0")])
def test_it_ends_as_soon_as_nobody_reads(home: Home, words: tuple[str, ...]) -> None:
    home.run("workspace", "prep", "x", "-n", "one", cwd=World(home).repo)
    follower = home.start(*words)
    assert follower.stdout
    assert follower.stdout.read(1)
    follower.stdout.close()
    assert follower.wait(30) == -signal.SIGPIPE
    assert follower.stderr
    assert follower.stderr.read() == b""


@pytest.mark.skipif(sys.platform != "linux", reason="the shell of the test is driven as Linux does it")
def test_ctrl_z_gives_the_screen_back_until_the_command_goes_on(home: Home) -> None:
    home.run("daemon", "start")
    shell = f"set -m; {COMMAND} status --watch; echo left $?; fg; echo ended $?"
    with Screen(["bash", "-c", shell], home.env, home.user, rows=12, columns=60) as screen:
        screen.until("Ctrl-C leaves")
        screen.type("\x1a")
        screen.until("left 148")
        before, _, _ = screen.raw.rpartition(b"left 148")
        assert before.rfind(b"\x1b[?1049l") > before.rfind(b"\x1b[?1049h") >= 0
        assert before.rfind(b"\x1b[?25h") > before.rfind(b"\x1b[?25l")
        screen.until("Ctrl-C leaves")
        after = screen.raw[len(before) :]
        assert b"\x1b[?1049h" in after
        screen.type("\x03")
        screen.until("ended 0")
        assert screen.raw.rfind(b"\x1b[?1049l") > screen.raw.rfind(b"\x1b[?1049h")
        screen.end()
