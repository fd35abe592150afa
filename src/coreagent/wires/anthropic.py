"""Anthropic's Messages format: requests and replies, streamed or whole, usage, errors and rate-limit resets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final

from coreagent.models.agent import Usage
from coreagent.wires.base import (
    Block,
    Builder,
    Failure,
    Reply,
    Request,
    Route,
    Stream,
    Text,
    ToolResult,
    ToolUse,
    Turn,
    Wire,
    arguments,
    count,
    encode_sse,
    instant,
    lowered,
    mapping,
    objects,
    plain,
    reason_of,
    retry_after,
    text_of,
)

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


class Anthropic(Wire):
    """POST /v1/messages."""

    name: ClassVar[str] = "anthropic"
    caches_writes: ClassVar[bool] = True

    def route(self, method: str, path: str) -> Route:
        if method == "POST" and path == "/v1/messages":
            return "reply"
        return "count" if method == "POST" and path == "/v1/messages/count_tokens" else ""

    def path(self, model: str, *, stream: bool) -> str:
        return "/v1/messages"

    def decode_request(self, path: str, body: Mapping[str, Any]) -> Request:
        turns = tuple(
            Turn(text_of(item.get("role")), tuple(_blocks(item.get("content"))))
            for item in objects(body.get("messages"))
        )
        return Request(
            model=text_of(body.get("model")),
            turns=turns,
            stream=bool(body.get("stream")),
            system=plain(body.get("system")),
            tools=tuple(text_of(tool.get("name")) for tool in objects(body.get("tools"))),
        )

    def encode_request(self, request: Request, max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.model,
            "max_tokens": max_tokens,
            "messages": [
                {"role": turn.role, "content": [_encode_block(b) for b in turn.blocks]} for turn in request.turns
            ],
        }
        if request.stream:
            body["stream"] = True
        if request.system:
            body["system"] = request.system
        if request.tools:
            body["tools"] = [{"name": name, "input_schema": {"type": "object"}} for name in request.tools]
        return body

    def encode_usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "cache_read_input_tokens": usage.cache_read,
            "cache_creation_input_tokens": usage.cache_write,
        }

    def decode_usage(self, raw: object) -> Usage:
        return decode_usage(raw)

    def encode_reply(self, reply: Reply) -> dict[str, Any]:
        return {
            "id": reply.id,
            "type": "message",
            "role": "assistant",
            "model": reply.model,
            "content": [_encode_block(block) for block in reply.blocks],
            "stop_reason": reply.stop,
            "stop_sequence": None,
            "usage": self.encode_usage(reply.usage),
        }

    def decode_reply(self, body: Mapping[str, Any]) -> Reply:
        return Reply(
            id=text_of(body.get("id")),
            model=text_of(body.get("model")),
            blocks=tuple(block for block in _blocks(body.get("content")) if not isinstance(block, ToolResult)),
            usage=decode_usage(body.get("usage")),
            stop_reason=text_of(body.get("stop_reason")),
        )

    def stream(self, reply: Reply) -> Stream:
        events = list(self._events(reply))
        ends = ("content_block_stop", "message_delta")
        cut = next(index for index, event in enumerate(events) if event["type"] in ends)
        return Stream(tuple(encode_sse(event, event["type"]) for event in events), cut)

    def _events(self, reply: Reply) -> Iterator[dict[str, Any]]:
        start = {**self.encode_reply(reply), "content": [], "stop_reason": None}
        start["usage"] = {**self.encode_usage(reply.usage), "output_tokens": 0}
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
            "usage": self.encode_usage(reply.usage),
        }
        yield {"type": "message_stop"}

    def builder(self) -> Builder:
        return _Builder()

    def encode_error(self, status: int, message: str, retry_s: float = 0.0) -> dict[str, Any]:
        return {"type": "error", "error": {"type": ERROR_TYPES.get(status, "api_error"), "message": message}}

    def decode_error(self, status: int, body: object, headers: Mapping[str, str], now: float) -> Failure:
        error = mapping(mapping(body).get("error"))
        kind, message = text_of(error.get("type")), text_of(error.get("message"))
        if not kind:
            kind = ERROR_TYPES.get(status, "api_error")
        if status == 200:
            status = next((code for code, name in ERROR_TYPES.items() if name == kind), 500)
        return Failure(status, kind, message, reason_of(status, message), retry_at(headers, now))

    def encode_count(self, tokens: int) -> dict[str, Any]:
        return {"input_tokens": tokens}

    def encode_models(self, models: Iterable[str]) -> dict[str, Any]:
        return {"data": [{"type": "model", "id": model} for model in models], "has_more": False}


class _Builder(Builder):
    def __init__(self) -> None:
        super().__init__()
        self._opened: dict[int, dict[str, Any]] = {}
        self._partial: dict[int, list[str]] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        index = count(event, "index")
        match event.get("type"):
            case "message_start":
                message = mapping(event.get("message"))
                self.id, self.model = text_of(message.get("id")), text_of(message.get("model"))
                self.usage = decode_usage(message.get("usage"))
            case "content_block_start":
                self._opened[index] = mapping(event.get("content_block"))
            case "content_block_delta":
                delta = mapping(event.get("delta"))
                said = text_of(delta.get("text")) or text_of(delta.get("partial_json"))
                self._partial.setdefault(index, []).append(said)
            case "message_delta":
                self.stop_reason = text_of(mapping(event.get("delta")).get("stop_reason"))
                self.usage = _later(self.usage, event.get("usage"))
            case "message_stop":
                self.complete = True
            case "error":
                self.failure = Anthropic().decode_error(200, event, {}, 0.0)

    def blocks(self) -> tuple[Text | ToolUse, ...]:
        found: list[Text | ToolUse] = []
        for index, opened in sorted(self._opened.items()):
            text = "".join(self._partial.get(index, ()))
            if opened.get("type") == "text":
                found.append(Text(text_of(opened.get("text")) + text))
            elif opened.get("type") == "tool_use":
                found.append(ToolUse(text_of(opened.get("id")), text_of(opened.get("name")), arguments(text)))
        return tuple(found)


def _blocks(content: object) -> Iterator[Block]:
    if isinstance(content, str):
        yield Text(content)
        return
    for item in objects(content):
        match item.get("type"):
            case "text":
                yield Text(text_of(item.get("text")))
            case "tool_use":
                yield ToolUse(text_of(item.get("id")), text_of(item.get("name")), mapping(item.get("input")))
            case "tool_result":
                yield ToolResult(
                    text_of(item.get("tool_use_id")), plain(item.get("content")), bool(item.get("is_error"))
                )


def _encode_block(block: Block) -> dict[str, Any]:
    match block:
        case Text(text):
            return {"type": "text", "text": text}
        case ToolUse():
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": block.input}
        case ToolResult(identity, text, is_error):
            return {"type": "tool_result", "tool_use_id": identity, "content": text, "is_error": is_error}


def decode_usage(raw: object) -> Usage:
    """Read a `usage` object. `input_tokens` already excludes what came from the cache."""
    counts = mapping(raw)
    return Usage(
        input=count(counts, "input_tokens"),
        output=count(counts, "output_tokens"),
        cache_read=count(counts, "cache_read_input_tokens"),
        cache_write=count(counts, "cache_creation_input_tokens"),
    )


def _later(before: Usage, raw: object) -> Usage:
    # message_delta repeats the counts as totals of the message; a count it leaves out keeps its earlier value.
    after = decode_usage(raw)
    return Usage(
        input=after.input or before.input,
        output=after.output or before.output,
        cache_read=after.cache_read or before.cache_read,
        cache_write=after.cache_write or before.cache_write,
    )


def retry_at(headers: Mapping[str, str], now: float) -> float | None:
    """Return when the endpoint lets us in again, in epoch seconds: `retry-after`, else the latest empty bucket."""
    named = retry_after(headers, now)
    if named is not None:
        return named
    lower = lowered(headers)
    if lower.get(RESET_HEADERS[0]):
        return instant(lower[RESET_HEADERS[0]])
    times = [
        moment
        for name in RESET_HEADERS[1:]
        if name in lower
        and lower.get(name.removesuffix("reset") + "remaining", "0") == "0"
        and (moment := instant(lower[name])) is not None
    ]
    return max(times, default=None)
