"""An agent's events and the daemon's messages, one line each (or a few for what an agent says)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from coreagent.cli.views.text import Paint, duration, fit, money, one_line, safe_lines, used, width_of, wrap
from coreagent.models.agent import AgentEvent, EventKind
from coreagent.models.dispatch import Event
from coreagent.models.report import LogEntry, LogReply
from coreagent.plural import plural

_TEXT_LINES = 40


def event_lines(event: AgentEvent, width: int, paint: Paint) -> list[str]:
    """One event as a person reads it; [] for what says nothing to a person."""
    match event.kind:
        case EventKind.STARTED:
            return [
                paint.dim(fit(f"▸ session {one_line(event.session_id) or '?'} {one_line(event.model)}".rstrip(), width))
            ]
        case EventKind.TEXT:
            return _said(event.text, width)
        case EventKind.TOOL_USE:
            what = fit(one_line(event.text), max(8, width - 3 - width_of(one_line(event.tool)) - 1))
            return [f"{paint.cyan('●')} {paint.bold(one_line(event.tool))} {what}".rstrip()]
        case EventKind.TOOL_RESULT:
            return _result(event, width, paint)
        case EventKind.RATE_LIMIT:
            return [paint.yellow(fit(f"! rate limit: {one_line(event.text)}", width))]
        case EventKind.RETRY:
            return [paint.yellow(fit(f"! tries again: {one_line(event.text)}", width))]
        case EventKind.RESULT:
            return [paint.green(fit(f"✓ {_ending(event) or 'done'}", width))]
        case EventKind.ERROR:
            reason = f" ({event.reason})" if event.reason else ""
            sign = "✗" if event.terminal else "!"
            return [paint.red(line) for line in wrap(f"{sign} error{reason}: {one_line(event.text)}", width)]
        case _:
            return []


def _said(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for line in safe_lines(text.strip()):
        lines += wrap(line, width) if line.strip() else [""]
    if len(lines) > _TEXT_LINES:
        lines = [*lines[:_TEXT_LINES], f"… {plural(len(lines) - _TEXT_LINES, 'more line')} (logs --json has them)"]
    return lines


def _result(event: AgentEvent, width: int, paint: Paint) -> list[str]:
    said = [line.strip() for line in safe_lines(event.text) if line.strip()]
    first = said[0] if said else ""
    if event.denied:
        return [paint.yellow(fit(f"  ⎿ refused: {first}", width))]
    if event.is_error:
        return [paint.red(fit(f"  ⎿ failed: {said[-1] if said else ''}", width))]
    more = max(0, len(said) - 1)
    tail = f" (+{plural(more, 'line')})" if more else ""
    return [paint.dim(fit(f"  ⎿ {fit(first, width - 4 - width_of(tail))}{tail}", width))] if first else []


def _ending(event: AgentEvent) -> str:
    facts = [one_line(event.text)]
    if event.usage is not None and event.usage.total:
        facts.append(used(event.usage.total))
    if event.cost is not None and event.cost.usd is not None:
        facts.append(money(event.cost))
    return ", ".join(fact for fact in facts if fact)


def log_lines(reply: LogReply, width: int, paint: Paint, last_attempt: int) -> tuple[list[str], int]:
    """Lines of a log page and the attempt it ended in; a rule marks where an attempt begins."""
    lines: list[str] = []
    for entry in reply.entries:
        if entry.attempt != last_attempt:
            lines += [paint.dim(f"── attempt {entry.attempt} " + "─" * max(0, min(width, 60) - 14))]
            last_attempt = entry.attempt
        lines += event_lines(entry.event, width, paint)
    return lines, last_attempt


def stderr_lines(reply: LogReply, width: int, paint: Paint) -> list[str]:
    """What the agent's program wrote to its standard error."""
    if not reply.stderr.strip():
        return []
    body = [line for raw in safe_lines(reply.stderr.strip()) for line in wrap(raw, width - 2, "  ")]
    return [paint.dim("── stderr " + "─" * max(0, min(width, 60) - 10)), *body]


def message_line(message: Mapping[str, Any], width: int, paint: Paint) -> str:
    """One line of `watch`: when, what, which workspace, and the fields that say something."""
    event = Event.model_validate(message)
    when = event.at.astimezone().strftime("%H:%M:%S")
    told = dict(event.data)
    state = str(told.pop("State", told.pop("state", "")))
    reason = str(told.pop("Reason", told.pop("reason", "")))
    if (fate := told.pop("Fate", "open")) != "open":
        state, reason = str(fate), ""
    for known in ("Workspace", "workspace", "Agent", "Repo", "Moved", "type"):
        told.pop(known, None)
    words = [state + (f": {reason}" if reason and reason != state else "")] if state else ([reason] if reason else [])
    for key, value in told.items():
        words.append(f"{key}={duration(value) if key == 'Duration' else value}")
    rest = fit(one_line(" ".join(words)), max(0, width - 30 - width_of(one_line(event.workspace))))
    name = event.name if event.name != "DispatchChanged" else "changed"
    return f"{paint.dim(when)} {paint.bold(name)} {one_line(event.workspace)} {rest}".rstrip()


def since(start: datetime | None, now: datetime) -> str:
    return duration((now - start).total_seconds()) if start is not None else "-"


def raw_lines(entry: LogEntry) -> list[str]:
    """An event with all of its text: still made safe, never cut."""
    head = f"{entry.attempt}:{entry.offset} {entry.event.kind} {one_line(entry.event.tool)}".rstrip()
    return [head, *(f"  {line}" for line in safe_lines(entry.event.text))]
