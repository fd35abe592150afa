"""What only one wire has: its own headers, its own kinds of tools, its own paths."""

from __future__ import annotations

import pytest

from coreagent import wires
from coreagent.models.agent import Reason, Usage
from coreagent.wires import anthropic, responses
from coreagent.wires.base import Reply, Text, ToolUse, decode_sse

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"anthropic-ratelimit-unified-reset": "1800000060"}, NOW + 60),
        ({"anthropic-ratelimit-requests-reset": "2027-01-15T08:01:00Z"}, NOW + 60),
        (
            {
                "anthropic-ratelimit-requests-reset": "2027-01-15T09:00:00Z",
                "anthropic-ratelimit-requests-remaining": "7",
                "anthropic-ratelimit-tokens-reset": "2027-01-15T08:01:00Z",
                "anthropic-ratelimit-tokens-remaining": "0",
            },
            NOW + 60,
        ),
        ({"anthropic-ratelimit-tokens-reset": "nonsense"}, None),
    ],
)
def test_anthropics_own_resets(headers: dict[str, str], expected: float | None) -> None:
    assert anthropic.retry_at(headers, NOW) == expected


@pytest.mark.parametrize("name", ["responses", "chat"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-ratelimit-reset-requests": "6m0s"}, NOW + 360),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "3"}, None),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "20s"}, NOW + 20),
        ({"x-ratelimit-reset-tokens": "1800000060"}, NOW + 60),
        ({"x-ratelimit-reset-tokens": "whenever"}, None),
    ],
)
def test_openais_own_resets(name: str, headers: dict[str, str], expected: float | None) -> None:
    assert wires.load(name).decode_error(429, {}, headers, NOW).retry_at == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"type": "usage_limit_reached", "message": "The usage limit has been reached", "resets_at": 1800000900}, 900),
        ({"type": "usage_limit_reached", "message": "x", "resets_in_seconds": 3600}, 3600),
        ({"code": "rate_limit_exceeded", "message": "Limit 30000. Please try again in 1m11.054s. Visit"}, 71.054),
    ],
)
def test_a_plan_says_when_its_limit_ends(error: dict[str, object], expected: float) -> None:
    failure = wires.load("responses").decode_error(429, {"error": error}, {}, NOW)
    assert failure.reason is Reason.RATE_LIMIT
    assert failure.retry_at == pytest.approx(NOW + expected)


def test_tools_in_a_group_and_freeform_ones_come_back() -> None:
    tools = (
        ToolUse("a", "job_submit", {"n": 1}, namespace="mcp__toy"),
        ToolUse("b", "apply_patch", {}, custom="*** Begin Patch\n"),
    )
    wire = wires.load("responses")
    sent = Reply("r", "m", tools)
    assert wire.decode_reply(wire.encode_reply(sent)).tool_uses == tools
    builder = wire.builder()
    for event in decode_sse(b"".join(wire.stream(sent).chunks).splitlines()):
        builder.add(event)
    assert builder.reply.tool_uses == tools
    # What has no groups still has freeform tools.
    chat = wires.load("chat")
    assert chat.decode_reply(chat.encode_reply(Reply("r", "m", tools[1:]))).tool_uses == tools[1:]


def test_items_become_turns() -> None:
    body = {
        "instructions": "be good",
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "and quiet"}]},
            {"type": "message", "role": "user", "content": "hi"},
            {"type": "reasoning", "summary": []},
            {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": "x"},
            {"type": "function_call", "call_id": "b", "name": "sh", "arguments": "broken"},
            {"type": "custom_tool_call_output", "call_id": "a", "output": "ok"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "output_text", "text": "ok"}]},
        ],
        "tools": [
            {"type": "function", "name": "exec_command"},
            {"type": "web_search"},
            {"type": "namespace", "name": "mcp__toy", "tools": [{"type": "function", "name": "job"}]},
        ],
    }
    request = wires.load("responses").decode_request("/v1/responses", body)
    assert [(turn.role, len(turn.blocks), turn.tool_results) for turn in request.turns] == [
        ("user", 1, 0),
        ("assistant", 2, 0),
        ("user", 2, 2),
    ]
    assert request.system == "be good\nand quiet"
    assert request.tools == ("exec_command", "web_search", "mcp__toy.job")
    assert wires.load("responses").decode_request("", {"input": "hi"}).turns[0].text == "hi"


def test_a_failure_in_mid_stream_has_no_status_and_gets_one() -> None:
    for code, reason in (
        ("rate_limit_exceeded", Reason.RATE_LIMIT),
        ("context_length_exceeded", Reason.CONTEXT_OVERFLOW),
        ("insufficient_quota", Reason.BUDGET),
        ("something_new", Reason.MODEL_ERROR),
    ):
        failure = responses.Responses().decode_error(200, {"error": {"code": code, "message": ""}}, {}, NOW)
        assert failure.reason is reason, code


def test_google_counts_thoughts_apart_and_the_cache_within() -> None:
    raw = {
        "promptTokenCount": 1000,
        "cachedContentTokenCount": 400,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 30,
        "toolUsePromptTokenCount": 5,
    }
    assert wires.load("gemini").decode_usage(raw) == Usage(input=605, output=50, cache_read=400)
    details = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}}
    assert wires.load("chat").decode_usage(details) == Usage(input=0, cache_read=40)


def test_gemini_is_asked_below_a_project_too() -> None:
    wire = wires.load("gemini")
    path = "/v1beta1/projects/p/locations/l/publishers/google/models/gemini-3:streamGenerateContent"
    assert wire.route("POST", path) == "reply"
    assert wire.decode_request(path, {}).model == "gemini-3"
    assert wire.route("POST", "/v1beta/models/m:countTokens") == "count"
    assert wire.route("GET", "/v1beta/models") == "models"
    part = [{"text": "thinking", "thought": True}, {"text": "said"}, {"text": " more"}]
    assert wire.decode_reply({"candidates": [{"content": {"parts": part}}]}).blocks == (Text("said more"),)
