"""OpenAI's Responses format: items in and out, function and freeform tools, usage, errors and rate-limit resets."""

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
    empty_bucket,
    encode_sse,
    mapping,
    objects,
    plain,
    reason_of,
    retry_after,
    text_of,
    told_seconds,
)

ERRORS: Final[dict[int, tuple[str, str]]] = {
    400: ("invalid_request_error", "invalid_request"),
    401: ("invalid_request_error", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_quota"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "server_error"),
    503: ("server_error", "server_is_overloaded"),
}
"""Status -> `type` and `code` of an error."""
STATUSES: Final[dict[str, int]] = {
    **{code: status for status, (_, code) in ERRORS.items()},
    "context_length_exceeded": 400,
    "usage_limit_reached": 429,
    "usage_not_included": 402,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "server_overloaded": 503,
    "invalid_prompt": 400,
}
"""What a failure in mid-stream, which has no status, would have been."""


class Responses(Wire):
    """POST /v1/responses."""

    name: ClassVar[str] = "responses"
    caches_writes: ClassVar[bool] = True

    def route(self, method: str, path: str) -> Route:
        # Not every base URL ends in /v1.
        short = path.removeprefix("/v1")
        if method == "GET":
            return "models" if short == "/models" else ""
        if method != "POST":
            return ""
        return "reply" if short == "/responses" else "count" if short == "/responses/input_tokens" else ""

    def path(self, model: str, *, stream: bool) -> str:
        return "/v1/responses"

    def decode_request(self, path: str, body: Mapping[str, Any]) -> Request:
        raw = body.get("input")
        turns, system = _turns([{"role": "user", "content": raw}] if isinstance(raw, str) else objects(raw))
        instructions = text_of(body.get("instructions"))
        return Request(
            model=text_of(body.get("model")),
            turns=turns,
            stream=bool(body.get("stream")),
            system="\n".join(part for part in (instructions, *system) if part),
            tools=tuple(_tool_names([*objects(body.get("tools")), *_later_tools(raw)])),
        )

    def encode_request(self, request: Request, max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.model,
            "max_output_tokens": max_tokens,
            "input": [item for turn in request.turns for block in turn.blocks if (item := _item(turn.role, block))],
        }
        if request.stream:
            body["stream"] = True
        if request.system:
            body["instructions"] = request.system
        if request.tools:
            body["tools"] = [
                {"type": "function", "name": name, "parameters": {"type": "object"}} for name in request.tools
            ]
        return body

    def encode_usage(self, usage: Usage) -> dict[str, Any]:
        read = usage.input + usage.cache_read + usage.cache_write
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + usage.output,
        }

    def decode_usage(self, raw: object) -> Usage:
        counts = mapping(raw)
        details = mapping(counts.get("input_tokens_details"))
        cached, written = count(details, "cached_tokens"), count(details, "cache_write_tokens")
        # The output's reasoning tokens are a part of it, as the input's cached ones are.
        return Usage(
            input=max(count(counts, "input_tokens") - cached - written, 0),
            output=count(counts, "output_tokens"),
            cache_read=cached,
            cache_write=written,
        )

    def encode_reply(self, reply: Reply) -> dict[str, Any]:
        return self._response(reply, [_item("assistant", block, reply.id) for block in reply.blocks], "completed")

    def _response(self, reply: Reply, output: list[dict[str, Any]], status: str) -> dict[str, Any]:
        response: dict[str, Any] = {"id": reply.id, "object": "response", "model": reply.model, "output": output}
        if status == "completed" and reply.stop_reason == "max_tokens":
            status = "incomplete"
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        response |= {"status": status, "error": None}
        response["usage"] = self.encode_usage(reply.usage) if status != "in_progress" else None
        return response

    def decode_reply(self, body: Mapping[str, Any]) -> Reply:
        return Reply(
            id=text_of(body.get("id")),
            model=text_of(body.get("model")),
            blocks=tuple(_said(objects(body.get("output")))),
            usage=self.decode_usage(body.get("usage")),
            stop_reason="max_tokens" if body.get("status") == "incomplete" else "",
        )

    def stream(self, reply: Reply) -> Stream:
        events = list(self._events(reply))
        cut = next(
            index
            for index, event in enumerate(events)
            if event["type"] in ("response.output_item.done", "response.completed", "response.incomplete")
        )
        return Stream(
            tuple(encode_sse({**event, "sequence_number": index}, event["type"]) for index, event in enumerate(events)),
            cut,
        )

    def _events(self, reply: Reply) -> Iterator[dict[str, Any]]:
        yield {"type": "response.created", "response": self._response(reply, [], "in_progress")}
        for index, block in enumerate(reply.blocks):
            item = _item("assistant", block, reply.id)
            opened = {**item, "status": "in_progress"}
            place = {"item_id": item["id"], "output_index": index}
            if isinstance(block, Text):
                yield {"type": "response.output_item.added", "output_index": index, "item": {**opened, "content": []}}
                yield {"type": "response.output_text.delta", **place, "content_index": 0, "delta": block.text}
            elif block.custom is not None:
                yield {"type": "response.output_item.added", "output_index": index, "item": {**opened, "input": ""}}
                yield {"type": "response.custom_tool_call_input.delta", **place, "delta": block.custom}
            else:
                yield {
                    "type": "response.output_item.added",
                    "output_index": index,
                    "item": {**opened, "arguments": ""},
                }
                yield {"type": "response.function_call_arguments.delta", **place, "delta": item["arguments"]}
            yield {"type": "response.output_item.done", "output_index": index, "item": item}
        response = self.encode_reply(reply)
        yield {"type": f"response.{response['status']}", "response": response}

    def builder(self) -> Builder:
        return _Builder(self)

    def encode_error(self, status: int, message: str, retry_s: float = 0.0) -> dict[str, Any]:
        kind, code = ERRORS.get(status, ("server_error", "server_error"))
        if retry_s:
            message = f"{message} Please try again in {retry_s:g}s."
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def decode_error(self, status: int, body: object, headers: Mapping[str, str], now: float) -> Failure:
        whole = mapping(body)
        error = mapping(whole.get("error")) or whole
        kind = text_of(error.get("code")) or text_of(error.get("type"))
        message = text_of(error.get("message")) or text_of(error.get("detail"))
        if status == 200:
            status = STATUSES.get(kind, 500)
        reason = reason_of(status, f"{kind} {message}")
        return Failure(status, kind, message, reason, retry_at(error, message, headers, now))

    def encode_count(self, tokens: int) -> dict[str, Any]:
        return {"object": "response.input_tokens", "input_tokens": tokens}

    def encode_models(self, models: Iterable[str]) -> dict[str, Any]:
        # One path for several askers: `models` is where codex looks, `has_more` is Anthropic's.
        listed = [{"id": model, "object": "model", "created": 0, "owned_by": "script"} for model in models]
        return {"object": "list", "data": listed, "has_more": False, "models": []}


class _Builder(Builder):
    def __init__(self, wire: Responses) -> None:
        super().__init__()
        self._wire = wire
        self._items: dict[int, dict[str, Any]] = {}
        self._partial: dict[int, str] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        index = count(event, "output_index")
        match event.get("type"):
            case "response.created":
                response = mapping(event.get("response"))
                self.id, self.model = text_of(response.get("id")), text_of(response.get("model"))
            case "response.output_item.added" | "response.output_item.done" as kind:
                self._items[index] = mapping(event.get("item"))
                if kind.endswith("done"):
                    self._partial.pop(index, None)
            case "response.output_text.delta":
                self._partial[index] = self._partial.get(index, "") + text_of(event.get("delta"))
            case "response.completed" | "response.incomplete":
                reply = self._wire.decode_reply(mapping(event.get("response")))
                self.usage, self.stop_reason, self.complete = reply.usage, reply.stop_reason, True
            case "response.failed":
                error = mapping(mapping(event.get("response")).get("error"))
                self.failure = self._wire.decode_error(200, {"error": error}, {}, 0.0)
            case "error":
                self.failure = self._wire.decode_error(200, event, {}, 0.0)

    def blocks(self) -> tuple[Text | ToolUse, ...]:
        found: list[Text | ToolUse] = []
        for index, item in sorted(self._items.items()):
            if index in self._partial:
                found.append(Text(self._partial[index]))
            else:
                found += _said([item])
        return tuple(found)


def _item(role: str, block: Block, stem: str = "") -> dict[str, Any]:
    match block:
        case Text(text):
            kind = "output_text" if role == "assistant" else "input_text"
            part = {"type": kind, "text": text, **({"annotations": []} if role == "assistant" else {})}
            item: dict[str, Any] = {"type": "message", "role": role, "content": [part]}
            return {**item, "id": f"msg_{stem}", "status": "completed"} if stem else item
        case ToolResult(identity, text, _):
            return {"type": "function_call_output", "call_id": identity, "output": text}
        case ToolUse():
            item = {"call_id": block.id, "name": block.name, "id": f"item_{block.id}", "status": "completed"}
            if block.custom is not None:
                return {"type": "custom_tool_call", **item, "input": block.custom}
            if block.namespace:
                item["namespace"] = block.namespace
            return {"type": "function_call", **item, "arguments": json.dumps(block.input)}


def _said(items: Iterable[Mapping[str, Any]]) -> Iterator[Text | ToolUse]:
    for item in items:
        name, identity = text_of(item.get("name")), text_of(item.get("call_id"))
        match item.get("type"):
            case "message":
                yield Text(plain(item.get("content")))
            case "function_call":
                space = text_of(item.get("namespace"))
                yield ToolUse(identity, name, arguments(item.get("arguments")), space)
            case "custom_tool_call":
                yield ToolUse(identity, name, {}, custom=text_of(item.get("input")))


def _turns(items: Iterable[dict[str, Any]]) -> tuple[tuple[Turn, ...], list[str]]:
    """Group the items into turns; what the developer says is not a turn but told apart."""
    turns: list[Turn] = []
    system: list[str] = []
    for item in items:
        kind, role = item.get("type", "message"), text_of(item.get("role"))
        blocks: tuple[Block, ...] = ()
        if kind == "message" and role in ("system", "developer"):
            system.append(plain(item.get("content")))
        elif kind == "message":
            blocks = (Text(plain(item.get("content"))),)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            role = "user"
            blocks = (ToolResult(text_of(item.get("call_id")), plain(item.get("output"))),)
        else:
            role, blocks = "assistant", tuple(_said([item]))
        if not blocks:
            continue
        if turns and turns[-1].role == role:
            blocks = turns.pop().blocks + blocks
        turns.append(Turn(role, blocks))
    return tuple(turns), system


def _later_tools(items: object) -> Iterator[dict[str, Any]]:
    """Tools that are named among what was said, as codex does for its newer models."""
    for item in objects(items):
        if item.get("type") == "additional_tools":
            yield from objects(item.get("tools"))


def _tool_names(tools: object) -> Iterator[str]:
    for tool in objects(tools):
        if tool.get("type") == "namespace":
            space = text_of(tool.get("name"))
            yield from (f"{space}.{name}" for name in _tool_names(tool.get("tools")))
        else:
            yield text_of(tool.get("name")) or text_of(tool.get("type"))


def retry_at(error: Mapping[str, Any], message: str, headers: Mapping[str, str], now: float) -> float | None:
    """Return when the endpoint lets us in again: what the error says, `retry-after`, the text, the empty buckets."""
    if at := count(error, "resets_at"):
        return float(at)
    if wait := count(error, "resets_in_seconds"):
        return now + wait
    named = retry_after(headers, now)
    if named is not None:
        return named
    told = told_seconds(message)
    return now + told if told is not None else empty_bucket(headers, now)
