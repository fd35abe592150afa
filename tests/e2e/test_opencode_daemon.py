"""The real opencode CLI through the installed command and a real daemon, in a network without a way out.

Every way a turn can end: state, reason and tokens as `status --json` tells them, the work kept, nothing left running.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.support.desk import sleeper
from tests.support.home import Home
from tests.support.isolated import seated
from tests.support.opencode import MODEL, USAGE, leads, shell, write

from coreagent.modelserver import Script, Step

pytestmark = pytest.mark.real_cli

DONE = Step("Done.", usage=USAGE)
CALL = USAGE.total


def writes(name: str) -> Step:
    return Step("I will.", [write(name)], usage=USAGE)


def edit(key: str, name: str) -> Script:
    return Script(key, [writes(name), DONE])


def led(url: str) -> Mapping[str, str]:
    return leads(url)


def told(row: dict[str, Any]) -> tuple[str, str | None, str, int]:
    return row["state"], row["reason"], row["stage"], row["tokens"]


def test_edits_is_asked_again_and_is_stopped_in_mid_tool(home: Home) -> None:
    scripts = [edit("TASK-ONE", "a.txt"), edit("TASK-TWO", "b.txt")]
    for key, seconds in (("CANCEL", 314), ("PAUSE", 316)):
        slow = Step("Run.", [shell(f"touch ran; {sleeper(seconds)}")], usage=USAGE)
        scripts.append(Script(f"TASK-{key}", [writes("s.txt"), slow]))
    with seated(home, "opencode", scripts, led) as desk:
        row = desk.dispatch("do TASK-ONE", "one", "--agent", f"opencode:{MODEL}")
        assert told(row) == ("completed", None, "harvested", 2 * CALL)
        assert row["cost"]["source"] == "reported" and desk.at_branch("one", "a.txt") == "hello\n"
        row = desk.resume("one", "also TASK-TWO")
        assert (row["state"], row["tokens"], row["files"]) == ("completed", 4 * CALL, 2)
        assert b"do TASK-ONE" in desk.server.requests[-1].body

        home.run("repo", "trust", "--bypass", "--yes", cwd=desk.repo)
        for name in ("cancel", "pause"):
            desk.dispatch(f"TASK-{name.upper()}", name, "--permissions", "bypass", wait=False)
        for name, state in (("cancel", "cancelled"), ("pause", "paused")):
            desk.wait_for_file(desk.checkout(name) / "ran")
            home.run(name, name)
            row = desk.until(name, lambda row, state=state: row["state"] == state)  # type: ignore[misc]
            assert told(row) == (state, state, "harvested", CALL) and row["pid"] == 0
            assert desk.at_branch(name, "s.txt") == "hello\n"
        assert desk.agents() == {}


FAILURES: dict[str, tuple[Step, str]] = {
    "e401": (Step(error=401, message="invalid key"), "auth"),
    "e500": (Step(error=500, message="boom"), "model_error"),
    "cut": (Step("hello", cut=True), "network"),
}


def test_model_failures_are_named_and_the_work_before_them_is_kept(home: Home) -> None:
    scripts = [Script(f"TASK-{name.upper()}", [writes("a.txt"), step]) for name, (step, _) in FAILURES.items()]
    with seated(home, "opencode", [*scripts, edit("go on with B", "b.txt")], led, at_once=4) as desk:
        for name in FAILURES:
            desk.dispatch(f"TASK-{name.upper()}", name, wait=False)
        home.env |= leads("http://127.0.0.1:1")
        desk.dispatch("go on with B", "refused", wait=False)
        home.env |= leads(desk.server.url)
        for name, (_, reason) in FAILURES.items():
            row = desk.until(name, lambda row: row["state"] == "failed")
            assert told(row) == ("failed", reason, "harvested", CALL), row
            assert row["detail"]
            assert desk.at_branch(name, "a.txt") == "hello\n"
        assert told(desk.until("refused", lambda row: row["state"] == "failed")) == ("failed", "network", "", 0)
        assert told(desk.resume("cut", "go on with B")) == ("completed", None, "harvested", 3 * CALL)


def test_a_hang_is_an_idle_timeout_and_a_limit_goes_on_in_its_session(home: Home) -> None:
    limit = Step(error=429, message="slow down", headers={"retry-after": "3600"}, times=1, then=DONE)
    scripts = [
        Script("TASK-HANG", [writes("a.txt"), Step(hang=True)]),
        Script("TASK-429", [writes("a.txt"), limit]),
        edit("go on with B", "b.txt"),
    ]
    with seated(home, "opencode", scripts, led) as desk:
        # Until its first word it is silent too, and a busy machine starts it slowly.
        desk.dispatch("TASK-HANG", "hang", "--idle-timeout", "20s", wait=False)
        desk.dispatch("TASK-429", "limit", wait=False)
        row = desk.until("limit", lambda row: bool(row["waiting_until"]))
        assert told(row) == ("queued", "rate_limit", "harvested", CALL)
        session = desk.show("limit")["session_id"]
        # Its pool is parked with it, until a person says otherwise.
        home.run("queue", "start", "--pool", "opencode")
        row = desk.until("limit", lambda row: row["state"] == "completed")
        assert (row["runs"], row["stage"]) == (2, "harvested")
        assert desk.show("limit")["session_id"] == session
        assert b"TASK-429" in desk.server.requests[-1].body

        row = desk.until("hang", lambda row: row["state"] == "failed")
        assert told(row) == ("failed", "idle_timeout", "harvested", CALL)
        assert desk.at_branch("hang", "a.txt") == "hello\n"
        assert told(desk.resume("hang", "go on with B")) == ("completed", None, "harvested", 3 * CALL)
