"""From what a caller asked for to a dispatch on the queue: repository, agent, name, template, consent.

Everything that can be found wrong before the task is queued is found here, so that no task fails later for a typo.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from coreagent import config, paths, runners
from coreagent.capability import Caller
from coreagent.content import library
from coreagent.dispatch import launch, names, trust
from coreagent.dispatch.choice import Choice, agents_of, choose
from coreagent.dispatch.sync import stale
from coreagent.dispatch.workspace import root_now
from coreagent.errors import CoreAgentError
from coreagent.git import ref as refs
from coreagent.git.inspect import Base
from coreagent.git.inspect import resolve as resolve_ref
from coreagent.models.dispatch import Dispatch, Fate, Options, Repo, State
from coreagent.plural import plural

if TYPE_CHECKING:
    from coreagent.core import Core
    from coreagent.dispatch.engine import Engine

TEXT_MAX = 256 << 10
WORD_MAX = 120 << 10
"""Linux starts no program with an argument or a variable (CORE_AGENT_TASK) of 128 KiB."""
NUMBER_MAX = 1 << 31
PULL_REFS = ("refs/pull/{n}/head", "refs/remotes/origin/pull/{n}", "refs/remotes/origin/pr/{n}", "refs/pr/{n}")


@dataclass(frozen=True)
class Request:
    """What the caller asked for, unresolved."""

    task: str
    options: Options
    repo: str = ""
    org: str = ""
    agent: str = ""
    name: str = ""
    priority: int = 0
    fetch: bool = False
    """Fetch first, and start from where the remote has the branch."""
    quick: bool = False
    """What the person has not committed may be counted later (`Base.counting`), when a checkout lies ready."""
    agent_later: bool = False
    """No agent is started for now: it need not be usable yet."""


async def resolve(engine: Engine, caller: Caller, request: Request) -> tuple[Dispatch, Base]:
    """Return the dispatch that would be queued, without queuing it.

    Raises: everything that the arguments can be wrong about; nothing is changed then.
    """
    core, options = engine.core, request.options
    task = request.task.strip()
    check_task(task, options)
    path = find_repository(engine, caller, request.repo, request.org)
    quick = engine.upkeep.warm.count if engine.upkeep.warm.expect(path) and request.quick else None
    base, note = await engine.upkeep.sync.base_for(path, options, asked=request.fetch, quick=quick)
    if options.pr is not None:
        base = await asyncio.to_thread(pull_request, base, options.pr)
    repo = register(engine, base, request.org, request.repo)
    known = [r.path for r in engine.repos.values()]
    looked = await asyncio.to_thread(_look, core, caller, request, base, bool(note), repo, known)
    applied, options, chosen = looked.applied, looked.options, looked.choice.chosen
    engine.common_dirs.update(looked.traces.common_dirs)
    now = core.now()
    made = engine.places.placed(
        Dispatch(
            id=core.new_id(),
            org=repo.org,
            repo=repo.name,
            name=choose_name(engine, repo, request, task, looked.traces),
            repo_path=str(base.top),
            root=root_now(core.home, core.settings),
            base_ref=base.ref if base.kind != "detached" else "",
            base_sha=base.sha,
            task=task,
            agent=looked.choice.agent,
            tried=looked.choice.tried,
            runner=chosen.runner,
            model=chosen.model,
            identity=chosen.identity,
            pool="",
            own_model=looked.own_model,
            options=options,
            priority=request.priority,
            left_out=0 if options.with_changes else base.dirty,
            settings_note=applied.skipped,
            base_note=note or looked.stale,
            created_at=now,
            queued_at=now,
            changed_at=now,
        )
    )
    engine.remember_settings(made, applied)
    if not request.agent_later:
        launch.preview(core, caller, made, task)
    return made, base


@dataclass(frozen=True)
class _Looked:
    """What the disk and the settings say about a request."""

    applied: trust.Applied
    options: Options
    choice: Choice
    traces: Traces
    stale: str
    own_model: str


def _look(
    core: Core, caller: Caller, request: Request, base: Base, elsewhere: bool, repo: Repo, known: list[str]
) -> _Looked:
    """Settings, agent, texts, consent, login and names, in one change of thread. Blocking."""
    asked_for = (request.options.branch, request.options.tag, request.options.pr)
    at_head = asked_for == (None, None, None) and not elsewhere
    applied = trust.apply(core.settings, repo, base.sha, at_head)
    if applied.problem is not None:
        raise applied.problem
    settings, options = applied.settings, request.options
    asked = request.agent or settings.dispatch.default_agent
    for agent in agents_of(asked):
        if agent.removeprefix("command:") in applied.commands_skipped - settings.commands.keys():
            raise CoreAgentError(
                "consent_needed",
                f"{agent} is a command of the repository's own, and nobody trusted it as it is",
                hint="`core-agent repo trust` in its directory shows what it would run",
            )
    check_list(asked, options, settings)
    choice = choose(core, caller, asked, settings, by_default=not request.agent, later=request.agent_later)
    runner = runners.load(choice.chosen.runner)
    own = launch.runner_settings(core, choice.chosen.runner)
    if options.script and choice.chosen.runner != "scripted":
        raise CoreAgentError(
            "conflicting_options",
            f"a script is for the agent `scripted`, and {choice.agent} would not read it",
            hint="--agent scripted plays it; leave --script out for another agent",
        )
    options = options.model_copy(update={"template": options.template or settings.dispatch.default_template})
    check_content(core.home, options)
    given = {"permissions": options.permissions or own.permissions, "agents": choice.agents}
    options = options.model_copy(update=given)
    if options.permissions == "bypass" and runner.name not in ("command", "scripted") and not repo.bypass_consent:
        raise CoreAgentError(
            "consent_needed",
            f"agents may not yet run without asking in {repo.org}/{repo.name}",
            cause="permissions are `bypass` and there is no sandbox: the agent can run any command as you",
            hint="agree once with `core-agent repo trust --bypass` in its directory, or use --permissions edits",
            data={"repo": str(base.top)},
        )
    env = launch.allowed_environment(core, caller, choice.chosen.runner)
    own_model = launch.own_model(core, env, choice.chosen.runner)
    return _Looked(applied, options, choice, find_traces(core.home, repo, known), stale(base), own_model)


def check_list(asked: str, options: Options, settings: config.Settings) -> None:
    """Raise for a list that names an agent twice, and for `--escalate` when there is no list.

    Raises: unknown_agent, remote_identity, invalid_argument, conflicting_options.
    """
    named: dict[config.Chosen, str] = {}
    for agent in agents_of(asked):
        one = replace(config.resolve_agent(agent, settings), identity="")
        before = named.get(one)
        named[one] = agent
        if before is not None:
            raise CoreAgentError(
                "invalid_argument",
                f"the list of agents names one twice: {asked}",
                cause="" if before == agent else f"{before} and {agent} are the same",
                hint="name each once: the next one is for what the one before could not do",
            )
    if options.escalate and len(named) < 2:
        raise CoreAgentError(
            "conflicting_options",
            f"--escalate is for a list of agents, and there is only {asked}",
            hint="name the cheap one first: --agent claude:haiku,claude:opus --escalate",
        )


def check_task(task: str, options: Options) -> None:
    """Raise for a task that nobody could work on, or options that exclude each other."""
    starts = [n for n, v in (("--issue", options.issue), ("--pr", options.pr), ("--branch", options.branch),
                             ("--tag", options.tag)) if v is not None]  # fmt: skip
    if len(starts) > 1:
        raise CoreAgentError(
            "conflicting_options", f"{' and '.join(starts)} exclude each other", hint="give at most one of them"
        )
    if not task:
        for option, kind, number in (("--issue", "issue", options.issue), ("--pr", "pull request", options.pr)):
            if number is not None:
                raise CoreAgentError(
                    "issue_unavailable",
                    f"the text of {kind} {number} cannot be fetched: no forge is configured",
                    hint=f"give the task's text beside {option}; the workspace is named after the {kind}",
                )
        raise CoreAgentError("invalid_argument", "the task is empty", hint='core-agent dispatch "what to do"')
    check_text("the task", task, most=WORD_MAX)
    for what, number in (("--issue", options.issue), ("--pr", options.pr)):
        if number is not None and not 0 < number < NUMBER_MAX:
            raise CoreAgentError("invalid_argument", f"{what} {number} is no number of anything")
    check_text("the agent's arguments", *options.args, most=WORD_MAX)
    check_text("the task's options", *options.variables, *options.variables.values(), options.script)


def check_text(what: str, *texts: str, most: int = TEXT_MAX) -> None:
    """Raise for text that no process can be given, or that is more than `most` bytes (UTF-8) long.

    Raises: invalid_argument, too_large.
    """
    if any("\0" in text for text in texts):
        raise CoreAgentError("invalid_argument", f"{what}: there is a NUL character in it")
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError:
        raise CoreAgentError("invalid_argument", f"{what}: it is not text (UTF-8)") from None
    if size > most:
        raise CoreAgentError(
            "too_large",
            f"{what}: there is more than {most >> 10} KiB of it",
            cause=f"it is {size:,} bytes long" + (", and an agent could not be started with it" * (most == WORD_MAX)),
            hint="put long text into a file of the repository, or into a template (--template), and name it here",
        )


def check_content(home: str, options: Options) -> None:
    """Raise when a template, persona or plan does not exist or lacks a variable. Blocking."""
    named: list[tuple[library.Kind, str]] = [("template", options.template)]
    if options.persona:
        named.append(("persona", options.persona))
    if options.plan_template:
        named.append(("plan", options.plan_template))
    for kind, name in named:
        library.load(kind, name, home).fill(options.variables)


def find_repository(engine: Engine, caller: Caller, repo: str, org: str) -> str:
    """Turn what the caller named into a path: a registered `org/repo` or name, a path, or the current directory."""
    if not repo:
        if not caller.cwd:
            raise CoreAgentError(
                "invalid_argument",
                "no repository was named, and there is no current directory to take",
                cause="the directory this was asked from is not there any more, or was not told",
                hint="go to a directory that exists, or name the repository with "
                f"{'`repo`' if caller.role == 'mcp' else '--repo'}: a path or org/name",
            )
        return caller.cwd
    known = [r for r in engine.repos.values() if repo in (f"{r.org}/{r.name}", r.name) and org in ("", r.org)]
    path = os.path.join(caller.cwd, os.path.expanduser(repo)) if caller.cwd else os.path.expanduser(repo)
    if len(known) == 1 and not os.path.isdir(path):
        return known[0].path
    if os.path.isabs(repo) or os.path.isdir(path):
        return path
    if len(known) == 1:
        return known[0].path
    if known:
        raise CoreAgentError(
            "ambiguous_workspace",
            f"{repo!r} names {plural(len(known), 'repository', 'repositories')}",
            hint="say which: " + ", ".join(f"{r.org}/{r.name}" for r in known),
        )
    raise CoreAgentError(
        "repo_not_found",
        f"there is no repository {repo!r}",
        hint="give a path, or one of `core-agent repo list`",
    )


def registered(engine: Engine, caller: Caller, repo: str) -> Repo:
    """The registered repository of that `org/name`, name or path; the directory itself may be gone.

    Raises: repo_not_found, ambiguous_workspace.
    """
    path = os.path.realpath(os.path.join(caller.cwd or "/", os.path.expanduser(repo)))
    for known in engine.repos.values():
        if repo == f"{known.org}/{known.name}":
            return known
    at_path = [r for r in engine.repos.values() if os.path.realpath(r.path) == path]
    found = at_path or [r for r in engine.repos.values() if r.name == repo]
    if len(found) == 1:
        return found[0]
    named = ", ".join(f"{r.org}/{r.name}" for r in found)
    if found:
        raise CoreAgentError(
            "ambiguous_workspace", f"{repo!r} names {plural(len(found), 'repository', 'repositories')}",
            hint=f"say which: {named}",
        )  # fmt: skip
    raise CoreAgentError("repo_not_found", f"no repository {repo!r} is registered", hint="core-agent repo list")


def pull_request(base: Base, number: int) -> Base:
    """The base for pull request `number`, from the ref under which the user's repository holds it.

    Raises: no_such_ref, with the fetch that would bring it.
    """
    for pattern in PULL_REFS:
        if sha := resolve_ref(base.git_dir, pattern.format(n=number)):
            return replace(base, ref="", kind="detached", sha=sha)
    raise CoreAgentError(
        "no_such_ref",
        f"pull request {number} is not in this repository",
        hint=f"fetch it first: git fetch origin pull/{number}/head:refs/pull/{number}/head",
    )


def register(engine: Engine, base: Base, org: str = "", called: str = "") -> Repo:
    """The repository's row, of several for one path the one that is `called` so (`org/name`).

    An unknown one is `local/<directory>`, with a suffix when that is taken. Not stored yet.
    """
    here = [r for r in engine.repos.values() if r.path == str(base.top) and org in ("", r.org)]
    if here:
        return next((r for r in here if f"{r.org}/{r.name}" == called), here[0])
    org = names.check(org, "org") if org else "local"
    wanted = names.directory_name(base.top.name, "repo")
    taken = [r.name for r in engine.repos.values() if r.org == org]
    return Repo(
        org=org,
        name=names.unique(wanted, taken),
        path=str(base.top),
        default_branch=base.default_branch,
        added_at=engine.core.now(),
    )


def choose_name(engine: Engine, repo: Repo, request: Request, task: str, traces: Traces) -> str:
    """The workspace's name: asked for, after the issue or pull request, or made of the task's words; always unique.

    Raises: workspace_busy, branch_exists, invalid_name.
    """
    open_ones = open_names(engine, repo)
    unknown = _unknown(engine, repo)
    taken = names.Either(open_ones, traces.branches, traces.kept, unknown)
    options = request.options
    if request.name:
        name = names.check(request.name)
        if name in unknown and name not in open_ones:
            raise CoreAgentError(
                "workspace_busy",
                f"there is a workspace {repo.org}/{repo.name}/{name} that is not known now",
                cause=f"the store cannot be used: {engine.core.store.why}",
                hint="choose another --name",
            )
        if owner := open_ones.get(name):
            elsewhere = owner != f"{repo.org}/{repo.name}"
            raise CoreAgentError(
                "workspace_busy",
                f"there is a workspace {owner}/{name} already",
                cause=f"{owner} is a worktree of the same repository" if elsewhere else "",
                hint=f"`core-agent resume {owner}/{name}`, or choose another --name",
            )
        if name in traces.branches:
            branch = traces.branches[name]
            raise CoreAgentError(
                "branch_exists",
                f"there is a branch {branch} in {repo.path} already",
                cause=f"the work of this workspace would become branch agent/{name}",
                hint=f"choose another --name, or rename it: git branch -m {branch} NEW-NAME",
            )
        return name
    if options.issue is not None:
        return names.unique(f"task-{options.issue}", taken)
    if options.pr is not None:
        return names.unique(f"pr-{options.pr}", taken)
    return names.unique(names.slug(task), taken)


def _unknown(engine: Engine, repo: Repo) -> set[str]:
    """Workspaces on disk, while the store that knows them cannot be used: no new one may take their place."""
    if not engine.core.store.ephemeral:
        return set()
    root = Path(config.workspace_root(engine.core.settings, engine.core.home), repo.org, repo.name)
    return {entry.name for entry in os.scandir(root)} if root.is_dir() else set()


class OpenNames(Mapping[str, str]):
    """Name -> the `org/repo` it is of; a view of the board, which may hold a hundred thousand."""

    def __init__(self, parts: list[tuple[str, Mapping[str, str]]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> str:
        for owner, known in self._parts:
            if name in known:
                return owner
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter({name: None for _, known in self._parts for name in known})

    def __len__(self) -> int:
        return sum(1 for _ in self)


def open_names(engine: Engine, repo: Repo) -> OpenNames:
    """Names of the repository's workspaces, and of those on their way to the queue, with the `org/repo` they are of.

    The worktrees of one repository share its branches, so their workspaces may not share a name.
    """
    common = engine.common_dirs.get(repo.path)
    family = {(r.org, r.name) for r in engine.repos.values() if common and engine.common_dirs.get(r.path) == common}
    family.add((repo.org, repo.name))
    parts: list[tuple[str, Mapping[str, str]]] = []
    for org, of in sorted(family):
        on_their_way = {name: "" for one, other, name in engine.reserved if (one, other) == (org, of)}
        parts += [(f"{org}/{of}", engine.board.names.get((org, of), {})), (f"{org}/{of}", on_their_way)]
    return OpenNames(parts)


@dataclass(frozen=True)
class Traces:
    """What is still there of earlier names, so that no new workspace is mistaken for them."""

    branches: dict[str, str]
    """Name -> the branch of the user's repository that is in the way of `agent/<name>`."""
    kept: set[str]
    """Names with kept work in the cache."""
    common_dirs: dict[str, str]
    """Work tree -> git directory that all worktrees of its repository share."""


def find_traces(home: str, repo: Repo, known: list[str]) -> Traces:
    """Look for traces in a repository, and for the registered work trees that share it. Blocking.

    Raises: branch_exists when a branch `agent` leaves no room for any.
    """
    common_dirs = {path: found for path in {repo.path, *known} if (found := _common_dir(path))}
    heads = refs.heads(Path(common_dirs[repo.path]))[1] if repo.path in common_dirs else {}
    if "refs/heads/agent" in heads:
        raise CoreAgentError(
            "branch_exists",
            f"there is a branch `agent` in {repo.path}",
            cause="the work of agents becomes branches agent/NAME, and git cannot have both",
            hint="rename it: git branch -m agent NEW-NAME",
        )
    own = "refs/heads/agent/"
    branches = {ref[len(own) :].partition("/")[0]: ref[11:] for ref in heads if ref.startswith(own)}
    kept = Path(paths.repo_cache(home, repo.org, repo.name), "refs", "core-agent", "work")
    return Traces(branches, {entry.name for entry in kept.iterdir()} if kept.is_dir() else set(), common_dirs)


def _common_dir(path: str) -> str:
    git_dir = refs.git_dir_of(Path(path))
    return os.path.realpath(refs.common_dir_of(git_dir)) if git_dir else ""


def existing_for_issue(engine: Engine, dispatch: Dispatch) -> Dispatch | None:
    """The open workspace `task-N` of the same issue, when a second dispatch should resume it."""
    issue = dispatch.options.issue
    if issue is None:
        return None
    for one in engine.board.values():
        same = (one.org, one.repo, one.name) == (dispatch.org, dispatch.repo, f"task-{issue}")
        if same and one.fate is Fate.OPEN and one.state in (State.PAUSED, State.BLOCKED, State.FAILED, State.CANCELLED):
            return one
    return None
