"""What every wire is: a model provider's format, read and written, in nouns that all providers share.

Pure functions and values: no sockets, no clock but the one handed in. The scripted model server encodes with a wire,
whatever talks to or looks at a real endpoint decodes with it. A wire knows its provider and nothing of runners.
"""

from __future__ import annotations

import email.utils
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal

from coreagent.models.agent import Reason, Usage

Route = Literal["", "reply", "count", "models"]
"""What an endpoint's path asks for; "" is none of this wire's."""

_OVERFLOW: Final = (
    "prompt is too long",
    "exceed context limit",
    "context window",
    "context length",
    "context_length_exceeded",
    "input token count",
)
_POOR: Final = (
    "credit balance",
    "insufficient_quota",
    "exceeded your current quota, please check your plan and billing",
)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s|d)")
_AGAIN: Final = re.compile(
    r"(?:again|retry|reset)s? (?:in|after) ((?:\d+(?:\.\d+)?(?:ms|h|m|s|d)\s*)+)(?!\w)", re.IGNORECASE
)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
COUNT_MAX: Final = 2**63


# ---- nouns ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class ToolUse:
    id: str
    name: str
    input: dict[str, Any]
    namespace: str = ""
    """The group a tool is called in, where the wire has groups."""
    custom: str | None = None
    """The whole input of a freeform tool, which takes a text and no object."""


@dataclass(frozen=True)
class ToolResult:
    tool_use_id: str
    text: str
    is_error: bool = False


Block = Text | ToolUse | ToolResult


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; `role` is user or assistant, whatever the wire calls them."""

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
    """end_turn, tool_use, max_tokens, refusal, or the wire's own word; "" for what the blocks say."""

    @property
    def stop(self) -> str:
        if self.stop_reason:
            return self.stop_reason
        return "tool_use" if any(isinstance(block, ToolUse) for block in self.blocks) else "end_turn"

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.blocks if isinstance(block, Text))

    @property
    def tool_uses(self) -> tuple[ToolUse, ...]:
        return tuple(block for block in self.blocks if isinstance(block, ToolUse))


@dataclass(frozen=True)
class Stream:
    """A reply as server-sent events, one a chunk."""

    chunks: tuple[bytes, ...]
    cut: int
    """How many chunks a stream sends that is cut: something was said, and nothing ended it."""


@dataclass(frozen=True)
class Failure:
    """A refusal by the endpoint."""

    status: int
    type: str
    message: str
    reason: Reason
    retry_at: float | None = None
    """Epoch seconds, when the endpoint named a time."""


# ---- the family -----------------------------------------------------------------------------------------------------


class Builder(ABC):
    """Puts a stream together again; usable at any point of a stream that is cut."""

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.usage = Usage()
        self.stop_reason = ""
        self.complete = False
        self.failure: Failure | None = None

    @abstractmethod
    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event of `decode_sse`."""

    @abstractmethod
    def blocks(self) -> tuple[Text | ToolUse, ...]: ...

    @property
    def reply(self) -> Reply:
        return Reply(self.id, self.model, self.blocks(), self.usage, self.stop_reason)


class Wire(ABC):
    """One provider's format. Stateless."""

    name: ClassVar[str]
    caches_writes: ClassVar[bool] = False
    """Whether tokens written to the cache are told apart; else they are plain input."""

    @abstractmethod
    def route(self, method: str, path: str) -> Route:
        """Say what a request to this path (without its query) asks of this wire."""

    @abstractmethod
    def path(self, model: str, *, stream: bool) -> str:
        """Return where a request is posted."""

    @abstractmethod
    def decode_request(self, path: str, body: Mapping[str, Any]) -> Request:
        """Read a request; what is malformed is left out, never fatal."""

    @abstractmethod
    def encode_request(self, request: Request, max_tokens: int) -> dict[str, Any]:
        """Write a request (tools are named only: their schemas are the caller's to add)."""

    @abstractmethod
    def encode_reply(self, reply: Reply) -> dict[str, Any]:
        """The whole message, for a request that is not streamed."""

    @abstractmethod
    def decode_reply(self, body: Mapping[str, Any]) -> Reply: ...

    @abstractmethod
    def stream(self, reply: Reply) -> Stream: ...

    @abstractmethod
    def builder(self) -> Builder: ...

    @abstractmethod
    def encode_usage(self, usage: Usage) -> dict[str, Any]: ...

    @abstractmethod
    def decode_usage(self, raw: object) -> Usage:
        """Read the counts; what came from the cache is counted once."""

    @abstractmethod
    def encode_error(self, status: int, message: str, retry_s: float = 0.0) -> dict[str, Any]:
        """Write a refusal; `retry_s` stands in it where the wire has a place for it (the header is the server's)."""

    @abstractmethod
    def decode_error(self, status: int, body: object, headers: Mapping[str, str], now: float) -> Failure:
        """Read a refusal. `headers` are matched without regard to case."""

    @abstractmethod
    def encode_count(self, tokens: int) -> dict[str, Any]: ...

    @abstractmethod
    def encode_models(self, models: Iterable[str]) -> dict[str, Any]: ...


# ---- server-sent events ---------------------------------------------------------------------------------------------


def encode_sse(event: Mapping[str, Any], name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(event)}\n\n".encode()


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
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and event.get("type") != "ping":
                yield event


# ---- reading what others wrote --------------------------------------------------------------------------------------


def objects(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def plain(content: object) -> str:
    """Return the text of a text, or of a list of parts that have one."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    return "\n".join(text_of(item.get("text")) for item in objects(content) if "text" in item)


def arguments(text: object) -> dict[str, Any]:
    """Return the object that a tool call's JSON text holds, else an empty one."""
    if isinstance(text, dict):
        return text
    try:
        return mapping(json.loads(text_of(text) or "{}"))
    except (ValueError, RecursionError):
        return {}


def count(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < COUNT_MAX:
        return 0
    return int(value)


# ---- failures -------------------------------------------------------------------------------------------------------


def reason_of(status: int, message: str = "") -> Reason:
    """Name what a provider's HTTP status means for an attempt; some need the words beside it."""
    text = message.lower()
    if status in (400, 402, 403, 429) and any(mark in text for mark in _POOR):
        return Reason.BUDGET
    if status in (400, 413, 429) and any(mark in text for mark in _OVERFLOW):
        return Reason.CONTEXT_OVERFLOW
    if status in (401, 403) or (status == 400 and "api key" in text):
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


def lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value.strip() for name, value in headers.items()}


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the time that the header every provider knows names, in epoch seconds."""
    lower = lowered(headers)
    if milliseconds := seconds(lower.get("retry-after-ms", "") + "ms"):
        return now + milliseconds
    after = lower.get("retry-after", "")
    if not after:
        return None
    try:
        return now + max(float(after), 0.0)
    except ValueError:
        parsed = email.utils.parsedate_tz(after)
        return float(email.utils.mktime_tz(parsed)) if parsed else None


def seconds(text: str) -> float | None:
    """Read a duration as Go and Google write it: "1.5s", "6m0s", "20ms"."""
    parts = list(_DURATION.finditer(text))
    if not parts or "".join(part.group() for part in parts) != re.sub(r"\s", "", text):
        return None
    return sum(float(part[1]) * _SECONDS[part[2]] for part in parts)


def told_seconds(message: str) -> float | None:
    """Read "try again in 1.5s", "will reset after 5h3m" out of a message."""
    match = _AGAIN.search(message)
    return seconds(match[1]) if match else None


def instant(text: str) -> float | None:
    """Read epoch seconds, or an RFC 3339 time."""
    try:
        value = float(text)
        return value if abs(value) < COUNT_MAX else None
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def empty_bucket(headers: Mapping[str, str], now: float) -> float | None:
    """Read OpenAI's limit headers: when the last of the empty buckets is full again."""
    lower, times = lowered(headers), []
    for bucket in ("requests", "tokens"):
        reset = lower.get(f"x-ratelimit-reset-{bucket}", "")
        if not reset or lower.get(f"x-ratelimit-remaining-{bucket}", "0") != "0":
            continue
        wait = seconds(reset)
        at = now + wait if wait is not None else instant(reset)
        if at is not None:
            times.append(at)
    return max(times, default=None)
