"""The real claude CLI through the installed command and a real daemon, against the scripted model server.

Every way a turn can end: state, reason, tokens and cost as `status --json` tells them, the work kept, and nothing left
running.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import pytest
from tests.support.claude import KEY
from tests.support.desk import CALL, USAGE, edit, seated, shell, sleeper, write
from tests.support.home import Home

from coreagent.modelserver import Script, Step, Tool

pytestmark = pytest.mark.real_cli

LIMIT = {
    "anthropic-ratelimit-unified-status": "rejected",
    "anthropic-ratelimit-unified-representative-claim": "five_hour",
    "anthropic-ratelimit-unified-reset": "{in 2}",
}
SUBSCRIPTION = {"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-scripted"}
RUNS_PYTHON = "runners: {claude: {args: ['--allowedTools', 'Bash(*)']}}\n"


def test_edits_is_asked_again_and_lands(home: Home) -> None:
    with seated(home, [edit("TASK-ONE", "a.txt"), edit("TASK-TWO", "b.txt")]) as desk:
        first = desk.dispatch("do TASK-ONE", "one")
        assert told(first) == ("completed", None, "harvested", 2 * CALL)
        assert (first["runs"], first["files"], first["insertions"], first["denied_tools"]) == (1, 1, 1, [])
        assert (first["last_tool"], first["last_text"], first["bypass"]) == ("Write", "Done.", False)
        assert desk.at_branch("one", "a.txt") == "hello\n"
        (result,) = desk.said("one")
        assert first["cost"] == {"usd": pytest.approx(result["total_cost_usd"]), "source": "reported"}
        assert first["cost"]["usd"] > 0
        # The key travelled with the task, not with the daemon, and is written down nowhere.
        assert {r.headers.get("x-api-key") for r in desk.server.requests if r.step >= 0} == {KEY}
        assert list((home.core / "pending").glob("*")) == []

        second = desk.resume("one", "also TASK-TWO")
        assert told(second) == ("completed", None, "harvested", 4 * CALL)
        assert (second["runs"], second["files"]) == (2, 2)
        assert second["cost"]["usd"] == pytest.approx(2 * first["cost"]["usd"])
        # One session: the CLI's own total says so, and the model is shown what was said before.
        assert desk.said("one")[-1]["total_cost_usd"] == pytest.approx(second["cost"]["usd"])
        assert "do TASK-ONE" in desk.server.requests[-1].body.decode()
        shown = desk.show("one")
        assert shown["usage"] == USAGE.plus(USAGE).plus(USAGE).plus(USAGE).model_dump()
        assert home.json("history")[0]["tokens"] == 4 * CALL

        home.run("accept", "one", cwd=desk.repo)
        assert (desk.repo / "a.txt").read_text() == (desk.repo / "b.txt").read_text() == "hello\n"
        assert key_is_nowhere(home)


def test_asks_and_is_answered(home: Home) -> None:
    ask = Script(
        "TASK-ASK", [Step("?", [write("BLOCKED.md", "Which port?\n")], usage=USAGE), Step("Asked.", usage=USAGE)]
    )
    with seated(home, [ask, edit("the port is 8080", "port.txt")]) as desk:
        row = desk.dispatch("TASK-ASK", "ask", code=11)
        assert told(row) == ("blocked", "blocked", "", 2 * CALL)
        assert (row["question"].strip(), row["needs_me"]) == ("Which port?", True)
        row = desk.resume("ask", "--answer", "the port is 8080")
        assert told(row) == ("completed", None, "harvested", 4 * CALL)
        assert row["question"] == ""
        assert home.git("diff", "--name-only", "main", "agent/ask", cwd=desk.repo).split() == ["port.txt"]
        assert "TASK-ASK" in desk.server.requests[-1].body.decode()


FAILURES: dict[str, tuple[Step, str]] = {
    "e400": (Step(error=400, message="messages: bad 402913 shape"), "bad_request"),
    "e401": (Step(error=401, message="invalid x-api-key"), "auth"),
    "e500": (Step(error=500), "model_error"),
    "e529": (Step(error=529), "model_error"),
    "poor": (Step(error=400, message="Your credit balance is too low to access the Anthropic API."), "budget"),
    "cut": (Step("hello", cut=True), "network"),
}


def test_model_failures_are_named_and_the_work_before_them_is_kept(home: Home) -> None:
    scripts = [
        Script(f"TASK-{name.upper()}", [Step("I will.", [write("a.txt")], usage=USAGE), step])
        for name, (step, _) in FAILURES.items()
    ]
    with seated(home, scripts) as desk:
        for name in FAILURES:
            desk.dispatch(f"TASK-{name.upper()}", name, wait=False)
        for name, (_, reason) in FAILURES.items():
            row = desk.until(name, lambda row: row["state"] == "failed")
            # Of the answer that was cut the CLI counts what had come.
            (result,) = desk.said(name)
            assert told(row) == ("failed", reason, "harvested", counted(result) if name == "cut" else CALL)
            assert row["cost"]["usd"] == pytest.approx(result["total_cost_usd"])
            assert (row["runs"], row["needs_me"], row["cost"]["source"]) == (1, True, "reported")
            assert row["detail"]
            assert desk.at_branch(name, "a.txt") == "hello\n"
        assert home.json("status")["counts"]["failed"] == len(FAILURES)


def test_a_failed_login_goes_on_with_another_key(home: Home) -> None:
    step = Step(error=401, message="invalid x-api-key", times=1, then=Step("I.", [write("a.txt")], usage=USAGE))
    with seated(home, [Script("TASK-LOGIN", [step, Step("Done.", usage=USAGE)])]) as desk:
        row = desk.dispatch("TASK-LOGIN", "login", code=10)
        assert told(row) == ("failed", "auth", "", 0)
        home.env["ANTHROPIC_API_KEY"] = "sk-ant-another"
        assert told(desk.resume("login")) == ("completed", None, "harvested", 2 * CALL)
        assert desk.server.requests[-1].headers["x-api-key"] == "sk-ant-another"


def test_a_limit_with_a_reset_waits_for_it_and_goes_on_in_its_session(home: Home) -> None:
    limit = Step(error=429, message="limit", headers=LIMIT, times=1, then=Step("Done.", usage=USAGE))
    script = Script("TASK-LIMIT", [Step("I will.", [write("a.txt")], usage=USAGE), limit])
    with seated(home, [script]) as desk:
        home.env |= SUBSCRIPTION
        desk.dispatch("TASK-LIMIT", "limit", wait=False)
        row = desk.until("limit", lambda row: bool(row["waiting_until"]) or row["state"] == "completed")
        if row["state"] == "queued":  # seen while it waits, unless this machine was too slow to look
            assert (row["reason"], row["waiting_for"], row["runs"]) == ("rate_limit", "rate_limit", 1)
        row = desk.until("limit", lambda row: row["state"] == "completed")
        assert told(row) == ("completed", None, "harvested", 2 * CALL)
        assert row["runs"] == 2
        states = [m["data"]["State"] for m in messages(home, "limit", "DispatchChanged")]
        assert [state for state, _ in groupby(states)] == [
            "preparing", "running", "queued", "preparing", "running", "completed"
        ]  # fmt: skip
        (detected,) = messages(home, "limit", "RateLimitDetected")
        assert 0 < detected["data"]["Duration"] < 30
        assert len({record["session_id"] for record in desk.said("limit")}) == 1


def test_a_limit_without_a_reset_waits_a_minute_unless_told_to_go_on(home: Home) -> None:
    limit = Step(error=429, message="slow down", times=1, then=Step("I.", [write("a.txt")], usage=USAGE))
    with seated(
        home, [Script("TASK-429", [limit, Step("Done.", usage=USAGE)]), edit("and b.txt too", "b.txt")]
    ) as desk:
        desk.dispatch("TASK-429", "limit", wait=False)
        row = desk.until("limit", lambda row: bool(row["waiting_until"]))
        assert told(row) == ("queued", "rate_limit", "", 0)
        left = (datetime.fromisoformat(row["waiting_until"]) - datetime.now(UTC)).total_seconds()
        assert 30 < left <= 60
        # Over a restart too; and its environment waits with it.
        home.stop()
        assert told(desk.row("limit")) == ("queued", "rate_limit", "", 0)
        row = desk.resume("limit", "and b.txt too")
        assert told(row) == ("completed", None, "harvested", 2 * CALL)
        assert (desk.at_branch("limit", "b.txt"), row["waiting_until"]) == ("hello\n", None)


def test_a_hang_is_an_idle_timeout_and_no_network_failure(home: Home) -> None:
    script = Script("TASK-HANG", [Step("I will.", [write("a.txt")], usage=USAGE), Step(hang=True)])
    with seated(home, [script]) as desk:
        row = desk.dispatch("TASK-HANG", "hang", "--idle-timeout", "4s", code=10)
        # Interrupted while the model is silent, this CLI often leaves without its result: what is known is told.
        known = CALL if row["cost"]["source"] == "reported" else CALL - USAGE.output
        assert told(row) == ("failed", "idle_timeout", "harvested", known)
        assert desk.at_branch("hang", "a.txt") == "hello\n"


def test_cancelled_and_paused_in_mid_tool(home: Home) -> None:
    scripts = []
    for key, seconds in (("CANCEL", 311), ("PAUSE", 312)):
        slow = shell(f"touch ran; {sleeper(seconds)}")
        steps = [Step("I.", [write("a.txt")], usage=USAGE), Step("Run.", [slow], usage=USAGE)]
        scripts.append(Script(f"TASK-{key}", steps))
    with seated(home, [*scripts, edit("go on with B", "b.txt")], RUNS_PYTHON) as desk:
        for name in ("cancel", "pause"):
            desk.dispatch(f"TASK-{name.upper()}", name, wait=False)
        for name, state in (("cancel", "cancelled"), ("pause", "paused")):
            desk.wait_for_file(desk.checkout(name) / "ran")
            home.run(name, name)
            row = desk.row(name)
            assert told(row) == (state, state, "harvested", 2 * CALL)
            assert (row["pid"], row["cost"]["source"]) == (0, "reported")
            assert desk.at_branch(name, "a.txt") == "hello\n"
        assert desk.agents() == {}
        for name in ("pause", "cancel"):
            before = desk.row(name)["cost"]["usd"]
            row = desk.resume(name, "go on with B")
            assert told(row) == ("completed", None, "harvested", 4 * CALL)
            assert row["cost"]["usd"] == pytest.approx(2 * before)


def test_a_full_context_starts_fresh_in_the_same_workspace(home: Home) -> None:
    long = Step(error=400, message="prompt is too long: 402913 tokens > 200000 maximum")
    full = Script("TASK-LONG", [Step("I will.", [write("a.txt")], usage=USAGE), long])
    # Told that the context is full, the CLI asks for a summary first; here that does not help.
    summary = Script("CRITICAL: Respond with TEXT ONLY", [long])
    with seated(home, [full, summary, edit("shorter please", "b.txt")]) as desk:
        assert told(desk.dispatch("TASK-LONG", "long", code=10)) == ("failed", "context_overflow", "harvested", CALL)
        before = desk.show("long")["session_id"]
        row = desk.resume("long", "shorter please")
        assert told(row) == ("completed", None, "harvested", 3 * CALL)
        assert desk.show("long")["session_id"] != before
        sent = desk.server.requests[-1].json["messages"]
        assert "An earlier session already worked here" in json.dumps(sent[0])
        assert "402913" not in json.dumps(sent)
        assert desk.at_branch("long", "a.txt") == desk.at_branch("long", "b.txt") == "hello\n"
        before_cost, after_cost = (record["total_cost_usd"] for record in desk.said("long"))
        assert row["cost"]["usd"] == pytest.approx(before_cost + after_cost)


@pytest.mark.parametrize("away", [False, True], ids=["adopted", "ended-while-away"])
def test_a_turn_outlives_its_daemon(home: Home, away: bool) -> None:
    with seated(home, [edit("TASK-ALIVE", "a.txt", gate="go")]) as desk:
        desk.dispatch("TASK-ALIVE", "alive", wait=False)
        assert desk.server.wait_requests(1, 30, key="TASK-ALIVE")
        pid = desk.until("alive", lambda row: row["state"] == "running")["pid"]
        home.kill_daemon()
        if away:
            desk.server.release("go")
            desk.wait_for_end(pid)
        else:
            assert (desk.row("alive")["state"], desk.row("alive")["pid"]) == ("running", pid)
            desk.server.release("go")
        row = desk.until("alive", lambda row: row["state"] not in ("running", "preparing"))
        assert told(row) == ("completed", None, "harvested", 2 * CALL)
        assert row["runs"] == 1
        (result,) = desk.said("alive")
        assert row["cost"]["usd"] == pytest.approx(result["total_cost_usd"])


def test_what_it_may_do_is_the_persons_choice(home: Home) -> None:
    tools = [write("a.txt"), shell("python3 -V"), Tool("WebFetch", {"url": "http://127.0.0.1:1", "prompt": "x"})]
    free = Script("TASK-FREE", [Step("Run.", [shell("touch made.txt")], usage=USAGE), Step("Done.", usage=USAGE)])
    script = Script("TASK-DENIED", [Step("x", tools, usage=USAGE), Step("Done.", usage=USAGE)])
    with seated(home, [script, free]) as desk:
        row = desk.dispatch("TASK-DENIED", "denied")
        assert told(row) == ("completed", None, "harvested", 2 * CALL)
        assert row["denied_tools"] == ["Bash", "WebFetch"]

        bypass = ["dispatch", "TASK-FREE", "--name", "free", "--permissions", "bypass"]
        refused = home.run(*bypass, cwd=desk.repo, code=None)
        assert refused.code != 0
        assert "core-agent repo trust" in refused.err
        assert home.json("status", "--all")["counts"] == {**dict.fromkeys(STATES, 0), "completed": 1}
        home.run("repo", "trust", "local/repo", "--bypass", "--yes")
        row = desk.dispatch("TASK-FREE", "free", "--permissions", "bypass")
        assert told(row) == ("completed", None, "harvested", 2 * CALL)
        assert (row["bypass"], row["denied_tools"]) == (True, [])
        assert desk.row("denied")["bypass"] is False


STATES = ("queued", "preparing", "running", "paused", "blocked", "completed", "failed", "cancelled")


def told(row: dict[str, Any]) -> tuple[str, str | None, str, int]:
    return row["state"], row["reason"], row["stage"], row["tokens"]


def counted(result: dict[str, Any]) -> int:
    names = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
    return sum(model[name] for model in result["modelUsage"].values() for name in names)


def messages(home: Home, name: str, kind: str) -> list[dict[str, Any]]:
    lines = home.run("watch", name, "--since", "1", "--timeout", "10ms", "--json").out.splitlines()
    found = [json.loads(line) for line in lines]
    return [message for message in found if message["name"] == kind]


def key_is_nowhere(home: Home) -> bool:
    """No file of the home holds the key."""
    files = [path for path in home.core.rglob("*") if path.is_file() and not path.is_symlink()]
    return not any(KEY.encode() in path.read_bytes() for path in files)


def test_the_repositorys_own_hooks_run_only_as_they_were_trusted(home: Home) -> None:
    scripts = [edit("TASK-ONE", "a.txt"), edit("TASK-TWO", "b.txt"), edit("TASK-THREE", "c.txt")]
    with seated(home, scripts) as desk:
        settings = desk.repo / ".claude" / "settings.json"
        settings.parent.mkdir()

        def hook(mark: str) -> None:
            command = {"type": "command", "command": f"touch {home.user}/{mark}"}
            settings.write_text(json.dumps({"hooks": {"PreToolUse": [{"matcher": "*", "hooks": [command]}]}}))
            home.git("add", "-A", cwd=desk.repo)
            home.git("commit", "-q", "-m", mark, cwd=desk.repo)

        hook("first")
        assert desk.dispatch("TASK-ONE", "one")["state"] == "completed"
        assert not (home.user / "first").exists()
        shown = home.json("repo", "trust", "local/repo", "--yes")
        assert "touch" in shown["settings"][".claude/settings.json"]
        assert desk.dispatch("TASK-TWO", "two")["state"] == "completed"
        assert (home.user / "first").exists()
        # What came later was not trusted.
        hook("second")
        assert desk.dispatch("TASK-THREE", "three")["state"] == "completed"
        assert not (home.user / "second").exists()
