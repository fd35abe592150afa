"""The claude runner: what it plans, and how it reads recorded and broken streams."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coreagent.errors import CoreAgentError
from coreagent.models.agent import AgentEvent, Cost, EventKind, Outcome, Reason, Usage
from coreagent.runners.base import Launch, NoSettings, Plan, lay_out
from coreagent.runners.claude import FLAGS, Claude
from coreagent.runners.claude_stream import ClaudeParser, classify
from coreagent.runners.resets import RESET_MAX_S, RESET_MIN_S

FIXTURE = Path(__file__).with_name("fixtures") / "claude.jsonl"
NOW = 1_800_000_000.0


def feed(parser: ClaudeParser, *records: Mapping[str, Any]) -> list[AgentEvent]:
    return [event for record in records for event in parser.feed(json.dumps(record).encode() + b"\n")]


def result(**fields: Any) -> dict[str, Any]:
    base = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "session_id": "s", "usage": {}}
    return {**base, **fields}


def failed(said: str, **fields: Any) -> dict[str, Any]:
    return result(is_error=True, result=said, terminal_reason="api_error", **fields)


def assistant(identity: str, *blocks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    usage = fields.pop("usage", {"input_tokens": 10, "output_tokens": 1})
    message = {"id": identity, "model": "claude-opus-5-5", "content": list(blocks), "usage": usage}
    return {"type": "assistant", "message": message, **fields}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


# ---- the recorded stream --------------------------------------------------------------------------------------------


def test_a_recorded_run() -> None:
    parser = ClaudeParser()
    events = [event for line in FIXTURE.read_bytes().splitlines() for event in parser.feed(line)]
    outcome = parser.end(0, None)
    assert [event.kind for event in events] == [
        EventKind.STARTED,
        EventKind.TEXT,
        EventKind.USAGE,
        EventKind.TOOL_USE,
        EventKind.TOOL_RESULT,
        EventKind.TEXT,
        EventKind.USAGE,
        EventKind.RESULT,
    ]
    assert events[0].data["version"] == "2.1.328"
    assert (events[3].tool, events[3].text) == ("Write", "/repo/hello_claude.txt")
    assert events[4].tool == "Write"
    assert outcome == Outcome(
        terminal="success",
        session_id="93934aaf-f14d-4fc0-983f-9180a898c587",
        model="claude-opus-5-5",
        usage=Usage(input=2234, output=96),
        cost=Cost(usd=0.010856, source="reported"),
        turns=2,
        last_tool="Write",
        last_text="Done: file written.",
        events=8,
    )


def test_a_recorded_run_cut_after_any_line_is_no_success() -> None:
    lines = FIXTURE.read_bytes().splitlines()
    for count in range(len(lines)):
        parser = ClaudeParser()
        for line in lines[:count]:
            parser.feed(line)
        outcome = parser.end(0, None)
        assert (outcome.terminal, outcome.reason) == ("none", Reason.DIED), count
        assert outcome.cost == Cost()
    assert outcome.usage == Usage(input=2234)


# ---- endings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (failed("API Error: 400 messages: bad", api_error_status=400), Reason.BAD_REQUEST),
        (failed("Failed to authenticate. API Error: 401 x", api_error_status=401), Reason.AUTH),
        (failed("API Error: 403", api_error_status=403), Reason.AUTH),
        (failed("API Error: Request rejected (429)", api_error_status=429), Reason.RATE_LIMIT),
        (failed("API Error: 500", api_error_status=500), Reason.MODEL_ERROR),
        (failed("API Error: 529", api_error_status=529), Reason.MODEL_ERROR),
        (failed("Credit balance is too low", api_error_status=400), Reason.BUDGET),
        (failed("API Error: 402", api_error_status=402), Reason.BUDGET),
        (failed("Prompt is too long", api_error_status=400), Reason.CONTEXT_OVERFLOW),
        (result(subtype="success", is_error=True, terminal_reason="prompt_too_long"), Reason.CONTEXT_OVERFLOW),
        (result(subtype="error_max_turns", is_error=True, terminal_reason="max_turns"), Reason.MAX_TURNS),
        (result(subtype="error_max_budget_usd", is_error=True), Reason.BUDGET),
        (result(subtype="error_during_execution", is_error=True, terminal_reason="aborted_tools"), Reason.CANCELLED),
        (result(subtype="error_during_execution", is_error=True), Reason.ERROR),
        (failed("Not logged in · Please run /login"), Reason.AUTH),
        (failed("You've hit your 5-hour limit · resets 5:42am (UTC)"), Reason.RATE_LIMIT),
        (failed("API Error: Connection refused (ECONNREFUSED)"), Reason.NETWORK),
        (failed("Request timed out."), Reason.NETWORK),
        (failed("something is 402913 tokens, 1429 words and 5001 lines long"), Reason.ERROR),
        # Older versions say the status in the text only.
        (failed("API Error: 529 overloaded"), Reason.MODEL_ERROR),
        (
            result(subtype="error_during_execution", is_error=True, errors=["No conversation found with session: x"]),
            Reason.SESSION_LOST,
        ),
    ],
)
def test_endings_are_named_whatever_the_exit_code(record: dict[str, Any], reason: Reason) -> None:
    parser = ClaudeParser()
    (event,) = feed(parser, record)
    assert (event.kind, event.terminal, event.reason) == (EventKind.ERROR, True, reason)
    outcome = parser.end(0, None)
    assert (outcome.terminal, outcome.reason) == ("error", reason)


def test_the_synthetic_message_says_what_the_result_does_not() -> None:
    parser = ClaudeParser()
    synthetic = {
        "type": "assistant",
        "error": "authentication_failed",
        "message": {"id": "m", "model": "<synthetic>", "content": [text("Sorry.")]},
    }
    (event,) = feed(parser, synthetic)
    assert (event.kind, event.reason, event.terminal) == (EventKind.ERROR, Reason.AUTH, False)
    feed(parser, failed("Sorry."))
    assert parser.outcome.reason is Reason.AUTH
    assert parser.outcome.last_text == ""


def test_the_clis_own_word_comes_before_its_text() -> None:
    assert classify({"error": "server_error", "api_error": "connection_failed"}, "x") is Reason.NETWORK
    assert classify({"error": "invalid_request", "refused_message_id": "m"}, "x") is Reason.MODEL_REFUSED
    assert classify({"error": "billing_error", "api_error_status": 400}, "x") is Reason.BUDGET
    assert classify({"error": "server_error"}, "x") is Reason.MODEL_ERROR
    assert classify({}, "x") is Reason.ERROR


@pytest.mark.parametrize(
    ("stderr", "terminal", "reason"),
    [
        (b"Error: Session ID 1 is already in use.\n", "error", Reason.SESSION_LOST),
        (b"No conversation found with session ID: 1\n", "error", Reason.SESSION_LOST),
        (b"--dangerously-skip-permissions cannot be used with root/sudo privileges", "error", Reason.CONFIGURATION),
        (b"error: unknown option '--wat'\n", "error", Reason.CONFIGURATION),
        (b"Segmentation fault\n", "none", Reason.DIED),
        (b"", "none", Reason.DIED),
    ],
)
def test_an_exit_with_nothing_but_stderr(stderr: bytes, terminal: str, reason: Reason) -> None:
    outcome = ClaudeParser().end(1, None, stderr)
    assert (outcome.terminal, outcome.reason) == (terminal, reason)
    assert stderr.decode().strip() in outcome.message


def test_a_killed_run_is_dead_even_when_stderr_looks_like_a_refusal() -> None:
    outcome = ClaudeParser().end(None, 9, b"error: unknown option")
    assert (outcome.terminal, outcome.reason) == ("none", Reason.DIED)


# ---- usage and cost -------------------------------------------------------------------------------------------------


def test_partial_usage_counts_a_message_once() -> None:
    parser = ClaudeParser()
    feed(
        parser,
        assistant("m1", text("a")),
        assistant("m1", {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "ls"}}),
        assistant("m2", text("b"), usage={"input_tokens": 5, "cache_read_input_tokens": 3}),
        assistant("m2", text("b"), usage={"input_tokens": 7, "cache_read_input_tokens": 3}),
    )
    assert parser.end(None, 9).usage == Usage(input=17, output=1, cache_read=3)


def test_cost_is_of_this_turn_by_the_delta_field() -> None:
    parser = ClaudeParser(previous_cost=Cost(usd=99.0, source="reported"))
    since = {
        "opus": {"inputTokens": 7, "outputTokens": 2, "costUSD": 0.5},
        "haiku": {"inputTokens": 1, "costUSD": 0.25},
    }
    feed(parser, result(total_cost_usd=3.0, usage={"input_tokens": 4}, model_usage_since_last_result=since))
    # A second result of the same process: a background task woke the session.
    feed(parser, result(total_cost_usd=3.5, model_usage_since_last_result={"opus": {"costUSD": 0.125}}))
    outcome = parser.end(0, None)
    assert outcome.cost == Cost(usd=0.875, source="reported")
    assert outcome.usage == Usage(input=8, output=2)
    assert outcome.turns == 2


@pytest.mark.parametrize(("total", "previous", "usd"), [(3.0, 1.0, 2.0), (3.0, None, 3.0), (0.5, 1.0, 0.5)])
def test_cost_of_older_versions_is_the_difference_of_totals(total: float, previous: float | None, usd: float) -> None:
    parser = ClaudeParser(previous_cost=Cost(usd=previous))
    feed(parser, result(total_cost_usd=total, usage={"input_tokens": 4}))
    assert parser.outcome.cost == Cost(usd=usd, source="reported")
    assert parser.outcome.usage == Usage(input=4)


# ---- limits, denials, background ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resets", "expected"),
    [
        (NOW + 7200, NOW + 7200),
        (NOW - 50, NOW + RESET_MIN_S),
        (NOW - 70, None),
        ((NOW + 7200) * 1000, NOW + RESET_MAX_S),
        (None, None),
        ("soon", None),
    ],
)
def test_a_reset_is_clamped(resets: object, expected: float | None) -> None:
    parser = ClaudeParser(clock=lambda: NOW)
    info = {"status": "rejected", "resetsAt": resets, "rateLimitType": "five_hour"}
    (event,) = feed(parser, {"type": "rate_limit_event", "rate_limit_info": info})
    assert (event.kind, event.reason, event.resets_at) == (EventKind.RATE_LIMIT, Reason.RATE_LIMIT, expected)
    feed(parser, failed("limit", api_error_status=429))
    assert parser.outcome.resets_at == expected


def test_only_status_makes_a_limit() -> None:
    parser = ClaudeParser(clock=lambda: NOW)
    info = {"status": "allowed", "overageStatus": "rejected", "resetsAt": NOW + 100}
    assert feed(parser, {"type": "rate_limit_event", "rate_limit_info": info}) == []
    feed(parser, result(result="fine"))
    assert (parser.outcome.terminal, parser.outcome.resets_at) == ("success", None)


def test_denied_tools_stand_beside_success() -> None:
    parser = ClaudeParser()
    events = feed(
        parser,
        assistant("m", {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "make"}}),
        {"type": "system", "subtype": "permission_denied", "tool_use_id": "t1", "tool_name": "Bash"},
        {
            "type": "user",
            "message": {"content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": "no"}]},
        },
        result(permission_denials=[{"tool_name": "Bash"}, {"tool_name": "Write"}, {"tool_name": "Bash"}, 7]),
    )
    assert [event.denied for event in events if event.kind is EventKind.TOOL_RESULT] == [True]
    assert parser.outcome.terminal == "success"
    assert parser.outcome.denied_tools == ["Bash", "Write"]


def test_a_launched_background_agent_is_marked() -> None:
    record = {
        "type": "user",
        "message": {"content": [{"type": "tool_result", "tool_use_id": "t", "content": [text("launched")]}]},
        "tool_use_result": {"status": "async_launched"},
    }
    (event,) = feed(ClaudeParser(), record)
    assert (event.text, event.data) == ("launched", {"async": "launched"})


def test_a_subagents_words_are_not_the_last_words() -> None:
    parser = ClaudeParser()
    feed(parser, assistant("m", text("mine")), assistant("n", text("its"), parent_tool_use_id="t"))
    assert parser.outcome.last_text == "mine"


def test_retries_are_events() -> None:
    record = {"type": "system", "subtype": "api_retry", "attempt": 1, "error_status": 529, "retry_delay_ms": 514}
    (event,) = feed(ClaudeParser(), record)
    assert (event.kind, event.reason, event.terminal) == (EventKind.RETRY, Reason.MODEL_ERROR, False)
    assert event.data == {"attempt": 1, "delay_s": 0.514}


def test_unknown_types_are_counted_and_noise_is_not() -> None:
    parser = ClaudeParser()
    feed(parser, {"type": "stream_event"}, {"type": "system", "subtype": "new_thing"}, {"type": "hologram"}, {"a": 1})
    assert parser.outcome.unparsed == 2


# ---- plans ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    program = tmp_path / "bin" / "claude"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '2.1.328 (Claude Code)'\n")
    program.chmod(0o755)
    for name in ("repo", "home"):
        (tmp_path / name).mkdir()
    return Launch(
        prompt="Do it.",
        session_id="11111111-1111-4111-8111-111111111111",
        repo_dir=str(tmp_path / "repo"),
        workspace_dir=str(tmp_path),
        tmp_dir=str(tmp_path / "tmp"),
        config_home=str(tmp_path / "config"),
        env={"PATH": str(program.parent), "HOME": str(tmp_path / "home"), "ANTHROPIC_API_KEY": "secret"},
    )


def plan(launch: Launch, **changes: Any) -> Plan:
    return Claude().plan(replace(launch, **changes))


def test_a_plan_for_edits(launch: Launch) -> None:
    made = plan(launch, model="opus")
    joined = " ".join(made.argv)
    assert "--print --output-format stream-json --verbose" in joined
    assert "--model opus" in joined
    assert "--disallowedTools AskUserQuestion" in joined
    assert "--permission-mode acceptEdits" in joined
    assert "--setting-sources user" in joined
    assert f"--session-id {launch.session_id}" in joined
    assert "--resume" not in made.argv
    assert "Do it." not in joined
    assert "secret" not in joined
    assert made.stdin == b"Do it."
    assert made.stop_signal == "INT"
    assert made.env["CLAUDE_CONFIG_DIR"] == launch.config_home
    assert made.env["TMPDIR"] == launch.tmp_dir
    assert made.env["ANTHROPIC_API_KEY"] == "secret"
    assert made.env["DISABLE_AUTOUPDATER"] == "1"
    assert "IS_SANDBOX" not in made.env


def test_a_plan_for_bypass_and_resume(launch: Launch) -> None:
    made = plan(launch, permissions="bypass", resume_session="old", env={**launch.env, "IS_SANDBOX": "1"})
    assert "--dangerously-skip-permissions" in made.argv
    assert made.argv[-2:] == ["--resume", "old"]
    assert "--session-id" not in made.argv
    assert made.session_id == "old"
    assert ("IS_SANDBOX" in made.env) is (os.geteuid() == 0)


def test_a_users_own_home_is_left_alone(launch: Launch) -> None:
    made = plan(launch, config_home="", env={**launch.env, "CLAUDE_CONFIG_DIR": "/elsewhere"})
    assert made.env["CLAUDE_CONFIG_DIR"] == "/elsewhere"
    assert made.copies == ()
    assert made.directories == (launch.tmp_dir,)
    assert "--strict-mcp-config" not in made.argv


def test_only_the_credential_is_copied_and_a_refreshed_one_stays(launch: Launch) -> None:
    user = Path(launch.env["HOME"]) / ".claude"
    user.mkdir()
    (user / "settings.json").write_text("{}")
    (user / ".credentials.json").write_text('{"claudeAiOauth": {}}')
    made = plan(launch)
    lay_out(made, launch.workspace_dir)
    private = Path(launch.config_home)
    assert sorted(entry.name for entry in private.iterdir()) == [".claude.json", ".credentials.json", "settings.json"]
    assert json.loads((private / ".claude.json").read_text()) == {"hasCompletedOnboarding": True}
    copied = private / ".credentials.json"
    assert copied.stat().st_mode & 0o777 == 0o600
    assert private.stat().st_mode & 0o777 == 0o700
    copied.write_text("refreshed")
    (private / ".claude.json").write_text("{}")
    lay_out(made, launch.workspace_dir)
    assert (private / ".claude.json").read_text() == "{}"
    assert copied.read_text() == "refreshed"
    later = copied.stat().st_mtime + 10
    os.utime(user / ".credentials.json", (later, later))
    lay_out(made, launch.workspace_dir)
    assert copied.read_text() == '{"claudeAiOauth": {}}'


def test_hooks_that_an_agent_left_in_its_own_home_are_gone_with_the_next_turn(launch: Launch) -> None:
    settings = Path(launch.config_home) / "settings.json"
    lay_out(plan(launch), launch.workspace_dir)
    settings.write_text('{"hooks": {"Stop": []}}')
    lay_out(plan(launch), launch.workspace_dir)
    assert settings.read_text() == "{}\n"
    assert plan(launch, config_home="").files == ()


def test_instructions_are_handed_over_but_never_through_a_link(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "CLAUDE.md").write_text("ours\n")
    (tmp_path / "repo" / "CLAUDE.md").write_text("theirs\n")
    made = plan(launch)
    (target, text) = made.files[-1]
    assert (target, text) == (f"{launch.tmp_dir}/instructions.md", b"ours\n\ntheirs")
    assert made.argv[made.argv.index("--append-system-prompt-file") + 1] == target
    lay_out(made, launch.workspace_dir)
    assert Path(target).read_bytes() == b"ours\n\ntheirs"
    (tmp_path / "repo" / "CLAUDE.md").unlink()
    (tmp_path / "repo" / "CLAUDE.md").symlink_to("/etc/passwd")
    assert plan(launch).files[-1][1] == b"ours"


def test_settings_of_the_repository_are_those_that_were_trusted(launch: Launch) -> None:
    made = plan(launch, trusted_settings='{"hooks": {}}')
    assert made.files[-1] == (f"{launch.tmp_dir}/settings.json", b'{"hooks": {}}')
    assert made.argv[made.argv.index("--settings") + 1] == made.files[-1][0]
    assert made.argv[made.argv.index("--setting-sources") + 1] == "user"


def test_a_prompt_is_no_slash_command(launch: Launch) -> None:
    assert plan(launch, prompt="/clear").stdin == b"\n/clear"
    assert plan(launch, prompt="\ud800").stdin == b"?"


def test_nested_session_variables_are_stripped(launch: Launch) -> None:
    nested = dict.fromkeys(
        ["CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SSE_PORT", "CLAUDE_CODE_CHILD_SESSION", "AI_AGENT"], "1"
    )
    kept = {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "5", "CLAUDE_CODE_MAX_RETRIES": "7"}
    env = plan(launch, env={**launch.env, **nested, **kept}).env
    assert not set(nested) & set(env)
    assert kept.items() <= env.items()


@pytest.mark.parametrize(
    "args",
    [
        ["--output-format", "text"],
        ["--output-format=text"],
        ["-p"],
        ["-r", "x"],
        ["-pc"],
        ["--resume=x"],
        ["--permission-mode", "plan"],
        ["--dangerously-skip-permissions"],
        ["--"],
        ["do something else"],
        ["--effort", "high", "--bg"],
    ],
)
@pytest.mark.parametrize("where", ["settings", "args"])
def test_the_protocol_cannot_be_overridden(launch: Launch, args: list[str], where: str) -> None:
    changes: dict[str, Any] = {"args": args} if where == "args" else {"settings": NoSettings(args=args)}
    with pytest.raises(CoreAgentError) as error:
        plan(launch, **changes)
    assert error.value.slug == "blocked_flag"


@pytest.mark.parametrize("value", ["--dangerously-skip-permissions", "-x", "a b", "../up", "a\0b", "x" * 300])
@pytest.mark.parametrize("where", ["model", "resume_session", "session_id"])
def test_names_are_no_options(launch: Launch, where: str, value: str) -> None:
    with pytest.raises(CoreAgentError) as error:
        plan(launch, **{where: value})
    assert error.value.slug == "blocked_flag"


@pytest.mark.parametrize("model", ["opus", "claude-opus-5-5", "us.anthropic.claude-sonnet-5:0", "opus[1m]", "a/b@c"])
def test_models_have_many_names(launch: Launch, model: str) -> None:
    assert model in plan(launch, model=model).argv


def test_only_settings_may_widen(launch: Launch) -> None:
    widening = ["--allowedTools", "Bash(make:*)"]
    with pytest.raises(CoreAgentError) as error:
        plan(launch, args=widening)
    assert (error.value.slug, "agents.yaml" in error.value.hint) == ("blocked_flag", True)
    assert "Bash(make:*)" in plan(launch, settings=NoSettings(args=widening)).argv
    assert "Bash(make:*)" in plan(launch, args=widening, permissions="bypass").argv
    FLAGS.check(["--effort", "high", "--max-turns", "5", "-d"], widening=False)


def test_interactive(launch: Launch) -> None:
    made = Claude().interactive(replace(launch, resume_session="old"))
    assert made.argv[1:] == ["--resume", "old"]
    assert made.env["CLAUDE_CONFIG_DIR"] == launch.config_home
    assert made.stdin is None


@pytest.mark.parametrize("name", ["--x", "../x", "a/../b", "two words", "x" * 300])
def test_a_session_that_no_command_line_can_name_is_none_and_it_is_told(name: str) -> None:
    parser = ClaudeParser()
    started, told = feed(parser, {"type": "system", "subtype": "init", "session_id": name})
    assert (started.kind, started.session_id, told.kind) == (EventKind.STARTED, "", EventKind.TEXT)
    assert "the next turn begins a new one" in told.text
    feed(parser, result(session_id=name, result="done"))
    outcome = parser.end(0, None)
    assert (outcome.terminal, outcome.session_id) == ("success", "")
