"""While a person sits in an agent's session nobody else decides about its workspace; when they are gone, everybody."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests.support.home import COMMAND, Home
from tests.support.screen import Screen

from coreagent import process

SESSION = """#!/bin/sh
case "$*" in *--version*) echo "2.1.328 (Claude Code)"; exit;; *--print*|*-p*) exit 3;; esac
echo by hand > made.txt
echo SESSION OPEN
read word
"""
"""Fails headless; interactive, it changes a file and stays until a line is typed."""


@pytest.fixture
def desk(home: Home) -> Home:
    """A task that failed, in a workspace that a person can attach to."""
    program = home.dir / "bin" / "claude"
    program.parent.mkdir()
    program.write_text(SESSION)
    program.chmod(0o755)
    home.env |= {"PATH": f"{program.parent}:{home.env['PATH']}", "ANTHROPIC_API_KEY": "k"}
    repo = home.repo()
    home.run("dispatch", "x", "-a", "claude", "-n", "one", "--wait", cwd=repo, code=10)
    return home


def attach(home: Home) -> Screen:
    return Screen([str(COMMAND), "attach", "one"], home.env, home.user)


def row(home: Home) -> dict[str, object]:
    found: dict[str, object] = home.json("status", "one", "--all")["workspaces"][0]
    return found


def checkout(home: Home) -> Path:
    return home.core / "workspace/local/repo/one/repo"


def test_nobody_decides_while_somebody_is_attached_and_a_restart_of_the_daemon_forgets_it_not(desk: Home) -> None:
    with attach(desk) as screen:
        screen.until("SESSION OPEN")
        for restarted in (False, True):
            if restarted:
                desk.kill_daemon()
            for verb in (["accept", "one"], ["reject", "one"], ["resume", "one"]):
                error = desk.json(*verb, code=1)["error"]
                assert (error["slug"], error["data"]["pid"]) == ("workspace_attached", screen.process.pid)
                assert f"pid {screen.process.pid}, since " in error["cause"]
                assert error["hint"]
            assert "attached" in desk.json("workspace", "clean", "one")["kept"]["local/repo/one"]
            with attach(desk) as second:
                second.until("E3016")
                assert second.end() == 1
            assert row(desk)["attached_pid"] == screen.process.pid
            assert "attached" in desk.run("status", "one").out
            assert "attached" in desk.run("why", "one").out
            # To print the command line asks for nothing and takes nothing.
            assert "claude" in desk.run("attach", "one", "--print").out
            assert (checkout(desk) / "made.txt").exists()
        screen.type("\n")
        screen.until("go on headless")
        assert screen.end() == 0
    assert (row(desk)["attached_pid"], row(desk)["files"]) == (0, 1)
    assert desk.json("accept", "one")["files"] == 1


def test_a_client_that_was_killed_holds_nothing_and_leaves_no_session_behind(desk: Home) -> None:
    # Below a shell that stays: it is not by the end of the terminal that the session ends.
    with Screen(["/bin/sh", "-c", f"{COMMAND} attach one; echo BACK; read word"], desk.env, desk.user) as screen:
        screen.until("SESSION OPEN")
        client = row(desk)["attached_pid"]
        assert isinstance(client, int) and client != screen.process.pid
        sessions = {
            pid for pid in desk.processes() if process.ancestors(pid)[:1] == [(client, process.start_time(client))]
        }
        assert sessions
        os.kill(client, signal.SIGKILL)
        screen.until("BACK")
        assert row(desk)["attached_pid"] == 0
        ends = time.monotonic() + 10
        while sessions & set(desk.processes()) and time.monotonic() < ends:
            time.sleep(0.05)
        assert not sessions & set(desk.processes())
        desk.run("attach", "one", "--print")
        assert desk.json("reject", "one")["fate"] == "rejected"
        screen.type("\n")
        screen.end()


def test_a_session_that_cannot_be_opened_holds_nothing(desk: Home) -> None:
    desk.run("attach", "one", "--print")
    (desk.dir / "bin" / "claude").unlink()
    with attach(desk) as screen:
        assert screen.end() != 0
    assert row(desk)["attached_pid"] == 0


def test_what_waits_has_nothing_to_attach_to_yet(desk: Home) -> None:
    desk.run("queue", "freeze")
    desk.run("dispatch", "x", "-a", "claude", "-n", "two", cwd=desk.user / "repo")
    error = desk.json("attach", "two", code=1)["error"]
    assert (error["slug"], "is queued and has no checkout yet" in error["message"]) == ("workspace_busy", True)
