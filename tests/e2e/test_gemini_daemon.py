"""The real gemini CLI through the installed command and a real daemon, in a network without a way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.support.desk import Desk, sleeper
from tests.support.gemini import CALL, KEY, USAGE, at_once, edit, environment, shell, write
from tests.support.home import Home
from tests.support.isolated import seated

from coreagent.modelserver import Script, Step

pytestmark = pytest.mark.real_cli


@contextmanager
def at_desk(home: Home, scripts: list[Script], settings: str = "") -> Iterator[Desk]:
    at_once(home.user)
    with seated(home, "gemini", scripts, environment, settings) as desk:
        yield desk


def told(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["state"], row["reason"], row["stage"], row["tokens"]


def test_edits_is_asked_again_and_lands(home: Home) -> None:
    with at_desk(home, [edit("TASK-ONE", "a.txt"), edit("TASK-TWO", "b.txt")]) as desk:
        first = desk.dispatch("do TASK-ONE", "one")
        assert told(first) == ("completed", None, "harvested", 2 * CALL)
        assert (first["runs"], first["files"], first["denied_tools"], first["bypass"]) == (1, 1, [], False)
        assert (first["last_tool"], first["last_text"]) == ("write_file", "Done.")
        assert desk.at_branch("one", "a.txt") == "hello\n"
        assert {r.headers.get("x-goog-api-key") for r in desk.server.requests if r.step >= 0} == {KEY}

        second = desk.resume("one", "also TASK-TWO")
        assert told(second) == ("completed", None, "harvested", 4 * CALL)
        assert (second["runs"], second["files"]) == (2, 2)
        assert "do TASK-ONE" in desk.server.requests[-1].body.decode()
        home.run("accept", "one", cwd=desk.repo)
        assert (desk.repo / "a.txt").read_text() == (desk.repo / "b.txt").read_text() == "hello\n"


FAILURES: dict[str, tuple[Step, str]] = {
    "e401": (Step(error=401, message="invalid credentials"), "auth"),
    "e500": (Step(error=500), "model_error"),
    "cut": (Step("hello", cut=True), "network"),
}


def test_model_failures_are_named_and_the_work_before_them_is_kept(home: Home) -> None:
    scripts = [
        Script(f"TASK-{name.upper()}", [Step("I will.", [write("a.txt")], usage=USAGE), step])
        for name, (step, _) in FAILURES.items()
    ]
    refused = {"GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:1"}
    with at_desk(home, [*scripts, edit("TASK-ON", "b.txt")]) as desk:
        for name in FAILURES:
            desk.dispatch(f"TASK-{name.upper()}", name, wait=False)
        home.env |= refused
        desk.dispatch("TASK-ON", "refused", wait=False)
        home.env |= environment(desk.server.url)
        for name, (_, reason) in FAILURES.items():
            row = desk.until(name, lambda row: row["state"] == "failed")
            assert told(row) == ("failed", reason, "harvested", CALL)
            assert row["detail"]
            assert desk.at_branch(name, "a.txt") == "hello\n"
        assert told(desk.until("refused", lambda row: row["state"] == "failed")) == ("failed", "network", "", 0)
        # Nothing was said in its session, which is gone: the next turn is a fresh one.
        assert told(desk.resume("refused")) == ("completed", None, "harvested", 2 * CALL)
        assert told(desk.resume("e401", "and TASK-ON")) == ("completed", None, "harvested", 3 * CALL)


def test_limits_with_and_without_a_reset(home: Home) -> None:
    soon = Step(error=429, message="Quota exceeded", retry_s=2, times=1, then=Step("Done.", usage=USAGE))
    whenever = Step(error=429, message="slow down")
    scripts = [
        Script("TASK-SOON", [Step("I will.", [write("a.txt")], usage=USAGE), soon]),
        Script("TASK-LATER", [whenever]),
        edit("go on with B", "b.txt"),
    ]
    with at_desk(home, scripts) as desk:
        desk.dispatch("TASK-SOON", "soon", wait=False)
        row = desk.until("soon", lambda row: row["state"] == "completed")
        assert told(row) == ("completed", None, "harvested", 2 * CALL)
        assert row["runs"] == 2
        assert "TASK-SOON" in desk.server.requests[-1].body.decode()
        assert "Continue where you left off" in desk.server.requests[-1].body.decode()
        desk.dispatch("TASK-LATER", "later", wait=False)
        row = desk.until("later", lambda row: bool(row["waiting_until"]))
        assert told(row) == ("queued", "rate_limit", "", 0)
        # Its pool may be parked with it, until a person says otherwise.
        home.run("resume", "later", "go on with B")
        home.run("queue", "start", "gemini")
        row = desk.until("later", lambda row: row["state"] == "completed")
        assert told(row) == ("completed", None, "harvested", 2 * CALL)


def test_a_hang_is_an_idle_timeout(home: Home) -> None:
    script = Script("TASK-HANG", [Step("I will.", [write("a.txt")], usage=USAGE), Step(hang=True)])
    with at_desk(home, [script, edit("TASK-ON", "b.txt")]) as desk:
        row = desk.dispatch("TASK-HANG", "hang", "--idle-timeout", "6s", code=10)
        # It tells what it used at its end only, and this one had none.
        assert told(row) == ("failed", "idle_timeout", "harvested", 0)
        assert told(desk.resume("hang", "and TASK-ON")) == ("completed", None, "harvested", 2 * CALL)
        assert "TASK-HANG" in desk.server.requests[-1].body.decode()


def test_cancelled_in_mid_tool_and_resumed(home: Home) -> None:
    slow = shell(f"touch ran; {sleeper(315)}")
    script = Script("TASK-CANCEL", [Step("I.", [write("a.txt")], usage=USAGE), Step("Run.", [slow], usage=USAGE)])
    with at_desk(home, [script, edit("go on with B", "b.txt")]) as desk:
        home.run("repo", "add", str(desk.repo), "--org", "local")
        home.run("repo", "trust", "local/repo", "--bypass", "--yes")
        desk.dispatch("TASK-CANCEL", "cancel", "--permissions", "bypass", wait=False)
        desk.wait_for_file(desk.checkout("cancel") / "ran")
        home.run("cancel", "cancel")
        row = desk.row("cancel")
        assert told(row) == ("cancelled", "cancelled", "harvested", 0)
        assert (row["pid"], row["bypass"]) == (0, True)
        assert desk.agents() == {}
        assert told(desk.resume("cancel", "go on with B")) == ("completed", None, "harvested", 2 * CALL)
