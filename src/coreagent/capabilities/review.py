"""Judge the work: diff, logs, accept, reject, rescue."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from coreagent import paths, runners
from coreagent.capabilities.control import move_reply
from coreagent.capabilities.parameter import Workspace
from coreagent.capabilities.status import find_any, find_open, seen_by
from coreagent.capability import EVERYONE, Caller, capability
from coreagent.core import Core
from coreagent.dispatch import attached, bring, cleanup, leftover, logbook
from coreagent.dispatch.workspace import layout
from coreagent.errors import CoreAgentError
from coreagent.git import diff as git_diff
from coreagent.git import landing as git_landing
from coreagent.git import ref as refs
from coreagent.git import rescue as git_rescue
from coreagent.git.cache import is_ancestor
from coreagent.git.inspect import inspect, resolve
from coreagent.git.pack import present
from coreagent.git.snapshot import Now, diff_now
from coreagent.models.dispatch import ACTIVE, RESTING, Dispatch, Fate, Stage, State
from coreagent.models.report import AcceptReply, DiffReply, LogReply, MoveReply, RescueRow
from coreagent.plural import plural

DIFF_MAX = 4 << 20
PATCH_MAX = 256 << 20
SINCE = "{} changed here since the agent ended, and came along"


@capability("diff", cli="diff", roles=EVERYONE, read_only=True)
async def diff(
    core: Core,
    caller: Caller,
    workspace: Workspace,
    stat: bool = False,
    exact: Annotated[bool, Field(description="The patch for `git apply`; bytes beyond UTF-8 are surrogates")] = False,
) -> DiffReply:
    """Show what the agent changed: the working tree as it is now while there is one, else what was brought home.

    With `exact` it is whole, binary files too, or an error: never a patch that applies in part.
    """
    shown = await _diff(core, caller, workspace, stat, exact)
    if exact and shown.truncated:
        raise CoreAgentError(
            "too_large",
            f"the patch of {shown.workspace} is larger than {PATCH_MAX >> 20} MiB",
            hint="take it from its branch with git, or look with `core-agent diff --stat`",
        )
    return shown


async def _diff(core: Core, caller: Caller, workspace: str, stat: bool, exact: bool) -> DiffReply:
    limit = PATCH_MAX if exact else DIFF_MAX
    found = await seen_by(core, caller, workspace)
    cache = Path(paths.repo_cache(core.home, found.org, found.repo))
    live = found.state in ACTIVE
    rests = not found.workspace_gone and found.fate is Fate.OPEN and found.state in RESTING
    start = found.start_sha or found.base_sha
    head = found.harvest.sha
    place = layout(core.home, core.settings, found)
    if live or (head and head != start):
        found = await bring.to_compare(core.home, found)
        start = found.start_sha or found.base_sha
    if live and place.prepared.exists():
        index = Path(paths.index_copy(core.home, found.id))
        return _standing(
            found, start, await asyncio.to_thread(diff_now, cache, place.repo, start, index, stat, limit, exact), live
        )
    shown = await _as_it_is(core, found, stat, limit, exact) if rests else None
    if shown is not None:
        return shown
    if not head or head == start:
        return DiffReply(workspace=found.workspace, base=start, head=head or start)
    text, truncated = await asyncio.to_thread(git_diff.diff, cache, start, head, stat=stat, limit=limit, exact=exact)
    numbers = await asyncio.to_thread(git_diff.numstat, cache, start, head)
    return DiffReply(
        workspace=found.workspace,
        base=start,
        head=head,
        files=numbers.files,
        insertions=numbers.insertions,
        deletions=numbers.deletions,
        text=text,
        truncated=truncated,
    )


async def _as_it_is(core: Core, found: Dispatch, stat: bool, limit: int, exact: bool) -> DiffReply | None:
    """The checkout of a workspace at rest, when it holds something else than what was brought home."""
    cache = Path(paths.repo_cache(core.home, found.org, found.repo))
    start = found.start_sha or found.base_sha
    place = layout(core.home, core.settings, found)
    index = Path(paths.index_copy(core.home, found.id))
    known = found.harvest.sha or start
    if not await asyncio.to_thread(bring.stands, core.home, place, found):
        return None
    try:
        now = await asyncio.to_thread(diff_now, cache, place.repo, start, index, stat, limit, exact, known)
    except CoreAgentError as error:
        if error.slug != "git_failed":
            raise
        return None  # the cache is not whole; what was brought home is shown, or why that cannot be
    return _standing(found, start, now, live=False) if now.since else None


def _standing(found: Dispatch, start: str, now: Now, live: bool) -> DiffReply:
    return DiffReply(
        workspace=found.workspace,
        base=start,
        head="",
        live=live,
        since=now.since,
        files=now.files,
        insertions=now.insertions,
        deletions=now.deletions,
        text=now.text,
        truncated=now.truncated,
    )


@capability("logs", cli="logs", roles=EVERYONE, read_only=True)
async def logs(
    core: Core,
    caller: Caller,
    workspace: Workspace,
    attempt: int | None = None,
    after: str = "",
    limit: int = 1000,
    tail: int = 0,
) -> LogReply:
    """Read what an agent said and did, from its recorded output.

    `after` is the `next` of an earlier reply; `tail` starts with the last that many lines instead of the first.
    """
    found = await seen_by(core, caller, workspace)
    if attempt is not None and not 0 < attempt <= found.attempts:
        raise CoreAgentError(
            "invalid_argument",
            f"there is no attempt {attempt} of {found.workspace}",
            hint=f"its attempts are 1 to {found.attempts}" if found.attempts > 1 else "--attempt can be left out",
        )
    live = core.engine.live.get(found.id)
    n = attempt if attempt is not None else found.attempts
    # A dispatch at rest has said everything, though its attempt lives on until its files are put away.
    running = live is not None and live.attempt.n == n and found.state in ACTIVE
    most = min(max(limit, 1), 10_000)
    places = _log_places(core, found, n)

    def read() -> tuple[logbook.Page, int, Path]:
        for _ in range(len(places)):
            directory = next((one for one in places if (one / "out").is_file()), places[0])
            place, skipped = logbook.Place.parse(after), 0
            if tail > 0 and not after:
                place, skipped = logbook.tail_place(directory / "out", tail)
            parser = runners.load(found.runner).parser()
            page = logbook.read_page(directory / "out", parser, n, place, most, whole_lines=running)
            if page.entries or (directory / "out").is_file():
                break  # else it was moved on while we looked, or there is none anywhere
        return page, skipped, directory

    page, skipped, directory = await asyncio.to_thread(read)
    return LogReply(
        workspace=found.workspace,
        entries=page.entries,
        next=str(page.next),
        live=running and not page.more,
        skipped_bytes=skipped,
        stderr=await asyncio.to_thread(logbook.stderr_tail, directory / "err"),
    )


def _log_places(core: Core, found: Dispatch, n: int) -> list[Path]:
    """Where the output of an attempt may be, in the order in which it moves on: who looks so does not miss it."""
    places = []
    live = core.engine.live.get(found.id)
    if live is not None and live.attempt.n == n:
        places.append(live.directory)
    spool = core.engine.attempts.get(found.id)
    if spool and spool.n == n:
        places.append(Path(paths.attempt_dir(core.home, spool.id)))
    places.append(layout(core.home, core.settings, found).attempt(n))
    places.append(Path(paths.archive_dir(core.home, found.id), "attempts", str(n)))
    return places


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
    checkout that would be overwritten refuses, and the reply holds the command that takes it back.
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
    cache = Path(paths.repo_cache(core.home, found.org, found.repo))
    message = f"{found.task.splitlines()[0][:72]}\n\n{found.workspace} by {found.agent}\n"
    if await asyncio.to_thread(_landed, found, target):
        landing, since = git_landing.Landing(found.previous_sha, found.accepted_sha, "fast-forward", ""), 0
    else:
        found = await asyncio.to_thread(bring.with_own_branch, core.home, found)
        await asyncio.to_thread(_check_branch, found)
        found, since = await bring.take_along(core.engine, found)
        _check_acceptable(found)
        # One after the other: of two at once the later would find its branch moved on, or git's index locked.
        async with core.engine.deciding(f"landing in {found.repo_path}"):
            try:
                landing = await _land(core, caller, cache, found, target, strategy, message)
            except CoreAgentError as error:
                if error.slug != "git_failed" or not await _mended(core, cache, found):
                    raise
                landing = await _land(core, caller, cache, found, target, strategy, message)
    core.crash_point("landed")
    accepted = await engine.update(
        found,
        fate=Fate.ACCEPTED,
        stage=Stage.ACCEPTED,
        accepted_sha=landing.after,
        previous_sha=landing.before,
    )
    core.crash_point("accepted")
    await cleanup.let_go(engine, accepted)
    notes = [SINCE.format(plural(since, "file"))] if since else []
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


def _check_branch(found: Dispatch) -> None:
    """Raise when the branch holds more than the agent's work: to land a part of it would look like all of it."""
    git_dir = refs.git_dir_of(Path(found.repo_path))
    current = resolve(git_dir, f"refs/heads/{found.branch}") if git_dir else ""
    if current and found.branch_sha and current not in (found.branch_sha, found.harvest.sha):
        raise CoreAgentError(
            "branch_moved",
            f"branch {found.branch} has commits that core-agent did not make; accept would leave them out",
            cause=f"it is at {current[:10]}, and the agent's work ends at {found.harvest.sha[:10]}",
            hint=f"land all of it with `git merge {found.branch}`, then `core-agent reject {found.name}` lets the "
            "workspace go and leaves the branch",
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


@capability("rescue.list", cli="rescue list", read_only=True)
async def rescue_list(core: Core, workspace: Workspace = "") -> list[RescueRow]:
    """List the work that was kept outside the user's repository, newest first."""
    # Of a checkout that was reset, see dispatch.sync: no workspace is called so.
    wanted = workspace if "@" in workspace or not workspace else (await find_any(core, workspace)).workspace
    rows = await asyncio.to_thread(_there, core, list(reversed(await core.store.rescues(wanted))))
    return await _with_files(core, rows)


async def _with_files(core: Core, rows: list[RescueRow]) -> list[RescueRow]:
    """With each newest row of a workspace, where the files of it lie that no commit can hold."""
    told: dict[str, list[str]] = {}
    for row in rows:
        if row.workspace in told or "@" in row.workspace:
            continue
        try:
            found = await find_any(core, row.workspace)
        except CoreAgentError:
            continue
        place = layout(core.home, core.settings, found)
        told[row.workspace] = await asyncio.to_thread(leftover.facts, core.home, place, found)
    return [row.model_copy(update={"also": told.pop(row.workspace, [])}) for row in rows]


def _there(core: Core, rows: list[RescueRow]) -> list[RescueRow]:
    """Those that can be applied: the others went with a cache that was removed by hand. Blocking."""
    kept: dict[Path, set[tuple[str, str]]] = {}
    found = []
    for row in rows:
        cache = Path(paths.repo_cache(core.home, *row.workspace.split("/")[:2]))
        if cache not in kept:
            saved = git_rescue.rescue_list(cache)
            try:
                whole = set(present(cache, [one.sha for one in saved]))
            except CoreAgentError:
                whole = set()
            kept[cache] = {(one.ref, one.sha) for one in saved if one.sha in whole}
        if (row.ref, row.sha) in kept[cache]:
            found.append(row)
    return found


@capability("rescue.apply", cli="rescue apply")
async def rescue_apply(core: Core, workspace: Workspace, n: int = 0, branch: str = "") -> MoveReply:
    """Bring kept work into the user's repository as a branch (the newest one unless `n` says which)."""
    if "@" in workspace:
        return await _apply_to_checkout(core, workspace, n, branch)
    found = await find_any(core, workspace)
    known = list(reversed(await core.store.rescues(found.workspace)))
    kept = await asyncio.to_thread(_there, core, known)
    chosen = next((r for r in kept if n in (0, r.n)), None)
    if chosen is None:
        raise CoreAgentError(
            "rescue_not_found",
            f"there is no rescue {n} of {found.workspace}"
            if kept
            else f"what was rescued of {found.workspace} is gone: it was in a cache that was removed by hand"
            if known
            else f"nothing of {found.workspace} was rescued",
            hint="`core-agent rescue list` shows what there is",
        )
    cache = Path(paths.repo_cache(core.home, found.org, found.repo))
    name = branch or f"rescue/{found.name}-{chosen.n}"
    await asyncio.to_thread(git_rescue.rescue_apply, cache, Path(found.repo_path), found.name, chosen.n, name)
    return move_reply(found, f"branch {name} is in {found.repo_path}")


async def _apply_to_checkout(core: Core, kept: str, n: int, branch: str) -> MoveReply:
    """Bring back what `repo sync --reset` kept of a managed checkout, by the name that it told."""
    org, _, rest = kept.strip("/").partition("/")
    name, _, what = rest.partition("/")
    repo = core.engine.repos.get((org, name))
    if repo is None:
        raise CoreAgentError(
            "rescue_not_found",
            f"{kept} belongs to no registered repository",
            hint="`core-agent rescue list` shows what there is",
        )
    cache = Path(paths.repo_cache(core.home, org, name))
    done = await asyncio.to_thread(git_rescue.rescue_apply, cache, Path(repo.path), what, n, branch)
    name = branch or f"rescue/{done.name}-{done.n}"
    return MoveReply(workspace=kept, state=State.COMPLETED, note=f"branch {name} is in {repo.path}")
