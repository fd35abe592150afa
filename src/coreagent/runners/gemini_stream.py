"""How Gemini CLI's stream-json is read: its events, its endings, its usage.

Measured with 0.61.0 (tests/e2e/test_gemini_direct.py): an interrupted run exits 0 and says nothing of its end; a failed
model call is a text, with the HTTP status, less 256, as exit code; text comes in pieces; usage is of one turn, and is
told at the end only; a session whose first answer failed is thrown away.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, Final

from coreagent.models.agent import AgentEvent, EventKind, Outcome, Reason, Usage
from coreagent.runners.base import TEXT_LIMIT, Parser, bounded, last_lines, text_of, whole
from coreagent.runners.resets import believable
from coreagent.wires.base import reason_of, told_seconds

API_ERROR: Final = re.compile(r"^\[API Error: (.*?)\]?(?:\n|$)", re.DOTALL)
STATUSES: Final = (400, 401, 402, 403, 404, 408, 413, 429, 500, 502, 503, 504, 529)
BY_EXIT: Final = {status % 256: status for status in STATUSES}
# Ordered. What has a status is told by that first.
TEXTS: Final = (
    (r"token count .{0,40}exceeds|context.{0,2}(window|length)|too large for the model", Reason.CONTEXT_OVERFLOW),
    (r"api.?key (not valid|not found|invalid|expired)|unauthenticated|permission.?denied|sign in|log ?in", Reason.AUTH),
    (r"billing|insufficient.{0,20}(credit|balance|funds)|prepayment|credits? (are|is) depleted", Reason.BUDGET),
    (r"quota|resource.?exhausted|rate.?limit|too many requests|capacity on this model", Reason.RATE_LIMIT),
    (r"model.{0,80}(not found|not supported|not exist)|not found for api version", Reason.CONFIGURATION),
    (r"safety|recitation|prohibited|blocked", Reason.MODEL_REFUSED),
    (r"max session turns|turn limit", Reason.MAX_TURNS),
    (r"operation cancelled", Reason.CANCELLED),
    (r"fetch failed|econn\w+|enotfound|etimedout|terminated|socket|premature close|stream (was )?(cut|closed)"
     r"|network|timed? ?out|incomplete json", Reason.NETWORK),
    (r"overloaded|unavailable|internal (server )?error|empty response|max(imum)? (output )?tokens|invalid stream"
     r"|malformed", Reason.MODEL_ERROR),
)  # fmt: skip
# What it says on stderr when it does not even begin.
REFUSALS: Final = (
    (r"error (resuming|starting) session|no previous sessions found|session id .{0,80}already", Reason.SESSION_LOST),
    (r"auth method|gemini_api_key|google_cloud_project|error authenticating|login required", Reason.AUTH),
    (
        r"unknown argument|invalid values|not enough arguments|untrusted|trusted directory"
        r"|invalid configuration|failed to parse|fix the configuration|node\.js",
        Reason.CONFIGURATION,
    ),
)
DENIALS: Final = frozenset({"policy_violation", "path_not_in_workspace", "tool_not_registered"})
# A tool that is not registered may also be one that never was: then nobody was denied anything.
DENIABLE: Final = frozenset(
    {"run_shell_command", "web_fetch", "write_file", "replace", "activate_skill", "exit_plan_mode", "ask_user"}
)


class GeminiParser(Parser):
    """One attempt's stream."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._said: list[str] = []
        self._tools: dict[str, str] = {}
        self._complaint = ""
        self._answered = False
        """An answer of the model was complete, and so its session is kept."""

    def read(self, record: dict[str, Any]) -> list[AgentEvent]:
        kind = record.get("type")
        if kind == "message":
            return self._message(record)
        before = self._flush()
        match kind:
            case "init":
                session, model = text_of(record.get("session_id")), text_of(record.get("model"))
                return [*before, AgentEvent(kind=EventKind.STARTED, session_id=session, model=model)]
            case "tool_use":
                return [*before, self._tool_use(record)]
            case "tool_result":
                return [*before, self._tool_result(record)]
            case "error":
                return [*before, *self._error(record)]
            case "result":
                return [*before, *self._result(record)]
        self.outcome.unparsed += 1
        return before

    def _message(self, record: dict[str, Any]) -> list[AgentEvent]:
        if record.get("role") != "assistant":
            return []
        # It comes in pieces, which are no lines.
        self._said.append(text_of(record.get("content")))
        return self._flush() if sum(map(len, self._said)) > TEXT_LIMIT // 2 or not record.get("delta") else []

    def _flush(self) -> list[AgentEvent]:
        text = "".join(self._said)
        self._said.clear()
        return [AgentEvent(kind=EventKind.TEXT, text=bounded(text))] if text.strip() else []

    def _tool_use(self, record: dict[str, Any]) -> AgentEvent:
        name, identity = bounded(text_of(record.get("tool_name")), 200), bounded(text_of(record.get("tool_id")), 200)
        self._tools[identity] = name
        return AgentEvent(kind=EventKind.TOOL_USE, tool=name, tool_id=identity, text=describe(record.get("parameters")))

    def _tool_result(self, record: dict[str, Any]) -> AgentEvent:
        self._answered = True
        identity = bounded(text_of(record.get("tool_id")), 200)
        name = self._tools.get(identity, "")
        error = record.get("error")
        error = error if isinstance(error, dict) else {}
        said = text_of(record.get("output")) or text_of(error.get("message"))
        kind = text_of(error.get("type"))
        return AgentEvent(
            kind=EventKind.TOOL_RESULT,
            tool=name,
            tool_id=identity,
            text=bounded(said),
            is_error=record.get("status") != "success",
            denied=kind in DENIALS and (kind != "tool_not_registered" or name in DENIABLE),
        )

    def _error(self, record: dict[str, Any]) -> list[AgentEvent]:
        said = bounded(text_of(record.get("message")))
        if record.get("severity") == "error":
            self._complaint = said
        return [AgentEvent(kind=EventKind.TEXT, text=said, is_error=True, data={"severity": record.get("severity")})]

    def _result(self, record: dict[str, Any]) -> list[AgentEvent]:
        out = self.outcome
        out.usage = decode_usage(record.get("stats"))
        out.turns += 1
        shared: dict[str, Any] = {"usage": out.usage, "cost": out.cost, "terminal": True}
        if record.get("status") == "success":
            self._answered = True
            out.terminal, out.reason, out.message = "success", None, ""
            return [AgentEvent(kind=EventKind.RESULT, text=out.last_text, **shared)]
        error = record.get("error")
        raw = text_of(error.get("message")) if isinstance(error, dict) else ""
        raw = raw or self._complaint or "an error without a text"
        status, said = readable(raw)
        out.terminal, out.message = "error", bounded(said)
        out.reason = classify(status, raw)
        out.resets_at = self._reset(raw)
        return [
            AgentEvent(
                kind=EventKind.ERROR,
                text=out.message,
                is_error=True,
                reason=out.reason,
                resets_at=out.resets_at,
                **shared,
            )
        ]

    def _reset(self, said: str) -> float | None:
        wait = told_seconds(said) if self.outcome.reason is Reason.RATE_LIMIT else None
        now = self._clock()
        return believable(now + wait, now) if wait is not None else None

    def end(self, exit_code: int | None, signal: int | None, stderr_tail: bytes = b"") -> Outcome:
        out = self.outcome
        self._note(self._flush())
        if out.terminal == "error":
            if out.reason is Reason.ERROR and exit_code in BY_EXIT:
                out.reason = reason_of(BY_EXIT[exit_code], out.message)
            if not self._answered:
                # The session is thrown away with the turn that failed: what was resumed is still what it was.
                out.session_id = ""
            return out
        if out.terminal == "success":
            return out
        tail = last_lines(stderr_tail)
        if exit_code and not signal and not self._tools:
            for pattern, reason in REFUSALS:
                if re.search(pattern, tail, re.IGNORECASE):
                    out.terminal, out.reason, out.message = "error", reason, bounded(tail)
                    return out
        return self.died(exit_code, signal, stderr_tail)


def decode_usage(raw: object) -> Usage:
    """Read `stats`. What was thought is in the total alone; what came from the cache is in `input_tokens` as well."""
    stats = raw if isinstance(raw, dict) else {}
    read, cached = whole(stats.get("input_tokens")), whole(stats.get("cached"))
    return Usage(
        input=max(read - cached, 0),
        output=max(whole(stats.get("output_tokens")), whole(stats.get("total_tokens")) - read),
        cache_read=cached,
    )


def readable(said: str) -> tuple[int, str]:
    """The status (0 when there is none) and the sentence of a failure, out of the provider's JSON where it is that."""
    match = API_ERROR.match(said)
    if not match:
        return 0, said
    inner = match[1]
    try:
        body = json.loads(inner)
    except (ValueError, RecursionError):
        return 0, inner
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return 0, inner
    return whole(error.get("code")), text_of(error.get("message")) or text_of(error.get("status")) or inner


def classify(status: int, said: str) -> Reason:
    """Name a failure: by its status, else by its text."""
    if 400 <= status < 600:
        return reason_of(status, said)
    text = said.lower()
    for pattern, reason in TEXTS:
        if re.search(pattern, text):
            return reason
    return Reason.ERROR


def describe(parameters: object) -> str:
    """Return one line that says what a tool call is about."""
    if not isinstance(parameters, dict):
        return ""
    for key in (
        "command",
        "file_path",
        "absolute_path",
        "dir_path",
        "path",
        "pattern",
        "query",
        "prompt",
        "description",
    ):
        value = parameters.get(key)
        if isinstance(value, str) and value:
            return bounded(value, 2000)
    return bounded(", ".join(str(key) for key in parameters), 2000)
