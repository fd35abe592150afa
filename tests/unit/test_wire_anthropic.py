"""Anthropic's wire: what is encoded is decoded again, whole, streamed or cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreagent.models.agent import Reason, Usage
from coreagent.wires import anthropic as wire

NOW = 1_800_000_000.0

_usages = st.builds(
    Usage,
    input=st.integers(1, 10**9),
    output=st.integers(1, 10**9),
    cache_read=st.integers(0, 10**9),
    cache_write=st.integers(0, 10**9),
)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_blocks = st.one_of(
    st.builds(wire.Text, _texts),
    st.builds(
        wire.ToolUse, st.text("ab1", min_size=1), _texts, st.dictionaries(_texts, _texts | st.integers(), max_size=3)
    ),
)
_replies = st.builds(
    wire.Reply, st.text("abc", min_size=1), st.just("claude"), st.lists(_blocks, max_size=4).map(tuple), _usages
)


def stream(reply: wire.Reply) -> bytes:
    return b"".join(wire.encode_sse(event) for event in wire.stream_events(reply))


def read(raw: bytes) -> wire.ReplyBuilder:
    builder = wire.ReplyBuilder()
    for event in wire.decode_sse(raw.splitlines(keepends=True)):
        builder.add(event)
    return builder


@given(_replies)
def test_a_whole_reply_comes_back(reply: wire.Reply) -> None:
    back = wire.decode_reply(json.loads(json.dumps(wire.encode_reply(reply))))
    assert (back.id, back.model, back.blocks, back.usage, back.stop) == (
        reply.id,
        reply.model,
        reply.blocks,
        reply.usage,
        reply.stop,
    )


@given(_replies)
def test_a_streamed_reply_comes_back(reply: wire.Reply) -> None:
    builder = read(stream(reply))
    assert builder.complete
    assert (builder.reply.blocks, builder.reply.usage, builder.reply.stop) == (reply.blocks, reply.usage, reply.stop)


@given(_replies, st.data())
def test_a_stream_cut_anywhere_is_read_so_far_and_is_incomplete(reply: wire.Reply, data: st.DataObject) -> None:
    raw = stream(reply)
    end = raw.index(b"event: message_stop")
    builder = read(raw[: data.draw(st.integers(0, end))])
    assert not builder.complete
    assert len(builder.reply.blocks) <= len(reply.blocks)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_a_malformed_request_is_left_out(value: Any) -> None:
    for body in (
        {"messages": value},
        {"tools": value},
        {"messages": [value]},
        {"messages": [{"role": "user", "content": value}]},
        {"system": value},
    ):
        wire.decode_request(body)
    wire.decode_usage(value)


def test_a_request_comes_back() -> None:
    request = wire.Request(
        model="m",
        turns=(
            wire.Turn("user", (wire.Text("hi"),)),
            wire.Turn("assistant", (wire.ToolUse("t", "Write", {"a": 1}),)),
            wire.Turn("user", (wire.ToolResult("t", "done", True), wire.Text("go on"))),
        ),
        stream=True,
        system="be good",
        tools=(),
    )
    assert wire.decode_request(wire.encode_request(request, 100)) == request
    assert [turn.tool_results for turn in request.turns] == [0, 0, 1]


def test_pings_and_comments_are_passed_over() -> None:
    raw = (
        b': hello\n\nevent: ping\ndata: {"type": "ping"}\n\ndata: nonsense\n\ndata: {"type":\ndata: "message_stop"}\n\n'
    )
    assert list(wire.decode_sse(raw.splitlines())) == [{"type": "message_stop"}]


def test_an_error_in_the_middle_of_a_stream() -> None:
    raw = wire.encode_sse({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}})
    failure = read(raw).failure
    assert failure is not None
    assert (failure.status, failure.reason, failure.message) == (529, Reason.MODEL_ERROR, "busy")


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (400, "bad", Reason.BAD_REQUEST),
        (400, "prompt is too long: 402913 tokens > 200000 maximum", Reason.CONTEXT_OVERFLOW),
        (400, "Your credit balance is too low", Reason.BUDGET),
        (401, "", Reason.AUTH),
        (402, "", Reason.BUDGET),
        (403, "", Reason.AUTH),
        (404, "", Reason.BAD_REQUEST),
        (413, "", Reason.CONTEXT_OVERFLOW),
        (429, "", Reason.RATE_LIMIT),
        (500, "", Reason.MODEL_ERROR),
        (529, "", Reason.MODEL_ERROR),
    ],
)
def test_statuses_mean_reasons(status: int, message: str, reason: Reason) -> None:
    failure = wire.decode_error(status, wire.encode_error(status, message), {}, NOW)
    assert (failure.status, failure.reason, failure.message) == (status, reason, message)
    assert wire.decode_error(status, "not json", {}, NOW).reason in (reason, Reason.BAD_REQUEST)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "30"}, NOW + 30),
        ({"retry-after": "-5"}, NOW),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:00 GMT"}, NOW),
        ({"retry-after": "soon"}, None),
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
def test_resets(headers: dict[str, str], expected: float | None) -> None:
    assert wire.retry_at(headers, NOW) == expected
