"""How codex's stream is read: recorded and broken ones, endings by their text, usage as a difference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreagent.models.agent import AgentEvent, EventKind, Outcome, Reason, Usage
from coreagent.runners.codex_stream import CodexParser, classify, readable

FIXTURE = Path(__file__).with_name("fixtures") / "codex.jsonl"
NOW = 1_795_244_400.0


def feed(parser: CodexParser, *records: Mapping[str, Any]) -> list[AgentEvent]:
    return [event for record in records for event in parser.feed(json.dumps(record).encode() + b"\n")]


def failed(message: str) -> dict[str, Any]:
    return {"type": "turn.failed", "error": {"message": message}}


def completed(**usage: int) -> dict[str, Any]:
    return {"type": "turn.completed", "usage": usage}


def item(phase: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"item.{phase}", "item": {"id": "item_1", "type": kind, **fields}}


# ---- the recorded stream --------------------------------------------------------------------------------------------


def test_a_recorded_run() -> None:
    parser = CodexParser()
    events = [event for line in FIXTURE.read_bytes().splitlines() for event in parser.feed(line)]
    outcome = parser.end(0, None)
    assert [event.kind for event in events] == [
        EventKind.STARTED,
        EventKind.TEXT,
        EventKind.TOOL_USE,
        EventKind.TOOL_RESULT,
        EventKind.TEXT,
        EventKind.RESULT,
    ]
    assert outcome == Outcome(
        terminal="success",
        session_id=events[0].session_id,
        usage=Usage(input=2234, output=96),
        turns=1,
        last_tool="exec_command",
        last_text="Done: file written.",
        events=6,
    )


def test_a_recorded_run_cut_after_any_line_is_no_success() -> None:
    lines = FIXTURE.read_bytes().splitlines()
    for count in range(len(lines)):
        parser = CodexParser()
        for line in lines[:count]:
            parser.feed(line)
        outcome = parser.end(0, None)
        assert (outcome.terminal, outcome.reason) == ("none", Reason.DIED), count


# ---- endings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        # As 0.169 said it to the scripted model server.
        ("unexpected status 401 Unauthorized: scripted, url: http://127.0.0.1:4140/v1/responses", Reason.AUTH),
        ("unexpected status 403 Forbidden: scripted, url: http://127.0.0.1:4140/v1/responses", Reason.AUTH),
        ("Missing environment variable: `CODEX_API_KEY`.", Reason.AUTH),
        ("exceeded retry limit, last status: 429 Too Many Requests", Reason.RATE_LIMIT),
        ("You’ve hit your usage limit. Visit https://x to purchase more credits or try again at 8:48 AM.",
         Reason.RATE_LIMIT),
        ("rate limit exceeded: slow", Reason.RATE_LIMIT),
        ("Quota exceeded. Check your plan and billing details.", Reason.BUDGET),
        ("We’re currently experiencing high demand, which may cause temporary errors.", Reason.MODEL_ERROR),
        ("Selected model is at capacity. Please try a different model.", Reason.MODEL_ERROR),
        ("Incomplete response returned, reason: max_output_tokens", Reason.MODEL_ERROR),
        ("stream disconnected before completion: Incomplete response returned, reason: content_filter",
         Reason.MODEL_REFUSED),
        ("This request was flagged for possible cybersecurity risk.", Reason.MODEL_REFUSED),
        ("Invalid prompt: your prompt was flagged as potentially violating our usage policy.", Reason.MODEL_REFUSED),
        ("Codex ran out of room in the model's context window. Start a new thread or clear earlier history.",
         Reason.CONTEXT_OVERFLOW),
        ("The requested model 'nope' does not exist.", Reason.CONFIGURATION),
        ("Connection failed: error sending request", Reason.NETWORK),
        ("stream disconnected before completion: Transport error: network error: error decoding response body",
         Reason.NETWORK),
        ("workspace routing discovery failed", Reason.NETWORK),
        ('{"error": {"message": "scripted 402913", "type": "x", "code": null}}', Reason.BAD_REQUEST),
        ('{"error": {"message": "This model is not supported with this account"}}', Reason.CONFIGURATION),
        ("something is 402913 tokens, 1429 words and 5001 lines long", Reason.ERROR),
    ],
)  # fmt: skip
def test_endings_are_named_by_their_text(message: str, reason: Reason) -> None:
    parser = CodexParser(clock=lambda: NOW)
    first, *events = feed(parser, {"type": "error", "message": message}, failed(message))
    assert (first.kind, first.terminal, first.reason) == (EventKind.ERROR, False, reason)
    assert (events[-1].kind, events[-1].terminal, events[-1].reason) == (EventKind.ERROR, True, reason)
    outcome = parser.end(1, None)
    assert (outcome.terminal, outcome.reason) == ("error", reason)
    assert not outcome.message.startswith("{")


def test_an_error_ends_nothing() -> None:
    parser = CodexParser()
    again, warned = feed(
        parser,
        {"type": "error", "message": "Reconnecting... 2/5 (Connection failed: error sending request)"},
        item("completed", "error", message="Falling back from WebSockets to HTTPS transport."),
    )
    assert (again.kind, again.reason, again.data) == (EventKind.RETRY, Reason.NETWORK, {"attempt": 2, "of": 5})
    assert (warned.kind, warned.data) == (EventKind.TEXT, {"notice": True})
    feed(parser, {"type": "error", "message": "something odd"})
    assert parser.outcome.terminal == "none"
    assert parser.outcome.last_text == ""
    died = parser.end(1, None)
    assert (died.reason, "something odd" in died.message) == (Reason.DIED, True)


@pytest.mark.parametrize(
    ("stderr", "terminal", "reason"),
    [
        (b"Error: thread/resume: thread/resume failed: no rollout found for thread id 01 (code -32600)", "error",
         Reason.SESSION_LOST),
        (b"Error loading config.toml: unknown variant `nope`", "error", Reason.CONFIGURATION),
        (b"error: unexpected argument '--nope' found", "error", Reason.CONFIGURATION),
        (b"thread 'main' panicked", "none", Reason.DIED),
    ],
)  # fmt: skip
def test_an_exit_with_nothing_but_stderr(stderr: bytes, terminal: str, reason: Reason) -> None:
    outcome = CodexParser().end(1, None, stderr)
    assert (outcome.terminal, outcome.reason) == (terminal, reason)
    killed = CodexParser().end(None, 9, stderr)
    assert (killed.terminal, killed.reason) == ("none", Reason.DIED)


@pytest.mark.parametrize(
    ("message", "resets_at"),
    [
        ("rate limit exceeded: Rate limit reached for gpt-5. Please try again in 11.054s.", NOW + 11.054),
        ("You've hit your usage limit. Try again in 3 days 4 hours 5 minutes.", NOW + 3 * 86400 + 4 * 3600 + 300),
        ("exceeded retry limit, last status: 429 Too Many Requests", None),
    ],
)
def test_a_limit_names_its_reset(message: str, resets_at: float | None) -> None:
    parser = CodexParser(clock=lambda: NOW)
    limit, ended = feed(parser, failed(message))
    assert (limit.kind, limit.resets_at) == (
        EventKind.RATE_LIMIT,
        pytest.approx(resets_at, abs=0.01) if resets_at else None,
    )
    assert ended.resets_at == limit.resets_at == parser.outcome.resets_at


# ---- usage ----------------------------------------------------------------------------------------------------------


def test_usage_is_the_difference_of_the_threads_totals_without_what_was_cached() -> None:
    parser = CodexParser(previous_usage=Usage(input=100, output=10, cache_read=5))
    feed(parser, completed(input_tokens=1000, cached_input_tokens=305, cache_write_input_tokens=20, output_tokens=60,
                           reasoning_output_tokens=40))  # fmt: skip
    assert parser.outcome.usage == Usage(input=575, output=50, cache_read=300, cache_write=20)


def test_a_thread_that_counts_anew_is_counted_whole() -> None:
    parser = CodexParser(previous_usage=Usage(input=100, output=10))
    feed(parser, completed(input_tokens=50, output_tokens=20))
    assert parser.outcome.usage == Usage(input=50, output=20)


_COUNTS = st.integers(0, 10**9)


@given(st.lists(st.tuples(_COUNTS, _COUNTS, _COUNTS, _COUNTS), max_size=6))
def test_turns_add_up_to_the_thread(turns: list[tuple[int, int, int, int]]) -> None:
    thread, summed = Usage(), Usage()
    for fields in turns:
        names = ("input", "output", "cache_read", "cache_write")
        thread = thread.plus(Usage(**dict(zip(names, fields, strict=True))))
        parser = CodexParser(previous_usage=summed)
        feed(parser, completed(
            input_tokens=thread.input + thread.cache_read + thread.cache_write, output_tokens=thread.output,
            cached_input_tokens=thread.cache_read, cache_write_input_tokens=thread.cache_write,
        ))  # fmt: skip
        summed = summed.plus(parser.outcome.usage)
    assert summed == thread


# ---- items ----------------------------------------------------------------------------------------------------------


def test_what_was_not_allowed_is_told_by_stderr_and_by_the_disk() -> None:
    parser = CodexParser()
    (_, result) = feed(
        parser,
        item("completed", "command_execution", command="touch /x", exit_code=1, status="failed",
             aggregated_output="touch: cannot touch '/x': Read-only file system\n"),
    )  # fmt: skip
    assert (result.is_error, result.denied) == (True, True)
    tail = (
        b"2026-11-21T06:48:57Z ERROR codex_core::tools::router: error=approval policy is Never; reject command\n"
        b"2026-11-21T06:48:57Z ERROR codex_core::tools::router: error=patch rejected: writing outside of the project\n"
        b"2026-11-21T06:48:57Z ERROR codex_core::tools::router: error=unsupported call: no_such_tool\n"
    )
    assert parser.end(0, None, tail).denied_tools == ["exec_command", "apply_patch"]


def test_tools_of_every_kind() -> None:
    parser = CodexParser()
    started, ended = feed(
        parser,
        item("started", "mcp_tool_call", server="toy", tool="job", arguments={"n": 2}, status="in_progress"),
        item("completed", "mcp_tool_call", server="toy", tool="job", status="completed",
             result={"content": [{"type": "text", "text": "ok"}]}, error=None),
    )  # fmt: skip
    assert (started.tool, started.text, ended.text, ended.is_error) == ("toy.job", "n=2", "ok", False)
    parser = CodexParser()
    (_, refused) = feed(parser, item("completed", "mcp_tool_call", error={"message": "no"}, status="failed"))
    assert (refused.is_error, refused.text) == (True, "no")
    change = item("completed", "file_change", changes=[{"path": "/r/a", "kind": "add"}], status="declined")
    (use, result) = feed(CodexParser(), change)
    assert (use.tool, use.text, result.denied) == ("apply_patch", "add /r/a", True)
    assert feed(CodexParser(), item("completed", "reasoning", text="hm"), item("updated", "todo_list", items=[])) == []
    parser = CodexParser()
    feed(parser, item("started", "hologram"), item("completed", "hologram"), {"type": "thread.hologram"})
    assert parser.outcome.unparsed == 2


@given(st.text(max_size=300))
def test_any_text_has_a_reason_and_is_readable(text: str) -> None:
    assert classify(text) in Reason
    assert isinstance(readable(text), str)
