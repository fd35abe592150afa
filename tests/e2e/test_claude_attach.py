"""A person takes over: `attach` on a terminal with the real claude CLI, headless again afterwards; `open` beside it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from tests.support.desk import CALL, Desk, edit, seated
from tests.support.home import COMMAND, Home
from tests.support.screen import Screen

DOWN, UP, ENTER = "\x1b[B", "\x1b[A", "\r"


@pytest.mark.real_cli
def test_attach_goes_on_in_the_session_and_resume_goes_on_after_it(home: Home) -> None:
    scripts = [edit("TASK-HEADLESS", "a.txt", gate="never"), edit("said by hand", "b.txt"), edit("and then C", "c.txt")]
    with seated(home, scripts) as desk:
        desk.dispatch("TASK-HEADLESS", "talk", wait=False)
        assert desk.server.wait_requests(1, 30, key="TASK-HEADLESS")
        pid = desk.row("talk")["pid"]
        with Screen([str(COMMAND), "attach", "talk"], home.env, home.user) as screen:
            screen.until("Yes, I trust this folder")
            desk.wait_for_end(pid)
            row = desk.row("talk")
            assert (row["state"], row["reason"], row["pid"]) == ("paused", "paused", 0)
            choose(screen, DOWN)
            screen.until("Do you want to use this API key?")
            choose(screen, UP)
            # The session's history: the prompt of the headless turn, and that it was cut off.
            screen.until("TASK-HEADLESS")
            screen.until("What should Claude do instead?")
            say(screen, "said by hand")
            wait_for_turn(desk, screen)
            say(screen, "/exit")
            assert screen.end() == 0, screen.shown()[-1000:]
            assert "core-agentresumetalk" in screen.shown()
        # What was done by hand came home, and headless goes on with all that was said.
        assert desk.at_branch("talk", "b.txt") == "hello\n"
        before = desk.row("talk")
        assert before["state"] == "paused"
        row = desk.resume("talk", "and then C")
        assert (row["state"], row["runs"], row["tokens"]) == ("completed", 2, before["tokens"] + 2 * CALL)
        sent = desk.server.requests[-1].body.decode()
        assert "TASK-HEADLESS" in sent
        assert "said by hand" in sent
        assert desk.at_branch("talk", "b.txt") == desk.at_branch("talk", "c.txt") == "hello\n"


def choose(screen: Screen, key: str) -> None:
    screen.quiet()
    screen.type(key)
    screen.until("❯Yes")
    screen.type(ENTER)


def say(screen: Screen, text: str) -> None:
    screen.quiet()
    screen.type(text)
    screen.until(text)
    screen.type(ENTER)


def wait_for_turn(desk: Desk, screen: Screen) -> None:
    """Until the turn has ended; its edit is agreed to when the CLI asks."""
    if screen.until("Done.", "Do you want to create") != "Done.":
        screen.type(ENTER)
        screen.until("Done.")
    assert desk.server.wait_requests(2, key="said by hand")


def test_attach_wants_a_terminal_and_a_session(home: Home) -> None:
    repo = home.repo()
    script = home.user / "script.yaml"
    script.write_text("steps: [{write: {path: a, content: x}}]\n")
    home.run("dispatch", "-a", "scripted", "-n", "one", "--script", str(script), "--wait", "x", cwd=repo)
    assert home.json("attach", "one", code=None)["error"]["slug"] == "cannot_attach"
    assert "needs a terminal" in home.run("attach", "one", code=None).err


def test_open_starts_the_persons_editor_in_the_checkout(home: Home) -> None:
    repo = home.repo()
    script = home.user / "script.yaml"
    script.write_text("steps: [{write: {path: a, content: x}}]\n")
    home.run("dispatch", "-a", "scripted", "-n", "one", "--script", str(script), "--wait", "x", cwd=repo)
    editor = home.user / "my editor"
    editor.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" > "$HOME/opened"\nexit 3\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    home.run("open", "one", "--editor", f"'{editor}' --wait", code=3)
    directory = home.run("open", "one", "--path").out.strip()
    assert (home.user / "opened").read_text().splitlines() == [directory, "--wait", directory]
    assert (Path(directory) / "a").read_text() == "x"
    refused = home.run("open", "one", "--editor", "no-such-editor", code=None)
    assert refused.code != 0
    assert "no-such-editor" in refused.err
