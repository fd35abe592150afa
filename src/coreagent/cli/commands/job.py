"""Verbs that move a job: dispatch, resume, pause, cancel, accept, reject."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from coreagent.cli.commands import batch, suggest
from coreagent.cli.commands.follow import wait
from coreagent.cli.commands.option import (
    Json,
    JsonLines,
    Workspace,
    answer,
    ask,
    paint,
    read_file,
    repo_of,
    say,
    seconds,
    stdin_text,
    text_of,
    to_json,
    variables,
)
from coreagent.cli.session import session
from coreagent.cli.terminal import terminal
from coreagent.cli.views import answer as views
from coreagent.cli.views.text import wrap
from coreagent.errors import CoreAgentError
from coreagent.models.report import DispatchReply

Task = Annotated[list[str] | None, typer.Argument(metavar="TASK", help="What is to be done; `-` reads standard input.")]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Follow it to its end; Ctrl-C leaves it running.")]
WaitLimit = Annotated[
    str, typer.Option("--wait-timeout", metavar="TIME", help="With --wait: give up watching after this long (exit 75).")
]


def dispatch(
    task: Task = None,
    agent: Annotated[
        str,
        typer.Option(
            "--agent", "-a", help="Runner[:model] or an identity; `core-agent agents`.", autocompletion=suggest.agents
        ),
    ] = "",
    repo: Annotated[
        str, typer.Option("--repo", "-r", help="Path, or org/name of a registered one. [default: here]")
    ] = "",
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the workspace; the branch is agent/NAME.")] = "",
    template: Annotated[
        str,
        typer.Option(
            "--template",
            "-t",
            help="How the task is framed; `core-agent template list`.",
            autocompletion=suggest.templates,
        ),
    ] = "",
    plan: Annotated[str, typer.Option("--plan", help="Plan template.")] = "",
    persona: Annotated[
        str, typer.Option("--persona", help="Who the agent is to be.", autocompletion=suggest.personas)
    ] = "",
    var: Annotated[
        list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="Variable of the template.")
    ] = None,
    issue: Annotated[int | None, typer.Option("--issue", help="Work on this issue (workspace task-N).")] = None,
    pr: Annotated[int | None, typer.Option("--pr", help="Work on this pull request (workspace pr-N).")] = None,
    branch: Annotated[str | None, typer.Option("--branch", "-b", help="Start from this branch.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Start from this tag; nothing comes back from it.")] = None,
    priority: Annotated[int, typer.Option("--priority", "-p", help="Higher goes first.")] = 0,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Stop the agent after this long: 90s, 2h.")
    ] = "",
    idle_timeout: Annotated[
        str, typer.Option("--idle-timeout", metavar="TIME", help="Stop it after this long in silence.")
    ] = "",
    expect: Annotated[
        Literal["changes", "none"], typer.Option("--expect", help="`none`: nothing is to change; else it needs a look.")
    ] = "changes",
    permissions: Annotated[
        Literal["edits", "bypass"] | None, typer.Option("--permissions", help="`bypass`: the agent never asks.")
    ] = None,
    with_changes: Annotated[bool, typer.Option("--with-changes", help="Take my uncommitted changes along.")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch first, and start from where origin has it.")] = False,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Dispatch though the store is in memory only.")
    ] = False,
    arg: Annotated[list[str] | None, typer.Option("--arg", help="Extra argument for the agent's own CLI.")] = None,
    script: Annotated[
        str, typer.Option("--script", help="YAML file for the `scripted` runner; `-`: standard input.")
    ] = "",
    after: Annotated[
        list[str] | None,
        typer.Option(
            "--after",
            metavar="WORKSPACE",
            help="Start when this one has ended well; may be given several times.",
            autocompletion=suggest.workspaces,
        ),
    ] = None,
    on_top: Annotated[bool, typer.Option("--on-top", help="With --after: start from its result.")] = False,
    escalate: Annotated[
        bool, typer.Option("--escalate", help="Of a list of agents, the next one when one changed nothing.")
    ] = False,
    count: Annotated[int | None, typer.Option("--count", min=0, help="So many siblings do it side by side.")] = None,
    agents: Annotated[
        str | None,
        typer.Option(
            "--agents", metavar="A,B", help="One sibling for each agent, side by side.", autocompletion=suggest.agents
        ),
    ] = None,
    file: Annotated[
        str, typer.Option("--file", metavar="FILE", help="The tasks of this YAML file; `-`: standard input.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the prompt and the command line; start nothing.")
    ] = False,
    follow: Wait = False,
    wait_timeout: WaitLimit = "",
    as_json: JsonLines = False,
) -> None:
    """Give a task to an agent in a workspace of its own.

    With --file, --count or --agents several, which belong together: `compare` and `wait` know them by the batch's name.
    Returns at once with the workspace's name. With --wait: exit code 0 completed, 1 completed but not brought to its
    branch, 10 failed, 11 blocked or paused, 12 cancelled, 75 when --wait-timeout ran out. With --wait --json: JSON
    Lines, first the answer, then one workspace row per change.
    """
    arguments: dict[str, Any] = {
        "task": text_of(task),
        "repo": repo_of(repo),
        "agent": agent,
        "name": name,
        "template": template,
        "plan_template": plan,
        "persona": persona,
        "variables": variables(var or []),
        "issue": issue,
        "pr": pr,
        "branch": branch,
        "tag": tag,
        "priority": priority,
        "timeout_s": seconds(timeout) if timeout else None,
        "idle_timeout_s": seconds(idle_timeout, "--idle-timeout") if idle_timeout else None,
        "expect": expect,
        "permissions": permissions,
        "with_changes": with_changes,
        "fetch": fetch,
        "ephemeral": ephemeral,
        "args": arg or [],
        "script": _script(script) if script else "",
        "after": after or [],
        "on_top": on_top,
        "escalate": escalate,
        "dry_run": dry_run,
    }
    limit = seconds(wait_timeout, "--wait-timeout") if wait_timeout else None
    several = count is not None or agents is not None
    if file:
        batch.dispatch_file(file, arguments, several, follow, limit, as_json, _with_consent)
        return
    if not (arguments["task"] or issue is not None or pr is not None or template or script):
        raise CoreAgentError("invalid_argument", "the task is empty", hint='core-agent dispatch "what to do"')
    if several:
        batch.dispatch_siblings(arguments, count, agents, follow, limit, as_json, _with_consent)
        return
    reply = _with_consent("dispatch", arguments)
    _answer_and_wait(reply, follow and not dry_run, limit, as_json)


def _script(given: str) -> str:
    if not given:
        return ""
    return stdin_text() if given == "-" else read_file(given, "script")


def _with_consent(capability: str, arguments: dict[str, Any]) -> Any:
    """Call; where a person's consent is missing and a person is there, ask once and call again."""
    try:
        reply = session().call(capability, **arguments)
    except CoreAgentError as error:
        if error.slug != "consent_needed" or not terminal().interactive:
            raise
        repo = str(error.data.get("repo", arguments.get("repo", "")))
        say([paint().yellow(line) for line in wrap(error.message, terminal().width)])
        say(
            wrap(
                "Without a sandbox it can then do whatever you can do. This is asked once per repository.",
                terminal().width,
            )
        )
        if not ask("Agree?"):
            raise
        session().call("repo.trust", repo=repo, bypass=True)
        reply = session().call(capability, **arguments)
    return reply


def _answer_and_wait(reply: DispatchReply, follow: bool, limit: float | None, as_json: bool) -> None:
    if as_json and follow:
        say([to_json(reply, line=True)])
    else:
        answer(reply, as_json, lambda t: views.dispatch_lines(reply, t.width, paint(), next_steps=not follow))
    if follow:
        terminal().flush()
        raise typer.Exit(wait(reply.workspace, as_json, limit))


def resume(
    workspace: Workspace,
    more: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help='"also do ..."; `-` reads stdin.')] = None,
    reply_text: Annotated[str, typer.Option("--answer", metavar="TEXT", help="Answer the agent's question.")] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="A new session of the agent in the same workspace.")] = False,
    follow: Wait = False,
    wait_timeout: WaitLimit = "",
    as_json: JsonLines = False,
) -> None:
    """Go on with a workspace: the agent's session, its files, its branch.

    Exit codes of --wait are those of dispatch.
    """
    limit = seconds(wait_timeout, "--wait-timeout") if wait_timeout else None
    text = text_of(["-"]) if reply_text == "-" else reply_text
    reply = _with_consent("resume", {"workspace": workspace, "answer": text, "prompt": text_of(more), "fresh": fresh})
    _answer_and_wait(reply, follow, limit, as_json)


def pause(workspace: Workspace, as_json: Json = False) -> None:
    """Stop the agent's turn and keep everything; `resume` goes on."""
    _move("pause", workspace, as_json)


def cancel(workspace: Workspace, as_json: Json = False) -> None:
    """Stop the agent for good; what it did is kept on its branch."""
    _move("cancel", workspace, as_json)


def reject(workspace: Workspace, as_json: Json = False) -> None:
    """Say no to the result; the workspace may go, the work stays in the archive."""
    reply = session().call("reject", workspace=workspace)
    answer(reply, as_json, lambda t: views.reject_lines(reply, t.width, paint()))


def _move(verb: str, workspace: str, as_json: bool) -> None:
    reply = session().call(verb, workspace=workspace)
    answer(reply, as_json, lambda t: views.move_lines(reply, t.width, paint()))


def accept(
    workspace: Workspace,
    squash: Annotated[bool, typer.Option("--squash", help="One new commit.")] = False,
    rebase: Annotated[bool, typer.Option("--rebase", help="The agent's commits, on top of the branch.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="A merge commit.")] = False,
    onto: Annotated[
        str, typer.Option("--onto", metavar="BRANCH", help="Land on this branch. [default: where it began]")
    ] = "",
    as_json: Json = False,
) -> None:
    """Land the agent's branch on yours: fast-forward when it can, else a merge."""
    chosen = [name for name, given in (("squash", squash), ("rebase", rebase), ("merge", merge)) if given]
    if len(chosen) > 1:
        raise CoreAgentError("conflicting_options", f"--{chosen[0]} and --{chosen[1]} exclude each other")
    reply = session().call("accept", workspace=workspace, strategy=chosen[0] if chosen else "auto", onto=onto)
    answer(reply, as_json, lambda t: views.accept_lines(reply, t.width, paint()))
