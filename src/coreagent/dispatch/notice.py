"""What a person is told when something happened, from a stored event and the row that it is about. Pure.

`dispatch.notify` comes in. Agents wrote part of what is told: it is cut short, and plain whatever it was.
"""

from __future__ import annotations

import fnmatch
import unicodedata
from datetime import datetime

from pydantic import BaseModel

from coreagent.dispatch import rows
from coreagent.models.agent import Reason
from coreagent.models.dispatch import Dispatch, Event, State
from coreagent.plural import plural
from coreagent.sections import NotifySettings

TEXT_MAX = 240
FIELD_MAX = 400


class Notice(BaseModel):
    """What a command reads and a webhook gets."""

    v: int = 1
    id: str
    """The same when a notice comes a second time."""
    event: str
    """blocked, completed, failed, needs_review, parked, or test"""
    text: str
    """One line for people."""
    at: datetime
    workspace: str = ""
    dispatch_id: str = ""
    repo: str = ""
    agent: str = ""
    state: str = ""
    reason: str = ""
    detail: str = ""
    question: str = ""
    branch: str = ""
    files: int = 0
    pool: str = ""
    until: str = ""
    next: str = ""
    """A command that a person may want now."""
    home: str = ""


def plain(text: str, most: int) -> str:
    """One line of visible characters: no escapes, no controls, nothing that turns the direction of writing."""
    kept = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text[: most * 4])
    line = " ".join(kept.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def of_pool(event: Event, settings: NotifySettings) -> Notice | None:
    """What is told of a parked pool; the filters are about tasks and do not apply."""
    if event.name != "PoolParked" or "parked" not in settings.on:
        return None
    pool, until = plain(str(event.data.get("Pool", "")), 80), str(event.data.get("Until", ""))
    why = {"rate_limit": "its provider's rate limit", "outage": "its provider fails"}.get(event.data.get("Why", ""), "")
    when = until[:16].replace("T", " ")
    return Notice(
        id=str(event.seq),
        event="parked",
        text=f"pool {pool} is parked until {when} UTC: {why}",
        at=event.at,
        pool=pool,
        until=until,
        reason=str(event.data.get("Why", "")),
        next=f"core-agent queue start {pool}",
    )


def of_task(event: Event, d: Dispatch, settings: NotifySettings) -> Notice | None:
    """What is told of a task that came to rest, None when nobody wants to know."""
    state = str(event.data.get("State", ""))
    kind = _kind(state, str(event.data.get("Reason", "")), d, settings)
    if not kind or not _fits(f"{d.org}/{d.repo}", settings.repos) or not _fits(d.agent, settings.agents):
        return None
    now = state == d.state  # else it went on since, and only what the event says is true of then
    what, command = _words(kind, d) if now else (kind.replace("_", " "), f"core-agent why {d.name}")
    return Notice(
        id=str(event.seq),
        event=kind,
        text=plain(f"{d.workspace} {what}", TEXT_MAX),
        at=event.at,
        workspace=d.workspace,
        dispatch_id=d.id,
        repo=f"{d.org}/{d.repo}",
        agent=plain(d.agent, FIELD_MAX),
        state=state,
        reason=str(event.data.get("Reason", "")),
        detail=plain(d.detail, FIELD_MAX) if now else "",
        question=plain(d.question, FIELD_MAX) if now else "",
        branch=d.branch,
        files=d.harvest.files if now else 0,
        next=command,
    )


def _kind(state: str, reason: str, d: Dispatch, settings: NotifySettings) -> str:
    """The name under which it is told: the most telling one of those that are wanted."""
    kinds = []
    if state in (State.BLOCKED, State.FAILED):
        kinds = [state]
    elif state == State.COMPLETED:
        wanted_nothing = reason == Reason.NO_CHANGES and d.options.expect == "none"
        kinds = ["completed"] if wanted_nothing else ["needs_review", "completed"]
    elif state == State.PAUSED and reason == Reason.TURNS_ALONE:
        kinds = ["needs_review"]
    return next((kind for kind in kinds if kind in settings.on), "")


def _fits(text: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)


def _words(kind: str, d: Dispatch) -> tuple[str, str]:
    """What happened, and a command that a person may want now."""
    if kind == "blocked":
        question = plain(d.question or d.detail, 160)
        return f"asks: {question}", f'core-agent resume {d.name} --answer "..."'
    if kind == "failed":
        detail = plain(d.detail, 160)
        return f"failed, {d.reason}" + (f": {detail}" if detail else ""), f"core-agent why {d.name}"
    if d.state is State.PAUSED:
        return f"is paused: {plain(d.detail, 160)}", f"core-agent why {d.name}"
    if d.harvest.status == "rejected":
        return f"ended well, but its work was not brought over: {d.harvest.reason}", f"core-agent why {d.name}"
    if d.reason is Reason.NO_CHANGES:
        expected = "" if d.options.expect == "none" else ", and changes were expected"
        return f"ended well and changed nothing{expected}", f"core-agent logs {d.name}"
    ready = "is ready for review" if rows.needs_me(d) else "ended well"
    return f"{ready}: {plural(d.harvest.files, 'changed file')} on {d.branch}", f"core-agent diff {d.name}"
