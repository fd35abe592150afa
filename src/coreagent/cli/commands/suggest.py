"""What a shell may offer for a word: workspaces, agents, templates. Silent when the daemon cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from coreagent import runners
from coreagent.cli.session import session
from coreagent.cli.views.text import one_line
from coreagent.errors import CoreAgentError

Offer = Callable[[str], list[tuple[str, str]]]


def _asked(name: str, **arguments: Any) -> Any:
    """Ask, but only from inside the daemon: a press of Tab must not start one."""
    if session().core is None:
        return None
    try:
        return session().call(name, **arguments)
    except CoreAgentError:
        return None


def _begins(pairs: Iterable[tuple[str, str]], incomplete: str) -> list[tuple[str, str]]:
    # Each once: two workspaces of one name are told apart by their whole names.
    return list({value: (value, help_text) for value, help_text in pairs if value.startswith(incomplete)}.values())


def workspaces(incomplete: str) -> list[tuple[str, str]]:
    """Names as short as they may be typed: the bare name, or the whole one when somebody began it so."""
    report = _asked("status", all=True)
    rows = report.workspaces if report else []
    short = [(row.workspace.rsplit("/", 1)[1], f"{row.state} {one_line(row.task)}") for row in rows]
    whole = [(row.workspace, f"{row.state} {one_line(row.task)}") for row in rows]
    return _begins(short, incomplete) or _begins(whole, incomplete)


def repos(incomplete: str) -> list[tuple[str, str]]:
    rows = _asked("repo.list") or []
    return _begins(((f"{row.org}/{row.name}", one_line(row.path)) for row in rows), incomplete)


def agents(incomplete: str) -> list[tuple[str, str]]:
    rows = _asked("agents")
    known = [(row.name, row.runner) for row in rows] if rows else [(name, "") for name in runners.FAMILY]
    return _begins(known, incomplete)


def templates(incomplete: str) -> list[tuple[str, str]]:
    rows = _asked("template.list") or []
    return _begins(((row.name, one_line(row.summary)) for row in rows if row.kind == "template"), incomplete)


def personas(incomplete: str) -> list[tuple[str, str]]:
    rows = _asked("template.list") or []
    return _begins(((row.name, one_line(row.summary)) for row in rows if row.kind == "persona"), incomplete)


def templates_and_personas(incomplete: str) -> list[tuple[str, str]]:
    return templates(incomplete) + personas(incomplete)
