"""How the output of an agent of the Agent Client Protocol is read, as the shim's client wrote it down.

A line that begins with `<` is the agent's; every other one is the shim's own, which no agent can forge (shim_acp).
Measured with opencode 1.18.33, gemini 0.61.0 and codex-acp 2.6.0: no exit code means anything; usage in the reply to
the prompt is of the turn for some and of its last model call for others; a loaded session is told all over again; and
codex-acp ends a failed turn with `end_turn`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

from coreagent.models.agent import AgentEvent, Cost, EventKind, Outcome, Reason, Usage
from coreagent.runners import opencode_plugin, opencode_stream
from coreagent.runners.base import TEXT_LIMIT, Parser, bounded, join_lines, last_lines, text_of, whole
from coreagent.runners.resets import believable, in_text
from coreagent.runners.said import reason_in
from coreagent.wires.base import reason_of

AUTH_REQUIRED: Final = -32000
STOPS: Final = {
    "max_tokens": (Reason.MODEL_ERROR, "the model's answer was cut off at its longest"),
    "refusal": (Reason.MODEL_REFUSED, "the model refused to go on"),
    "cancelled": (Reason.CANCELLED, "interrupted"),
    "max_turn_requests": (Reason.MAX_TURNS, "the agent reached its limit of model calls"),
}
# What adapters put into the `errorKind` of an error's data.
KINDS: Final = {
    "rate_limit": Reason.RATE_LIMIT,
    "authentication_failed": Reason.AUTH,
    "oauth_org_not_allowed": Reason.AUTH,
    "billing_error": Reason.BUDGET,
    "server_error": Reason.MODEL_ERROR,
    "overloaded": Reason.MODEL_ERROR,
    "max_output_tokens": Reason.MODEL_ERROR,
    "invalid_request": Reason.BAD_REQUEST,
}
FAILURES: Final = {"cancelled": Reason.CANCELLED}
"""Kinds of the shim's own failures; what is not in here is an agent that cannot be spoken with."""
PLAIN_NAME: Final = re.compile(r"[A-Za-z_][\w.-]{0,60}")
SHOWN: Final = (
    "command",
    "filePath",
    "file_path",
    "filepath",
    "path",
    "pattern",
    "url",
    "query",
    "description",
    "prompt",
)
DEPTH: Final = 6


class AcpParser(Parser):
    """One attempt's stream."""

    def __init__(self, *, previous_cost: Cost | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._previous_usd = (previous_cost.usd if previous_cost else None) or 0.0
        self._calls: dict[int, str] = {}
        self._loading = ""
        """The session that is being told all over again."""
        self._stopped = False
        """The agent was told to stop before it had answered."""
        self._said: list[str] = []
        self._message = ""
        self._tools: dict[str, dict[str, str]] = {}
        self._broken = False
        """Its status was last told to be an error of the system."""
        self._agent = ""

    def feed(self, line: bytes) -> list[AgentEvent]:
        if not line.startswith(b"<"):
            return super().feed(line)
        record = self._decode(line[1:])
        return [] if record is None else self._events_of(record, self._of_agent)

    @property
    def pending(self) -> bool:
        return bool(self._said)

    def flush(self) -> list[AgentEvent]:
        events = self._spoken()
        self._note(events)
        return events

    # -- the shim's own lines

    def read(self, record: dict[str, Any]) -> list[AgentEvent]:
        if record.get("core_agent") != "acp":
            self.outcome.unparsed += 1
            return []
        match record.get("what"):
            case "call" if record.get("method") == "session/cancel":
                self._stopped = True  # the shim writes it down in its order among what the agent says
            case "call":
                self._calls[whole(record.get("id"))] = text_of(record.get("method"))
                self._loading = text_of(record.get("session"))
            case "denied":
                tool, why = bounded(record.get("tool"), 200), text_of(record.get("why"))
                text = bounded(join_lines(text_of(record.get("text")), why or "not allowed here"))
                identity = bounded(record.get("tool_id"), 200)
                tool = self._tools.get(identity, {}).get("name") or tool
                shared: dict[str, Any] = {"tool": tool, "tool_id": identity, "is_error": True, "denied": True}
                return [*self._spoken(), AgentEvent(kind=EventKind.TOOL_RESULT, text=text, **shared)]
            case "session_lost":
                text = f"the session {record.get('session')} is lost ({record.get('why')}); a fresh one begins"
                data = {"session_lost": text_of(record.get("session"))}
                return [AgentEvent(kind=EventKind.TEXT, text=bounded(text), data=data)]
            case "failed":
                kind, why = text_of(record.get("kind")), bounded(record.get("why"))
                return self._failed(FAILURES.get(kind, Reason.CONFIGURATION), why)
            case _:
                self.outcome.unparsed += 1
        return []

    # -- the agent's lines

    def _of_agent(self, record: dict[str, Any]) -> list[AgentEvent]:
        method = record.get("method")
        if isinstance(method, str):
            params = record.get("params")
            if method == "session/update" and isinstance(params, dict):
                self._status(params.get("_meta"))
                return [] if self._loading else self._update(params["update"])
            if method == "session/request_permission" and isinstance(params, dict):
                # Some tell of a tool only here until it is over.
                return [*self._spoken(), *self._tool({**params["toolCall"], "status": "in_progress"})]
            if method == opencode_plugin.GAVE_UP and isinstance(params, dict):
                reason, message, resets_at = opencode_stream.decode_error(params.get("error"), self._clock())
                return self._failed(reason, message, {"resetsAt": resets_at})
            return []
        identity = record.get("id")
        call = self._calls.pop(identity, "") if isinstance(identity, int) else ""
        if not call:
            self.outcome.unparsed += 1
            return []
        if "error" in record:
            return self._refused(call, record["error"])
        result = record.get("result")
        return self._replied(call, result if isinstance(result, dict) else {})

    def _replied(self, call: str, result: dict[str, Any]) -> list[AgentEvent]:
        if call == "initialize":
            info = result.get("agentInfo")
            info = info if isinstance(info, dict) else {}
            self._agent = bounded(f"{text_of(info.get('name'))} {text_of(info.get('version'))}".strip(), 200)
        elif call in ("session/new", "session/load"):
            session = self._loading or bounded(result.get("sessionId"), 400)
            self._loading = ""
            data = {"agent": self._agent} if self._agent else {}
            return [AgentEvent(kind=EventKind.STARTED, session_id=session, model=model_of(result), data=data)]
        elif call == "session/prompt":
            return self._answered(result)
        return []

    def _refused(self, call: str, error: object) -> list[AgentEvent]:
        if call == "session/load":
            self._loading = ""
            return []  # a fresh session is begun in its place, and the shim says so
        if call == "session/prompt" and self._stopped:
            return self._failed(*STOPS["cancelled"])
        error = error if isinstance(error, dict) else {"message": error}
        message = said_by(error)
        reason = self._reason(error, message)
        if call in ("session/set_mode", "session/set_model", "session/set_config_option"):
            reason, message = Reason.CONFIGURATION, join_lines(f"the agent refused {call}", message)
        return self._failed(reason, message, error.get("data"))

    @staticmethod
    def _reason(error: dict[str, Any], message: str) -> Reason:
        code, data = error.get("code"), error.get("data")
        kind = data.get("errorKind") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind in KINDS:
            return KINDS[kind]
        if code == AUTH_REQUIRED:
            return Reason.AUTH
        told = reason_in(message)
        # gemini says 500 of whatever is no answer of a server, a connection that was refused for one.
        if isinstance(code, int) and 400 <= code < 600 and not (code == 500 and told is Reason.NETWORK):
            return reason_of(code, message)
        return told or Reason.ERROR

    def _update(self, update: dict[str, Any]) -> list[AgentEvent]:
        self._status(update.get("_meta"))
        match update.get("sessionUpdate"):
            case "agent_message_chunk":
                return self._chunk(update)
            case "tool_call" | "tool_call_update":
                return [*self._spoken(), *self._tool(update)]
            case "usage_update":
                self._cost(update.get("cost"))
            case "agent_thought_chunk" | "user_message_chunk":
                return self._spoken()
        return []

    def _chunk(self, update: dict[str, Any]) -> list[AgentEvent]:
        """Collect what is said; it is told when the message is over."""
        message, content = text_of(update.get("messageId")), update.get("content")
        events = self._spoken() if message != self._message else []
        self._message = message
        said = text_of(content.get("text")) if isinstance(content, dict) else ""
        if said and sum(map(len, self._said)) < TEXT_LIMIT:
            self._said.append(said)
        return events

    def _spoken(self) -> list[AgentEvent]:
        said, self._said = "".join(self._said).strip(), []
        return [AgentEvent(kind=EventKind.TEXT, text=bounded(said))] if said else []

    def _tool(self, update: dict[str, Any]) -> list[AgentEvent]:
        """A tool is told once its input is known, which for some is the second thing that they say of it."""
        identity, status = bounded(update.get("toolCallId"), 200), text_of(update.get("status"))
        title = text_of(update.get("title"))
        tool = self._tools.setdefault(identity, {})
        if "name" not in tool:
            tool["name"] = named(update, title)
        shown = described(update) or (title if title != tool["name"] else "")
        tool["shown"] = shown or tool.get("shown", "")
        over = status in ("completed", "failed")
        events = []
        if "told" not in tool and (shown or over or status == "in_progress"):
            tool["told"] = "yes"
            events.append(self._event(EventKind.TOOL_USE, identity, bounded(tool["shown"], 2000)))
        if over and "over" not in tool:
            tool["over"] = "yes"
            text = bounded(content_text(update.get("content")))
            events.append(self._event(EventKind.TOOL_RESULT, identity, text, is_error=status == "failed"))
        return events

    def _event(self, kind: EventKind, identity: str, text: str, *, is_error: bool = False) -> AgentEvent:
        name = self._tools[identity]["name"]
        return AgentEvent(kind=kind, tool=name, tool_id=identity, text=text, is_error=is_error)

    def _status(self, meta: object) -> None:
        status = find_key(meta, "threadStatus", DEPTH)
        if status is not None:
            kind = status.get("type") if isinstance(status, dict) else status
            self._broken = kind == "systemError"

    def _cost(self, cost: object) -> None:
        # Of the whole session; less than before when the agent forgot a session's earlier turns.
        amount = cost.get("amount") if isinstance(cost, dict) else None
        dollars = isinstance(cost, dict) and cost.get("currency") in (None, "USD")
        if dollars and isinstance(amount, int | float) and not isinstance(amount, bool) and 0 <= amount < 1e9:
            usd = amount - self._previous_usd if amount >= self._previous_usd else amount
            self.outcome.cost = Cost(usd=round(float(usd), 9), source="reported")

    # -- the end

    def _answered(self, result: dict[str, Any]) -> list[AgentEvent]:
        out = self.outcome
        events = self._spoken()
        self._note(events)
        out.events -= len(events)  # counted with what is returned
        out.turns += 1
        self._status(result.get("_meta"))
        out.usage = usage_of(result)
        # opencode ends what it was told to stop with `end_turn`, when it waits between its tries.
        stop = "cancelled" if self._stopped else text_of(result.get("stopReason"))
        if stop == "end_turn" and self._broken:
            # Its error is told as if the agent had said it, and the turn ends as if all were well.
            reason = reason_in(out.last_text) or Reason.MODEL_ERROR
            return events + self._failed(reason, out.last_text or "the agent's thread ended in an error")
        if stop != "end_turn":
            reason, message = STOPS.get(stop, (Reason.ERROR, f"the agent stopped with {stop!r:.100}"))
            return events + self._failed(reason, message)
        out.terminal, out.reason, out.message = "success", None, ""
        return [*events, AgentEvent(kind=EventKind.RESULT, text=out.last_text, **self._totals())]

    def _failed(self, reason: Reason, message: str, data: object = None) -> list[AgentEvent]:
        out = self.outcome
        if out.terminal != "none":
            return []
        events = self._spoken()
        out.terminal, out.reason, out.message = "error", reason, bounded(message) or "an error without a text"
        if reason is Reason.RATE_LIMIT:
            resets = data.get("resetsAt") if isinstance(data, dict) else None
            out.resets_at = believable(resets, self._clock()) or in_text(message, self._clock())
            text, at = out.message, out.resets_at
            events.append(
                AgentEvent(
                    kind=EventKind.RATE_LIMIT, text=text, reason=reason, resets_at=at, data={"status": "rejected"}
                )
            )
        shared = {**self._totals(), "reason": reason, "resets_at": out.resets_at}
        return [*events, AgentEvent(kind=EventKind.ERROR, text=out.message, is_error=True, **shared)]

    def _totals(self) -> dict[str, Any]:
        out = self.outcome
        return {"session_id": out.session_id, "usage": out.usage, "cost": out.cost, "terminal": True}

    def end(self, exit_code: int | None, signal: int | None, stderr_tail: bytes = b"") -> Outcome:
        self.flush()
        if self.outcome.terminal != "none":
            return self.outcome
        out = self.died(exit_code, signal, stderr_tail)
        if exit_code and not signal and not out.session_id and reason_in(last_lines(stderr_tail)) is Reason.AUTH:
            out.terminal, out.reason = "error", Reason.AUTH
        return out


def usage_of(result: dict[str, Any]) -> Usage:
    """The tokens of a turn, where an agent tells them: the protocol's own place, or gemini's."""
    usage = result.get("usage")
    if isinstance(usage, dict):
        return Usage(
            input=whole(usage.get("inputTokens")),
            output=whole(usage.get("outputTokens")) + whole(usage.get("thoughtTokens")),
            cache_read=whole(usage.get("cachedReadTokens")),
            cache_write=whole(usage.get("cachedWriteTokens")),
        )
    count = find_key(result.get("_meta"), "token_count", DEPTH)
    if isinstance(count, dict):
        return Usage(input=whole(count.get("input_tokens")), output=whole(count.get("output_tokens")))
    return Usage()


def model_of(result: dict[str, Any]) -> str:
    """The model that a session begins with, in either of the two places for it."""
    models, options = result.get("models"), result.get("configOptions")
    if isinstance(models, dict) and models.get("currentModelId"):
        return bounded(models["currentModelId"], 200)
    for option in options if isinstance(options, list) else ():
        if isinstance(option, dict) and "model" in (option.get("category"), option.get("id")):
            return bounded(option.get("currentValue"), 200)
    return ""


def find_key(value: object, key: str, depth: int) -> Any:
    """The value of a key somewhere inside of an extension's data."""
    if depth <= 0 or not isinstance(value, dict):
        return None
    if key in value:
        return value[key]
    return next((found for item in value.values() if (found := find_key(item, key, depth - 1)) is not None), None)


def named(update: dict[str, Any], title: str) -> str:
    """A tool's name: the agent's own word, a title that is one, else its kind."""
    own = update.get("name") or find_key(update.get("_meta"), "toolName", DEPTH)
    if isinstance(own, str) and own:
        return bounded(own, 200)
    return title if PLAIN_NAME.fullmatch(title) else bounded(update.get("kind"), 200) or "tool"


def described(update: dict[str, Any]) -> str:
    """One line that says what a tool call is about."""
    given = update.get("rawInput")
    if isinstance(given, dict):
        for key in SHOWN:
            if isinstance(given.get(key), str) and given[key]:
                return text_of(given[key])
    places = update.get("locations")
    first = places[0] if isinstance(places, list) and places else None
    return text_of(first.get("path")) if isinstance(first, dict) and isinstance(given, dict) and given else ""


def content_text(content: object) -> str:
    """The text of a tool's result."""
    parts = []
    for item in content if isinstance(content, list) else ():
        inner = item.get("content") if isinstance(item, dict) else None
        if isinstance(inner, dict):
            parts.append(text_of(inner.get("text")))
    return "\n".join(part for part in parts if part)


def said_by(error: dict[str, Any]) -> str:
    data = error.get("data")
    details = data.get("details") if isinstance(data, dict) else data
    return join_lines(text_of(error.get("message")), text_of(details))
