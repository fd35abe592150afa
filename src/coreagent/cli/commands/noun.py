"""Groups by noun: queue, workspace, repo, rescue, template; and the list of agents."""

from __future__ import annotations

from typing import Annotated

import typer

from coreagent.cli.commands import suggest
from coreagent.cli.commands.option import (
    Json,
    MaybeWorkspace,
    Workspace,
    Yes,
    answer,
    ask,
    group,
    now,
    paint,
    repo_of,
    say,
)
from coreagent.cli.session import session
from coreagent.cli.terminal import terminal
from coreagent.cli.views import answer as views
from coreagent.cli.views import listing
from coreagent.errors import CoreAgentError
from coreagent.models.report import QueueReport, TrustReply

queue = group("What waits, and whether anything may start.")
workspace = group("The directories that agents work in.")
repo = group("Repositories that core-agent knows, and which of their settings it may run.")
rescue = group("Work that could not be brought to its branch.")
template = group("How tasks are framed: templates and personas.")

Pool = Annotated[str, typer.Argument(metavar="POOL", help="One pool; everything when left out.")]
PoolOption = Annotated[str, typer.Option("--pool", help="One pool, said by name.", show_default=False)]


def _queue(report: QueueReport, as_json: bool) -> None:
    answer(report, as_json, lambda t: listing.queue_lines(report, t.width, paint(), now()))


@queue.command("list")
def queue_list(as_json: Json = False) -> None:
    """What waits, in the order in which it will start, and for what."""
    _queue(session().call("queue.list"), as_json)


@queue.command("freeze")
def queue_freeze(pool: Pool = "", only: PoolOption = "", as_json: Json = False) -> None:
    """Start nothing new; what runs goes on."""
    _queue(session().call("queue.freeze", pool=only or pool), as_json)


@queue.command("start")
def queue_start(
    pool: Annotated[
        str, typer.Argument(metavar="POOL|WORKSPACE", help="One pool, or a task that waits; everything when left out.")
    ] = "",
    only: PoolOption = "",
    repo: Annotated[
        str, typer.Option("--repo", "-r", help="A repository that is left alone because its tasks failed.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Let the queue go on: all of it, a pool that is frozen, parked or paced, a repository, or one task.

    A pool that is both is thawed first; the same again ends its park.
    """
    if repo or only:
        _queue(session().call("queue.start", pool=only or pool, repo=repo), as_json)
        return
    try:
        report = session().call("queue.start", pool=pool)
    except CoreAgentError as error:
        if error.slug != "pool_not_found":
            raise
        try:
            report = session().call("queue.start", workspace=pool)
        except CoreAgentError as other:
            raise (error if other.slug == "workspace_not_found" else other) from None
    _queue(report, as_json)


@queue.command("drop")
def queue_drop(name: Workspace, as_json: Json = False) -> None:
    """Take a task that waits out of the queue."""
    reply = session().call("queue.drop", workspace=name)
    answer(reply, as_json, lambda t: views.move_lines(reply, t.width, paint()))


@queue.command("poke")
def queue_poke(as_json: Json = False) -> None:
    """Look now whether something can start."""
    _queue(session().call("poke"), as_json)


@queue.command("shutdown")
def queue_shutdown(
    at_once: Annotated[bool, typer.Option("--now", help="Stop running agents too; their work is kept.")] = False,
    as_json: Json = False,
) -> None:
    """Freeze the queue and let running agents finish (--now: stop them)."""
    _queue(session().call("queue.shutdown", now=at_once), as_json)


@workspace.command("list")
def workspace_list(as_json: Json = False) -> None:
    """All workspaces that are still there."""
    rows = session().call("workspace.list")
    answer(rows, as_json, lambda t: listing.workspace_rows(rows, t.width, paint(), now()))


@workspace.command("show")
def workspace_show(name: Workspace, as_json: Json = False) -> None:
    """Everything about one workspace."""
    show = session().call("workspace.show", workspace=name)
    answer(show, as_json, lambda t: views.workspace_lines(show, t.width, paint(), now()))


@workspace.command("prep")
def workspace_prep(
    task: Annotated[str, typer.Argument(metavar="TASK", help="What it will be for.")] = "",
    agent: Annotated[
        str, typer.Option("--agent", "-a", help="Who will work in it.", autocompletion=suggest.agents)
    ] = "",
    repo: Annotated[
        str, typer.Option("--repo", "-r", help="Path, or org/name of a registered one. [default: here]")
    ] = "",
    name: Annotated[str, typer.Option("--name", "-n", help="Its name; the branch is agent/NAME.")] = "",
    branch: Annotated[str | None, typer.Option("--branch", "-b", help="Start from this branch.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Start from this tag.")] = None,
    with_changes: Annotated[bool, typer.Option("--with-changes", help="Take my uncommitted changes along.")] = False,
    as_json: Json = False,
) -> None:
    """Make a workspace without starting an agent in it; `resume` starts it."""
    arguments = {"agent": agent, "repo": repo_of(repo), "name": name, "branch": branch, "tag": tag}
    if task:
        arguments["task"] = task
    reply = session().call("prep", **arguments, with_changes=with_changes)
    answer(reply, as_json, lambda t: views.dispatch_lines(reply, t.width, paint(), next_steps=False))


@workspace.command("clean")
def workspace_clean(
    name: MaybeWorkspace = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove workspaces that are accepted, rejected or past their time; nothing unaccepted is touched."""
    reply = session().call("workspace.clean", workspace=name, dry_run=dry_run)
    answer(reply, as_json, lambda t: views.clean_lines(reply, t.width, paint()))


@repo.command("add")
def repo_add(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The repository. [default: here]")] = "",
    org: Annotated[str, typer.Option("--org", help="Its organisation.")] = "",
    name: Annotated[str, typer.Option("--name", help="Its name. [default: the directory's]")] = "",
    managed: Annotated[
        bool | None,
        typer.Option("--managed/--own", help="May its checkout be moved along with its remote? [default: own]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Register a repository under a name."""
    told = {} if managed is None else {"managed": managed}
    row = session().call("repo.add", path=terminal().path(path or "."), org=org, name=name, **told)
    answer(row, as_json, lambda t: listing.repo_lines([row], t.width, paint(), now()))


@repo.command("list")
def repo_list(as_json: Json = False) -> None:
    """Registered repositories."""
    rows = session().call("repo.list")
    answer(rows, as_json, lambda t: listing.repo_lines(rows, t.width, paint(), now()))


@repo.command("remove")
def repo_remove(
    name: Annotated[str, typer.Argument(metavar="REPO", help="org/name, name or path.", autocompletion=suggest.repos)],
    as_json: Json = False,
) -> None:
    """Forget a repository. Refused while it has workspaces; its files, the history and rescued work stay."""
    chosen = terminal().path(name) if name.startswith((".", "/", "~")) else name
    reply = session().call("repo.remove", repo=chosen)
    answer(reply, as_json, lambda t: listing.removed_lines(reply, t.width, paint()))


@repo.command("trust")
def repo_trust(
    name: Annotated[str, typer.Argument(metavar="REPO", help="org/name or path. [default: here]")] = "",
    bypass: Annotated[
        bool, typer.Option("--bypass", help="Also let agents run here without asking and without a sandbox.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Show the settings of a repository that run commands, and let them, as they are now.

    Asks on a terminal; without one it only shows them, unless --yes is given. With --json nothing is asked.
    """
    if bypass and not yes and (as_json or not terminal().interactive):
        raise CoreAgentError(
            "consent_needed",
            "whether agents may run here without asking must be answered, and nobody can be asked",
            hint="if you agree: core-agent repo trust --bypass --yes",
        )
    chosen = terminal().path(name or ".") if not name or name.startswith((".", "/", "~")) else name
    reply: TrustReply = session().call("repo.trust", repo=chosen, apply=yes, bypass=bypass and yes)
    if not yes and not as_json and terminal().interactive:
        say(listing.trust_lines(reply, terminal().width, paint()))
        if not (reply.settings or bypass) or not ask(_question(reply, bypass)):
            return
        shown = {"apply": bool(reply.settings), "hash": reply.hash}
        reply = session().call("repo.trust", repo=chosen, bypass=bypass, **shown)
        say(listing.agreed_lines(reply, terminal().width, paint()))
        return
    answer(reply, as_json, lambda t: listing.trust_lines(reply, t.width, paint()))
    if not reply.applied and not as_json and (reply.settings or bypass):
        say([paint().dim("nothing was changed; --yes trusts them")])


def _question(reply: TrustReply, bypass: bool) -> str:
    if not bypass:
        return "Trust them?"
    free = "agents run here without asking and without a sandbox?"
    return f"Trust these settings, and let {free}" if reply.settings else f"Let {free}"


@rescue.command("list")
def rescue_list(name: MaybeWorkspace = "", as_json: Json = False) -> None:
    """What was kept under a rescue ref, and why."""
    rows = session().call("rescue.list", workspace=name)
    answer(rows, as_json, lambda t: listing.rescue_lines(rows, t.width, paint(), now()))


@rescue.command("apply")
def rescue_apply(
    name: Workspace,
    n: Annotated[int | None, typer.Argument(metavar="N", min=1, help="Which one. [default: the last]")] = None,
    branch: Annotated[str, typer.Option("--branch", "-b", help="Bring it to this new branch.")] = "",
    as_json: Json = False,
) -> None:
    """Bring rescued work to a branch of your repository."""
    reply = session().call("rescue.apply", workspace=name, n=n, branch=branch)
    answer(reply, as_json, lambda t: views.move_lines(reply, t.width, paint()))


@template.command("list")
def template_list(as_json: Json = False) -> None:
    """Templates and personas, and where they come from."""
    rows = session().call("template.list")
    answer(rows, as_json, lambda t: listing.template_lines(rows, t.width, paint()))


@template.command("show")
def template_show(
    name: Annotated[
        str, typer.Argument(metavar="TEMPLATE", help="Its name.", autocompletion=suggest.templates_and_personas)
    ],
    as_json: Json = False,
) -> None:
    """The text of one, and its variables."""
    show = session().call("template.show", name=name)
    answer(show, as_json, lambda t: listing.template_text(show, paint()))


def agents(as_json: Json = False) -> None:
    """Agents that can be asked: found or not, version, login, slots."""
    rows = session().call("agents")
    answer(rows, as_json, lambda t: listing.agent_lines(rows, t.width, paint(), now()))
