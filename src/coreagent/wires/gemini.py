"""Google's generateContent, whole and streamed: contents, function calls, usage, and errors as google.rpc.Status."""

from __future__ import annotations

import re
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
    count,
    encode_sse,
    mapping,
    objects,
    plain,
    reason_of,
    retry_after,
    seconds,
    text_of,
    told_seconds,
)

STATUSES: Final[dict[int, str]] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
STOPS: Final = {"end_turn": "STOP", "tool_use": "STOP", "max_tokens": "MAX_TOKENS", "refusal": "SAFETY"}
_BACK: Final = {"MAX_TOKENS": "max_tokens", "SAFETY": "refusal", "PROHIBITED_CONTENT": "refusal", "STOP": ""}
# Also below /v1beta1/projects/... on Vertex.
_METHOD: Final = re.compile(r"/v1\w*/(?:.*/)?models/([^/:]+):(streamGenerateContent|generateContent|countTokens)")
_LIST: Final = re.compile(r"/v1(?:beta|alpha)\w*/models")
_RETRY_INFO: Final = "type.googleapis.com/google.rpc.RetryInfo"


class Gemini(Wire):
    """POST /v1beta/models/M:generateContent and :streamGenerateContent."""

    name: ClassVar[str] = "gemini"

    def route(self, method: str, path: str) -> Route:
        if method == "GET":
            return "models" if _LIST.fullmatch(path) else ""
        match = _METHOD.fullmatch(path)
        if not match or method != "POST":
            return ""
        return "count" if match[2] == "countTokens" else "reply"

    def path(self, model: str, *, stream: bool) -> str:
        return f"/v1beta/models/{model}:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}"

    def decode_request(self, path: str, body: Mapping[str, Any]) -> Request:
        match = _METHOD.fullmatch(path.partition("?")[0])
        turns = tuple(
            Turn("assistant" if item.get("role") == "model" else "user", tuple(_blocks(item.get("parts"))))
            for item in objects(body.get("contents"))
        )
        tools = (
            text_of(declared.get("name"))
            for tool in objects(body.get("tools"))
            for declared in objects(tool.get("functionDeclarations"))
        )
        return Request(
            model=match[1] if match else "",
            turns=turns,
            stream=bool(match and match[2] == "streamGenerateContent"),
            system=plain(mapping(body.get("systemInstruction")).get("parts") or body.get("systemInstruction")),
            tools=tuple(tools),
        )

    def encode_request(self, request: Request, max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "contents": [
                {"role": "model" if turn.role == "assistant" else "user", "parts": [_part(b) for b in turn.blocks]}
                for turn in request.turns
            ],
            "generationConfig": {"maxOutputTokens": max_tokens},
        }
        if request.system:
            body["systemInstruction"] = {"parts": [{"text": request.system}]}
        if request.tools:
            body["tools"] = [{"functionDeclarations": [{"name": name} for name in request.tools]}]
        return body

    def encode_usage(self, usage: Usage) -> dict[str, Any]:
        read = usage.input + usage.cache_read + usage.cache_write
        return {
            "promptTokenCount": read,
            "candidatesTokenCount": usage.output,
            "cachedContentTokenCount": usage.cache_read,
            "totalTokenCount": read + usage.output,
        }

    def decode_usage(self, raw: object) -> Usage:
        counts = mapping(raw)
        cached = count(counts, "cachedContentTokenCount")
        # Unlike elsewhere, what was thought is not a part of what was said.
        return Usage(
            input=max(count(counts, "promptTokenCount") + count(counts, "toolUsePromptTokenCount") - cached, 0),
            output=count(counts, "candidatesTokenCount") + count(counts, "thoughtsTokenCount"),
            cache_read=cached,
        )

    def encode_reply(self, reply: Reply) -> dict[str, Any]:
        document = self._document(reply, [_part(block) for block in reply.blocks], STOPS.get(reply.stop, reply.stop))
        return document | {"usageMetadata": self.encode_usage(reply.usage)}

    def _document(self, reply: Reply, parts: list[dict[str, Any]], finish: str = "") -> dict[str, Any]:
        candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": parts}}
        if finish:
            candidate["finishReason"] = finish
        return {"candidates": [candidate], "modelVersion": reply.model, "responseId": reply.id}

    def decode_reply(self, body: Mapping[str, Any]) -> Reply:
        builder = _Builder(self)
        builder.add(body)
        return builder.reply

    def stream(self, reply: Reply) -> Stream:
        documents = [self._document(reply, [_part(block)]) for block in reply.blocks]
        documents.append(
            self._document(reply, [{"text": ""}], STOPS.get(reply.stop, reply.stop))
            | {"usageMetadata": self.encode_usage(reply.usage)}
        )
        return Stream(tuple(encode_sse(document) for document in documents), min(1, len(reply.blocks)))

    def builder(self) -> Builder:
        return _Builder(self)

    def encode_error(self, status: int, message: str, retry_s: float = 0.0) -> dict[str, Any]:
        error: dict[str, Any] = {"code": status, "message": message, "status": STATUSES.get(status, "UNKNOWN")}
        if retry_s:
            error["message"] = f"{message}\nPlease retry in {retry_s:g}s."
            error["details"] = [{"@type": _RETRY_INFO, "retryDelay": f"{retry_s:g}s"}]
        return {"error": error}

    def decode_error(self, status: int, body: object, headers: Mapping[str, str], now: float) -> Failure:
        if isinstance(body, list) and body:
            body = body[0]
        error = mapping(mapping(body).get("error"))
        kind, message = text_of(error.get("status")), text_of(error.get("message"))
        if status == 200:
            status = count(error, "code") or 500
        kind = kind or STATUSES.get(status, "UNKNOWN")
        return Failure(status, kind, message, reason_of(status, message), retry_at(error, headers, now))

    def encode_count(self, tokens: int) -> dict[str, Any]:
        return {"totalTokens": tokens}

    def encode_models(self, models: Iterable[str]) -> dict[str, Any]:
        methods = ["generateContent", "countTokens"]
        return {
            "models": [{"name": f"models/{model}", "supportedGenerationMethods": methods} for model in models],
        }


class _Builder(Builder):
    def __init__(self, wire: Gemini) -> None:
        super().__init__()
        self._wire = wire
        self._blocks: list[Text | ToolUse] = []

    def add(self, event: Mapping[str, Any]) -> None:
        if event.get("error"):
            self.failure = self._wire.decode_error(200, event, {}, 0.0)
            return
        self.id = text_of(event.get("responseId")) or self.id
        self.model = text_of(event.get("modelVersion")) or self.model
        if event.get("usageMetadata"):
            self.usage = self._wire.decode_usage(event.get("usageMetadata"))
        candidate = (objects(event.get("candidates")) or [{}])[0]
        for block in _blocks(mapping(candidate.get("content")).get("parts")):
            last = self._blocks[-1] if self._blocks else None
            if isinstance(block, Text) and isinstance(last, Text):
                self._blocks[-1] = Text(last.text + block.text)
            elif isinstance(block, ToolUse) or (isinstance(block, Text) and block.text):
                self._blocks.append(block)
        if finish := text_of(candidate.get("finishReason")):
            self.stop_reason, self.complete = _BACK.get(finish, finish), True

    def blocks(self) -> tuple[Text | ToolUse, ...]:
        return tuple(self._blocks)


def _blocks(parts: object) -> Iterator[Block]:
    for part in objects(parts):
        call, answer = part.get("functionCall"), part.get("functionResponse")
        if isinstance(call, dict):
            yield ToolUse(text_of(call.get("id")), text_of(call.get("name")), mapping(call.get("args")))
        elif isinstance(answer, dict):
            said = mapping(answer.get("response"))
            error = said.get("error")
            told = text_of(error) or text_of(said.get("output"))
            yield ToolResult(text_of(answer.get("id")) or text_of(answer.get("name")), told, error is not None)
        elif isinstance(part.get("text"), str) and not part.get("thought"):
            yield Text(part["text"])


def _part(block: Block) -> dict[str, Any]:
    match block:
        case Text(text):
            return {"text": text}
        case ToolUse():
            return {"functionCall": {"id": block.id, "name": block.name, "args": block.input}}
        case ToolResult(identity, text, is_error):
            response = {"error" if is_error else "output": text}
            return {"functionResponse": {"id": identity, "name": identity, "response": response}}


def retry_at(error: Mapping[str, Any], headers: Mapping[str, str], now: float) -> float | None:
    """Return when the endpoint lets us in again: RetryInfo, `retry-after`, the text."""
    for detail in objects(error.get("details")):
        if detail.get("@type") == _RETRY_INFO and (wait := seconds(text_of(detail.get("retryDelay")))) is not None:
            return now + wait
    named = retry_after(headers, now)
    if named is not None:
        return named
    told = told_seconds(text_of(error.get("message")))
    return now + told if told is not None else None
