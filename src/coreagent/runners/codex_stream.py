"""How `codex exec --json` is read: its events, its endings, its usage.

Measured with 0.169.0 (tests/e2e/test_codex_direct.py): `error` ends nothing (it also says "Reconnecting... 1/2"), only
`turn.completed` and `turn.failed` do; usage is of the whole thread, so a resumed one is a difference; failures have no
field but a text; what the agent was not allowed is told on stderr alone; an interrupted turn says nothing at all.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, Final

from coreagent.models.agent import AgentEvent, EventKind, Outcome, Reason, Usage
from coreagent.runners.base import Parser, bounded, join_lines, last_lines, text_of, whole
from coreagent.runners.resets import in_text

RECONNECTING: Final = re.compile(r"Reconnecting\.\.\. (\d+)/(\d+)(?: \((.*)\))?\s*$", re.DOTALL)
STATUS: Final = r"(?<!\d){}(?!\d)"
# Ordered. Its limits speak of credits, and its cut streams may be cut by a filter.
TEXTS: Final = (
    (r"no rollout found|thread/resume failed|session not found", Reason.SESSION_LOST),
    (r"context.{0,2}window|context_length|maximum context", Reason.CONTEXT_OVERFLOW),
    (r"flagged|usage policy|content_filter|cyber_policy", Reason.MODEL_REFUSED),
    (r"quota|billing|spend cap|out of credits|" + STATUS.format("402"), Reason.BUDGET),
    (r"usage limit|rate.?limit|too many requests|" + STATUS.format("429"), Reason.RATE_LIMIT),
    (r"missing environment variable|not logged in|log ?in again|sign in|api.?key|(access|refresh) token", Reason.AUTH),
    (STATUS.format("40[13]"), Reason.AUTH),
    (r"model .{0,80}(does not exist|not supported|not found)|model_not_found", Reason.CONFIGURATION),
    (r"high demand|at capacity|overloaded|incomplete response|internal server error", Reason.MODEL_ERROR),
    (STATUS.format(r"5\d\d"), Reason.MODEL_ERROR),
    (r"connection|stream disconnected|error sending request|transport|timed? ?out|routing discovery", Reason.NETWORK),
    (r"invalid.(request|prompt|value)|" + STATUS.format("4(00|13|22)"), Reason.BAD_REQUEST),
)
# What it says on stderr when it does not even begin.
REFUSALS: Final = (
    (r"no rollout found|thread/resume failed", Reason.SESSION_LOST),
    (r"not logged in|log ?in again", Reason.AUTH),
    (
        r"error loading config|unexpected argument|invalid value|no prompt provided|trusted directory",
        Reason.CONFIGURATION,
    ),
)
DENIED: Final = re.compile(
    r"router: error=(?=[^\n]*(?:reject|approval policy|not permitted|outside of the project))([^\n]*)"
)
READ_ONLY: Final = "Read-only file system"

COMMAND, PATCH = "exec_command", "apply_patch"


class CodexParser(Parser):
    """One attempt's stream."""

    def __init__(self, *, previous_usage: Usage | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._previous = previous_usage or Usage()
        self._started: set[str] = set()
        self._error = ""

    def read(self, record: dict[str, Any]) -> list[AgentEvent]:
        match record.get("type"):
            case "thread.started":
                return [AgentEvent(kind=EventKind.STARTED, session_id=text_of(record["thread_id"]))]
            case "turn.started":
                return []
            case "item.started" | "item.updated" | "item.completed" as phase:
                return self._item(record["item"], phase.removeprefix("item."))
            case "turn.completed":
                return self._completed(record.get("usage"))
            case "turn.failed":
                error = record.get("error")
                return self._failed(text_of(error.get("message")) if isinstance(error, dict) else text_of(error))
            case "error":
                return self._said_error(text_of(record.get("message")))
        self.outcome.unparsed += 1
        return []

    def _item(self, item: dict[str, Any], phase: str) -> list[AgentEvent]:
        match item.get("type"):
            case "agent_message":
                said = text_of(item.get("text"))
                return [AgentEvent(kind=EventKind.TEXT, text=bounded(said))] if phase == "completed" and said else []
            case "error":
                # Warnings, every one that was seen: of its configuration, of the transport it falls back to.
                notice = bounded(text_of(item.get("message")))
                return [AgentEvent(kind=EventKind.TEXT, text=notice, data={"notice": True})] if notice else []
            case "command_execution":
                return self._tool(item, phase, COMMAND, text_of(item.get("command")), self._command_result(item))
            case "file_change":
                changes = item.get("changes")
                shown = ", ".join(f"{text_of(c.get('kind'))} {text_of(c.get('path'))}" for c in changes or ())
                return self._tool(item, phase, PATCH, shown, {"text": shown})
            case "mcp_tool_call":
                name = f"{text_of(item.get('server'))}.{text_of(item.get('tool'))}"
                return self._tool(item, phase, name, described(item.get("arguments")), self._mcp_result(item))
            case "web_search":
                return self._tool(item, phase, "web_search", text_of(item.get("query")), {})
            case "collab_tool_call":
                return self._tool(item, phase, text_of(item.get("tool")), text_of(item.get("prompt")), {})
            case "reasoning" | "todo_list":
                return []
        if phase == "completed":
            self.outcome.unparsed += 1
        return []

    def _tool(
        self, item: dict[str, Any], phase: str, name: str, shown: str, result: dict[str, Any]
    ) -> list[AgentEvent]:
        identity, name = bounded(text_of(item.get("id")), 200), bounded(name, 200)
        events = []
        if identity not in self._started:
            # Some are told only when they are over.
            self._started.add(identity)
            events.append(AgentEvent(kind=EventKind.TOOL_USE, tool=name, tool_id=identity, text=bounded(shown, 2000)))
        if phase == "completed":
            status = text_of(item.get("status"))
            shared: dict[str, Any] = {"is_error": status in ("failed", "declined"), "denied": status == "declined"}
            events.append(AgentEvent(kind=EventKind.TOOL_RESULT, tool=name, tool_id=identity, **{**shared, **result}))
        return events

    @staticmethod
    def _command_result(item: dict[str, Any]) -> dict[str, Any]:
        output, code = text_of(item.get("aggregated_output")), item.get("exit_code")
        result: dict[str, Any] = {"text": bounded(output), "data": {"exit_code": code} if whole(code) else {}}
        if isinstance(code, int) and code != 0:
            # Its sandbox has no word of its own: a command sees a disk that cannot be written.
            result |= {"is_error": True, "denied": READ_ONLY in output}
        return result

    @staticmethod
    def _mcp_result(item: dict[str, Any]) -> dict[str, Any]:
        error, result = item.get("error"), item.get("result")
        if isinstance(error, dict):
            return {"text": bounded(text_of(error.get("message"))), "is_error": True}
        content = result.get("content") if isinstance(result, dict) else None
        parts = [text_of(part.get("text")) for part in content or () if isinstance(part, dict)]
        return {"text": bounded("\n".join(parts))}

    def _said_error(self, message: str) -> list[AgentEvent]:
        if again := RECONNECTING.match(message):
            cause = again[3] or ""
            return [
                AgentEvent(
                    kind=EventKind.RETRY,
                    text=bounded(f"model call failed ({cause}), trying again" if cause else message),
                    reason=classify(cause),
                    data={"attempt": whole(int(again[1][:9])), "of": whole(int(again[2][:9]))},
                )
            ]
        self._error = readable(message)
        return [AgentEvent(kind=EventKind.ERROR, text=bounded(self._error), is_error=True, reason=classify(message))]

    def _completed(self, usage: object) -> list[AgentEvent]:
        out = self.outcome
        out.turns += 1
        out.usage = since(decode_usage(usage), self._previous)
        out.terminal, out.reason, out.message, out.resets_at = "success", None, "", None
        return [
            AgentEvent(
                kind=EventKind.RESULT,
                text=out.last_text,
                session_id=out.session_id,
                usage=out.usage,
                cost=out.cost,
                terminal=True,
            )
        ]

    def _failed(self, message: str) -> list[AgentEvent]:
        out = self.outcome
        out.turns += 1
        out.terminal, out.reason = "error", classify(message)
        out.message = bounded(readable(message) or self._error or "an error without a text")
        out.resets_at = in_text(message, self._clock()) if out.reason is Reason.RATE_LIMIT else None
        shared: dict[str, Any] = {"text": out.message, "reason": out.reason, "resets_at": out.resets_at}
        events = []
        if out.reason is Reason.RATE_LIMIT:
            events.append(AgentEvent(kind=EventKind.RATE_LIMIT, data={"status": "rejected"}, **shared))
        return [
            *events,
            AgentEvent(
                kind=EventKind.ERROR,
                is_error=True,
                terminal=True,
                session_id=out.session_id,
                usage=out.usage,
                cost=out.cost,
                **shared,
            ),
        ]

    def end(self, exit_code: int | None, signal: int | None, stderr_tail: bytes = b"") -> Outcome:
        out = self.outcome
        tail = stderr_tail.decode("utf-8", "replace")
        for match in DENIED.finditer(tail):
            tool = PATCH if "patch" in match[1] else COMMAND
            if tool not in out.denied_tools:
                out.denied_tools.append(tool)
        if out.terminal != "none":
            return out
        if exit_code and not signal and not out.turns and not out.session_id:
            for pattern, reason in REFUSALS:
                if re.search(pattern, tail, re.IGNORECASE):
                    out.terminal, out.reason, out.message = "error", reason, bounded(last_lines(stderr_tail))
                    return out
        out = self.died(exit_code, signal, stderr_tail)
        out.message = join_lines(out.message, self._error)
        return out


def decode_usage(raw: object) -> Usage:
    """The thread's tokens so far; its input counts what came from the cache, ours does not."""
    usage = raw if isinstance(raw, dict) else {}
    read, written = whole(usage.get("cached_input_tokens")), whole(usage.get("cache_write_input_tokens"))
    total = whole(usage.get("input_tokens"))
    return Usage(
        input=max(0, total - read - written),
        output=whole(usage.get("output_tokens")),
        cache_read=read,
        cache_write=written,
    )


def since(total: Usage, before: Usage) -> Usage:
    """What was used since `before`; all of it when the thread counts anew."""
    fields = {name: getattr(total, name) - getattr(before, name) for name in Usage.model_fields}
    return total if any(value < 0 for value in fields.values()) else Usage(**fields)


def classify(said: str) -> Reason:
    """Name a failure by its text: there is nothing else."""
    text = said.lower()
    for pattern, reason in TEXTS:
        if re.search(pattern, text):
            return reason
    # A refused request is handed on as it came, as JSON.
    return Reason.BAD_REQUEST if _body_of(said) is not None else Reason.ERROR


def readable(said: str) -> str:
    """The sentence of an error that is a provider's JSON body, else the error as it is."""
    body = _body_of(said)
    error = body.get("error", body) if body is not None else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) and error else said


def _body_of(said: str) -> dict[str, Any] | None:
    if not said.lstrip().startswith("{"):
        return None
    try:
        body = json.loads(said)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def described(arguments: object) -> str:
    if not isinstance(arguments, dict):
        return ""
    return ", ".join(f"{key}={value}" for key, value in arguments.items())
