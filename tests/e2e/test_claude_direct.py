"""The real claude CLI through the claude runner, against the scripted model server. No daemon, no network."""

from __future__ import annotations

import json
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.claude import KEY, Bench, bench, find_claude, pinned_version, require_claude

from coreagent.models.agent import AgentEvent, Cost, EventKind, Reason, Usage
from coreagent.modelserver import ModelServer, Script, Step, Tool
from coreagent.runners.claude import Claude

pytestmark = pytest.mark.real_cli

USAGE = Usage(input=1000, output=50, cache_read=30, cache_write=20)
RESET = {
    "anthropic-ratelimit-unified-status": "rejected",
    "anthropic-ratelimit-unified-representative-claim": "five_hour",
}
SLOW = Tool("Bash", {"command": f"{sys.executable} -c 'import time; time.sleep(313)'", "description": "slow"})


def write(name: str, content: str = "hello\n") -> Tool:
    return Tool("Write", {"file_path": "{cwd}/" + name, "content": content})


def shell(command: str) -> Tool:
    return Tool("Bash", {"command": command, "description": "x"})


def scripts() -> list[Script]:
    return [
        Script("EDIT", [Step("I will.", [write("a.txt")], usage=USAGE), Step("Done.", usage=USAGE)]),
        Script("MORE", [Step("Again.", [write("b.txt")], usage=USAGE), Step("More done.", usage=USAGE)]),
        Script("SLOW", [Step("Slow.", [SLOW], usage=USAGE), Step("Done.")]),
        Script("ENV", [Step("Env.", [shell("env | sort > env.txt")]), Step("Done.")]),
        Script("RUN", [Step("Run.", [shell("touch made.txt")]), Step("Done.")]),
        Script("FORBIDDEN", [Step("x", [write(".git/hooks/pre-commit"), shell("python3 -V")]), Step("Done.")]),
        Script("SPECS", [Step("x", [Tool("Read", {"file_path": "{cwd}/../specs/a.md"})]), Step("Done.")]),
        Script("SUB", [Step("x", [Tool("Agent", {"prompt": "CHILD", "description": "x"})]), Step("Done.")]),
        Script("CHILD", [Step("Child.")]),
        Script("E400", [Step(error=400, message="messages: bad 402913 shape")]),
        Script("E401", [Step(error=401, message="invalid x-api-key")]),
        Script("E403", [Step(error=403)]),
        Script("E429", [Step(error=429, message="slow down")]),
        Script("R429", [Step(error=429, message="limit", headers={**RESET, **_resets()})]),
        Script("E500", [Step(error=500)]),
        Script("E529", [Step(error=529)]),
        Script("RETRY", [Step(error=500, times=1, then=Step("Fine.", usage=USAGE))]),
        Script("LONG", [Step(error=400, message="prompt is too long: 402913 tokens > 200000 maximum")]),
        Script("POOR", [Step(error=400, message="Your credit balance is too low to access the Anthropic API.")]),
        Script("CUT", [Step("hello", cut=True)]),
        Script("HANG", [Step(hang=True)]),
        Script("REFUSE", [Step("no", stop_reason="refusal")]),
        Script("LOOP", [Step("x", [shell("true")])] * 4),
    ]


def _resets() -> dict[str, str]:
    return {"anthropic-ratelimit-unified-reset": str(int(time.time()) + 7200)}


@pytest.fixture(scope="module")
def claude() -> str:
    return require_claude()


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer(scripts()) as running:
        yield running


@pytest.fixture
def desk(tmp_path: Path, server: ModelServer, claude: str) -> Bench:
    return bench(tmp_path, server, claude)


def test_the_pinned_version_is_the_one_found(desk: Bench) -> None:
    found = Claude().find(desk.launch.env, desk.launch.settings).require()
    assert found.version == pinned_version()
    assert Claude().login(desk.launch.env, desk.launch.settings).how == "ANTHROPIC_API_KEY"


def test_edit_then_resume_with_usage_and_cost_of_each_turn(desk: Bench) -> None:
    first = desk.run("EDIT please")
    assert (first.outcome.terminal, first.outcome.reason, first.exit_code) == ("success", None, 0)
    assert (desk.repo / "a.txt").read_text() == "hello\n"
    assert first.outcome.session_id == desk.launch.session_id
    assert first.outcome.usage == Usage(input=2000, output=100, cache_read=60, cache_write=40)
    assert first.outcome.cost.source == "reported"
    assert first.outcome.turns == 2
    assert first.outcome.unparsed == 0
    assert (first.outcome.last_tool, first.outcome.last_text) == ("Write", "Done.")
    kinds = first.kinds()
    assert kinds[0] is EventKind.STARTED
    assert kinds[-1] is EventKind.RESULT
    assert {EventKind.TEXT, EventKind.TOOL_USE, EventKind.TOOL_RESULT, EventKind.USAGE} <= set(kinds)
    # The credential went by the environment, the session lives in the private home, the user's own is untouched.
    assert list((desk.root / "home").iterdir()) == []
    assert any((desk.root / "config").rglob(f"{desk.launch.session_id}.jsonl"))

    second = desk.run("MORE please", resume=first.outcome.session_id, previous=first.outcome.cost)
    assert second.outcome.terminal == "success"
    assert second.outcome.session_id == first.outcome.session_id
    assert second.outcome.usage == first.outcome.usage
    assert second.outcome.cost.usd == pytest.approx(first.outcome.cost.usd)
    # What was measured, and why the parser takes no totals: this field is of the whole session.
    total = second.raw[-1]["total_cost_usd"]
    assert total == pytest.approx(2 * (first.outcome.cost.usd or 0))
    assert "EDIT please" in desk.server.requests[-1].body.decode()


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("E400", Reason.BAD_REQUEST),
        ("E401", Reason.AUTH),
        ("E403", Reason.AUTH),
        ("E429", Reason.RATE_LIMIT),
        ("E500", Reason.MODEL_ERROR),
        ("E529", Reason.MODEL_ERROR),
        ("LONG", Reason.CONTEXT_OVERFLOW),
        ("POOR", Reason.BUDGET),
        ("CUT", Reason.NETWORK),
        ("REFUSE", Reason.MODEL_REFUSED),
    ],
)
def test_model_failures_are_named(desk: Bench, prompt: str, reason: Reason) -> None:
    ran = desk.run(f"{prompt} now")
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", reason), ran.outcome
    assert ran.outcome.message
    assert ran.outcome.resets_at is None
    assert ran.outcome.session_id == desk.launch.session_id
    # Why the parser does not believe `subtype`.
    assert ran.raw[-1]["subtype"] == "success"


def test_a_subscription_limit_names_its_reset(desk: Bench) -> None:
    before = time.time()
    ran = desk.run("R429 now", env={"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-scripted"})
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.RATE_LIMIT)
    assert ran.outcome.resets_at is not None
    assert before + 3600 < ran.outcome.resets_at < before + 7300
    assert EventKind.RATE_LIMIT in ran.kinds()


def test_nobody_listens(desk: Bench) -> None:
    ran = desk.run("EDIT", env={"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"})
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.NETWORK)


def test_a_retry_is_an_event_and_no_ending(desk: Bench) -> None:
    ran = desk.run("RETRY now", env={"CLAUDE_CODE_MAX_RETRIES": "1"})
    assert ran.outcome.terminal == "success"
    retries = [event for event in ran.events if event.kind is EventKind.RETRY]
    assert [event.reason for event in retries] == [Reason.MODEL_ERROR]


def test_no_login(desk: Bench) -> None:
    ran = desk.run("EDIT", env={"ANTHROPIC_API_KEY": ""})
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.AUTH)


def test_interrupted_in_mid_tool_exits_zero_and_is_no_success(desk: Bench) -> None:
    with desk.start("SLOW", permissions="bypass") as turn:
        turn.read_until(lambda event: event.kind is EventKind.TOOL_USE)
        child = _wait_for_child(turn.process.pid)
        turn.signal(signal.SIGINT)
        ran = turn.finish()
    assert ran.exit_code == 0
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.CANCELLED)
    assert ran.outcome.usage == USAGE
    assert not _alive(child)

    again = desk.run("MORE", resume=ran.outcome.session_id, previous=ran.outcome.cost)
    assert again.outcome.terminal == "success"
    assert again.outcome.usage.input == 2000


def test_killed_sums_what_it_had_used_and_its_next_turn_costs_its_own(desk: Bench) -> None:
    with desk.start("SLOW", permissions="bypass") as turn:
        turn.read_until(lambda event: event.kind is EventKind.TOOL_USE)
        child = _wait_for_child(turn.process.pid)
        turn.signal(signal.SIGTERM)
        ran = turn.finish()
    assert not _alive(child)
    assert (ran.outcome.terminal, ran.outcome.reason) == ("none", Reason.DIED)
    # The stream gives output tokens only with the result.
    assert ran.outcome.usage == USAGE.model_copy(update={"output": 0})
    assert ran.outcome.cost == Cost()
    again = desk.run("MORE", resume=turn.session_id, previous=ran.outcome.cost)
    assert again.outcome.usage == Usage(input=2000, output=100, cache_read=60, cache_write=40)
    assert again.outcome.cost.usd == pytest.approx(desk.run("EDIT", session_id=str(uuid.uuid4())).outcome.cost.usd)


def test_a_hang_is_stopped_at_once(desk: Bench) -> None:
    seen = len([r for r in desk.server.requests if r.key == "HANG"])
    with desk.start("HANG") as turn:
        assert desk.server.wait_requests(seen + 1, key="HANG")
        turn.signal(signal.SIGINT)
        ran = turn.finish(timeout_s=5)
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.CANCELLED)


def test_a_hang_times_out_as_network(desk: Bench) -> None:
    ran = desk.run("HANG", env={"API_TIMEOUT_MS": "1000"})
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.NETWORK)


def test_unknown_and_reused_sessions_are_lost_sessions(desk: Bench) -> None:
    ran = desk.run("EDIT", resume=str(uuid.uuid4()))
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.SESSION_LOST)
    assert desk.run("EDIT").outcome.terminal == "success"
    ran = desk.run("EDIT")
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.SESSION_LOST), ran.stderr
    assert ran.raw == []


def test_limits_of_its_own(desk: Bench) -> None:
    ran = desk.run("LOOP", args=["--max-turns", "2"])
    assert ran.outcome.reason is Reason.MAX_TURNS
    ran = desk.run("LOOP", session_id=str(uuid.uuid4()), args=["--max-budget-usd", "0.001"])
    assert ran.outcome.reason is Reason.BUDGET
    ran = desk.run("LOOP", session_id=str(uuid.uuid4()), args=["--no-such-flag"])
    assert (ran.outcome.terminal, ran.outcome.reason) == ("error", Reason.CONFIGURATION)


def test_edits_may_edit_and_read_their_specs_and_nothing_else(desk: Bench) -> None:
    (desk.root / "specs" / "a.md").write_text("spec\n")
    ran = desk.run("FORBIDDEN")
    assert ran.outcome.terminal == "success"
    assert sorted(ran.outcome.denied_tools) == ["Bash", "Write"]
    assert [event.denied for event in ran.events if event.kind is EventKind.TOOL_RESULT] == [True, True]
    ran = desk.run("SPECS", session_id=str(uuid.uuid4()))
    assert ran.outcome.denied_tools == []


def test_bypass_may_run_commands_in_a_world_of_its_own(desk: Bench) -> None:
    nested = {"CLAUDECODE": "1", "CLAUDE_CODE_SESSION_ID": "outer", "CLAUDE_CODE_MESSAGING_TOKEN": "t"}
    ran = desk.run("ENV", permissions="bypass", env=nested)
    assert ran.outcome.terminal == "success"
    env = dict(line.split("=", 1) for line in (desk.repo / "env.txt").read_text().splitlines() if "=" in line)
    assert env["TMPDIR"] == str(desk.root / "tmp")
    assert env["CLAUDE_CONFIG_DIR"] == str(desk.root / "config")
    assert env["CLAUDE_CODE_SESSION_ID"] == desk.launch.session_id


def test_a_repository_may_not_redirect_the_key_unless_it_is_trusted(desk: Bench) -> None:
    (desk.repo / ".claude").mkdir()
    hook = {"matcher": "*", "hooks": [{"type": "command", "command": f"touch {desk.root}/hooked"}]}
    settings = {"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}, "hooks": {"PreToolUse": [hook]}}
    (desk.repo / ".claude" / "settings.json").write_text(json.dumps(settings))
    (desk.repo / "CLAUDE.md").write_text("HOUSE-RULES\n")
    assert desk.run("EDIT").outcome.terminal == "success"
    assert not (desk.root / "hooked").exists()
    # Its instructions reach the model all the same.
    assert "HOUSE-RULES" in desk.server.requests[-1].body.decode()
    ran = desk.run("EDIT", session_id=str(uuid.uuid4()), trusted_settings=json.dumps(settings))
    assert ran.outcome.reason is Reason.NETWORK


def test_a_prompt_is_never_a_command(desk: Bench) -> None:
    ran = desk.run("/clear EDIT")
    assert ran.outcome.session_id == desk.launch.session_id
    assert ran.outcome.turns == 2


def test_a_subagent_is_waited_for_and_counted(desk: Bench) -> None:
    ran = desk.run("SUB")
    assert ran.outcome.terminal == "success"
    assert ran.outcome.usage.input == 3000
    assert ran.outcome.last_text == "Done."


def test_a_key_never_stands_in_argv(desk: Bench) -> None:
    plan = Claude().plan(desk.launch)
    assert not any(KEY in arg for arg in plan.argv)
    assert plan.env["ANTHROPIC_API_KEY"] == KEY


def test_users_tools_join_ours(desk: Bench) -> None:
    settings = type(desk.launch.settings)(
        path=find_claude(), args=["--allowedTools", "Bash(touch:*)", "--disallowedTools", "WebFetch"]
    )
    assert desk.run("RUN", settings=settings).outcome.denied_tools == []
    assert (desk.repo / "made.txt").exists()
    tools = [tool["name"] for tool in desk.server.requests[-1].json["tools"]]
    assert "WebFetch" not in tools
    assert "AskUserQuestion" not in tools


def test_events_are_of_the_one_vocabulary(desk: Bench) -> None:
    ran = desk.run("EDIT")
    assert all(isinstance(event, AgentEvent) for event in ran.events)
    assert [event.kind for event in ran.events if event.terminal] == [EventKind.RESULT]


def _wait_for_child(pid: int) -> int:
    """Return a descendant that is the slow tool itself (the CLI gives it a session of its own)."""
    if not sys.platform.startswith("linux"):
        pytest.skip("walks /proc")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"time.sleep(313)" in line and line.startswith(sys.executable.encode()) and _below(int(entry.name), pid):
                return int(entry.name)
        time.sleep(0.02)
    raise AssertionError("the tool did not start")


def _below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
