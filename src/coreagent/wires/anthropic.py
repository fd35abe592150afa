"""Anthropic's Messages format: requests and replies, streamed or whole, usage, errors and rate-limit resets.

Pure functions and values: no sockets, no clock but the one handed in. The scripted model server encodes with it and
whatever talks to or looks at a real endpoint decodes with it.
"""

from __future__ import annotations

import email.utils
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from coreagent.models.agent import Reason, Usage

ERROR_TYPES: Final[dict[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}

# The server's own limit headers, most specific first; each names the time its bucket is full again (RFC 3339).
RESET_HEADERS: Final = (
    "anthropic-ratelimit-unified-reset",
    "anthropic-ratelimit-requests-reset",
    "anthropic-ratelimit-tokens-reset",
    "anthropic-ratelimit-input-tokens-reset",
    "anthropic-ratelimit-output-tokens-reset",
)
_OVERFLOW: Final = ("prompt is too long", "exceed context limit", "context window", "maximum context length")


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class ToolUse:
    id: str
    name: str
    input: dict[str, Any]


@dataclass(frozen=True)
class ToolResult:
    tool_use_id: str
    text: str
    is_error: bool = False


Block = Text | ToolUse | ToolResult


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    blocks: tuple[Block, ...]

    @property
    def text(self) -> str:
        return "\n".join(block.text for block in self.blocks if isinstance(block, Text))

    @property
    def tool_results(self) -> int:
        return sum(isinstance(block, ToolResult) for block in self.blocks)


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    model: str
    turns: tuple[Turn, ...]
    stream: bool
    system: str
    tools: tuple[str, ...]


@dataclass(frozen=True)
class Reply:
    """One message of the model."""

    id: str
    model: str
    blocks: tuple[Text | ToolUse, ...]
    usage: Usage = field(default_factory=Usage)
    stop_reason: str = ""

    @property
    def stop(self) -> str:
        if self.stop_reason:
            return self.stop_reason
        return "tool_use" if any(isinstance(block, ToolUse) for block in self.blocks) else "end_turn"


@dataclass(frozen=True)
class Failure:
    """A refusal by the endpoint."""

    status: int
    type: str
    message: str
    reason: Reason
    retry_at: float | None = None
    """Epoch seconds, when the endpoint named a time."""


# ---- requests -------------------------------------------------------------------------------------------------------


def decode_request(body: Mapping[str, Any]) -> Request:
    """Read a Messages request; what is malformed is left out, never fatal."""
    turns = tuple(
        Turn(str(item.get("role", "")), tuple(_blocks(item.get("content")))) for item in _objects(body.get("messages"))
    )
    tools = tuple(str(tool.get("name", "")) for tool in _objects(body.get("tools")))
    return Request(
        model=str(body.get("model", "")),
        turns=turns,
        stream=bool(body.get("stream")),
        system=_plain(body.get("system")),
        tools=tools,
    )


def encode_request(request: Request, max_tokens: int) -> dict[str, Any]:
    """Write a Messages request (tools need schemas and are the caller's to add)."""
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": max_tokens,
        "messages": [{"role": turn.role, "content": [encode_block(b) for b in turn.blocks]} for turn in request.turns],
    }
    if request.stream:
        body["stream"] = True
    if request.system:
        body["system"] = request.system
    return body


def _objects(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _blocks(content: object) -> Iterator[Block]:
    if isinstance(content, str):
        yield Text(content)
        return
    for item in _objects(content):
        match item.get("type"):
            case "text":
                yield Text(str(item.get("text", "")))
            case "tool_use":
                arguments = item.get("input")
                yield ToolUse(
                    str(item.get("id", "")),
                    str(item.get("name", "")),
                    arguments if isinstance(arguments, dict) else {},
                )
            case "tool_result":
                yield ToolResult(
                    str(item.get("tool_use_id", "")), _plain(item.get("content")), bool(item.get("is_error"))
                )


def _plain(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(item.get("text", "")) for item in content if isinstance(item, dict) and "text" in item)
    return ""


def encode_block(block: Block) -> dict[str, Any]:
    match block:
        case Text(text):
            return {"type": "text", "text": text}
        case ToolUse(identity, name, arguments):
            return {"type": "tool_use", "id": identity, "name": name, "input": arguments}
        case ToolResult(identity, text, is_error):
            return {"type": "tool_result", "tool_use_id": identity, "content": text, "is_error": is_error}


# ---- replies --------------------------------------------------------------------------------------------------------


def encode_usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation_input_tokens": usage.cache_write,
    }


def decode_usage(raw: object) -> Usage:
    """Read a `usage` object. `input_tokens` already excludes what came from the cache."""
    if not isinstance(raw, dict):
        return Usage()

    def count(key: str) -> int:
        value = raw.get(key)
        return int(value) if isinstance(value, int | float) and 0 <= value < 2**63 else 0

    return Usage(
        input=count("input_tokens"),
        output=count("output_tokens"),
        cache_read=count("cache_read_input_tokens"),
        cache_write=count("cache_creation_input_tokens"),
    )


def encode_reply(reply: Reply) -> dict[str, Any]:
    """The whole message, for a request that is not streamed."""
    return {
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [encode_block(block) for block in reply.blocks],
        "stop_reason": reply.stop,
        "stop_sequence": None,
        "usage": encode_usage(reply.usage),
    }


def decode_reply(body: Mapping[str, Any]) -> Reply:
    return Reply(
        id=str(body.get("id", "")),
        model=str(body.get("model", "")),
        blocks=tuple(block for block in _blocks(body.get("content")) if not isinstance(block, ToolResult)),
        usage=decode_usage(body.get("usage")),
        stop_reason=str(body.get("stop_reason") or ""),
    )


def stream_events(reply: Reply) -> Iterator[dict[str, Any]]:
    """The same message as the events of a stream."""
    start = {**encode_reply(reply), "content": [], "stop_reason": None}
    start["usage"] = {**encode_usage(reply.usage), "output_tokens": 0}
    yield {"type": "message_start", "message": start}
    for index, block in enumerate(reply.blocks):
        opened: dict[str, Any]
        delta: dict[str, Any]
        if isinstance(block, Text):
            opened, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": block.text}
        else:
            opened = {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block.input)}
        yield {"type": "content_block_start", "index": index, "content_block": opened}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": reply.stop, "stop_sequence": None},
        "usage": encode_usage(reply.usage),
    }
    yield {"type": "message_stop"}


def encode_sse(event: Mapping[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def decode_sse(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Read server-sent events; comments, pings and what is not JSON are passed over."""
    data: list[bytes] = []
    for raw in (*lines, b""):
        line = raw.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line and data:
            joined, data = b"\n".join(data), []
            try:
                event = json.loads(joined)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("type") != "ping":
                yield event


@dataclass
class ReplyBuilder:
    """Puts a stream together again; usable at any point of a stream that is cut."""

    id: str = ""
    model: str = ""
    usage: Usage = field(default_factory=Usage)
    stop_reason: str = ""
    complete: bool = False
    failure: Failure | None = None
    _blocks: dict[int, dict[str, Any]] = field(default_factory=dict)
    _partial: dict[int, list[str]] = field(default_factory=dict)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event of `decode_sse`."""
        match event.get("type"):
            case "message_start":
                message = event.get("message") or {}
                self.id, self.model = str(message.get("id", "")), str(message.get("model", ""))
                self.usage = decode_usage(message.get("usage"))
            case "content_block_start":
                self._blocks[int(event.get("index", 0))] = dict(event.get("content_block") or {})
            case "content_block_delta":
                delta, index = event.get("delta") or {}, int(event.get("index", 0))
                self._partial.setdefault(index, []).append(str(delta.get("text") or delta.get("partial_json") or ""))
            case "message_delta":
                self.stop_reason = str((event.get("delta") or {}).get("stop_reason") or "")
                self.usage = _later(self.usage, event.get("usage"))
            case "message_stop":
                self.complete = True
            case "error":
                self.failure = decode_error(200, event, {}, 0.0)

    @property
    def reply(self) -> Reply:
        blocks: list[Text | ToolUse] = []
        for index, opened in sorted(self._blocks.items()):
            text = "".join(self._partial.get(index, ()))
            if opened.get("type") == "text":
                blocks.append(Text(str(opened.get("text", "")) + text))
            elif opened.get("type") == "tool_use":
                try:
                    arguments = json.loads(text or "{}")
                except ValueError:
                    arguments = {}
                blocks.append(
                    ToolUse(
                        str(opened.get("id", "")),
                        str(opened.get("name", "")),
                        arguments if isinstance(arguments, dict) else {},
                    )
                )
        return Reply(self.id, self.model, tuple(blocks), self.usage, self.stop_reason)


def _later(before: Usage, raw: object) -> Usage:
    # message_delta repeats the counts as totals of the message; a count it leaves out keeps its earlier value.
    after = decode_usage(raw)
    return Usage(
        input=after.input or before.input,
        output=after.output or before.output,
        cache_read=after.cache_read or before.cache_read,
        cache_write=after.cache_write or before.cache_write,
    )


# ---- failures -------------------------------------------------------------------------------------------------------


def encode_error(status: int, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": ERROR_TYPES.get(status, "api_error"), "message": message}}


def decode_error(status: int, body: object, headers: Mapping[str, str], now: float) -> Failure:
    """Read a refusal. `headers` are matched without regard to case."""
    error = body.get("error") if isinstance(body, Mapping) else None
    error = error if isinstance(error, Mapping) else {}
    kind, message = str(error.get("type", "")), str(error.get("message", ""))
    if not kind:
        kind = ERROR_TYPES.get(status, "api_error")
    if status == 200:
        status = next((code for code, name in ERROR_TYPES.items() if name == kind), 500)
    return Failure(status, kind, message, reason_of(status, message), retry_at(headers, now))


def reason_of(status: int, message: str = "") -> Reason:
    """Name what an HTTP status of this wire means for an attempt."""
    text = message.lower()
    if status == 400 and "credit balance" in text:
        return Reason.BUDGET
    if status in (400, 413) and any(mark in text for mark in _OVERFLOW):
        return Reason.CONTEXT_OVERFLOW
    if status in (401, 403):
        return Reason.AUTH
    if status == 402:
        return Reason.BUDGET
    if status == 413:
        return Reason.CONTEXT_OVERFLOW
    if status == 429:
        return Reason.RATE_LIMIT
    if status == 408 or status >= 500:
        return Reason.MODEL_ERROR
    return Reason.BAD_REQUEST if 400 <= status < 500 else Reason.ERROR


def retry_at(headers: Mapping[str, str], now: float) -> float | None:
    """Return when the endpoint lets us in again, in epoch seconds: `retry-after`, else the latest empty bucket."""
    lower = {name.lower(): value.strip() for name, value in headers.items()}
    after = lower.get("retry-after", "")
    if after:
        try:
            return now + max(float(after), 0.0)
        except ValueError:
            parsed = email.utils.parsedate_tz(after)
            if parsed:
                return float(email.utils.mktime_tz(parsed))
    if lower.get("anthropic-ratelimit-unified-reset"):
        return _instant(lower["anthropic-ratelimit-unified-reset"])
    times = [
        instant
        for name in RESET_HEADERS[1:]
        if name in lower
        and lower.get(name.removesuffix("reset") + "remaining", "0") == "0"
        and (instant := _instant(lower[name])) is not None
    ]
    return max(times, default=None)


def _instant(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
