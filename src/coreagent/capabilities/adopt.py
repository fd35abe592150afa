"""Take over what other tools began: worktrees, their commits, their uncommitted changes, their sessions."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from coreagent import config
from coreagent.capabilities.parameter import Agent, Ephemeral, Name, Repository
from coreagent.capability import Caller, capability
from coreagent.core import Core
from coreagent.dispatch import adopt as adoption
from coreagent.dispatch import arrival, batch, bring, intake, launch, names, prep, rows, sessions
from coreagent.dispatch.adopt import Source
from coreagent.dispatch.intake import Request
from coreagent.dispatch.workspace import layout
from coreagent.errors import CoreAgentError
from coreagent.models.agent import Reason
from coreagent.models.batch import AdoptCandidate, AdoptReply
from coreagent.models.dispatch import Dispatch, Fate, Options, Repo, State


@capability("adopt", cli="adopt")
async def adopt(
    core: Core,
    caller: Caller,
    path: Annotated[str, Field(description="A worktree of a repository, made by git, claude-squad or vibe-kanban")],
    name: Name = "",
    agent: Agent = "",
    session: Annotated[str, Field(description="Id of the claude session to go on with; the newest by default")] = "",
    task: Annotated[str, Field(description="What it is about, for an agent that begins a session of its own")] = "",
    base: Annotated[str, Field(description="Branch where it began; that of the main checkout by default")] = "",
    ephemeral: Ephemeral = False,
) -> AdoptReply:
    """Copy the work of a worktree into a workspace of its own, paused; `resume` goes on in it.

    Its commits and uncommitted changes are brought home as those of any agent. Where claude worked there, its session
    comes along. Nothing of the source is changed, and asking again changes nothing.
    """
    core.require_settings()
    env = caller.env or core.env
    wanted = Path(os.path.join(caller.cwd or "/", os.path.expanduser(path)))
    source = await asyncio.to_thread(adoption.look, wanted, env, base)
    _check_foreign(core, source)
    found = await asyncio.to_thread(adoption.session_of, source, env, session)
    if session and found is None:
        raise CoreAgentError(
            "invalid_argument",
            f"there is no session {session} of {source.top}",
            hint="core-agent adopt --list shows the newest of each worktree",
        )
    async with batch.looking(core.engine):  # one at a time: twice the same is once
        known = next((d for d in core.engine.board.values() if _is_of(d, source)), None)
        again = known is not None
        if known is None:
            options = Options(adopted=str(source.top), with_changes=True, ephemeral=ephemeral)
            known = await _queued(core, caller, source, options, name, agent, task, found)
    notes = [] if again and known.harvest.sha else await _brought(core, known, source, found)
    return _reply(core, core.engine.board.get(known.id, known), source, notes, again)


def _is_of(dispatch: Dispatch, source: Source) -> bool:
    return dispatch.options.adopted == str(source.top) and dispatch.fate is Fate.OPEN


def _check_foreign(core: Core, source: Source) -> None:
    if source.top.is_relative_to(_ours(core)):
        raise CoreAgentError("invalid_argument", f"{source.top} is a workspace of core-agent's already")


def _ours(core: Core) -> Path:
    return Path(os.path.realpath(config.workspace_root(core.settings, core.home)))


async def _queued(
    core: Core,
    caller: Caller,
    source: Source,
    options: Options,
    name: str,
    agent: str,
    task: str,
    found: sessions.Session | None,
) -> Dispatch:
    engine = core.engine
    where = f"a worktree of {source.tool}" if source.tool != "git worktree" else "a worktree"
    text = task or (
        f"Go on with the work in this checkout. It was taken over from {where}"
        f"{f', branch {source.branch}' if source.branch else ''}. See what was done so far with git log and git diff,"
        " then finish it."
    )
    asked = Request(text, options, repo=str(source.main.top), agent=agent or ("claude" if found else ""), name=name,
                    agent_later=True)  # fmt: skip
    made, _ = await intake.resolve(engine, caller, asked)
    if not name:
        traces = await asyncio.to_thread(intake.find_traces, core.home, _repo(core, made, source), [])
        repo = _repo(core, made, source)
        taken = {*intake.open_names(engine, repo), *traces.branches, *traces.kept}
        made = made.model_copy(update={"name": names.unique(names.directory_name(source.name, "adopted"), taken)})
    made = made.model_copy(
        update={
            "base_ref": source.main.ref if source.main.kind == "branch" else "",
            "base_sha": source.start,
            "left_out": 0,
        }
    )
    engine.common_dirs.setdefault(made.repo_path, str(source.main.common_dir))
    held = await arrival.queue(engine, caller, made, source.main, held=True)
    core.crash_point("adopting")
    return held


def _repo(core: Core, made: Dispatch, source: Source) -> Repo:
    """The repository's row as it is, or will be."""
    return intake.register(core.engine, source.main, made.org if made.org != "local" else "", f"{made.org}/{made.repo}")


async def _brought(core: Core, held: Dispatch, source: Source, found: sessions.Session | None) -> list[str]:
    """Make the workspace, bring home what is in it, and take the session along; returns what a person should know."""
    engine = core.engine
    notes: list[str] = []
    async with engine.deciding(held.id):
        held = engine.board.get(held.id, held)
        if held.state is not State.PAUSED or held.runs:
            return ["it is at work already"]
        try:
            engine.bases.pop(held.id, None)  # what intake saw is the main checkout
            held = await prep.prepare(engine, held, None)
        except CoreAgentError as error:
            await engine.update(held, reason=Reason.PREP_FAILED, detail=f"not prepared: {error.message}"[:400])
            raise
        session_id, why = await _session(core, held, source, found)
        notes += [why] if why else []
        brought = await bring.bring_home(engine, held)
        if brought.harvest.status == "rejected":
            notes.append(f"its work could not be brought home: {brought.harvest.reason}: {brought.harvest.detail}")
        await engine.update(
            held,
            extra=bring.rescue_rows(held, brought, Reason.PAUSED, core.now()),
            reason=Reason.PAUSED,
            detail=f"adopted from {source.top}; `resume` goes on",
            harvest=brought.harvest,
            branch_sha=brought.branch_sha,
            stage=bring.stage_of(brought.harvest),
            session_id=session_id,
            next_prompt=_moved(core, held, source) if session_id else "",
        )
    return notes


def _moved(core: Core, held: Dispatch, source: Source) -> str:
    """What the session is told first: the paths that it remembers are those of the source."""
    here = layout(core.home, core.settings, held).repo
    return (
        f"This work was copied, with its commits and uncommitted changes, from {source.top} to {here}. Go on there: "
        f"every path below {source.top} that was mentioned so far is now below {here}. Leave the old one as it is."
    )


async def _session(core: Core, held: Dispatch, source: Source, found: sessions.Session | None) -> tuple[str, str]:
    """Its id and "", or "" and why there is none to go on with."""
    if found is None:
        return "", f"no session of claude was found for {source.top}; `resume` begins a new one"
    if held.runner != "claude":
        return "", f"there is a session of claude, and {held.agent} cannot go on with it; `resume` begins a new one"
    if launch.runner_settings(core, "claude").home != "private":
        return "", "its session stays where it is: runners.claude.home is `user`; `resume` begins a new one"
    place = layout(core.home, core.settings, held)
    try:
        why = await asyncio.to_thread(sessions.copy, found, source.top, place.config_home("claude"), place.repo)
    except OSError as error:
        why = f"its session could not be copied: {error.strerror}"
    return ("", f"{why}; `resume` begins a new one") if why else (found.id, "")


def _reply(core: Core, now: Dispatch, source: Source, notes: list[str], again: bool) -> AdoptReply:
    notes = [*notes, *(note for note in (now.setup_note, prep.not_carried(now)) if note)]
    return AdoptReply(
        workspace=now.workspace,
        dispatch_id=now.id,
        state=now.state,
        path=rows.workspace_path(core.engine, now),
        source=str(source.top),
        branch="" if now.harvest.status == "rejected" and not now.branch_sha else now.branch,
        base_ref=now.base_ref,
        base_sha=now.base_sha,
        agent=now.agent,
        commits=source.commits,
        files=now.harvest.files,
        insertions=now.harvest.insertions,
        deletions=now.harvest.deletions,
        session_id=now.session_id,
        again=again,
        notes=[*notes, *rows.warnings(core.engine, notices=False)],
    )


@capability("adopt.list", read_only=True)
async def adopt_list(core: Core, caller: Caller, repo: Repository = "") -> list[AdoptCandidate]:
    """List the worktrees of a repository that other tools made, with what is in them."""
    env = caller.env or core.env
    path = Path(intake.find_repository(core.engine, caller, repo, ""))
    found = await asyncio.to_thread(adoption.candidates, path, env, _ours(core))
    told = []
    for source in found:
        known = next((d for d in core.engine.board.values() if _is_of(d, source)), None)
        session = await asyncio.to_thread(adoption.session_of, source, env)
        told.append(
            AdoptCandidate(
                path=str(source.top),
                branch=source.branch,
                source=source.tool,
                title=source.title,
                base_sha=source.start,
                commits=source.commits,
                dirty=source.base.dirty,
                session_id=session.id if session else "",
                adopted_as=known.workspace if known else "",
            )
        )
    return told
