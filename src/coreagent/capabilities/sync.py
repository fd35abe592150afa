"""Repositories and their remotes: fetch now, follow now, tell of a push."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from pydantic import Field

from coreagent.capability import Caller, capability
from coreagent.core import Core
from coreagent.dispatch import intake
from coreagent.git.inspect import inspect
from coreagent.models.report import FetchRow, PushedReply, SyncReply

Repo = Annotated[str, Field(description="org/name, name or path; the caller's directory by default")]


@capability("repo.fetch", cli="repo fetch")
async def repo_fetch(
    core: Core,
    caller: Caller,
    repo: Repo = "",
    all: Annotated[bool, Field(description="Every registered repository, and those under the workspace root")] = False,  # noqa: A002
) -> list[FetchRow]:
    """Fetch `origin` of a repository now: remote-tracking branches only, nothing that is checked out moves.

    With `all`, each row tells how it went; one alone raises what went wrong.
    """
    sync = core.engine.upkeep.sync
    core.refresh_settings()
    sync.heard(caller)
    if all:
        return await sync.report_all()
    base = await asyncio.to_thread(inspect, Path(intake.find_repository(core.engine, caller, repo, "")))
    done = await sync.fetch(str(base.top))
    name = sync.name_of(str(base.top))
    return [FetchRow(repo=name, path=str(base.top), remote=done.remote, moved=list(done.moved))]


@capability("repo.sync", cli="repo sync", destructive=True)
async def repo_sync(
    core: Core,
    caller: Caller,
    repo: Repo = "",
    reset: Annotated[
        bool, Field(description="Move a managed checkout to the remote's branch; what would be lost is kept before")
    ] = False,
) -> SyncReply:
    """Fetch a registered repository and fast-forward its default branch, when its checkout is managed.

    Anybody else's checkout is fetched and never moved.
    """
    core.refresh_settings()
    core.engine.upkeep.sync.heard(caller)
    found = intake.registered(core.engine, caller, repo or caller.cwd)
    return await core.engine.upkeep.sync.sync(found, reset=reset)


@capability("repo.pushed", cli="repo pushed")
async def repo_pushed(
    core: Core,
    caller: Caller,
    repo: Repo = "",
    branch: Annotated[str, Field(description="The branch that was pushed to; the one HEAD is on by default")] = "",
) -> PushedReply:
    """Tell that somebody pushed to a registered repository's remote, and what became of it: for hooks and cron.

    A managed checkout fast-forwards that branch; any other is fetched and never moved. Why it could not follow is in
    the answer.
    """
    core.refresh_settings()
    core.engine.upkeep.sync.heard(caller)
    return await core.engine.upkeep.sync.pushed(intake.registered(core.engine, caller, repo or caller.cwd), branch)
