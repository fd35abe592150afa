"""Verbs that only look: status, why, diff, history."""

from __future__ import annotations

from typing import Annotated

import typer

from coreagent.cli.commands.follow import looks
from coreagent.cli.commands.option import (
    Json,
    JsonLines,
    MaybeWorkspace,
    Workspace,
    answer,
    now,
    paint,
    say,
    to_json,
)
from coreagent.cli.session import ClientGone, session
from coreagent.cli.terminal import Terminal, terminal
from coreagent.cli.views import answer as views
from coreagent.cli.views import listing
from coreagent.cli.views.live import FOOT, Screen
from coreagent.cli.views.status import hint_lines, status_lines
from coreagent.cli.views.text import width_of
from coreagent.models.report import StatusReport


def status(
    workspace: MaybeWorkspace = "",
    show_all: Annotated[bool, typer.Option("--all", "-A", help="Settled ones too.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Full screen, kept up to date, until Ctrl-C.")] = False,
    as_json: JsonLines = False,
) -> None:
    """What is running, what waits and why, what needs me (oldest first, on top)."""
    if watch:
        _status_watch(workspace, show_all, as_json)
        return
    report: StatusReport = session().call("status", workspace=workspace, all=show_all)
    answer(report, as_json, lambda t: _status_view(report, t, show_all))


ALL = "core-agent status --all"
LOOK_S = 1.0
"""How often `--watch` looks when nothing happens: not every change is a message."""


def _status_view(report: StatusReport, here: Terminal, show_all: bool) -> list[str]:
    """What fits a person's screen, the next prompt included; everything for a pipe, and for who asks for all."""
    hints = hint_lines(report, here.width, paint())
    taken = sum(1 + width_of(hint) // (here.width + 1) for hint in hints)  # a command is never cut: it wraps
    room = max(1, here.height - 1 - taken) if here.out.isatty() and not show_all else 0
    return status_lines(report, here.width, paint(), now(), room, ALL) + hints


def _status_watch(workspace: str, show_all: bool, as_json: bool) -> None:
    here = terminal()
    words = [*([workspace] if workspace else []), *(["--all"] if show_all else []), *(["--json"] if as_json else [])]
    session().resume_with(["status", "--watch", *words])
    if as_json or not here.live:
        _status_lines(workspace, show_all, as_json)
        return
    try:
        with Screen(here) as screen:
            for _ in looks(workspace, LOOK_S):
                report = session().call("status", workspace=workspace, all=show_all)
                room = here.height - FOOT
                view = status_lines(report, here.width, paint(), now(), room, "" if show_all else ALL)
                screen.draw(view, f"{now().astimezone():%H:%M:%S}   Ctrl-C leaves")
    except ClientGone:
        raise
    except KeyboardInterrupt:
        return


def _status_lines(workspace: str, show_all: bool, as_json: bool) -> None:
    """Without a screen: the report again whenever it is another one (JSON Lines, or text between blank lines)."""
    last = None
    for _ in looks(workspace, LOOK_S):
        report: StatusReport = session().call("status", workspace=workspace, all=show_all)
        # That time passes is no news.
        still = [row.model_copy(update={"elapsed_s": None}) for row in report.workspaces]
        seen = report.model_copy(update={"workspaces": still})
        if seen == last:
            continue
        say([to_json(report, line=True)] if as_json else [*status_lines(report, terminal().width, paint(), now()), ""])
        terminal().out.flush()
        last = seen


def why(workspace: Workspace, as_json: Json = False) -> None:
    """Why it is as it is: the evidence, and what can be done now."""
    report = session().call("why", workspace=workspace)
    answer(report, as_json, lambda t: views.why_lines(report, t.width, paint()))


def diff(
    workspace: Workspace,
    stat: Annotated[bool, typer.Option("--stat", help="Names and numbers only.")] = False,
    as_json: Json = False,
) -> None:
    """What the agent changed, also while it still works.

    In a pipe or a file it is git's own patch, byte for byte and with binary files: `core-agent diff W | git apply`.
    """
    here = terminal()
    if not (as_json or stat or here.colour or here.out.isatty()):
        reply = session().call("diff", workspace=workspace, exact=True)
        here.write_bytes(reply.text.encode("utf-8", "surrogateescape"))
    else:
        reply = session().call("diff", workspace=workspace, stat=stat)
        answer(reply, as_json, lambda t: views.diff_lines(reply, paint()))
    if not as_json:
        terminal().out.flush()
        say(views.diff_summary(reply, paint()), err=True)


def history(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 50,
    as_json: Json = False,
) -> None:
    """What happened in the last dispatches, newest first."""
    rows = session().call("history", limit=limit)
    answer(rows, as_json, lambda t: listing.history_lines(rows, t.width, paint(), now()))
