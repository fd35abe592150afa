"""How Claude Code's stream-json is read: its events, its endings, its usage and cost.

Measured with 2.1.328 (tests/e2e/test_claude_direct.py): the exit code proves nothing (an interrupted run exits 0),
`subtype` neither (a failed model call is a "success" with is_error). `usage` is of one turn, `total_cost_usd` is of the
whole session and forgets killed turns, `model_usage_since_last_result` is of one turn and counts subagents as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

from coreagent.models.agent import AgentEvent, Cost, EventKind, Outcome, Reason, Usage
from coreagent.runners.base import Parser, bounded, join_lines, last_lines, text_of, whole
from coreagent.runners.resets import believable
from coreagent.wires.anthropic import decode_usage
from coreagent.wires.base import reason_of

# Types that say nothing an attempt needs; anything else unknown is counted as unparsed.
NOISE: Final = frozenset(
    {
        "stream_event",
        "control_request",
        "control_response",
        "control_cancel_request",
        "keep_alive",
        "tool_progress",
        "tool_use_summary",
        "auth_status",
        "conversation_reset",
        "prompt_suggestion",
    }
)
SUBTYPES: Final = {
    "error_max_turns": Reason.MAX_TURNS,
    "error_max_budget_usd": Reason.BUDGET,
    "error_max_structured_output_retries": Reason.MODEL_ERROR,
}
ENDINGS: Final = {
    "max_turns": Reason.MAX_TURNS,
    "budget_exhausted": Reason.BUDGET,
    "prompt_too_long": Reason.CONTEXT_OVERFLOW,
    "image_error": Reason.CONTEXT_OVERFLOW,
    "aborted_tools": Reason.CANCELLED,
    "aborted_streaming": Reason.CANCELLED,
}
# The `error` of a message that the CLI made up itself.
SYNTHETIC: Final = {
    "authentication_failed": Reason.AUTH,
    "oauth_org_not_allowed": Reason.AUTH,
    "billing_error": Reason.BUDGET,
    "rate_limit": Reason.RATE_LIMIT,
    "max_output_tokens": Reason.MODEL_ERROR,
}
# Ordered; numbers have digit boundaries so that "402913 tokens" is no 402.
TEXTS: Final = (
    (r"no conversation found|session id \S+ is already in use", Reason.SESSION_LOST),
    (r"prompt is too long|context (window|limit)|request too large", Reason.CONTEXT_OVERFLOW),
    (r"credit balance|billing|maximum budget|(?<!\d)402(?!\d)", Reason.BUDGET),
    (r"not logged in|/login|invalid api key|authenticat|oauth token|(?<!\d)40[13](?!\d)", Reason.AUTH),
    (r"rate.?limit|hit your .{0,20}limit|usage limit|too many requests|(?<!\d)429(?!\d)", Reason.RATE_LIMIT),
    (r"safeguards flagged|usage policy", Reason.MODEL_REFUSED),
    (r"econn\w+|enotfound|etimedout|timed out|connection (refused|dropped|error)|fetch failed", Reason.NETWORK),
    (r"overloaded|server-side issue|internal server error|(?<!\d)5\d\d(?!\d)", Reason.MODEL_ERROR),
    (r"invalid.request|(?<!\d)400(?!\d)", Reason.BAD_REQUEST),
)
# What it says on stderr when it does not even begin.
REFUSALS: Final = (
    (r"no conversation found|session id \S+ is already in use", Reason.SESSION_LOST),
    (r"not logged in|please run /login|invalid api key", Reason.AUTH),
    (
        r"unknown option|cannot be used with root|input must be provided|requires --|invalid session id"
        r"|argument missing|not found: |must be a valid uuid|node\.js version",
        Reason.CONFIGURATION,
    ),
)
# No share is larger: an account that may go on past its limit tells a little more than 1.
SHARE_MOST: Final = 2.0


class ClaudeParser(Parser):
    """One attempt's stream."""

    def __init__(self, *, previous_cost: Cost | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._previous_usd = (previous_cost.usd if previous_cost else None) or 0.0
        self._messages: dict[str, Usage] = {}
        self._tools: dict[str, str] = {}
        self._denied: set[str] = set()
        self._synthetic: dict[str, Any] = {}
        self._resets_at: float | None = None
        self._windows = Windows()
        self._settled = Usage()
        """The usage that results have accounted for; `_messages` holds what came since."""

    def read(self, record: dict[str, Any]) -> list[AgentEvent]:
        match record.get("type"):
            case "system":
                return self._system(record)
            case "assistant":
                return self._assistant(record)
            case "user":
                return self._user(record)
            case "rate_limit_event":
                return self._rate_limit(record["rate_limit_info"])
            case "result":
                return self._result(record)
            case noise if noise in NOISE:
                return []
        self.outcome.unparsed += 1
        return []

    def _system(self, record: dict[str, Any]) -> list[AgentEvent]:
        match record.get("subtype"):
            case "init":
                # Another init in the same process is the next turn of the same session (a task of the agent woke it).
                session = text_of(record.get("session_id"))
                if session and session == self.outcome.session_id:
                    return []
                data = {
                    "version": text_of(record.get("claude_code_version")),
                    "permissions": text_of(record.get("permissionMode")),
                    "login": text_of(record.get("apiKeySource")),
                }
                return [
                    AgentEvent(
                        kind=EventKind.STARTED, session_id=session, model=text_of(record.get("model")), data=data
                    )
                ]
            case "api_retry":
                reason = self._reason_of_retry(record)
                delay = whole(record.get("retry_delay_ms")) / 1000
                text = f"model call failed ({record.get('error_status') or record.get('error')}), trying again"
                return [
                    AgentEvent(
                        kind=EventKind.RETRY,
                        text=bounded(text),
                        reason=reason,
                        data={"attempt": whole(record.get("attempt")), "delay_s": delay},
                    )
                ]
            case "permission_denied":
                self._denied.add(text_of(record.get("tool_use_id")))
        return []

    @staticmethod
    def _reason_of_retry(record: dict[str, Any]) -> Reason:
        status = whole(record.get("error_status"))
        return reason_of(status) if status else SYNTHETIC.get(text_of(record.get("error")), Reason.NETWORK)

    def _assistant(self, record: dict[str, Any]) -> list[AgentEvent]:
        message = record["message"]
        blocks = [block for block in message.get("content") or () if isinstance(block, dict)]
        if record.get("error") or message.get("model") == "<synthetic>":
            said = bounded("\n".join(text_of(block.get("text")) for block in blocks))
            self._synthetic = {**record, "said": said}
            if not record.get("error"):
                return [AgentEvent(kind=EventKind.TEXT, text=said)]
            reason = classify(record, said)
            return [AgentEvent(kind=EventKind.ERROR, text=said, is_error=True, reason=reason)]
        data = {"parent": text_of(record.get("parent_tool_use_id"))} if record.get("parent_tool_use_id") else {}
        events = []
        for block in blocks:
            if block.get("type") == "text" and text_of(block.get("text")):
                events.append(AgentEvent(kind=EventKind.TEXT, text=bounded(block["text"]), data=data))
            elif block.get("type") == "tool_use":
                name, identity = bounded(block.get("name"), 200), bounded(block.get("id"), 200)
                self._tools[identity] = name
                shown = describe(block.get("input"))
                events.append(AgentEvent(kind=EventKind.TOOL_USE, tool=name, tool_id=identity, text=shown, data=data))
        return events + self._message_usage(text_of(message.get("id")), message.get("usage"))

    def _message_usage(self, identity: str, raw: object) -> list[AgentEvent]:
        # One message comes as several records, one for each block, all with the same counts.
        usage = decode_usage(raw)
        if not identity or usage.total == 0 or self._messages.get(identity) == usage:
            return []
        self._messages[identity] = usage
        self._sum_up()
        return [AgentEvent(kind=EventKind.USAGE, usage=self.outcome.usage)]

    def _sum_up(self) -> None:
        total = self._settled
        for usage in self._messages.values():
            total = total.plus(usage)
        self.outcome.usage = total

    def _user(self, record: dict[str, Any]) -> list[AgentEvent]:
        content = record["message"].get("content")
        data = {"parent": text_of(record.get("parent_tool_use_id"))} if record.get("parent_tool_use_id") else {}
        extra = record.get("tool_use_result")
        if isinstance(extra, dict) and extra.get("status") == "async_launched":
            data["async"] = "launched"
        events = []
        for block in content if isinstance(content, list) else ():
            if not isinstance(block, dict) or block.get("type") != "tool_result":
                continue
            identity = text_of(block.get("tool_use_id"))
            events.append(
                AgentEvent(
                    kind=EventKind.TOOL_RESULT,
                    tool=self._tools.get(identity, ""),
                    tool_id=bounded(identity, 200),
                    text=bounded(result_text(block.get("content"))),
                    is_error=bool(block.get("is_error")),
                    denied=identity in self._denied,
                    data=data,
                )
            )
        return events

    def _rate_limit(self, info: dict[str, Any]) -> list[AgentEvent]:
        self.outcome.windows |= self._windows.read(info, self._clock())
        # Only `status` counts: overageStatus is "rejected" on healthy runs as well.
        status = text_of(info.get("status"))
        if status not in ("rejected", "allowed_warning"):
            return []
        resets_at = believable(info.get("resetsAt"), self._clock())
        if status == "rejected":
            self._resets_at = resets_at
        window = text_of(info.get("rateLimitType")).replace("_", " ")
        return [
            AgentEvent(
                kind=EventKind.RATE_LIMIT,
                text=bounded(f"{window} limit {'reached' if status == 'rejected' else 'nearly reached'}".strip()),
                reason=Reason.RATE_LIMIT if status == "rejected" else None,
                resets_at=resets_at,
                data={"status": status},
            )
        ]

    def _result(self, record: dict[str, Any]) -> list[AgentEvent]:
        out = self.outcome
        self._settle(record)
        out.turns += whole(record.get("num_turns"))
        for denial in record.get("permission_denials") or ():
            tool = bounded(denial.get("tool_name"), 200) if isinstance(denial, dict) else ""
            if tool and tool not in out.denied_tools:
                out.denied_tools.append(tool)
        reason, message = self._ending(record)
        out.reason, out.message = reason, message
        out.terminal = "success" if reason is None else "error"
        out.resets_at = self._resets_at if reason is Reason.RATE_LIMIT else None
        shared: dict[str, Any] = {
            "session_id": text_of(record.get("session_id")),
            "usage": out.usage,
            "cost": out.cost,
            "terminal": True,
        }
        if reason is None:
            return [AgentEvent(kind=EventKind.RESULT, text=bounded(record.get("result")), **shared)]
        return [
            AgentEvent(
                kind=EventKind.ERROR, text=message, is_error=True, reason=reason, resets_at=out.resets_at, **shared
            )
        ]

    def _settle(self, record: dict[str, Any]) -> None:
        """Replace the sum of messages by what the result accounts for."""
        usage, usd = decode_usage(record.get("usage")), None
        since = record.get("model_usage_since_last_result")
        total_usd = amount(record.get("total_cost_usd"))
        if isinstance(since, dict):
            models = [model for model in since.values() if isinstance(model, dict)]
            usage = Usage()
            for model in models:
                usage = usage.plus(
                    Usage(
                        input=whole(model.get("inputTokens")),
                        output=whole(model.get("outputTokens")),
                        cache_read=whole(model.get("cacheReadInputTokens")),
                        cache_write=whole(model.get("cacheCreationInputTokens")),
                    )
                )
            usd = sum(amount(model.get("costUSD")) or 0.0 for model in models)
        elif total_usd is not None:
            # Of the whole session, and less than before when the CLI forgot a session's earlier turns.
            usd = total_usd - self._previous_usd if total_usd >= self._previous_usd else total_usd
            self._previous_usd = total_usd
        self._settled = self._settled.plus(usage)
        self._messages.clear()
        self._sum_up()
        if usd is not None:
            self.outcome.cost = Cost(usd=round((self.outcome.cost.usd or 0.0) + usd, 9), source="reported")

    def _ending(self, record: dict[str, Any]) -> tuple[Reason | None, str]:
        subtype, terminal = text_of(record.get("subtype")), text_of(record.get("terminal_reason"))
        errors = record.get("errors")
        listed = [text_of(item) for item in errors] if isinstance(errors, list) else []
        said = join_lines(text_of(record.get("result")), *listed)
        named = SUBTYPES.get(subtype) or ENDINGS.get(terminal)
        if not record.get("is_error") and subtype == "success" and named is None:
            return None, ""
        if named is Reason.CANCELLED:
            return named, "interrupted"
        if named is not None:
            return named, said or subtype
        evidence = {**self._synthetic, "api_error_status": record.get("api_error_status")}
        return classify(evidence, said), said or subtype or "an error without a text"

    def end(self, exit_code: int | None, signal: int | None, stderr_tail: bytes = b"") -> Outcome:
        out = self.outcome
        if out.terminal != "none":
            return out
        tail = last_lines(stderr_tail)
        if exit_code and not signal and not self._messages:
            for pattern, reason in REFUSALS:
                if re.search(pattern, tail, re.IGNORECASE):
                    out.terminal, out.reason, out.message = "error", reason, bounded(tail)
                    return out
        return self.died(exit_code, signal, stderr_tail)


def classify(evidence: dict[str, Any], said: str) -> Reason:
    """Name a failed model call: by the HTTP status, then by the CLI's own word, then by its text."""
    error = text_of(evidence.get("error"))
    if evidence.get("refused_message_id"):
        return Reason.MODEL_REFUSED
    if error == "billing_error":
        return Reason.BUDGET
    status = whole(evidence.get("api_error_status"))
    if status:
        return reason_of(status, said)
    if evidence.get("api_error") == "connection_failed":
        return Reason.NETWORK
    if error in SYNTHETIC:
        return SYNTHETIC[error]
    text = said.lower()
    for pattern, reason in TEXTS:
        if re.search(pattern, text):
            return reason
    return {"server_error": Reason.MODEL_ERROR, "invalid_request": Reason.BAD_REQUEST}.get(error, Reason.ERROR)


def describe(arguments: object) -> str:
    """Return one line that says what a tool call is about."""
    if not isinstance(arguments, dict):
        return ""
    for key in ("command", "file_path", "notebook_path", "path", "pattern", "url", "query", "description", "prompt"):
        value = arguments.get(key)
        if isinstance(value, str) and value:
            return bounded(value, 2000)
    return bounded(", ".join(str(key) for key in arguments), 2000)


def result_text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(text_of(item.get("text")) for item in content if isinstance(item, dict))
    return ""


def amount(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        return None
    return float(value)


class Windows:
    """Reads the usage windows of one stream.

    Claude Code gives the used part as a share, 0 to 1; a percentage is told by a value that can be no share, and from
    then on every value of that stream is one. What can be both, as a 1 that stands alone, is not believed.
    """

    def __init__(self) -> None:
        self._scale: float | None = None
        """What stands for a full window, once it is known."""

    def read(self, info: dict[str, Any], now: float) -> dict[str, tuple[float, float]]:
        """What a rate_limit_event tells: kind -> (share used, reset in epoch seconds)."""
        told: dict[str, tuple[float, float]] = {}
        several = info.get("unifiedWindows")
        named = several.items() if isinstance(several, dict) else ()
        for kind, window in [*named, (info.get("rateLimitType"), info)]:
            if not isinstance(window, dict) or not isinstance(kind, str) or not re.fullmatch(r"[a-z0-9_]{1,40}", kind):
                continue
            used, resets = amount(window.get("utilization")), believable(window.get("resetsAt"), now)
            if used is not None and resets is not None:
                told.setdefault(kind, (used, resets))
        self._learn([used for used, _ in told.values()])
        known = {kind: (self._share(used), resets) for kind, (used, resets) in told.items()}
        return {kind: (share, resets) for kind, (share, resets) in known.items() if share is not None}

    def _learn(self, values: list[float]) -> None:
        if any(value > SHARE_MOST for value in values):
            self._scale = 100.0
        elif self._scale is None and any(0 < value < 1 for value in values):
            self._scale = 1.0

    def _share(self, used: float) -> float | None:
        if used == 0:
            return 0.0
        return None if self._scale is None else min(used / self._scale, 1.0)
