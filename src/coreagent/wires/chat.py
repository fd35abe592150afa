"""OpenAI's chat completions, the format that most other providers speak too."""

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

ERROR_TYPES: Final[dict[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
STOPS: Final = {"end_turn": "stop", "tool_use": "tool_calls", "max_tokens": "length", "refusal": "content_filter"}
_BACK: Final = {there: here for here, there in STOPS.items()}


class Chat(Wire):
    """POST /v1/chat/completions."""

    name: ClassVar[str] = "chat"

    def route(self, method: str, path: str) -> Route:
        # Not every base URL ends in /v1.
        short = path.removeprefix("/v1")
        if method == "GET":
            return "models" if short == "/models" else ""
        return "reply" if method == "POST" and short == "/chat/completions" else ""

    def path(self, model: str, *, stream: bool) -> str:
        return "/v1/chat/completions"

    def decode_request(self, path: str, body: Mapping[str, Any]) -> Request:
        turns: list[Turn] = []
        system: list[str] = []
        for item in objects(body.get("messages")):
            role = text_of(item.get("role"))
            if role in ("system", "developer"):
                system.append(plain(item.get("content")))
                continue
            blocks: tuple[Block, ...]
            if role == "tool":
                role = "user"
                blocks = (ToolResult(text_of(item.get("tool_call_id")), plain(item.get("content"))),)
            else:
                blocks = tuple(_said(item))
            if turns and turns[-1].role == role:
                blocks = turns.pop().blocks + blocks
            turns.append(Turn(role, blocks))
        return Request(
            model=text_of(body.get("model")),
            turns=tuple(turns),
            stream=bool(body.get("stream")),
            system="\n".join(system),
            tools=tuple(text_of(_called(tool).get("name")) for tool in objects(body.get("tools"))),
        )

    def encode_request(self, request: Request, max_tokens: int) -> dict[str, Any]:
        messages = [{"role": "system", "content": request.system}] if request.system else []
        for turn in request.turns:
            messages += _messages(turn)
        body: dict[str, Any] = {"model": request.model, "max_completion_tokens": max_tokens, "messages": messages}
        if request.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if request.tools:
            body["tools"] = [
                {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
                for name in request.tools
            ]
        return body

    def encode_usage(self, usage: Usage) -> dict[str, Any]:
        read = usage.input + usage.cache_read + usage.cache_write
        return {
            "prompt_tokens": read,
            "completion_tokens": usage.output,
            "total_tokens": read + usage.output,
            "prompt_tokens_details": {"cached_tokens": usage.cache_read},
        }

    def decode_usage(self, raw: object) -> Usage:
        counts = mapping(raw)
        cached = count(mapping(counts.get("prompt_tokens_details")), "cached_tokens")
        return Usage(
            input=max(count(counts, "prompt_tokens") - cached, 0),
            output=count(counts, "completion_tokens"),
            cache_read=cached,
        )

    def encode_reply(self, reply: Reply) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        if reply.tool_uses:
            message["tool_calls"] = [_call(tool) for tool in reply.tool_uses]
        choice = {"index": 0, "message": message, "finish_reason": STOPS.get(reply.stop, reply.stop)}
        return self._document(reply, "chat.completion", [choice]) | {"usage": self.encode_usage(reply.usage)}

    def _document(self, reply: Reply, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": reply.id, "object": kind, "created": 0, "model": reply.model, "choices": choices}

    def decode_reply(self, body: Mapping[str, Any]) -> Reply:
        choice = (objects(body.get("choices")) or [{}])[0]
        return Reply(
            id=text_of(body.get("id")),
            model=text_of(body.get("model")),
            blocks=tuple(_said(mapping(choice.get("message")))),
            usage=self.decode_usage(body.get("usage")),
            stop_reason=_stop(choice.get("finish_reason")),
        )

    def stream(self, reply: Reply) -> Stream:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if reply.text:
            deltas.append({"content": reply.text})
        deltas += [{"tool_calls": [{"index": i, **_call(tool)}]} for i, tool in enumerate(reply.tool_uses)]
        finish = STOPS.get(reply.stop, reply.stop)
        choices: list[list[dict[str, Any]]] = [
            *([{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas),
            [{"index": 0, "delta": {}, "finish_reason": finish}],
        ]
        documents = [self._document(reply, "chat.completion.chunk", choice) for choice in choices]
        # The counts come last, in a chunk that holds nothing else.
        documents.append(self._document(reply, "chat.completion.chunk", []) | {"usage": self.encode_usage(reply.usage)})
        chunks = (*(encode_sse(document) for document in documents), b"data: [DONE]\n\n")
        return Stream(chunks, min(2, len(deltas)))

    def builder(self) -> Builder:
        return _Builder(self)

    def encode_error(self, status: int, message: str, retry_s: float = 0.0) -> dict[str, Any]:
        if retry_s:
            message = f"{message} Please try again in {retry_s:g}s."
        kind = ERROR_TYPES.get(status, "server_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": status}}

    def decode_error(self, status: int, body: object, headers: Mapping[str, str], now: float) -> Failure:
        error = mapping(mapping(body).get("error"))
        code = error.get("code")
        kind = (code if isinstance(code, str) else "") or text_of(error.get("type"))
        message = text_of(error.get("message"))
        if status == 200:
            known = next((number for number, name in ERROR_TYPES.items() if name == kind), 500)
            status = code if isinstance(code, int) and 400 <= code < 600 else known
        reason = reason_of(status, f"{kind} {message}")
        return Failure(status, kind, message, reason, retry_at(message, headers, now))

    def encode_count(self, tokens: int) -> dict[str, Any]:
        return {"input_tokens": tokens}

    def encode_models(self, models: Iterable[str]) -> dict[str, Any]:
        listed = [{"id": model, "object": "model", "created": 0, "owned_by": "script"} for model in models]
        return {"object": "list", "data": listed}


class _Builder(Builder):
    def __init__(self, wire: Chat) -> None:
        super().__init__()
        self._wire = wire
        self._text: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        if event.get("error"):
            self.failure = self._wire.decode_error(200, event, {}, 0.0)
            return
        self.id, self.model = text_of(event.get("id")) or self.id, text_of(event.get("model")) or self.model
        if event.get("usage"):
            self.usage = self._wire.decode_usage(event.get("usage"))
        for choice in objects(event.get("choices")):
            delta = mapping(choice.get("delta"))
            self._text.append(text_of(delta.get("content")))
            for call in objects(delta.get("tool_calls")):
                self._add_call(call)
            if choice.get("finish_reason"):
                self.stop_reason, self.complete = _stop(choice["finish_reason"]), True

    def _add_call(self, call: dict[str, Any]) -> None:
        index, called = count(call, "index"), _called(call)
        self._calls.setdefault(index, call)
        more = text_of(called.get("arguments")) or text_of(called.get("input"))
        self._inputs[index] = self._inputs.get(index, "") + more

    def blocks(self) -> tuple[Text | ToolUse, ...]:
        text = "".join(self._text)
        calls = (_use(call, self._inputs[index]) for index, call in sorted(self._calls.items()))
        return (*((Text(text),) if text else ()), *calls)


def _stop(finish: object) -> str:
    return _BACK.get(text_of(finish), text_of(finish))


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    return mapping(call.get("function")) or mapping(call.get("custom"))


def _call(tool: ToolUse) -> dict[str, Any]:
    if tool.custom is not None:
        return {"id": tool.id, "type": "custom", "custom": {"name": tool.name, "input": tool.custom}}
    return {"id": tool.id, "type": "function", "function": {"name": tool.name, "arguments": json.dumps(tool.input)}}


def _use(call: Mapping[str, Any], text: str) -> ToolUse:
    identity, name = text_of(call.get("id")), text_of(_called(call).get("name"))
    if call.get("custom"):
        return ToolUse(identity, name, {}, custom=text)
    return ToolUse(identity, name, arguments(text))


def _said(message: Mapping[str, Any]) -> Iterator[Text | ToolUse]:
    text = plain(message.get("content"))
    if text:
        yield Text(text)
    for call in objects(message.get("tool_calls")):
        called = _called(call)
        yield _use(call, text_of(called.get("arguments")) or text_of(called.get("input")))


def _messages(turn: Turn) -> Iterator[dict[str, Any]]:
    for block in turn.blocks:
        if isinstance(block, ToolResult):
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text}
    tools = [block for block in turn.blocks if isinstance(block, ToolUse)]
    if turn.text or tools:
        message: dict[str, Any] = {"role": turn.role, "content": turn.text or None}
        yield {**message, "tool_calls": [_call(tool) for tool in tools]} if tools else message


def retry_at(message: str, headers: Mapping[str, str], now: float) -> float | None:
    """Return when the endpoint lets us in again: `retry-after`, the text, the empty buckets."""
    named = retry_after(headers, now)
    if named is not None:
        return named
    told = told_seconds(message)
    return now + told if told is not None else empty_bucket(headers, now)
