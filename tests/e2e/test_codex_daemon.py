"""The real codex CLI through the installed command and a real daemon, in a network without a way out.

Every way a turn can end: state, reason and tokens as `status --json` tells them, the work kept, nothing left running.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.codex import KEY, MODEL, patch, seated, shell
from tests.support.desk import CALL, USAGE, sleeper
from tests.support.home import COMMAND, Home
from tests.support.screen import Screen

from coreagent.modelserver import Script, Step

pytestmark = pytest.mark.real_cli

DONE = Step("Done.", usage=USAGE)
NO_ROOM = "Your input exceeds the context window of this model."


def writes(name: str, **more: Any) -> Step:
    return Step("I will.", [shell(f"printf 'hello\\n' > {name}")], usage=USAGE, **more)


def edit(key: str, name: str) -> Script:
    return Script(key, [writes(name), DONE])


def told(row: dict[str, Any]) -> tuple[str, str | None, str, int]:
    return row["state"], row["reason"], row["stage"], row["tokens"]


def test_edits_is_asked_again_and_lands(home: Home) -> None:
    first_task = Script("TASK-ONE", [writes("a.txt"), Step("And.", [patch("p.txt")], usage=USAGE), DONE])
    with seated(home, [first_task, edit("TASK-TWO", "b.txt")]) as desk:
        first = desk.dispatch("do TASK-ONE", "one", "--agent", f"codex:{MODEL}")
        assert told(first) == ("completed", None, "harvested", 3 * CALL)
        assert (first["runs"], first["files"], first["denied_tools"], first["bypass"]) == (1, 2, [], False)
        assert (first["last_tool"], first["last_text"]) == ("apply_patch", "Done.")
        assert first["cost"] == {"usd": None, "source": "unknown"}
        assert desk.at_branch("one", "a.txt") == desk.at_branch("one", "p.txt") == "hello\n"
        assert {r.headers.get("authorization") for r in desk.server.requests if r.step >= 0} == {f"Bearer {KEY}"}
        assert {r.json["model"] for r in desk.server.requests if r.step >= 0} == {MODEL}

        second = desk.resume("one", "also TASK-TWO")
        # The CLI told the sum of the whole thread; what is shown is what was used.
        assert told(second) == ("completed", None, "harvested", 5 * CALL)
        assert (second["runs"], second["files"]) == (2, 3)
        assert "do TASK-ONE" in desk.server.requests[-1].body.decode()
        shown = desk.show("one")
        assert [attempt["version"] for attempt in shown["attempts"]] == ["0.169.0", "0.169.0"]
        home.run("accept", "one", cwd=desk.repo)
        assert (desk.repo / "a.txt").read_text() == (desk.repo / "b.txt").read_text() == "hello\n"
        files = [path for path in home.core.rglob("*") if path.is_file() and not path.is_symlink()]
        assert not any(KEY.encode() in path.read_bytes() for path in files)


FAILURES: dict[str, tuple[Step, str]] = {
    "e401": (Step(error=401, message="invalid key"), "auth"),
    "e500": (Step(error=500), "model_error"),
    "poor": (Step(error=402, message="You exceeded your current quota."), "budget"),
    "cut": (Step("hello", cut=True), "network"),
}


def test_model_failures_are_named_and_the_work_before_them_is_kept(home: Home) -> None:
    scripts = [Script(f"TASK-{name.upper()}", [writes("a.txt"), step]) for name, (step, _) in FAILURES.items()]
    with seated(home, [*scripts, edit("go on with B", "b.txt")]) as desk:
        for name in FAILURES:
            desk.dispatch(f"TASK-{name.upper()}", name, wait=False)
        for name, (_, reason) in FAILURES.items():
            row = desk.until(name, lambda row: row["state"] == "failed")
            # This CLI tells no tokens of a turn that failed; they come with the next one.
            assert told(row) == ("failed", reason, "harvested", 0), row
            assert row["detail"]
            assert desk.at_branch(name, "a.txt") == "hello\n"
        assert told(desk.resume("cut", "go on with B")) == ("completed", None, "harvested", 3 * CALL)


def test_a_limit_waits_and_goes_on_in_its_thread(home: Home) -> None:
    limit = Step(error=429, message="slow down", times=3, then=DONE)
    with seated(home, [Script("TASK-429", [writes("a.txt"), limit]), edit("go on with B", "b.txt")]) as desk:
        desk.dispatch("TASK-429", "limit", wait=False)
        row = desk.until("limit", lambda row: bool(row["waiting_until"]))
        assert told(row)[:2] == ("queued", "rate_limit")
        row = desk.resume("limit", "go on with B")
        assert told(row) == ("completed", None, "harvested", 3 * CALL)
        assert row["runs"] == 2
        assert "TASK-429" in desk.server.requests[-1].body.decode()


def test_a_hang_is_an_idle_timeout_and_no_network_failure(home: Home) -> None:
    with seated(home, [Script("TASK-HANG", [writes("a.txt"), Step(hang=True)])]) as desk:
        row = desk.dispatch("TASK-HANG", "hang", "--idle-timeout", "3s", code=10)
        assert told(row) == ("failed", "idle_timeout", "harvested", 0)
        assert desk.at_branch("hang", "a.txt") == "hello\n"


def test_cancelled_and_paused_in_mid_tool(home: Home) -> None:
    scripts = []
    for key, seconds in (("CANCEL", 314), ("PAUSE", 315)):
        slow = shell(f"touch ran; {sleeper(seconds)}", yield_time_ms=600_000)
        scripts.append(Script(f"TASK-{key}", [writes("a.txt"), Step("Run.", [slow], usage=USAGE)]))
    with seated(home, [*scripts, edit("go on with B", "b.txt")]) as desk:
        for name in ("cancel", "pause"):
            desk.dispatch(f"TASK-{name.upper()}", name, wait=False)
        for name, state in (("cancel", "cancelled"), ("pause", "paused")):
            desk.wait_for_file(desk.checkout(name) / "ran")
            home.run(name, name)
            row = desk.row(name)
            assert told(row) == (state, state, "harvested", 0)
            assert row["pid"] == 0
            assert desk.at_branch(name, "a.txt") == "hello\n"
        assert desk.agents() == {}
        for name in ("pause", "cancel"):
            # The tokens of the turn that was stopped are told with this one.
            assert told(desk.resume(name, "go on with B")) == ("completed", None, "harvested", 4 * CALL)


def test_a_full_context_starts_fresh_in_the_same_workspace(home: Home) -> None:
    full = Script("TASK-LONG", [writes("a.txt"), Step(error=400, message=NO_ROOM)])
    with seated(home, [full, edit("shorter please", "b.txt")]) as desk:
        assert told(desk.dispatch("TASK-LONG", "long", code=10)) == ("failed", "context_overflow", "harvested", 0)
        before = desk.show("long")["session_id"]
        row = desk.resume("long", "shorter please")
        assert told(row) == ("completed", None, "harvested", 2 * CALL)
        assert desk.show("long")["session_id"] != before
        assert "An earlier session already worked here" in desk.server.requests[-1].body.decode()


def test_what_it_may_not_do_is_told_and_bypass_is_the_persons_choice(home: Home) -> None:
    ask = shell("touch ../../out", sandbox_permissions="require_escalated", justification="x")
    denied = Script("TASK-DENIED", [writes("a.txt"), Step("x", [ask], usage=USAGE), DONE])
    free = Script("TASK-FREE", [Step("x", [shell("touch made.txt ../free")], usage=USAGE), DONE])
    with seated(home, [denied, free]) as desk:
        row = desk.dispatch("TASK-DENIED", "denied")
        assert told(row) == ("completed", None, "harvested", 3 * CALL)
        assert row["denied_tools"] == ["exec_command"]
        assert not (desk.checkout("denied").parents[1] / "out").exists()
        bypass = ["dispatch", "TASK-FREE", "--name", "free", "--permissions", "bypass"]
        assert "core-agent repo trust" in home.run(*bypass, cwd=desk.repo, code=None).err
        home.run("repo", "trust", "local/repo", "--bypass", "--yes")
        row = desk.dispatch("TASK-FREE", "free", "--permissions", "bypass")
        assert (told(row), row["bypass"]) == (("completed", None, "harvested", 2 * CALL), True)
        assert (desk.checkout("free").parent / "free").exists()


def test_a_turn_outlives_its_daemon(home: Home) -> None:
    with seated(home, [Script("TASK-ALIVE", [writes("a.txt", gate="go"), DONE])]) as desk:
        desk.dispatch("TASK-ALIVE", "alive", wait=False)
        assert desk.server.wait_requests(1, 30, key="TASK-ALIVE")
        pid = desk.until("alive", lambda row: row["state"] == "running")["pid"]
        home.kill_daemon()
        assert (desk.row("alive")["state"], desk.row("alive")["pid"]) == ("running", pid)
        desk.server.release("go")
        row = desk.until("alive", lambda row: row["state"] not in ("running", "preparing"))
        assert told(row) == ("completed", None, "harvested", 2 * CALL)


def test_agents_tells_what_is_used_and_what_else_there_is(home: Home) -> None:
    with seated(home, []) as desk:
        other = home.dir / "other"
        other.mkdir()
        (other / "codex").write_text("#!/bin/sh\necho codex-cli 0.42.0\n")
        (other / "codex").chmod(0o755)
        home.env["PATH"] += f":{other}"
        row = next(row for row in home.json("agents") if row["name"] == "codex")
        assert (row["found"], row["version"], row["login"]) == (True, "0.169.0", "yes")
        assert row["others"] == [str(other / "codex")]
        assert str(other / "codex") in home.run("agents").out
        home.env["PATH"] = f"{other}:{home.env['PATH']}"
        refused = home.run("dispatch", "x", cwd=desk.repo, code=None)
        assert refused.code != 0
        assert "0.42.0" in refused.err
        assert json.loads(home.run("status", "--all", "--json").out)["workspaces"] == []


def test_attach_goes_on_in_the_thread_and_resume_goes_on_after_it(home: Home) -> None:
    by_hand = Script("said by hand", [Step("By hand.", [shell("printf 'hello\\n' > b.txt")], usage=USAGE), DONE])
    with seated(home, [edit("TASK-HEADLESS", "a.txt"), by_hand, Script("and then C", [DONE])]) as desk:
        assert told(desk.dispatch("TASK-HEADLESS", "talk"))[0] == "completed"
        with Screen([str(COMMAND), "attach", "talk"], home.env, home.user) as screen:
            # Whether the folder is trusted is the person's decision, asked each time.
            screen.until("Trust this folder?")
            say(screen, "")
            screen.until("a.txt")
            say(screen, "said by hand")
            assert desk.server.wait_requests(2, key="said by hand")
            screen.until("Worked for")
            say(screen, "/quit")
            assert screen.end() == 0, screen.shown()[-1000:]
        assert desk.at_branch("talk", "b.txt") == "hello\n"
        # What was used by hand is counted with the next turn, which knows what was said.
        row = desk.resume("talk", "and then C")
        assert told(row)[0::3] == ("completed", 5 * CALL)
        sent = desk.server.requests[-1].body.decode()
        assert "TASK-HEADLESS" in sent
        assert "said by hand" in sent


def say(screen: Screen, text: str) -> None:
    screen.quiet()
    if text:
        screen.type(text)
        screen.until(text)
        screen.quiet()
    screen.type("\r")
