"""What every wire keeps: what is encoded is decoded again, whole, streamed or cut; refusals become reasons."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreagent import wires
from coreagent.models.agent import Reason, Usage
from coreagent.wires.base import Builder, Reply, Request, Text, ToolResult, ToolUse, Turn, decode_sse, seconds

MEMBERS = sorted(wires.FAMILY)
NOW = 1_800_000_000.0
every = pytest.mark.parametrize("name", MEMBERS)

_counts = st.integers(0, 10**9)
_usages = st.builds(Usage, input=st.integers(1, 10**9), output=_counts, cache_read=_counts, cache_write=_counts)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_tools = st.lists(st.dictionaries(_texts, _texts | st.integers(), max_size=3), max_size=3).map(
    lambda inputs: tuple(ToolUse(f"t{index}", "Write", value) for index, value in enumerate(inputs))
)
# Not every wire can say a text behind a tool call, or two of them.
_replies = st.builds(
    lambda text, tools, usage: Reply("r1", "m1", ((Text(text),) if text or not tools else ()) + tools, usage),
    _texts.filter(lambda text: text == text.strip()),
    _tools,
    _usages,
)
_json = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def same(name: str, back: Reply, sent: Reply) -> None:
    assert (back.id, back.model, back.text, back.tool_uses) == (sent.id, sent.model, sent.text, sent.tool_uses)
    assert back.stop == sent.stop
    assert back.usage == kept(name, sent.usage)
    assert back.usage.total == sent.usage.total


def kept(name: str, usage: Usage) -> Usage:
    if wires.load(name).caches_writes:
        return usage
    return Usage(input=usage.input + usage.cache_write, output=usage.output, cache_read=usage.cache_read)


def read(name: str, raw: bytes) -> Builder:
    builder = wires.load(name).builder()
    for event in decode_sse(raw.splitlines(keepends=True)):
        builder.add(event)
    return builder


@every
def test_it_says_who_it_is(name: str) -> None:
    wire = wires.load(name)
    assert wire.name == name
    for stream in (True, False):
        path = wire.path("m", stream=stream).partition("?")[0]
        assert wire.route("POST", path) == "reply"
        assert wire.route("GET", path) == wire.route("PUT", path) == ""
    assert wire.route("POST", "/v1/other") == wire.route("GET", "/") == ""
    assert json.dumps(wire.encode_models(["m"])).count('"m"') or "models/m" in json.dumps(wire.encode_models(["m"]))
    assert 7 in wire.encode_count(7).values()


@pytest.mark.parametrize("name", MEMBERS)
def test_no_two_wires_answer_one_path(name: str) -> None:
    path = wires.load(name).path("m", stream=True).partition("?")[0]
    assert [member for member in MEMBERS if wires.load(member).route("POST", path)] == [name]


@every
@given(reply=_replies)
def test_a_whole_reply_comes_back(name: str, reply: Reply) -> None:
    wire = wires.load(name)
    same(name, wire.decode_reply(json.loads(json.dumps(wire.encode_reply(reply)))), reply)


@every
@given(reply=_replies)
def test_a_streamed_reply_comes_back(name: str, reply: Reply) -> None:
    stream = wires.load(name).stream(reply)
    builder = read(name, b"".join(stream.chunks))
    assert builder.complete
    assert builder.failure is None
    same(name, builder.reply, reply)
    # A stream that is cut has not ended.
    assert 0 <= stream.cut < len(stream.chunks)
    assert not read(name, b"".join(stream.chunks[: stream.cut])).complete


@every
@given(reply=_replies, data=st.data())
def test_a_stream_cut_at_any_byte_is_read_so_far(name: str, reply: Reply, data: st.DataObject) -> None:
    raw = b"".join(wires.load(name).stream(reply).chunks)
    builder = read(name, raw[: data.draw(st.integers(0, len(raw)))])
    so_far = builder.reply
    assert reply.text.startswith(so_far.text)
    assert len(so_far.tool_uses) <= len(reply.tool_uses)
    if builder.complete:
        assert (so_far.text, so_far.tool_uses) == (reply.text, reply.tool_uses)


@every
@pytest.mark.parametrize("stop", ["max_tokens"])
def test_why_it_stopped_comes_back(name: str, stop: str) -> None:
    wire = wires.load(name)
    reply = Reply("r", "m", (Text("half a"),), stop_reason=stop)
    assert wire.decode_reply(wire.encode_reply(reply)).stop == stop
    assert read(name, b"".join(wire.stream(reply).chunks)).reply.stop == stop


@every
@pytest.mark.parametrize("stream", [True, False])
def test_a_request_comes_back(name: str, stream: bool) -> None:
    wire = wires.load(name)
    request = Request(
        model="m",
        turns=(
            Turn("user", (Text("hi"),)),
            Turn("assistant", (Text("I will."), ToolUse("t", "Write", {"a": 1}))),
            Turn("user", (ToolResult("t", "done"),)),
            Turn("assistant", (Text("Done."),)),
            Turn("user", (Text("go on"),)),
        ),
        stream=stream,
        system="be good",
        tools=("Write", "Read"),
    )
    body = json.loads(json.dumps(wire.encode_request(request, 100)))
    back = wire.decode_request(wire.path("m", stream=stream), body)
    assert back == request
    assert [turn.tool_results for turn in back.turns] == [0, 0, 1, 0, 0]


@every
@given(value=_json)
def test_what_is_malformed_is_left_out(name: str, value: Any) -> None:
    wire = wires.load(name)
    message = {"role": "user", "content": value, "parts": value, "tool_calls": value, "type": "message"}
    keys = ("messages", "input", "contents", "tools", "system", "instructions", "systemInstruction")
    items = (value, [value], [message], [{**message, "content": [value], "parts": [value]}], [{"type": value}])
    for body in ({key: item} for key in keys for item in items):
        wire.decode_request(wire.path("m", stream=True), body)
    wire.decode_usage(value)
    wire.decode_error(500, value, {}, NOW)
    wire.decode_error(500, {"error": value}, {}, NOW)
    builder = wire.builder()
    kinds = (
        "message_start", "content_block_start", "content_block_delta", "message_delta", "error", "response.created",
        "response.output_item.added", "response.output_item.done", "response.completed", "response.failed",
        "response.output_text.delta",
    )  # fmt: skip
    for kind in kinds:
        fields = ("message", "delta", "usage", "content_block", "item", "response", "index", "choices", "candidates")
        builder.add({"type": kind, **dict.fromkeys(fields, value)})
        builder.add({"type": kind, "choices": [value], "candidates": [value], "item": {"type": value}})
        builder.add({"choices": [{"delta": value}], "candidates": [{"content": value}], "usageMetadata": value})
    assert wire.decode_reply({"content": value, "output": value, "choices": value, "candidates": value}) is not None
    assert builder.reply is not None


STATUSES = [
    (400, "bad shape", Reason.BAD_REQUEST),
    (401, "", Reason.AUTH),
    (402, "", Reason.BUDGET),
    (403, "", Reason.AUTH),
    (404, "", Reason.BAD_REQUEST),
    (429, "", Reason.RATE_LIMIT),
    (500, "", Reason.MODEL_ERROR),
    (503, "", Reason.MODEL_ERROR),
    (529, "", Reason.MODEL_ERROR),
    (400, "prompt is too long: 402913 tokens > 200000 maximum", Reason.CONTEXT_OVERFLOW),
    (400, "This model's maximum context length is 8192 tokens.", Reason.CONTEXT_OVERFLOW),
    (400, "The input token count (2000000) exceeds the maximum number of tokens allowed", Reason.CONTEXT_OVERFLOW),
    (400, "Your credit balance is too low", Reason.BUDGET),
    (400, "API key not valid. Please pass a valid API key.", Reason.AUTH),
    (429, "You exceeded your current quota, please check your plan and billing details. (insufficient_quota)",
     Reason.BUDGET),
]  # fmt: skip


@every
@pytest.mark.parametrize(("status", "message", "reason"), STATUSES)
def test_statuses_mean_reasons(name: str, status: int, message: str, reason: Reason) -> None:
    wire = wires.load(name)
    failure = wire.decode_error(status, wire.encode_error(status, message), {}, NOW)
    assert (failure.status, failure.reason, failure.message) == (status, reason, message)
    assert failure.retry_at is None
    assert wire.decode_error(status, "not json", {}, NOW).reason in (reason, Reason.BAD_REQUEST, Reason.RATE_LIMIT)


@every
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "30"}, NOW + 30),
        ({"retry-after": "-5"}, NOW),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:00 GMT"}, NOW),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "1500"}, NOW + 1.5),
    ],
)
def test_resets(name: str, headers: dict[str, str], expected: float | None) -> None:
    wire = wires.load(name)
    assert wire.decode_error(429, wire.encode_error(429, "no"), headers, NOW).retry_at == expected


@pytest.mark.parametrize("name", sorted(set(MEMBERS) - {"anthropic"}))
def test_a_reset_stands_in_the_error_itself(name: str) -> None:
    wire = wires.load(name)
    failure = wire.decode_error(429, wire.encode_error(429, "no", 34.5), {}, NOW)
    assert (failure.retry_at, failure.reason) == (NOW + 34.5, Reason.RATE_LIMIT)


FAILED_STREAMS = {
    "anthropic": ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, 529),
    "responses": (
        {"type": "response.failed", "response": {"error": {"code": "server_is_overloaded", "message": "busy"}}},
        503,
    ),
    "chat": ({"error": {"code": 503, "message": "busy", "type": "server_error"}}, 503),
    "gemini": ({"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}, 503),
}


@every
def test_an_error_in_the_middle_of_a_stream(name: str) -> None:
    event, status = FAILED_STREAMS[name]
    builder = wires.load(name).builder()
    builder.add(event)
    assert builder.failure is not None
    assert (builder.failure.status, builder.failure.reason, builder.failure.message) == (
        status,
        Reason.MODEL_ERROR,
        "busy",
    )
    assert not builder.complete


def test_pings_and_comments_are_passed_over() -> None:
    raw = b': hi\n\nevent: ping\ndata: {"type": "ping"}\n\ndata: nonsense\n\ndata: {"type":\ndata: "x"}\n\ndata: [DONE]'
    assert list(decode_sse(raw.splitlines())) == [{"type": "x"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.5s", 1.5), ("6m0s", 360.0), ("20ms", 0.02), ("1h2m3s", 3723.0), ("1d", 86400.0), ("", None), ("soon", None),
     ("5", None), ("5x", None)],
)  # fmt: skip
def test_durations(text: str, expected: float | None) -> None:
    assert seconds(text) == expected
