"""Look at the work: diff, logs, and what was rescued."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from pydantic import Field

from coreagent import paths, runners
from coreagent.capabilities.control import move_reply
from coreagent.capabilities.parameter import Workspace
from coreagent.capabilities.status import find_any, seen_by
from coreagent.capability import EVERYONE, Caller, capability
from coreagent.core import Core
from coreagent.dispatch import bring, leftover, logbook
from coreagent.dispatch.workspace import layout
from coreagent.errors import CoreAgentError
from coreagent.git import diff as git_diff
from coreagent.git import rescue as git_rescue
from coreagent.git.pack import present
from coreagent.git.snapshot import Now, diff_now
from coreagent.models.dispatch import ACTIVE, RESTING, Dispatch, Fate, State
from coreagent.models.report import DiffReply, LogReply, MoveReply, RescueRow

DIFF_MAX = 4 << 20
PATCH_MAX = 256 << 20


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
async def rescue_apply(
    core: Core,
    workspace: Workspace,
    n: Annotated[int | None, Field(ge=1, description="Its number in rescue.list; the newest by default")] = None,
    branch: str = "",
) -> MoveReply:
    """Bring kept work into the user's repository as a branch (the newest one unless `n` says which)."""
    if "@" in workspace:
        return await _apply_to_checkout(core, workspace, n or 0, branch)
    found = await find_any(core, workspace)
    known = list(reversed(await core.store.rescues(found.workspace)))
    kept = await asyncio.to_thread(_there, core, known)
    chosen = next((r for r in kept if n in (None, r.n)), None)
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
