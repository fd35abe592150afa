"""Start work and go on with it: dispatch, prep, resume."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from coreagent import runners
from coreagent.capabilities import predecessors
from coreagent.capabilities.parameter import (
    After,
    Agent,
    Arguments,
    Branch,
    DryRun,
    Ephemeral,
    Escalate,
    Expect,
    Fetch,
    IdleTimeout,
    Issue,
    Name,
    OnTop,
    Org,
    Permissions,
    Persona,
    PlanTemplate,
    Priority,
    PullRequest,
    Repository,
    Script,
    Tag,
    Task,
    Template,
    Timeout,
    Variables,
    WithChanges,
    Workspace,
)
from coreagent.capabilities.status import find_open
from coreagent.capability import Caller, capability
from coreagent.config import Chosen
from coreagent.core import Core
from coreagent.dispatch import after as order
from coreagent.dispatch import agentnote, arrival, attached, choice, claim, environment, intake, launch, prep, rows
from coreagent.dispatch.fallback import CONTINUE
from coreagent.dispatch.intake import Request
from coreagent.dispatch.queue import ASKED
from coreagent.dispatch.workspace import layout
from coreagent.errors import CoreAgentError
from coreagent.git.inspect import Base
from coreagent.models.agent import POISONED, Reason
from coreagent.models.dispatch import Dispatch, Fate, Options, State
from coreagent.models.report import DispatchReply
from coreagent.plural import plural
from coreagent.runners.base import is_word


@capability("dispatch", tool="agentic_dispatch", cli="dispatch")
async def dispatch(
    core: Core,
    caller: Caller,
    task: Task,
    repo: Repository = "",
    org: Org = "",
    agent: Agent = "",
    template: Template = "",
    plan_template: PlanTemplate = "",
    persona: Persona = "",
    variables: Variables = {},  # noqa: B006  (pydantic copies defaults)
    issue: Issue = None,
    pr: PullRequest = None,
    branch: Branch = None,
    tag: Tag = None,
    priority: Priority = 0,
    timeout_s: Timeout = None,
    idle_timeout_s: IdleTimeout = None,
    expect: Expect = "changes",
    permissions: Permissions = None,
    with_changes: WithChanges = False,
    ephemeral: Ephemeral = False,
    args: Arguments = [],  # noqa: B006
    name: Name = "",
    script: Script = "",
    after: After = [],  # noqa: B006
    on_top: OnTop = False,
    escalate: Escalate = False,
    fetch: Fetch = False,
    dry_run: DryRun = False,
) -> DispatchReply:
    """Give a task to an agent in a workspace of its own and return at once.

    The workspace starts from HEAD of `repo` (default: where the caller stands), or from a branch, tag or pull request;
    with `fetch` from where its remote has that branch.
    With `dry_run` nothing starts: the reply holds the rendered prompt and the command line.
    """
    core.mark("received")
    core.require_settings()
    before = await predecessors.find(core, after, branch, on_top)
    options = Options(
        template=template,
        plan_template=plan_template,
        persona=persona,
        variables=variables,
        issue=issue,
        pr=pr,
        branch=before.branch,
        tag=tag,
        timeout_s=timeout_s,
        idle_timeout_s=idle_timeout_s,
        expect=expect,
        permissions=permissions,
        with_changes=with_changes,
        ephemeral=ephemeral,
        args=args,
        script=script,
        after=before.ids,
        on_top=before.on_top,
        escalate=escalate,
    )
    core.engine.upkeep.sync.heard(caller)
    request = Request(
        task=task, options=options, repo=repo, org=org, agent=agent, name=name, priority=priority, fetch=fetch,
        quick=not dry_run,
    )  # fmt: skip
    made, base = await intake.resolve(core.engine, caller, request)
    before.check(made)
    if dry_run:
        try:
            return await _dry_run(core, caller, made, base)
        finally:
            core.engine.forget_settings(made)
    again = None if name else intake.existing_for_issue(core.engine, made)
    if again is not None:
        core.engine.forget_settings(made)
        return await _resume(core, caller, again.id, prompt=task)
    queued = await arrival.queue(core.engine, caller, made, base)
    return reply(core, await _counted(core, queued, base))


async def _counted(core: Core, queued: Dispatch, base: Base) -> Dispatch:
    """The dispatch with what it leaves out, which may have been counted while it was queued and claimed."""
    if base.counting is None:
        return queued
    left_out = (await asyncio.to_thread(base.counted)).dirty
    now = core.engine.board.get(queued.id)
    if left_out and now is not None and now.left_out != left_out:
        await core.engine.update(now, left_out=left_out)
    return queued.model_copy(update={"left_out": left_out})


@capability("prep", tool="agentic_prep_workspace", cli="workspace prep")
async def prepare_workspace(
    core: Core,
    caller: Caller,
    task: Task = "Prepare a workspace.",
    repo: Repository = "",
    org: Org = "",
    agent: Agent = "",
    template: Template = "",
    branch: Branch = None,
    tag: Tag = None,
    issue: Issue = None,
    pr: PullRequest = None,
    with_changes: WithChanges = False,
    ephemeral: Ephemeral = False,
    name: Name = "",
) -> DispatchReply:
    """Prepare a workspace (clone, branch, setup hook, prompt) without starting an agent; `resume` starts it."""
    core.require_settings()
    options = Options(
        template=template, branch=branch, tag=tag, issue=issue, pr=pr, with_changes=with_changes, ephemeral=ephemeral
    )
    request = Request(task=task, options=options, repo=repo, org=org, agent=agent, name=name)
    made, base = await intake.resolve(core.engine, caller, request)
    held = await arrival.queue(core.engine, caller, made, base, held=True)
    async with core.engine.deciding(held.id):
        held = core.engine.board.get(held.id, held)
        if held.state is State.PAUSED:
            try:
                await prep.prepare(core.engine, held, None)
            except CoreAgentError as error:
                await core.engine.update(held, reason=Reason.PREP_FAILED, detail=f"not prepared: {error.message}"[:400])
                raise
    return reply(core, core.engine.board.get(held.id, held))


@capability("resume", tool="agentic_resume", cli="resume")
async def resume(
    core: Core,
    caller: Caller,
    workspace: Workspace,
    answer: Annotated[str, Field(description="Answer to the question of a blocked one")] = "",
    prompt: Annotated[str, Field(description="What else to do")] = "",
    fresh: Annotated[bool, Field(description="Start a new session in the same workspace")] = False,
) -> DispatchReply:
    """Go on in a workspace: answer its question, add to its task, or just continue.

    The agent's own session is resumed where its CLI can; `fresh` starts a new session in the same workspace.
    """
    core.require_settings()
    return await _resume(core, caller, workspace, answer, prompt, fresh)


async def _resume(
    core: Core, caller: Caller, workspace: str, answer: str = "", prompt: str = "", fresh: bool = False
) -> DispatchReply:
    found = await find_open(core, workspace)
    async with core.engine.deciding(found.id):
        found = core.engine.board.get(found.id, found)
        attached.check(core.engine, found)
        if found.state not in (State.PREPARING, State.RUNNING) and found.fate is Fate.OPEN:
            await asyncio.to_thread(_require_agent, core, caller, found)
        if found.state is State.QUEUED and _passes(core, found):
            resumed = await _go_at_once(core, caller, found, answer or prompt)
        else:
            resumed = await _put_back(core, caller, found, answer, prompt, fresh)
    core.engine.poke()
    return reply(core, resumed, resumed=True)


def _require_agent(core: Core, caller: Caller, found: Dispatch) -> None:
    """Raise what keeps its agent from being used now, as for a new task; of a list, the next one would be tried."""
    if not found.options.agents:
        chosen = Chosen(found.runner, found.model, found.identity)
        choice.require(core, caller, chosen, core.engine.settings_of(found).settings)


def _passes(core: Core, found: Dispatch) -> bool:
    """Whether a queued one waits for something that it need not wait for when a person asks for it."""
    if found.waiting_until is not None or order.is_held(found):
        return True
    held = rows.held_up(core.engine, found, core.engine.facts())
    return held is not None and held.word in claim.PASSED


async def _put_back(core: Core, caller: Caller, found: Dispatch, answer: str, prompt: str, fresh: bool) -> Dispatch:
    """Queue a dispatch that rests for its next turn."""
    intake.check_text("what it is to be told", answer, prompt)
    _check_resumable(core, found)
    if answer and not found.question:
        raise CoreAgentError(
            "nothing_to_resume",
            f"{found.workspace} asked nothing: there is no question to answer",
            hint=f'say what else there is to do: core-agent resume {found.name} "also do ..."',
        )
    kind, text = _next_turn(found, answer, prompt, fresh)
    place = layout(core.home, core.settings, found)
    set_aside = ""
    if answer:
        set_aside = await asyncio.to_thread(prep.write_answer, place, found.question, answer)
    else:
        # What is left lying there would be taken for a new question at the end of the next turn.
        await asyncio.to_thread(agentnote.remove, place.repo, "BLOCKED.md")
    await _keep_environment(core, caller, found)
    # Paused before its turn came: what it was to come after is asked again, unless a person saw that and goes on.
    waits = core.engine.after.fields(found) if found.options.after and not found.runs else {}
    if waits.get("waiting_for") != order.WAITS:
        waits = core.engine.after.freed(found) if waits else {}
    return await core.engine.update(
        found,
        state=State.QUEUED,
        reason=None,
        question="",
        waiting_until=None,
        **{"detail": set_aside, "waiting_for": "", **waits},
        next_kind=kind,
        next_prompt=text,
        queued_at=core.now(),
        ended_at=None,
        alone=0,
        # An accept that was cut off landed what there was then, not what will come.
        accepted_sha="",
        previous_sha="",
    )


async def _go_at_once(core: Core, caller: Caller, found: Dispatch, more: str) -> Dispatch:
    """Do not wait any longer; what the person says now is added to what the turn says."""
    await _keep_environment(core, caller, found)
    found = core.engine.board.get(found.id, found)
    if found.state is not State.QUEUED:
        _check_resumable(core, found)  # its time came while we wrote: busy
    freed = core.engine.after.freed(found) if order.is_held(found) else {}
    said = found.next_prompt
    if more:
        said = more if said in ("", CONTINUE) else f"{said}\n\n{more}"
    now = {"waiting_until": None, "waiting_for": ASKED, "next_prompt": said}
    return await core.engine.update(found, **(freed | now))


async def _keep_environment(core: Core, caller: Caller, found: Dispatch) -> None:
    """Let the next turn have what its person has now: a key may be a new one."""
    env = launch.kept_environment(core, caller, found)
    await asyncio.to_thread(environment.save, core.home, found.id, env)


def _check_resumable(core: Core, found: Dispatch) -> None:
    if found.state in (State.QUEUED, State.PREPARING, State.RUNNING):
        raise CoreAgentError(
            "workspace_busy",
            f"{found.workspace} is {found.state}",
            hint=f"`core-agent pause {found.name}` first, or wait: `core-agent watch {found.name}`",
        )
    if found.fate is not Fate.OPEN:
        raise CoreAgentError(
            "nothing_to_resume",
            f"{found.workspace} was {found.fate} already",
            hint="dispatch a new task",
        )
    place = layout(core.home, core.settings, found)
    if found.runs and not place.repo.is_dir():
        raise CoreAgentError(
            "workspace_gone",
            f"the checkout of {found.workspace} is gone, so no agent can go on in it",
            cause=str(place.repo),
            hint=f"what was brought home is kept: core-agent why {found.name} tells what can be done; or dispatch anew",
        )


def _next_turn(
    found: Dispatch, answer: str, prompt: str, fresh: bool
) -> tuple[Literal["dispatch", "resume", "fresh"], str]:
    """How the next turn begins and what it says; what an earlier one was to say and never said comes first."""
    unsaid = "" if found.next_prompt == CONTINUE else found.next_prompt
    said = [unsaid, f"Your question was answered (also in ANSWER.md):\n{answer}" if answer else "", prompt]
    text = "\n\n".join(part for part in said if part)
    if not found.runs and not (found.options.adopted and found.session_id):
        return "dispatch", text
    runner = runners.load(found.runner)
    poisoned = found.reason in POISONED or found.next_kind == "fresh"
    lost = not found.session_id or not is_word(found.session_id)  # an older release kept whatever a CLI called it
    if fresh or poisoned or not runner.resumable or lost:
        asked = f"The earlier session asked:\n{found.question}" if found.question and not answer else ""
        return "fresh", "\n\n".join(part for part in (asked, text) if part)
    return "resume", text or CONTINUE


async def _dry_run(core: Core, caller: Caller, made: Dispatch, base: Base) -> DispatchReply:
    """Render what would run; touches nothing."""
    log = await asyncio.to_thread(prep.recent_commits, base.git_dir, base.sha)
    prompt = await prep.render_prompt(core.engine, made, log)
    plan = launch.preview(core, caller, made, prompt)
    shown = reply(core, made)
    return shown.model_copy(update={"dry_run": True, "prompt": prompt, "argv": plan.argv, "base_sha": base.sha})


def reply(core: Core, made: Dispatch, resumed: bool = False) -> DispatchReply:
    """The answer to whoever put a dispatch on the queue."""
    notes = []
    if made.left_out:
        one = "changed or untracked file of your work tree is left out; --with-changes carries it"
        more = "changed or untracked files of your work tree are left out; --with-changes carries them"
        but = ", but for submodules" if Path(made.repo_path, ".gitmodules").exists() else ""
        notes.append(plural(made.left_out, one, more) + but)
    if rows.bypasses(made):
        notes.append("runs without asking and without a sandbox, as you agreed for this repository")
    notes += [note for note in (made.base_note, made.settings_note, prep.not_carried(made)) if note]
    notes += rows.warnings(core.engine, notices=False)
    return DispatchReply(
        dispatch_id=made.id,
        workspace=made.workspace,
        state=made.state,
        branch=made.branch,
        base_ref=made.base_ref,
        base_sha=made.base_sha,
        agent=made.agent,
        pool=made.pool,
        left_out=made.left_out,
        notes=notes,
        resumed=resumed,
        path=rows.workspace_path(core.engine, made),
    )
