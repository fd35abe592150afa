"""Bring home what an attempt left: snapshot, check, harvest; or keep it under a rescue ref and say why.

Safe to run twice: the leftover commit is dated by the attempt's end, so that a second run makes the same commit.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from coreagent import paths
from coreagent.dispatch.workspace import AUTHOR, Layout, layout
from coreagent.errors import CoreAgentError
from coreagent.git import diff as git_diff
from coreagent.git import drop as git_drop
from coreagent.git import harvest as git_harvest
from coreagent.git import record
from coreagent.git import ref as git_refs
from coreagent.git import rescue as git_rescue
from coreagent.git import restore as git_restore
from coreagent.git import snapshot as git_snapshot
from coreagent.git.cache import is_ancestor
from coreagent.git.check import Limits
from coreagent.git.inspect import resolve
from coreagent.git.pack import present
from coreagent.models.agent import Reason
from coreagent.models.dispatch import Dispatch, Fate, Harvest, Stage
from coreagent.models.report import RescueRow
from coreagent.store.change import SaveRescue

if TYPE_CHECKING:
    from coreagent.core import Core
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

LEFT_SHOWN = 20
"""How many of the paths that are in no commit are told by name."""
OTHER = "other_branch"
"""Why a state is kept that the agent stashed, or committed on a branch that it left again."""


@dataclass(frozen=True)
class Home:
    """What came home, and whether anything differs from the base."""

    harvest: Harvest
    changed: bool
    branch_sha: str = ""
    """Where `agent/<name>` of the user's repository is now, as far as we put it there."""
    rescued: str = ""
    """The ref under which a tip was kept that is on no branch, and that tip."""
    rescued_sha: str = ""
    others: tuple[tuple[str, str, int], ...] = ()
    """(ref, tip, files) of what the agent left in stashes and on branches of its own."""


@dataclass(frozen=True)
class Tip:
    """What is kept as commits of a workspace that is about to go, and what of it cannot be."""

    rows: list[SaveRescue]
    left: tuple[str, ...] = ()
    """Paths of the checkout that are in no commit."""
    replaced: bool = False
    """The checkout is not the one that was made; that one may lie beside it."""


async def take_snapshot(core: Core, dispatch: Dispatch) -> git_snapshot.Snapshot:
    """Commit what is in the workspace now into the daemon's cache, without touching the workspace."""
    place = layout(core.home, core.settings, dispatch)
    limits = core.engine.settings_of(dispatch).settings.harvest
    return await asyncio.to_thread(
        git_snapshot.snapshot,
        Path(paths.repo_cache(core.home, dispatch.org, dispatch.repo)),
        place.repo,
        dispatch.name,
        dispatch.start_sha or dispatch.base_sha,
        Path(paths.index_copy(core.home, dispatch.id)),
        AUTHOR,
        f"Work of {dispatch.agent} on {dispatch.name}",
        Limits(
            max_files=limits.max_files,
            max_file_bytes=limits.max_file_bytes,
            max_total_bytes=limits.max_total_bytes,
            binaries=limits.binaries,
        ),
    )


async def take_snapshot_surely(core: Core, dispatch: Dispatch) -> tuple[git_snapshot.Snapshot, str]:
    """`take_snapshot`, over a cache that is made again when it was lost; and the commit that the work is compared with.

    Raises: git_failed and others, when nothing can be made of what is left.
    """
    try:
        return await take_snapshot(core, dispatch), dispatch.start_sha or dispatch.base_sha
    except CoreAgentError as error:
        if error.slug != "git_failed":
            raise
        mended = await mend_cache(core.home, dispatch)
        if mended is None:
            raise
        log.warning("the cache of %s/%s was lost and is made again", dispatch.org, dispatch.repo)
        return await take_snapshot(core, mended), mended.start_sha or mended.base_sha


async def mend_cache(home: str, dispatch: Dispatch) -> Dispatch | None:
    """Bring back from the user's repository what a cache lost that was removed by hand.

    Returns the dispatch with the start that can be compared with, None when there is none.

    Raises: no_space, git_timeout.
    """
    cache = Path(paths.repo_cache(home, dispatch.org, dispatch.repo))
    tips = (dispatch.branch_sha, dispatch.harvest.sha, dispatch.start_sha)
    try:
        there = await asyncio.to_thread(
            git_restore.restore, cache, Path(dispatch.repo_path), dispatch.base_sha, dispatch.name, tips
        )
    except (CoreAgentError, OSError) as error:
        if isinstance(error, CoreAgentError) and error.slug in ("no_space", "git_timeout"):
            raise
        log.warning("the cache of %s cannot be made again: %s", dispatch.workspace, error)
        return None
    if dispatch.start_sha in {"", *there}:
        return dispatch if dispatch.base_sha in there else None
    if dispatch.base_sha not in there:
        return None
    # What the person had not committed was in the cache alone: it counts as the agent's from here on, and our index,
    # which knows it, is of no use.
    Path(paths.index_copy(home, dispatch.id)).unlink(missing_ok=True)
    return dispatch.model_copy(update={"start_sha": ""})


async def to_compare(home: str, dispatch: Dispatch) -> Dispatch:
    """The dispatch with commits that the cache has, made again where it lost them.

    Raises: workspace_gone when nobody has them any more.
    """
    cache = Path(paths.repo_cache(home, dispatch.org, dispatch.repo))

    def lost(one: Dispatch) -> bool:
        wanted = {one.start_sha or one.base_sha, one.harvest.sha} - {""}
        try:
            return len(present(cache, wanted)) < len(wanted)
        except CoreAgentError:
            return True

    if not await asyncio.to_thread(lost, dispatch):
        return dispatch
    mended = await mend_cache(home, dispatch)
    if mended is None or await asyncio.to_thread(lost, mended):
        raise CoreAgentError(
            "workspace_gone",
            f"nobody has the commits of {dispatch.workspace} any more",
            cause=f"{cache} was removed or emptied, and {dispatch.repo_path} does not have them",
            hint=f"core-agent why {dispatch.name} tells what became of it",
        )
    return mended


async def bring_home(engine: Engine, dispatch: Dispatch) -> Home:
    """Snapshot the workspace and bring its tip into the user's repository, or keep it under a rescue ref.

    Never raises for what an agent or a person did to either repository: that becomes a rejected harvest.
    """
    core = engine.core
    try:
        taken, start = await take_snapshot_surely(core, dispatch)
    except CoreAgentError as error:
        if error.slug == "no_space":
            raise  # that will pass; the caller tries again
        log.warning("snapshot of %s failed: %s (%s)", dispatch.workspace, error.message, error.cause)
        detail = f"{error.message} {error.cause}".strip()
        rejected = Harvest(status="rejected", branch=dispatch.branch, reason=error.slug, detail=detail[:400])
        return Home(rejected, changed=True, branch_sha=dispatch.branch_sha)
    return await _bring_all(engine, dispatch, taken, start)


async def _bring_all(engine: Engine, dispatch: Dispatch, taken: git_snapshot.Snapshot, start: str) -> Home:
    others = await asyncio.to_thread(_keep_others, engine.core.home, dispatch, start, taken.others)
    brought = await _bring_taken(engine, dispatch, taken, start)
    told = {"left": list(taken.left[:LEFT_SHOWN]), "left_count": len(taken.left)}
    return replace(brought, others=others, harvest=brought.harvest.model_copy(update=told))


async def bring_since(engine: Engine, dispatch: Dispatch) -> tuple[Home, int] | None:
    """Bring home what came into a standing checkout since its last harvest, with the number of files that differ.

    None when nothing did, or when no checkout stands there that could be asked.

    Raises: no_space, git_timeout.
    """
    core = engine.core
    place = layout(core.home, core.settings, dispatch)
    if not await asyncio.to_thread(stands, core.home, place, dispatch):
        return None
    try:
        taken, start = await take_snapshot_surely(core, dispatch)
    except CoreAgentError as error:
        if error.slug in ("no_space", "git_timeout"):
            raise
        log.warning("what is in %s now cannot be told: %s (%s)", dispatch.workspace, error.message, error.cause)
        return None  # what was brought home is there all the same; what is not is kept when the workspace goes
    if any(problem.slug in ("workspace_replaced", "git_removed") for problem in taken.problems):
        return None
    harvest, cache = dispatch.harvest, Path(paths.repo_cache(core.home, dispatch.org, dispatch.repo))
    known = harvest.sha if harvest.status != "none" else ""
    since = await asyncio.to_thread(_files_between, cache, known or start, taken.sha)
    if since == 0 and (harvest.status != "rejected" or taken.blocking):
        return None
    if since > 0 and harvest.status == "complete" and taken.sha != start and not taken.blocking:
        sha = await asyncio.to_thread(_on_top, cache, dispatch, taken.sha)
        taken = replace(taken, sha=sha)
    return await _bring_all(engine, dispatch, taken, start), max(since, 0)


async def take_along(engine: Engine, found: Dispatch) -> tuple[Dispatch, int]:
    """Bring home what a person changed in the checkout since the agent ended; how many files that is."""
    brought = await bring_since(engine, found)
    if brought is None:
        return found, 0
    home, since = brought
    moved = await engine.update(
        found,
        extra=rescue_rows(found, home, found.reason, engine.core.now()),
        harvest=home.harvest,
        branch_sha=home.branch_sha,
        stage=stage_of(home.harvest),
        accepted_sha="",
        previous_sha="",
    )
    return moved, since


def with_own_branch(home: str, dispatch: Dispatch) -> Dispatch:
    """The dispatch with the branch as the user's repository has it, when a daemon put it there and died. Blocking."""
    cache = Path(paths.repo_cache(home, dispatch.org, dispatch.repo))
    noted = git_snapshot.noted(cache, dispatch.name)
    git_dir = git_refs.git_dir_of(Path(dispatch.repo_path))
    if not noted or git_dir is None or resolve(git_dir, f"refs/heads/{dispatch.branch}") != noted:
        return dispatch
    return dispatch.model_copy(update={"branch_sha": noted})


def stands(home: str, place: Layout, dispatch: Dispatch) -> bool:
    """Whether there is a whole checkout that can be looked at, prepared to its end or not. Blocking."""
    if place.led_away() or place.repo.is_symlink() or not (place.repo / ".git").is_dir():
        return False
    return _made(home, dispatch) is not None


def _made(home: str, dispatch: Dispatch) -> record.Record | None:
    """What was noted of the checkout when it was made; None when none was made to its end."""
    try:
        return record.load(Path(paths.index_copy(home, dispatch.id)))
    except (OSError, ValueError, TypeError):
        return None


def _files_between(cache: Path, before: str, after: str) -> int:
    """How many files differ; -1 when nobody has the earlier commit any more. Blocking."""
    if before == after:
        return 0
    return git_diff.numstat(cache, before, after).files if present(cache, [before]) else -1


def _on_top(cache: Path, dispatch: Dispatch, sha: str) -> str:
    """The same files as a commit on top of the harvest, so that one who has landed that lands the rest alone. Blocking.

    Not where somebody committed in the checkout: such commits come as they are.
    """
    harvested = dispatch.harvest.sha
    if not git_snapshot.same_parent(cache, harvested, sha):
        return sha
    return git_snapshot.commit_on(cache, dispatch.name, harvested, sha, AUTHOR, f"Changes since in {dispatch.name}")


def _keep_others(home: str, dispatch: Dispatch, start: str, tips: tuple[str, ...]) -> tuple[tuple[str, str, int], ...]:
    """Kept before anything else is, so that the newest that is kept stays the work itself. Blocking."""
    cache = Path(paths.repo_cache(home, dispatch.org, dispatch.repo))
    known = {one.sha for one in git_rescue.rescue_list(cache, dispatch.name)}
    kept = []
    for sha in tips:
        if sha in known:
            continue
        try:
            files = git_diff.numstat(cache, start, sha).files
            kept.append((git_rescue.rescue_save(cache, dispatch.name, sha).ref, sha, files))
        except CoreAgentError as error:
            if error.slug == "no_space":
                raise
            log.warning("%s of %s is kept, but not for `rescue`: %s", sha[:10], dispatch.workspace, error.message)
    return tuple(kept)


async def _bring_taken(engine: Engine, dispatch: Dispatch, taken: git_snapshot.Snapshot, start: str) -> Home:
    core = engine.core
    if taken.sha == start and not taken.blocking:
        if not dispatch.branch_sha:
            return Home(Harvest(status="none"), changed=False)
        return await asyncio.to_thread(_undone, core.home, dispatch)
    harvest = Harvest(
        status="complete",
        branch=dispatch.branch,
        sha=taken.sha,
        files=taken.files,
        insertions=taken.insertions,
        deletions=taken.deletions,
    )
    if dispatch.options.tag is not None:
        harvest = _rejected(harvest, "immutable", "the workspace is an immutable checkout of a tag")
    elif taken.blocking:
        first = taken.blocking[0]
        more = f", and {len(taken.blocking) - 1} more" if len(taken.blocking) > 1 else ""
        said = ": ".join(part for part in (first.path, first.detail) if part)
        harvest = _rejected(harvest, first.slug, said + more)
    else:
        core.crash_point("snapshot-taken")
        harvest = await asyncio.to_thread(_harvest, core.home, dispatch, harvest)
    if harvest.status == "complete":
        return Home(harvest, changed=True, branch_sha=harvest.sha)
    if harvest.sha == start:
        return Home(harvest, True, dispatch.branch_sha)  # no commit of it can be kept
    cache = Path(paths.repo_cache(core.home, dispatch.org, dispatch.repo))
    kept = await asyncio.to_thread(git_rescue.rescue_save, cache, dispatch.name, harvest.sha)
    harvest = harvest.model_copy(update={"rescue_ref": kept.ref})
    return Home(harvest, True, dispatch.branch_sha, kept.ref, harvest.sha)


def _undone(home: str, dispatch: Dispatch) -> Home:
    """Nothing differs from the start: what an earlier turn brought is taken back too, and kept under a rescue ref."""
    cache = Path(paths.repo_cache(home, dispatch.org, dispatch.repo))
    kept = git_rescue.rescue_save(cache, dispatch.name, dispatch.branch_sha)
    gone = drop_branch(dispatch)
    return Home(Harvest(status="none"), False, "" if gone else dispatch.branch_sha, kept.ref, dispatch.branch_sha)


def stage_of(harvest: Harvest) -> Stage:
    """Where the pipeline stands after a harvest."""
    return {"none": Stage.NONE, "complete": Stage.HARVESTED, "rejected": Stage.HARVEST_REJECTED}[harvest.status]


def _rejected(harvest: Harvest, slug: str, detail: str) -> Harvest:
    return harvest.model_copy(update={"status": "rejected", "reason": slug, "detail": detail[:400]})


def _harvest(home: str, dispatch: Dispatch, harvest: Harvest) -> Harvest:
    cache = Path(paths.repo_cache(home, dispatch.org, dispatch.repo))
    top = Path(dispatch.repo_path)
    try:
        try:
            git_harvest.harvest(cache, top, dispatch.branch, harvest.sha, dispatch.branch_sha)
        except CoreAgentError as error:
            # Deleted or renamed by its person: a new one of that name is in nobody's way.
            if error.slug != "branch_moved" or not dispatch.branch_sha or error.data.get("current") != "":
                raise
            git_harvest.harvest(cache, top, dispatch.branch, harvest.sha)
    except CoreAgentError as error:
        if error.slug == "no_space":
            raise
        return _rejected(harvest, error.slug, f"{error.message} {error.cause}".strip())
    return harvest


def rescue_rows(dispatch: Dispatch, brought: Home, reason: Reason | None, at: datetime) -> list[SaveRescue]:
    """The store's rows of the rescue refs that were made on the way home."""
    rows = [
        _row(dispatch, ref, sha, OTHER, Harvest(status="none", files=files), at) for ref, sha, files in brought.others
    ]
    if not brought.rescued:
        return rows
    harvest = brought.harvest if brought.harvest.status == "rejected" else dispatch.harvest
    why = brought.harvest.reason or ("undone" if not brought.changed else str(reason or ""))
    return [*rows, _row(dispatch, brought.rescued, brought.rescued_sha, why, harvest, at)]


def _row(dispatch: Dispatch, ref: str, sha: str, reason: str, harvest: Harvest, at: datetime) -> SaveRescue:
    n = int(ref.rsplit("/", 1)[-1])
    return SaveRescue(
        RescueRow(
            workspace=dispatch.workspace,
            n=n,
            ref=ref,
            sha=sha,
            reason=reason,
            files=harvest.files,
            at=at,
        )
    )


async def keep_tip(engine: Engine, dispatch: Dispatch) -> Tip | None:
    """Keep what a workspace that is about to go holds and nobody has: returns the rows to store with the change.

    That is its harvested tip unless it was accepted, and whatever was done in it since (by hand, or in `attach`). What
    no commit can hold is named, and is the caller's to keep.
    None: git cannot keep it, not even in a cache made again; then the checkout itself must not be deleted.

    Raises: no_space, git_timeout; then the workspace must stay.
    """
    try:
        return await _keep_tip(engine, dispatch)
    except CoreAgentError as error:
        if error.slug not in ("git_failed", "rescue_not_found"):
            raise
        log.warning("the tip of %s cannot be kept: %s (%s)", dispatch.workspace, error.message, error.cause)
    try:
        mended = await mend_cache(engine.core.home, dispatch)
        return None if mended is None else await _keep_tip(engine, mended, lost=True)
    except CoreAgentError as error:
        if error.slug not in ("git_failed", "rescue_not_found"):
            raise
        log.warning("it cannot be kept in a new cache either: %s (%s)", error.message, error.cause)
        return None


async def _keep_tip(engine: Engine, dispatch: Dispatch, lost: bool = False) -> Tip:
    """`lost`: a tip that nobody has any more is passed over; the checkout is all that is left of it."""
    core, harvest = engine.core, dispatch.harvest
    place = layout(core.home, core.settings, dispatch)
    landed = {dispatch.start_sha or dispatch.base_sha}
    if dispatch.fate is Fate.ACCEPTED:
        landed.add(harvest.sha)
    tips = {dispatch.branch_sha: harvest.files}
    cache = Path(paths.repo_cache(core.home, dispatch.org, dispatch.repo))
    taken = git_snapshot.Snapshot("")
    made = await asyncio.to_thread(_made, core.home, dispatch)
    if made is not None:
        landed.add(made.start)  # the row learns of it when preparation has ended
    if dispatch.runs or await asyncio.to_thread(stands, core.home, place, dispatch):
        taken = await take_snapshot(core, dispatch)
        accepted = dispatch.fate is Fate.ACCEPTED
        if not (accepted and await asyncio.to_thread(_files_between, cache, harvest.sha, taken.sha) == 0):
            tips[taken.sha] = taken.files
    replaced = any(problem.slug == "workspace_replaced" for problem in taken.problems)
    rows = []
    for sha in sorted(tips.keys() - landed - {""}):
        try:
            kept = await asyncio.to_thread(git_rescue.rescue_save, cache, dispatch.name, sha)
        except CoreAgentError as error:
            if error.slug != "rescue_not_found" or not lost:
                raise
            log.warning("%s of %s is nowhere any more", sha[:10], dispatch.workspace)
            continue
        counted = harvest.model_copy(update={"files": tips[sha]})
        rows.append(_row(dispatch, kept.ref, sha, "let_go", counted, core.now()))
    return Tip(rows, taken.left, replaced)


def holding(dispatch: Dispatch, branch: str) -> str:
    """The tip of a branch of the user's that has all the work among its own commits; "" when it has not. Blocking."""
    sha, started = dispatch.harvest.sha, dispatch.start_sha or dispatch.base_sha
    if dispatch.harvest.status == "none" or sha in ("", started) or branch == dispatch.branch:
        return ""
    try:
        git_dir = git_refs.git_dir_of(Path(dispatch.repo_path))
        tip = resolve(git_dir, f"refs/heads/{branch}") if git_dir else ""
        return tip if git_dir and tip and is_ancestor(git_dir, sha, tip) else ""
    except CoreAgentError:
        return ""  # the branch has no such commit, or the repository is not there any more


def drop_branch(dispatch: Dispatch) -> bool:
    """Delete `agent/<name>` in the user's repository when it still is what we put there; False: it stays. Blocking."""
    if not dispatch.branch_sha:
        return True
    try:
        git_drop.drop(Path(dispatch.repo_path), dispatch.branch, dispatch.branch_sha)
    except CoreAgentError as error:
        log.info("branch %s stays: %s", dispatch.branch, error.message)
        return False
    return True
