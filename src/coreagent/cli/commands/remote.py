"""Verbs of the group `repo` that reach its remote: fetch, sync and pushed."""

from __future__ import annotations

from typing import Annotated

import typer

from coreagent.cli.commands import suggest
from coreagent.cli.commands.option import Json, Yes, answer, ask, paint, repo_of
from coreagent.cli.session import session
from coreagent.cli.terminal import terminal
from coreagent.cli.views import remote as views
from coreagent.errors import CoreAgentError
from coreagent.models.report import FetchRow, PushedReply, SyncReply

Repo = Annotated[
    str, typer.Argument(metavar="REPO", help="org/name or path. [default: here]", autocompletion=suggest.repos)
]


def fetch(
    name: Repo = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every registered repository, and those under the workspace root.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask `origin` for news: remote-tracking branches only, nothing of yours moves.

    The daemon does this by itself every `sync.fetch_minutes`; for cron or a systemd timer there is --all. Exit code 1
    when one of them failed.
    """
    if name and everything:
        raise CoreAgentError("conflicting_options", "REPO and --all exclude each other")
    rows: list[FetchRow] = session().call("repo.fetch", repo=repo_of(name), all=everything)
    answer(rows, as_json, lambda t: views.fetch_lines(rows, t.width, paint()))
    if any(row.error for row in rows):
        raise typer.Exit(1)


def sync(
    name: Repo = "",
    reset: Annotated[
        bool,
        typer.Option("--reset", help="Move it to the remote's branch whatever it holds; that is kept before."),
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Fetch, and fast-forward the default branch of a managed checkout (repo add --managed).

    Any other checkout is fetched and never moved.
    """
    if reset and not yes:
        if as_json or not terminal().interactive:
            raise CoreAgentError(
                "consent_needed",
                "whether the checkout may be reset must be answered, and nobody can be asked",
                hint="if you agree: core-agent repo sync --reset --yes",
            )
        if not ask("Move the checkout to the remote's branch? What it holds is kept under a rescue ref."):
            return
    reply: SyncReply = session().call("repo.sync", repo=repo_of(name), reset=reset)
    answer(reply, as_json, lambda t: views.sync_lines(reply, t.width, paint()))


def pushed(
    name: Repo = "",
    branch: Annotated[
        str,
        typer.Option("--branch", "-b", help="The branch that was pushed to. [default: the one HEAD is on]"),
    ] = "",
    as_json: Json = False,
) -> None:
    """Tell that somebody pushed to the remote: for a hook, cron, or a webhook's receiver.

    A managed checkout (repo add --managed) fast-forwards that branch; any other is fetched and never moved. Exit code 1
    when it could not follow.
    """
    reply: PushedReply = session().call("repo.pushed", repo=repo_of(name), branch=branch)
    answer(reply, as_json, lambda t: views.pushed_lines(reply, t.width, paint()))
    if reply.state == "failed":
        raise typer.Exit(1)
