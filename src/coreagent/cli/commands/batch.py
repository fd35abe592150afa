"""Verbs of tasks that belong together: batches, waiting for all of one, compare, pick; and adopt."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from time import time
from typing import Annotated, Any
from zlib import crc32

import typer

from coreagent.cli.commands import suggest
from coreagent.cli.commands.follow import TICK_S, Position, at_rest, changes, latest, words_of
from coreagent.cli.commands.option import (
    Json,
    Workspace,
    answer,
    now,
    paint,
    read_file,
    repo_of,
    say,
    seconds,
    stdin_text,
    to_json,
)
from coreagent.cli.session import ClientGone, session
from coreagent.cli.terminal import terminal
from coreagent.cli.views import answer as views
from coreagent.cli.views import compare as batch_views
from coreagent.cli.views.status import state_words, what_now
from coreagent.cli.views.text import duration, one_line
from coreagent.errors import EXIT_INTERRUPTED, CoreAgentError
from coreagent.models.batch import BatchReply
from coreagent.models.dispatch import State
from coreagent.models.report import WorkspaceRow

Call = Callable[[str, dict[str, Any]], Any]
_OF_A_FILE = {"repo", "variables", "dry_run"}
"""What may be said beside a file of tasks; everything else stands in it."""
_DEFAULTS: dict[str, Any] = {"expect": "changes", "priority": 0}


def dispatch_file(
    file: str, arguments: dict[str, Any], several: bool, follow: bool, limit: float | None, as_json: bool, call: Call
) -> None:
    """`dispatch --file`."""
    given = [n for n, v in arguments.items() if n not in _OF_A_FILE and v not in (_DEFAULTS.get(n), "", None, [], {})]
    given = [n for n in given if arguments[n] is not False] + (["--count or --agents"] if several else [])
    if given:
        raise CoreAgentError(
            "conflicting_options",
            f"--file and {given[0].replace('_', '-')} exclude each other",
            hint="say it in the file, for one task or under `defaults`",
        )
    text = stdin_text() if file == "-" else read_file(file, "file of tasks")
    asked = {name: arguments[name] for name in _OF_A_FILE}
    reply = call("batch.dispatch", {"file": text, "path": "standard input" if file == "-" else file, **asked})
    _answer_and_wait(reply, follow, limit, as_json)


def dispatch_siblings(
    arguments: dict[str, Any],
    count: int | None,
    agents: str | None,
    follow: bool,
    limit: float | None,
    as_json: bool,
    call: Call,
) -> None:
    """`dispatch --count` and `dispatch --agents`."""
    names = {"template": "template", "persona": "persona", "plan_template": "plan", "variables": "vars",
             "timeout_s": "timeout", "idle_timeout_s": "idle_timeout"}  # fmt: skip
    own = ("after", "on_top", "dry_run")
    task = {names.get(name, name): value for name, value in arguments.items() if name not in own}
    asked = {name: arguments[name] for name in own}
    listed = [part.strip() for part in (agents or "").split(",") if part.strip()]
    if count is not None and agents is not None:
        raise CoreAgentError("conflicting_options", "--count and --agents exclude each other")
    reply = call("batch.siblings", {"task": task, "count": count or 0, "agents": listed, **asked})
    _answer_and_wait(reply, follow, limit, as_json)


def _answer_and_wait(reply: BatchReply, follow: bool, limit: float | None, as_json: bool) -> None:
    follow = follow and not reply.dry_run
    if as_json and follow:
        say([to_json(reply, line=True)])
    else:
        answer(reply, as_json, lambda t: batch_views.batch_lines(reply, t.width, paint(), next_steps=not follow))
    if follow:
        terminal().flush()
        raise typer.Exit(wait_batch(reply.batch, as_json, limit))


def wait_batch(batch: str, as_json: bool, limit_s: float | None = None, *, at: Position | None = None) -> int:
    """Follow a batch until nothing more comes of it unless a person does something; return the exit code of `--wait`.

    The worst of its tasks decides: 10 when one failed, else 11 when one waits for a person, else 12, else 0.

    Raises: batch_not_found, wait_timeout. Ctrl-C leaves the jobs running, says so and returns 130.
    """
    at = at or Position(ends=time() + limit_s if limit_s else 0.0)
    told: dict[str, str] = {}
    try:
        since = latest()
        rows: list[WorkspaceRow] = session().call("batch.show", batch=batch)
        if at.said == _checksum(rows):
            told = {row.dispatch_id: _seen(row) for row in rows}
        for events in chain([[{}]], changes("", TICK_S, since)):
            if events:
                rows = session().call("batch.show", batch=batch)
                _tell(rows, told, as_json)
                at = at.model_copy(update={"said": _checksum(rows)})
                session().resume_with(["wait", batch, *(["--json"] if as_json else []), *words_of(at)])
                terminal().out.flush()
                if all(at_rest(row) for row in rows):
                    break
            if at.ends and time() > at.ends:
                open_ones = [row.workspace for row in rows if not at_rest(row)]
                raise CoreAgentError(
                    "wait_timeout",
                    f"{len(open_ones)} of {len(rows)} still go on" + (f" after {duration(limit_s)}" if limit_s else ""),
                    hint=f"core-agent wait {batch} follows them again",
                    data={"workspaces": open_ones},
                )
    except ClientGone:
        raise
    except KeyboardInterrupt:
        say([f"you stopped watching; the tasks of {batch} go on"], err=True)
        return EXIT_INTERRUPTED
    if not as_json:
        say(batch_views.end_lines(batch, rows, terminal().width, paint()))
    codes = {views.exit_code(row.state, row.harvest_reason) for row in rows}
    return next((code for code in (10, 11, 12, 1) if code in codes), 0)


def _seen(row: WorkspaceRow) -> str:
    return f"{row.state} {row.reason} {row.waiting_for} {row.fate}"


def _checksum(rows: list[WorkspaceRow]) -> int:
    return crc32("\n".join(f"{row.dispatch_id} {_seen(row)}" for row in rows).encode())


def _tell(rows: list[WorkspaceRow], told: dict[str, str], as_json: bool) -> None:
    for row in rows:
        if told.get(row.dispatch_id) == _seen(row):
            continue
        first = row.dispatch_id not in told
        told[row.dispatch_id] = _seen(row)
        if as_json:
            say([to_json(row, line=True)])
        elif not first or row.state is not State.QUEUED:
            say([f"{one_line(row.workspace)}  {state_words(row)}  {what_now(row, now())}"])


def compare(
    siblings: Annotated[
        list[str],
        typer.Argument(metavar="BATCH|WORKSPACE...", help="A batch, or workspaces.", autocompletion=suggest.workspaces),
    ],
    test: Annotated[
        str,
        typer.Option(
            "--test", metavar="COMMAND", help="Run this in a clean checkout of each: it runs what the agents wrote."
        ),
    ] = "",
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="With --test: for each. [default: 10m]")
    ] = "",
    diff: Annotated[tuple[str, str], typer.Option("--diff", metavar="A B", help="What lies between two of them.")] = (
        "",
        "",
    ),
    as_json: Json = False,
) -> None:
    """Set results of the same task side by side: state, changes, tests, cost, time, and which are the same.

    Without --test nothing is known of tests. With it the command is run, with your rights and without a sandbox, on
    code that agents wrote.
    """
    limit = seconds(timeout) if timeout else 600.0
    report = session().call("compare", siblings=siblings, test=test, timeout_s=limit, diff=[one for one in diff if one])
    answer(report, as_json, lambda t: batch_views.compare_lines(report, t.width, paint()))


def pick(
    workspace: Workspace,
    squash: Annotated[bool, typer.Option("--squash", help="One new commit.")] = False,
    rebase: Annotated[bool, typer.Option("--rebase", help="The agent's commits, on top of the branch.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="A merge commit.")] = False,
    onto: Annotated[
        str, typer.Option("--onto", metavar="BRANCH", help="Land on this branch. [default: where it began]")
    ] = "",
    cancel_others: Annotated[
        bool, typer.Option("--cancel-others", help="Stop siblings that still run; their work is kept too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Accept one of several siblings and reject the others; their work stays under rescue refs."""
    chosen = [name for name, given in (("squash", squash), ("rebase", rebase), ("merge", merge)) if given]
    if len(chosen) > 1:
        raise CoreAgentError("conflicting_options", f"--{chosen[0]} and --{chosen[1]} exclude each other")
    reply = session().call(
        "pick", workspace=workspace, strategy=chosen[0] if chosen else "auto", onto=onto, cancel_others=cancel_others
    )
    answer(reply, as_json, lambda t: batch_views.pick_lines(reply, t.width, paint()))


def adopt(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A worktree of a repository of yours.")] = "",
    show: Annotated[bool, typer.Option("--list", help="Which worktrees of this repository there are.")] = False,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the workspace. [default: after its branch]")] = "",
    agent: Annotated[str, typer.Option("--agent", "-a", help="Who goes on in it.", autocompletion=suggest.agents)] = "",
    session_id: Annotated[
        str, typer.Option("--session", metavar="ID", help="The session of claude to go on with. [default: the newest]")
    ] = "",
    task: Annotated[
        str, typer.Option("--task", metavar="TEXT", help="What it is about, for an agent that starts anew.")
    ] = "",
    base: Annotated[
        str, typer.Option("--base", metavar="BRANCH", help="Where it began, and lands. [default: the main checkout's]")
    ] = "",
    repo: Annotated[str, typer.Option("--repo", "-r", help="With --list: of this repository. [default: here]")] = "",
    as_json: Json = False,
) -> None:
    """Take over a worktree of claude-squad, vibe-kanban or git's own as a workspace; `resume` goes on in it.

    Its commits and its uncommitted changes are copied; nothing there is changed or deleted.
    """
    if show or not path:
        rows = session().call("adopt.list", repo=repo_of(repo))
        answer(rows, as_json, lambda t: batch_views.candidate_lines(rows, t.width, paint()))
        return
    asked = {"name": name, "agent": agent, "session": session_id, "task": task, "base": base}
    reply = session().call("adopt", path=terminal().path(path), **asked)
    answer(reply, as_json, lambda t: batch_views.adopt_lines(reply, t.width, paint()))
