"""How `opencode run --format json` is read: its events, its endings, its usage and cost.

Measured with 1.18.33 (tests/e2e/test_opencode_direct.py): there is no last event. A turn ended well when its last step
did, with `stop`; a step that was begun and not finished is a death, whatever the exit code. A tool is told when it is
over. Retries are silent (opencode_plugin makes an end of them). After an error it may go on by itself, and still exits
1.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

from coreagent.models.agent import AgentEvent, Cost, EventKind, Outcome, Reason, Usage
from coreagent.runners.base import Parser, bounded, join_lines, last_lines, text_of, whole
from coreagent.runners.resets import believable, in_text
from coreagent.runners.said import reason_in
from coreagent.wires.base import reason_of, retry_after

NAMES: Final = {
    "ProviderAuthError": Reason.AUTH,
    "ContextOverflowError": Reason.CONTEXT_OVERFLOW,
    "MessageOutputLengthError": Reason.MODEL_ERROR,
    "MessageAbortedError": Reason.CANCELLED,
    "ContentFilterError": Reason.MODEL_REFUSED,
    "ProviderModelNotFoundError": Reason.CONFIGURATION,
    "ModelNotFoundError": Reason.CONFIGURATION,
}
STOPS: Final = {
    "length": (Reason.MODEL_ERROR, "the model's answer was cut off at its longest"),
    "content-filter": (Reason.MODEL_REFUSED, "the model refused to go on"),
    "tool-calls": (Reason.ERROR, "it ended after a tool, before the model had its result"),
}
# What it says on stderr when it does not even begin.
REFUSALS: Final = (
    (r"session not found", Reason.SESSION_LOST),
    (r"configuration is invalid|config.{0,20}invalid|model not found|unknown (argument|option)", Reason.CONFIGURATION),
)
DENIED: Final = re.compile(r"rejected permission|a rule which prevents you|unavailable tool")
REJECTED: Final = "rejected permission"
ANSI: Final = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
SHOWN: Final = ("command", "filePath", "path", "pattern", "url", "query", "description", "prompt")


class OpencodeParser(Parser):
    """One attempt's stream."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._open: set[str] = set()
        """Steps that were begun and not finished."""
        self._stop = ""
        self._rejected = False

    def read(self, record: dict[str, Any]) -> list[AgentEvent]:
        started = self._started(record)
        part: dict[str, Any] = record.get("part") or {}
        match record.get("type"):
            case "step_start":
                self._open.add(text_of(part["messageID"]))
                return started
            case "text":
                said = text_of(part["text"])
                told = said and not part.get("synthetic")
                return [*started, AgentEvent(kind=EventKind.TEXT, text=bounded(said))] if told else started
            case "tool_use":
                return [*started, *self._tool(part, part["state"])]
            case "step_finish":
                return [*started, *self._finished(part)]
            case "error":
                return [*started, *self._error(record.get("error"))]
            case "reasoning":
                return started
        self.outcome.unparsed += 1
        return []

    def _started(self, record: dict[str, Any]) -> list[AgentEvent]:
        session = bounded(record.get("sessionID"), 200) if isinstance(record.get("sessionID"), str) else ""
        if not session or self.outcome.session_id:
            return []
        return [AgentEvent(kind=EventKind.STARTED, session_id=session)]

    def _tool(self, part: dict[str, Any], state: dict[str, Any]) -> list[AgentEvent]:
        name, identity = bounded(part.get("tool"), 200), bounded(part.get("callID"), 200)
        given = state.get("input")
        given = given if isinstance(given, dict) else {}
        shown = next((given[key] for key in SHOWN if isinstance(given.get(key), str) and given[key]), "")
        failed = state.get("status") == "error"
        text = text_of(state.get("error") if failed else state.get("output"))
        self._rejected = failed and REJECTED in text
        shared: dict[str, Any] = {"tool": name, "tool_id": identity}
        denied = failed and bool(DENIED.search(text))
        return [
            AgentEvent(kind=EventKind.TOOL_USE, text=bounded(shown, 2000), **shared),
            AgentEvent(kind=EventKind.TOOL_RESULT, text=bounded(text), is_error=failed, denied=denied, **shared),
        ]

    def _finished(self, part: dict[str, Any]) -> list[AgentEvent]:
        out = self.outcome
        self._open.discard(text_of(part.get("messageID")))
        self._stop = text_of(part.get("reason"))
        out.turns += 1
        if self._stop == "stop":
            out.reason, out.message, out.resets_at = None, "", None  # an error that it went on from
        usage = decode_usage(part.get("tokens"))
        out.usage = out.usage.plus(usage)
        cost = part.get("cost")
        # A model whose price it does not know costs nothing.
        if isinstance(cost, int | float) and not isinstance(cost, bool) and 0 < cost < 1e9:
            out.cost = Cost(usd=round((out.cost.usd or 0.0) + float(cost), 9), source="reported")
        return [AgentEvent(kind=EventKind.USAGE, usage=out.usage, cost=out.cost)]

    def _error(self, error: object) -> list[AgentEvent]:
        out = self.outcome
        reason, out.message, out.resets_at = decode_error(error, self._clock())
        out.reason = reason
        shared: dict[str, Any] = {"text": out.message, "reason": reason, "resets_at": out.resets_at}
        limit = [AgentEvent(kind=EventKind.RATE_LIMIT, data={"status": "rejected"}, **shared)]
        return [
            *(limit if reason is Reason.RATE_LIMIT else []),
            AgentEvent(kind=EventKind.ERROR, is_error=True, **shared),
        ]

    def end(self, exit_code: int | None, signal: int | None, stderr_tail: bytes = b"") -> Outcome:
        out, tail = self.outcome, ANSI.sub(b"", stderr_tail)
        if signal or exit_code is None:
            return self._dead(exit_code, signal, tail)
        if out.reason is not None:
            out.terminal = "error"
            return out
        if self._open:
            return self._dead(exit_code, signal, tail)
        if self._stop == "stop":
            out.terminal = "success"
            return out
        if self._stop == "tool-calls" and self._rejected:
            out.terminal, out.reason = "error", Reason.PERMISSION
            out.message = "it was refused a tool, which ended its turn"
            return out
        if self._stop:
            out.reason, out.message = STOPS.get(self._stop, (Reason.ERROR, f"the last step ended with {self._stop!r}"))
            out.terminal = "error"
            return out
        words = last_lines(tail)
        for pattern, reason in REFUSALS:
            if exit_code and re.search(pattern, words, re.IGNORECASE):
                out.terminal, out.reason, out.message = "error", reason, bounded(words)
                return out
        return self._dead(exit_code, signal, tail)

    def _dead(self, exit_code: int | None, signal: int | None, tail: bytes) -> Outcome:
        said = self.outcome.message
        out = self.died(exit_code, signal, tail)
        out.message = join_lines(out.message, said)
        return out


def decode_error(error: object, now: float) -> tuple[Reason, str, float | None]:
    """Why a turn failed, in which words, and until when, if it is for a while only."""
    error = error if isinstance(error, dict) else {"name": text_of(error)}
    data = error.get("data")
    data = data if isinstance(data, dict) else {}
    message = bounded(join_lines(text_of(data.get("message")) or text_of(error.get("message"))))
    name, status = text_of(error.get("name")), whole(data.get("statusCode"))
    reason = NAMES.get(name) or (reason_of(status, message) if status else reason_in(message)) or Reason.ERROR
    resets_at = _reset(data, message, now) if reason is Reason.RATE_LIMIT else None
    return reason, message or name or "an error without a text", resets_at


def _reset(data: dict[str, Any], message: str, now: float) -> float | None:
    headers = data.get("responseHeaders")
    if isinstance(headers, dict):
        named = {str(name): value for name, value in headers.items() if isinstance(value, str)}
        if found := believable(retry_after(named, now), now):
            return found
    return in_text(message, now)


def decode_usage(raw: object) -> Usage:
    """The tokens of one step."""
    tokens = raw if isinstance(raw, dict) else {}
    cache = tokens.get("cache")
    cache = cache if isinstance(cache, dict) else {}
    return Usage(
        input=whole(tokens.get("input")),
        output=whole(tokens.get("output")) + whole(tokens.get("reasoning")),
        cache_read=whole(cache.get("read")),
        cache_write=whole(cache.get("write")),
    )
