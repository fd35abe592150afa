"""Workspaces and repositories: show, clean, register, trust."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from coreagent import paths
from coreagent.capabilities.parameter import Workspace
from coreagent.capabilities.status import find_open
from coreagent.capability import Caller, capability
from coreagent.core import Core
from coreagent.dispatch import agentnote, cleanup, intake, names, ports, rows, trust
from coreagent.dispatch.workspace import layout
from coreagent.errors import CoreAgentError
from coreagent.git.inspect import inspect
from coreagent.git.rescue import rescue_list
from coreagent.models.dispatch import Repo
from coreagent.models.report import CleanReply, RepoRemoved, RepoRow, TrustReply, WorkspaceRow, WorkspaceShow
from coreagent.plural import plural
from coreagent.store.change import DropRepo, SaveRepo

PROMPT_MAX = 1 << 20


@capability("workspace.list", cli="workspace list", read_only=True)
async def workspace_list(core: Core) -> list[WorkspaceRow]:
    """List every workspace that exists, oldest first."""
    return rows.report(core.engine, True).workspaces


@capability("workspace.show", cli="workspace show", read_only=True)
async def workspace_show(core: Core, workspace: Workspace) -> WorkspaceShow:
    """Tell everything about one workspace: where it lies, where it started, its attempts."""
    engine = core.engine
    found = await find_open(core, workspace)
    place = layout(core.home, core.settings, found)
    attempts = await core.store.attempts_of(found.id)
    # The agent can write there too.
    prompt = await asyncio.to_thread(agentnote.read, place.meta, place.prompt.name, PROMPT_MAX)
    return WorkspaceShow(
        row=rows.row(engine, found),
        path=str(place.root),
        exists=place.repo.is_dir(),
        repo_path=found.repo_path,
        base_ref=found.base_ref,
        base_sha=found.base_sha,
        session_id=found.session_id,
        prompt=prompt,
        agents=found.options.agents,
        tried=found.tried,
        attempts=[a.model_dump(mode="json", exclude={"prompt"}) | {"session_id": a.session} for a in attempts],
        usage=found.usage,
        permissions=found.options.permissions or "edits",
        ports=ports.shown(found),
        keep_until=cleanup.keep_until(engine, found),
    )


@capability("workspace.clean", cli="workspace clean", destructive=True)
async def workspace_clean(core: Core, workspace: Workspace = "", dry_run: bool = False) -> CleanReply:
    """Let go of every workspace that may go (or of one), archiving first; tell why the others stay.

    One that a person merged by hand into its branch counts as accepted.
    """
    engine, now = core.engine, core.now()
    chosen = [await find_open(core, workspace)] if workspace else list(engine.board.values())
    reply = CleanReply(dry_run=dry_run)
    for found in chosen:
        why = cleanup.why_kept(engine, found, now)
        if why and not await cleanup.merged_at(engine, found):
            reply.kept[found.workspace] = why
            continue
        if not dry_run and (why := await cleanup.let_go_if(engine, found.id)):
            reply.kept[found.workspace] = why
            continue
        reply.removed.append(found.workspace)
    return reply


@capability("repo.add", cli="repo add")
async def repo_add(
    core: Core, caller: Caller, path: str = "", org: str = "", name: str = "", managed: bool | None = None
) -> RepoRow:
    """Register a repository under an organisation and a name.

    With `managed`, its checkout is core-agent's to move: `repo sync` and pushes fast-forward it. The same path again
    changes nothing but that, or its name when another one is given and it has no workspaces.
    """
    engine = core.engine
    base = await asyncio.to_thread(inspect, Path(intake.find_repository(engine, caller, path, "")))
    here = [r for r in engine.repos.values() if r.path == str(base.top)]
    known = next((r for r in here if org in ("", r.org) and name in ("", r.name)), here[0] if here else None)
    org = names.check(org or (known.org if known else "core"), "org")
    name = names.check(name or (known.name if known else names.directory_name(base.top.name, "repo")))
    if known is not None and (known.org, known.name) == (org, name):
        return await repo_row(core, await _managed(core, known, managed))
    if (taken := engine.repos.get((org, name))) is not None:
        raise CoreAgentError(
            "repo_exists", f"{org}/{name} is {taken.path}", hint="choose another --name, or another --org"
        )
    if known is not None:
        return await repo_row(core, await _managed(core, await _rename(core, known, org, name), managed))
    made = Repo(
        org=org, name=name, path=str(base.top), default_branch=base.default_branch, managed=bool(managed),
        added_at=core.now(),
    )  # fmt: skip
    await core.store.commit(SaveRepo(made))
    engine.repos[(org, name)] = made
    return await repo_row(core, made)


async def _managed(core: Core, known: Repo, managed: bool | None) -> Repo:
    if managed is None or managed == known.managed:
        return known
    changed = known.model_copy(update={"managed": managed})
    await core.store.commit(SaveRepo(changed))
    core.engine.repos[(known.org, known.name)] = changed
    return changed


async def _rename(core: Core, known: Repo, org: str, name: str) -> Repo:
    """Call a registered repository something else. Its old cache stays: history and rescued work point there.

    Raises: workspace_busy.
    """
    engine = core.engine
    if names_of := sorted(intake.open_names(engine, known)):
        raise CoreAgentError(
            "workspace_busy",
            f"this repository is {known.org}/{known.name} and has "
            f"{plural(len(names_of), 'workspace')}: {', '.join(names_of[:5])}",
            hint=f"it keeps that name until they are accepted or rejected; dispatch --repo {known.org}/{known.name}",
            data={"workspaces": names_of},
        )
    renamed = known.model_copy(update={"org": org, "name": name})
    # No await up to here: no workspace can come in between, and whoever dispatches from now on finds the new name.
    engine.repos.pop((known.org, known.name))
    engine.repos[(org, name)] = renamed
    try:
        await core.store.commit(DropRepo(known.org, known.name), SaveRepo(renamed))
    except BaseException:
        engine.repos.pop((org, name), None)
        engine.repos.setdefault((known.org, known.name), known)
        raise
    await engine.upkeep.warm.forget(known.org, known.name)
    return renamed


@capability("repo.list", cli="repo list", read_only=True)
async def repo_list(core: Core) -> list[RepoRow]:
    """List the registered repositories and whether their own settings are trusted."""
    return [await repo_row(core, repo) for repo in sorted(core.engine.repos.values(), key=lambda r: (r.org, r.name))]


@capability("repo.remove", cli="repo remove", destructive=True)
async def repo_remove(core: Core, caller: Caller, repo: str) -> RepoRemoved:
    """Forget a repository that has no workspaces. Its files, the history and rescued work stay as they are."""
    engine = core.engine
    found = intake.registered(engine, caller, repo)
    key = (found.org, found.name)
    cache = Path(paths.repo_cache(core.home, *key))
    rescued = len(await core.store.rescues_of(*key))
    kept = await asyncio.to_thread(lambda: len(rescue_list(cache)))
    # From here to the first await nobody else runs: no workspace can come in between.
    own = f"{found.org}/{found.name}"
    if names_of := sorted(name for name, of in intake.open_names(engine, found).items() if of == own):
        raise CoreAgentError(
            "workspace_busy",
            f"{found.org}/{found.name} has {plural(len(names_of), 'workspace')}: {', '.join(names_of[:5])}",
            hint="accept or reject what is in them first; core-agent status --all",
            data={"workspaces": names_of},
        )
    going = None if rescued or kept else cleanup.set_aside(cache)
    engine.repos.pop(key, None)
    try:
        await core.store.commit(DropRepo(*key))
    except BaseException:
        engine.repos.setdefault(key, found)
        raise
    finally:
        if going is not None:
            await asyncio.to_thread(shutil.rmtree, going, ignore_errors=True)
    await engine.upkeep.warm.forget(*key)
    state: Literal["none", "removed", "kept"] = "removed" if going else "kept" if cache.exists() else "none"
    return RepoRemoved(repo=await repo_row(core, found), cache=state, rescued=max(rescued, kept))


@capability("repo.trust", cli="repo trust")
async def repo_trust(
    core: Core,
    caller: Caller,
    repo: str = "",
    apply: bool = False,
    bypass: bool = False,
    hash: Annotated[str, Field(description="What an earlier reply showed: refused when it changed since")] = "",  # noqa: A002
) -> TrustReply:
    """Show the settings of a repository that run commands and, with `apply`, trust exactly these.

    With `hash`, only what an earlier reply showed. With `bypass`, also agree that agents may run there without asking
    and without a sandbox. Settings that are wrong cannot be trusted.
    """
    engine = core.engine
    base = await asyncio.to_thread(inspect, Path(intake.find_repository(engine, caller, repo, "")))
    looked_at = intake.register(engine, base)
    offer = await asyncio.to_thread(trust.offered, looked_at)
    if hash and offer.hash != hash:
        raise CoreAgentError(
            "settings_changed",
            f"the settings of {looked_at.org}/{looked_at.name} changed after they were shown; nothing was trusted",
        )
    trust.check(offer, looked_at)
    row = intake.register(engine, base)  # again: somebody may have registered it, or taken its name, meanwhile
    if apply or bypass:
        row = row.model_copy(
            update={
                "trusted_hash": offer.hash if apply else row.trusted_hash,
                "bypass_consent": bypass or row.bypass_consent,
            }
        )
        await core.store.commit(SaveRepo(row))
        engine.repos[(row.org, row.name)] = row
    return TrustReply(
        repo=await repo_row(core, row, offer), hash=offer.hash, settings=offer.files, applied=apply or bypass
    )


async def repo_row(core: Core, repo: Repo, offer: trust.Offer | None = None) -> RepoRow:
    """What is told of a registered repository; `offer` is what it brings now, when that was read already."""
    sync = core.engine.upkeep.sync
    known = sync.known(repo.path)
    return RepoRow(
        org=repo.org,
        name=repo.name,
        path=repo.path,
        default_branch=repo.default_branch,
        trusted=bool(repo.trusted_hash),
        trust_stale=await _stale(repo, offer),
        bypass_consent=repo.bypass_consent,
        managed=repo.managed,
        fetched_at=known.at,
        fetch_failures=known.failures,
        fetch_error=known.error,
        next_fetch=sync.next_at(repo.path) if core.settings.sync.fetch_minutes else None,
    )


async def _stale(repo: Repo, offer: trust.Offer | None) -> bool:
    """Whether what a person trusted is not what the repository brings now; unknown is no when it is not there."""
    if not repo.trusted_hash:
        return False
    try:
        if offer is None:
            offer = await asyncio.to_thread(trust.offered, repo)
    except CoreAgentError:
        return False
    return offer.hash != repo.trusted_hash
