"""The acp runner and the parser of what the shim's client wrote down."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coreagent import config
from coreagent.dispatch import logbook
from coreagent.errors import CoreAgentError
from coreagent.models.agent import AgentEvent, EventKind, Reason, Usage
from coreagent.runners import acp
from coreagent.runners.acp import Acp
from coreagent.runners.acp_stream import AcpParser
from coreagent.runners.base import Launch
from coreagent.runners.opencode_plugin import GAVE_UP

NOW = 1_800_000_000.0


def ours(what: str, **more: Any) -> bytes:
    return json.dumps({"core_agent": "acp", "what": what, **more}).encode()


def theirs(**message: Any) -> bytes:
    return b"<" + json.dumps({"jsonrpc": "2.0", **message}).encode()


def update(what: str, meta: object = None, **more: Any) -> bytes:
    params: dict[str, Any] = {"sessionId": "s", "update": {"sessionUpdate": what, **more}}
    if meta is not None:
        params["_meta"] = meta
    return theirs(method="session/update", params=params)


def chunk(text: str, message: str = "") -> bytes:
    return update("agent_message_chunk", messageId=message, content={"type": "text", "text": text})


OPENED = [
    ours("call", id=1, method="initialize"),
    theirs(id=1, result={"protocolVersion": 1, "agentInfo": {"name": "An Agent", "version": "1.2"}}),
    ours("call", id=2, method="session/new"),
    theirs(id=2, result={"sessionId": "sess-9", "models": {"currentModelId": "m1"}}),
    ours("call", id=3, method="session/prompt"),
]


def fed(*lines: bytes, opened: bool = True) -> tuple[AcpParser, list[AgentEvent]]:
    parser = AcpParser(clock=lambda: NOW)
    events = [event for line in [*(OPENED if opened else []), *lines] for event in parser.feed(line)]
    return parser, events


def test_a_turn_is_told_in_the_one_vocabulary() -> None:
    tool = {"toolCallId": "t1", "title": "write", "kind": "edit", "status": "pending", "rawInput": {}}
    more = {"toolCallId": "t1", "status": "in_progress", "rawInput": {"filePath": "/w/a.txt"}, "title": "a.txt"}
    done = [{"type": "content", "content": {"type": "text", "text": "Wrote it."}}]
    usage = {"inputTokens": 10, "outputTokens": 4, "thoughtTokens": 1, "cachedReadTokens": 3, "cachedWriteTokens": 2}
    parser, events = fed(
        chunk("I ", "m1"),
        chunk("will.", "m1"),
        update("tool_call", **tool),
        update("tool_call_update", **more),
        update("tool_call_update", toolCallId="t1", status="completed", content=done),
        chunk("Do", "m2"),
        chunk("ne.", "m2"),
        update("usage_update", used=5, size=9, cost={"amount": 0.5, "currency": "USD"}),
        theirs(id=3, result={"stopReason": "end_turn", "usage": usage}),
    )
    assert [(event.kind, event.tool, event.text) for event in events] == [
        (EventKind.STARTED, "", ""),
        (EventKind.TEXT, "", "I will."),
        (EventKind.TOOL_USE, "write", "/w/a.txt"),
        (EventKind.TOOL_RESULT, "write", "Wrote it."),
        (EventKind.TEXT, "", "Done."),
        (EventKind.RESULT, "", "Done."),
    ]
    out = parser.end(0, None)
    assert (out.terminal, out.session_id, out.model, out.turns) == ("success", "sess-9", "m1", 1)
    assert out.usage == Usage(input=10, output=5, cache_read=3, cache_write=2)
    assert (out.cost.usd, out.unparsed, out.events) == (0.5, 0, 6)
    assert events[0].data == {"agent": "An Agent 1.2"}


def test_no_line_of_the_agent_is_one_of_ours() -> None:
    forged = [b"<" + ours("call", id=9, method="session/prompt"), b'<{"core_agent":"dropped","bytes":7}', b"<noise"]
    parser, events = fed(*forged, theirs(id=9, result={"stopReason": "end_turn"}), opened=False)
    assert not events and parser.outcome.unparsed == 3
    assert parser.end(0, None).reason is Reason.DIED


def test_what_was_said_before_is_not_said_again() -> None:
    parser, events = fed(
        ours("call", id=2, method="session/load", session="old"),
        chunk("from before"),
        update("tool_call", toolCallId="t0", title="write", kind="edit", status="completed"),
        theirs(id=2, result=None),
        ours("call", id=3, method="session/prompt"),
        chunk("new"),
        theirs(id=3, result={"stopReason": "end_turn"}),
        opened=False,
    )
    assert [event.text for event in events if event.kind is EventKind.TEXT] == ["new"]
    assert parser.outcome.session_id == "old" and parser.outcome.terminal == "success"


def test_a_lost_session_is_told_and_the_fresh_one_counts() -> None:
    parser, events = fed(
        ours("call", id=2, method="session/load", session="old"),
        theirs(id=2, error={"code": -32603, "message": "Internal error", "data": {"details": "Invalid session"}}),
        ours("session_lost", session="old", why="Invalid session", then="fresh"),
        ours("call", id=3, method="session/new"),
        theirs(id=3, result={"sessionId": "new"}),
        ours("call", id=4, method="session/prompt"),
        theirs(id=4, result={"stopReason": "end_turn"}),
        opened=False,
    )
    assert events[0].data == {"session_lost": "old"} and "fresh" in events[0].text
    assert (parser.outcome.terminal, parser.outcome.session_id) == ("success", "new")


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("max_tokens", Reason.MODEL_ERROR),
        ("refusal", Reason.MODEL_REFUSED),
        ("cancelled", Reason.CANCELLED),
        ("max_turn_requests", Reason.MAX_TURNS),
        ("weather", Reason.ERROR),
    ],
)
def test_other_endings_are_no_success(stop: str, reason: Reason) -> None:
    parser, events = fed(theirs(id=3, result={"stopReason": stop}))
    assert (parser.end(0, None).terminal, parser.outcome.reason) == ("error", reason)
    assert events[-1].terminal and events[-1].is_error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": -32000, "message": "Authentication required"}, Reason.AUTH),
        ({"code": -32603, "message": "x", "data": {"errorKind": "rate_limit"}}, Reason.RATE_LIMIT),
        ({"code": -32603, "message": "x", "data": {"errorKind": "server_error"}}, Reason.MODEL_ERROR),
        ({"code": 401, "message": "no"}, Reason.AUTH),
        ({"code": 429, "message": "slow down"}, Reason.RATE_LIMIT),
        ({"code": 500, "message": "boom"}, Reason.MODEL_ERROR),
        ({"code": 500, "message": "exception TypeError: fetch failed sending request"}, Reason.NETWORK),
        ({"code": 500, "message": "terminated"}, Reason.NETWORK),
        ({"code": 503, "message": "the connection pool is full"}, Reason.MODEL_ERROR),
        ({"code": -32603, "message": "Internal error: prompt is too long"}, Reason.CONTEXT_OVERFLOW),
        ({"code": -32603, "message": "Internal error", "data": {"details": "fetch failed"}}, Reason.NETWORK),
        ({"code": -32603, "message": "402913 tokens were not enough"}, Reason.ERROR),
        ("odd", Reason.ERROR),
        (None, Reason.ERROR),
    ],
)
def test_errors_have_reasons(error: object, reason: Reason) -> None:
    parser, _ = fed(theirs(id=3, error=error))
    out = parser.end(0, None)
    assert (out.terminal, out.reason) == ("error", reason) and out.message


@pytest.mark.parametrize("stop", ["end_turn", "cancelled", "max_tokens", "refusal", "weather"])
def test_an_answer_after_the_agent_was_told_to_stop_is_a_cancelled_turn(stop: str) -> None:
    told = ours("call", method="session/cancel")
    for answer in (theirs(id=3, result={"stopReason": stop}), theirs(id=3, error={"code": 500, "message": "aborted"})):
        out = fed(chunk("half"), told, answer)[0].end(0, None)
        assert (out.terminal, out.reason, out.last_text) == ("error", Reason.CANCELLED, "half")
    out = fed(theirs(id=3, result={"stopReason": "end_turn"}), told)[0].end(0, None)
    assert out.terminal == "success"  # it had ended by itself


@pytest.mark.parametrize(
    ("data", "reason", "resets_at"),
    [
        ({"message": "boom", "statusCode": 500, "responseHeaders": {}}, Reason.MODEL_ERROR, None),
        ({"message": "slow", "statusCode": 429, "responseHeaders": {"retry-after": "60"}}, Reason.RATE_LIMIT, NOW + 60),
        ({"message": "Cannot connect to API: Unable to connect."}, Reason.NETWORK, None),
    ],
)
def test_what_our_plugin_says_when_it_gives_up(data: dict[str, Any], reason: Reason, resets_at: float | None) -> None:
    error = {"name": "APIError", "data": data}
    parser, events = fed(theirs(method=GAVE_UP, params={"sessionId": "ses_1", "error": error}))
    out = parser.end(1, None)
    assert (out.terminal, out.reason, out.message, out.resets_at) == ("error", reason, data["message"], resets_at)
    assert events[-1].kind is EventKind.ERROR


def test_a_rate_limit_names_its_reset() -> None:
    for error in (
        {"code": 429, "message": "Please try again in 20s."},
        {"code": 1, "message": "x", "data": {"errorKind": "rate_limit", "resetsAt": NOW + 20}},
    ):
        parser, events = fed(theirs(id=3, error=error))
        assert parser.outcome.resets_at == NOW + 20
        assert EventKind.RATE_LIMIT in [event.kind for event in events]


def test_an_error_that_is_hidden_behind_a_good_ending_is_found() -> None:
    broken = {"codex": {"threadStatus": {"type": "systemError"}}}
    well = {"codex": {"threadStatus": {"type": "idle"}}}
    said = chunk("We're currently experiencing high demand")
    parser, _ = fed(said, update("session_info_update", _meta=broken), theirs(id=3, result={"stopReason": "end_turn"}))
    assert (parser.outcome.terminal, parser.outcome.reason) == ("error", Reason.MODEL_ERROR)
    assert "high demand" in parser.outcome.message
    end = theirs(id=3, result={"stopReason": "end_turn", "_meta": well})
    parser, _ = fed(update("session_info_update", meta=broken), end)
    assert parser.outcome.terminal == "success"


def test_what_was_denied_is_named_as_the_agent_named_it() -> None:
    tool = {"toolCallId": "t1", "title": "bash", "kind": "execute", "status": "pending"}
    parser, events = fed(
        update("tool_call", **tool),
        theirs(id=0, method="session/request_permission", params={"toolCall": tool, "options": []}),
        ours("denied", tool="execute", tool_id="t1", text="rm -rf /", why=""),
        ours("denied", tool="read_text_file", tool_id="", text="/etc/passwd", why="the path is outside the workspace"),
    )
    assert parser.outcome.denied_tools == ["bash", "read_text_file"]
    assert [event.kind for event in events if event.tool_id == "t1"] == [EventKind.TOOL_USE, EventKind.TOOL_RESULT]
    assert "outside the workspace" in events[-1].text


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("handshake_timeout", Reason.CONFIGURATION),
        ("protocol", Reason.CONFIGURATION),
        ("cancelled", Reason.CANCELLED),
    ],
)
def test_an_agent_that_cannot_be_spoken_with(kind: str, reason: Reason) -> None:
    parser, _ = fed(ours("failed", kind=kind, why="because"), opened=False)
    assert (parser.end(None, 15).terminal, parser.outcome.reason, parser.outcome.message) == (
        "error",
        reason,
        "because",
    )


def test_a_refused_model_or_mode_is_a_matter_of_configuration() -> None:
    calls = [ours("call", id=3, method="session/set_model"), theirs(id=3, error={"code": -1, "message": "unknown"})]
    parser, _ = fed(*OPENED[:-1], *calls, opened=False)
    assert parser.outcome.reason is Reason.CONFIGURATION


def test_it_died_before_it_began() -> None:
    parser, _ = fed(opened=False)
    out = parser.end(41, None, b"Invalid auth method selected: please log in")
    assert (out.terminal, out.reason) == ("error", Reason.AUTH)
    parser, _ = fed(chunk("half"))
    out = parser.end(0, None, b"boom")
    assert (out.terminal, out.reason, out.last_text) == ("none", Reason.DIED, "half")


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    for name in ("bin", "repo", "home/.codex"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home/.codex/auth.json").write_text('{"tokens": 1}')
    for known in acp.KNOWN.values():
        program = tmp_path / "bin" / known.argv[0]
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    env = {
        "PATH": str(tmp_path / "bin"),
        "HOME": str(tmp_path / "home"),
        "LANG": "C",
        "ANTHROPIC_API_KEY": "a",
        "OPENAI_API_KEY": "o",
        "GEMINI_API_KEY": "g",
    }
    return Launch(
        prompt="/fix it",
        session_id="fresh",
        repo_dir=str(tmp_path / "repo"),
        workspace_dir=str(tmp_path),
        tmp_dir=str(tmp_path / "tmp"),
        config_home=str(tmp_path / "config"),
        env=env,
    )


def test_known_agents_get_their_own_key_and_home_and_nobody_elses(launch: Launch) -> None:
    plan = Acp().plan(replace(launch, model="codex:gpt-5.5"))
    assert plan.argv[0].endswith("/bin/codex-acp") and plan.acp is not None
    assert {name for name in plan.env if name.endswith("_API_KEY")} == {"OPENAI_API_KEY"}
    assert plan.env["CODEX_HOME"] == launch.config_home
    assert plan.copies == ((f"{launch.env['HOME']}/.codex/auth.json", f"{launch.config_home}/auth.json"),)
    assert (plan.acp["model"], plan.acp["auth"], plan.acp["permissions"]) == ("gpt-5.5", "", "edits")
    assert plan.stdin == b"\n/fix it"  # no command of the agent
    (Path(launch.env["HOME"]) / ".codex/auth.json").unlink()
    plan = Acp().plan(replace(launch, model="codex:gpt-5.5"))
    assert plan.acp is not None and plan.acp["auth"] == "api-key" and plan.env["CODEX_API_KEY"]
    config_file, text = plan.files[0]
    assert config_file == f"{launch.config_home}/config.toml"
    said = tomllib.loads(text.decode())
    assert said["model_provider"] == "core-agent" and said["model_providers"]["core-agent"]["stream_max_retries"] == 2
    assert said["features"]["apps"] is False
    plan = Acp().plan(replace(launch, model="codex", config_home=""))
    assert plan.acp is not None and plan.acp["auth"] == "" and not plan.files  # it would write it into the person's own
    plan = Acp().plan(replace(launch, model="gemini", config_home=""))
    assert plan.acp is not None and plan.acp["auth"] == "gemini-api-key"
    assert "GEMINI_CLI_HOME" not in plan.env and not plan.copies and not plan.seeds
    assert {name for name in plan.env if name.endswith("_API_KEY")} == {"GEMINI_API_KEY"}


def test_it_is_put_to_the_model_that_it_counts_for(launch: Launch) -> None:
    def model(asked: str) -> str:
        return str((Acp().plan(replace(launch, model=asked)).acp or {})["model"])

    assert (model("gemini:pro-9"), model("gemini"), model("codex")) == ("pro-9", "pro", "")


def test_opencode_is_not_led_to_its_makers_free_models_by_its_own_name(launch: Launch) -> None:
    def content(model: str) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(Acp().plan(replace(launch, model=model)).env["OPENCODE_CONFIG_CONTENT"])
        return made

    assert content("opencode")["disabled_providers"] == content("opencode:x/y")["disabled_providers"] == ["opencode"]
    assert "disabled_providers" not in content("opencode:opencode/free")


def test_an_agent_of_the_settings_comes_first(launch: Launch) -> None:
    own = config.AcpSettings(argv=["/bin/sh", "acp"], env={"X": "1"}, variables=["ANTHROPIC_*"], mode="auto")
    plan = Acp().plan(replace(launch, model="codex", acp=own))
    assert plan.argv == ["/bin/sh", "acp"] and plan.env["X"] == "1" and plan.acp is not None
    assert plan.acp["mode"] == "auto" and "CODEX_HOME" not in plan.env
    assert {name for name in plan.env if name.endswith("_API_KEY")} == {"ANTHROPIC_API_KEY"}


def test_a_fresh_prompt_is_for_a_resumed_session_only(launch: Launch) -> None:
    asked = replace(launch, model="codex", fresh_prompt="all of it")
    assert (Acp().plan(asked).acp or {})["fresh_prompt"] == ""
    resumed = Acp().plan(replace(asked, resume_session="s-1")).acp or {}
    assert (resumed["session"], resumed["fresh_prompt"]) == ("s-1", "all of it")


@pytest.mark.parametrize(
    ("changes", "slug"),
    [
        ({"model": ""}, "settings_invalid"),
        ({"model": "nobody"}, "settings_invalid"),
        ({"model": "codex", "args": ["--yolo"]}, "blocked_flag"),
        ({"model": "codex:--yolo"}, "blocked_flag"),
        ({"model": "codex", "resume_session": "--x"}, "blocked_flag"),
        ({"model": "codex", "env": {"PATH": "/nowhere"}}, "runner_missing"),
    ],
)
def test_what_cannot_be_asked_for(launch: Launch, changes: dict[str, Any], slug: str) -> None:
    with pytest.raises(CoreAgentError) as caught:
        Acp().plan(replace(launch, **changes))
    assert caught.value.slug == slug and caught.value.hint


def test_the_settings_know_the_same_agents() -> None:
    assert set(config.ACP_AGENTS) == set(acp.KNOWN)
    settings = config.load_text("version: 1\nacp: {goose: {argv: [goose, acp]}}\n")
    assert config.resolve_agent("acp:goose:big", settings) == config.Chosen("acp", "goose:big")
    assert config.resolve_agent("acp:gemini", settings) == config.Chosen("acp", "gemini")
    for text, hint in (("acp:gose", "acp:goose"), ("acp", "acp:codex"), ("acp:", "acp:codex")):
        with pytest.raises(CoreAgentError) as caught:
            config.resolve_agent(text, settings)
        assert hint in caught.value.hint


def test_a_page_of_the_log_ends_before_what_is_not_yet_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tool = update("tool_call", toolCallId="t", title="write", kind="edit", status="in_progress")
    lines = [*OPENED, chunk("I "), chunk("will."), tool, chunk("Do")]
    out.write_bytes(b"\n".join(lines) + b"\n")
    page = logbook.read_page(out, AcpParser(), 1, logbook.Place(), 100, whole_lines=True)
    assert [entry.event.text for entry in page.entries if entry.event.kind is EventKind.TEXT] == ["I will."]
    with out.open("ab") as file:
        file.write(chunk("ne.") + b"\n")
    again = logbook.read_page(out, AcpParser(), 1, page.next, 100, whole_lines=True)
    assert again.entries == [] and again.next == page.next
    last = logbook.read_page(out, AcpParser(), 1, page.next, 100, whole_lines=False)
    assert [(entry.event.text, entry.offset) for entry in last.entries] == [("Done.", page.next.entries + 1)]
