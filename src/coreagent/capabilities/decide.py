"""Decide about the work: accept and reject."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

from coreagent import paths
from coreagent.capabilities.control import move_reply
from coreagent.capabilities.parameter import Workspace
from coreagent.capabilities.status import find_open
from coreagent.capability import Caller, capability
from coreagent.core import Core
from coreagent.dispatch import attached, bring, cleanup, leftover
from coreagent.errors import CoreAgentError
from coreagent.git import landing as git_landing
from coreagent.git import ref as refs
from coreagent.git.cache import is_ancestor
from coreagent.git.inspect import inspect, resolve
from coreagent.git.pack import present
from coreagent.models.dispatch import ACTIVE, Dispatch, Fate, Stage, State
from coreagent.models.report import AcceptReply, MoveReply
from coreagent.plural import plural

SINCE = "{} changed here since the agent ended, and came along"
ALREADY = "{} already has it; nothing was left to land"
OWNED = "{} is the branch of {}, which is open: that will find commits there that are not its own"


@capability("accept", cli="accept", destructive=True)
async def accept(
    core: Core,
    caller: Caller,
    workspace: Workspace,
    strategy: Literal["auto", "fast-forward", "merge", "squash", "rebase"] = "auto",
    onto: str = "",
) -> AcceptReply:
    """Land the work on the branch it started from (or `onto`), then let the workspace go.

    `auto` moves the branch forward when that is possible and merges otherwise. Nothing of the user's is lost: a
    checkout that would be overwritten refuses, and the reply holds the command that takes it back. What a person merged
    there by hand is accepted as it is; on the branch of another open task it lands only when `onto` names that.
    """
    found = await find_open(core, workspace)
    async with core.engine.deciding(found.id):
        found = await find_open(core, found.id)
        attached.check(core.engine, found)
        return await _accept(core, caller, found, strategy, onto)


async def _accept(core: Core, caller: Caller, found: Dispatch, strategy: str, onto: str) -> AcceptReply:
    engine = core.engine
    _check_decidable(found)
    target = onto or found.base_ref
    if not target:
        raise CoreAgentError(
            "nothing_to_accept",
            f"{found.workspace} did not start from a branch",
            hint="say where it should land: --onto BRANCH",
        )
    owner = _owner(core, found, target)
    if owner is not None and not onto:
        raise _of_another_task(found, owner)
    if await asyncio.to_thread(_landed, found, target):
        landing, since = git_landing.Landing(found.previous_sha, found.accepted_sha, "fast-forward", ""), 0
    else:
        found, landing, since = await _land_all(core, caller, found, target, strategy)
    core.crash_point("landed")
    by_hand = landing.strategy == "none"
    accepted = await engine.update(
        found,
        fate=Fate.ACCEPTED,
        stage=Stage.ACCEPTED,
        accepted_sha=landing.after,
        previous_sha="" if by_hand else landing.before,
    )
    core.crash_point("accepted")
    await cleanup.let_go(engine, accepted)
    notes = [SINCE.format(plural(since, "file"))] if since else []
    notes += [ALREADY.format(target)] if by_hand else []
    notes += [OWNED.format(target, owner.name)] if owner is not None else []
    return AcceptReply(
        workspace=found.workspace,
        strategy=landing.strategy,
        onto=target,
        before=landing.before,
        after=landing.after,
        files=found.harvest.files,
        insertions=found.harvest.insertions,
        deletions=found.harvest.deletions,
        undo=landing.undo,
        since=since,
        notes=notes + (await asyncio.to_thread(leftover.kept, core.home, found.id)).lines,
    )


async def _land_all(
    core: Core, caller: Caller, found: Dispatch, target: str, strategy: str
) -> tuple[Dispatch, git_landing.Landing, int]:
    """Bring home what is there and put it onto the branch; what a person merged there by hand has landed already.

    Returns the dispatch as it is now, and how many files came along that changed since the agent ended.
    """
    found = await asyncio.to_thread(bring.with_own_branch, core.home, found)
    foreign = await asyncio.to_thread(_foreign, found)
    if foreign is not None and not await asyncio.to_thread(bring.holding, found, target):
        raise foreign
    found, since = await bring.take_along(core.engine, found)
    try:
        if foreign is not None:
            raise foreign
        _check_acceptable(found)
        # One after the other: of two at once the later would find its branch moved on, or git's index locked.
        async with core.engine.deciding(f"landing in {found.repo_path}"):
            return found, await _land_surely(core, caller, found, target, strategy), since
    except CoreAgentError as error:
        if error.slug not in ("branch_moved", "nothing_to_accept"):
            raise
        tip = await asyncio.to_thread(bring.holding, found, target)
        if not tip:
            raise
        return found, git_landing.Landing(tip, tip, "none", ""), since


async def _land_surely(core: Core, caller: Caller, found: Dispatch, target: str, strategy: str) -> git_landing.Landing:
    """`_land`, over a cache that is made again when it was lost."""
    cache = Path(paths.repo_cache(core.home, found.org, found.repo))
    message = f"{found.task.splitlines()[0][:72]}\n\n{found.workspace} by {found.agent}\n"
    try:
        return await _land(core, caller, cache, found, target, strategy, message)
    except CoreAgentError as error:
        if error.slug != "git_failed" or not await _mended(core, cache, found):
            raise
        return await _land(core, caller, cache, found, target, strategy, message)


def _owner(core: Core, found: Dispatch, target: str) -> Dispatch | None:
    """The open task whose work a branch is for, when that is another than this one."""
    return next(
        (
            other
            for other in core.engine.board.values()
            if other.fate is Fate.OPEN
            and other.id != found.id
            and (other.repo_path, other.branch) == (found.repo_path, target)
        ),
        None,
    )


def _of_another_task(found: Dispatch, owner: Dispatch) -> CoreAgentError:
    return CoreAgentError(
        "consent_needed",
        f"{found.workspace} started from {owner.branch}, which is the branch of {owner.name}, and that is open",
        hint=f"say where it should land: --onto BRANCH; `core-agent accept {found.name} --onto {owner.branch}` puts it "
        f"there all the same, beside the work of {owner.name}",
        data={"branch": owner.branch, "workspace": owner.workspace},
    )


async def _mended(core: Core, cache: Path, found: Dispatch) -> bool:
    """Whether the cache had lost what shall land and has it again, from the branch.

    Raises: nothing_to_accept when nobody has it any more.
    """
    if await asyncio.to_thread(_has, cache, found.harvest.sha):
        return False
    mended = await bring.mend_cache(core.home, found)
    if mended is None or not await asyncio.to_thread(_has, cache, found.harvest.sha):
        raise CoreAgentError(
            "nothing_to_accept",
            f"nobody has the commits of {found.workspace} any more",
            cause=f"{cache} was removed or emptied, and {found.branch} is not in {found.repo_path}",
            hint=f"`core-agent reject {found.name}` keeps what is left of its checkout and says how",
        )
    return True


def _has(cache: Path, sha: str) -> bool:
    try:
        return bool(present(cache, [sha]))
    except CoreAgentError:
        return False


def _foreign(found: Dispatch) -> CoreAgentError | None:
    """The refusal when the branch holds more than the task's work: to land a part of it would look like all of it."""
    git_dir = refs.git_dir_of(Path(found.repo_path))
    current = resolve(git_dir, f"refs/heads/{found.branch}") if git_dir else ""
    if not current or not found.branch_sha or current in (found.branch_sha, found.harvest.sha):
        return None
    merge = f"`git merge {found.branch}`"
    if found.harvest.rescue_ref:
        kept = f"the work is under {found.harvest.rescue_ref}; `core-agent rescue apply {found.name}` makes it a branch"
        merge = f"{kept}: merge that and {found.branch}"
    return CoreAgentError(
        "branch_moved",
        f"branch {found.branch} also holds commits that are not of {found.name}; accept would leave them out",
        cause=f"it is at {current[:10]}, and the work of {found.name} ends at {found.harvest.sha[:10]}",
        hint=f"land all of it by hand ({merge}), then `core-agent accept {found.name}` lets the workspace go and "
        "leaves the branch",
        data={"branch": found.branch, "current": current},
    )


def _landed(found: Dispatch, target: str) -> bool:
    """Whether an accept that was cut off had moved the branch already."""
    if not found.accepted_sha:
        return False
    base = inspect(Path(found.repo_path), target)
    return base.sha == found.accepted_sha or is_ancestor(base.git_dir, found.accepted_sha, base.sha)


async def _land(
    core: Core, caller: Caller, cache: Path, found: Dispatch, target: str, strategy: str, message: str
) -> git_landing.Landing:
    """Move the user's branch, with a durable note beforehand of where it will be."""
    loop = asyncio.get_running_loop()

    def note(before: str, after: str) -> None:
        noted = core.engine.update(found, previous_sha=before, accepted_sha=after)
        asyncio.run_coroutine_threadsafe(noted, loop).result()
        core.crash_point("landing-noted")

    return await asyncio.to_thread(
        git_landing.land,
        cache,
        Path(found.repo_path),
        found.branch,
        target,
        found.harvest.sha,
        strategy,
        message,
        about_to_move=note,
        env=caller.env or core.env,
    )


def _check_decidable(found: Dispatch) -> None:
    if found.state in ACTIVE or found.state is State.QUEUED:
        raise CoreAgentError(
            "workspace_busy", f"{found.workspace} is {found.state}", hint=f"core-agent watch {found.name}"
        )
    if found.fate is not Fate.OPEN:
        raise CoreAgentError("nothing_to_accept", f"{found.workspace} was {found.fate} already")


def _check_acceptable(found: Dispatch) -> None:
    if found.harvest.status == "none" or not found.harvest.sha:
        raise CoreAgentError(
            "nothing_to_accept", f"{found.workspace} changed nothing", hint=f"core-agent why {found.name}"
        )
    if found.harvest.status == "rejected":
        raise CoreAgentError(
            "nothing_to_accept",
            f"the work of {found.workspace} did not pass the harvest check: {found.harvest.reason}",
            cause=found.harvest.detail,
            hint=f"look at it with `core-agent diff {found.name}`; "
            f"`core-agent rescue apply {found.name}` brings it over as it is"
            if found.harvest.rescue_ref
            else f"`core-agent why {found.name}` tells where it is; `core-agent resume {found.name}`, "
            f"or `core-agent reject {found.name}`",
        )


@capability("reject", cli="reject", destructive=True)
async def reject(core: Core, workspace: Workspace) -> MoveReply:
    """Say no to the work and let the workspace go; its tip stays under a rescue ref."""
    found = await find_open(core, workspace)
    async with core.engine.deciding(found.id):
        found = await find_open(core, found.id)
        attached.check(core.engine, found)
        return await _reject(core, found)


async def _reject(core: Core, found: Dispatch) -> MoveReply:
    engine = core.engine
    if found.state in ACTIVE or found.state is State.QUEUED:
        raise CoreAgentError(
            "workspace_busy", f"{found.workspace} is {found.state}", hint=f"`core-agent cancel {found.name}` first"
        )
    tip = await bring.keep_tip(engine, found)
    rows = tip.rows if tip is not None else ()
    rejected = await engine.update(found, fate=Fate.REJECTED, stage=Stage.REJECTED, extra=rows)
    core.crash_point("rejected")
    gone = await cleanup.let_go(engine, rejected)
    return move_reply(gone, await _what_is_kept(core, gone))


async def _what_is_kept(core: Core, gone: Dispatch) -> str:
    files = await asyncio.to_thread(leftover.kept, core.home, gone.id)
    cache = Path(paths.repo_cache(core.home, gone.org, gone.repo))
    said = []
    for row in [] if files.whole else await core.store.rescues(gone.workspace):
        if await asyncio.to_thread(_has, cache, row.sha):
            said.append(f"its work is kept: core-agent rescue apply {gone.workspace}")
            break
    return "; ".join([*said, *files.lines])
