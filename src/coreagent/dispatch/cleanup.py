"""Letting a workspace go: archive first, then delete; and never while anything in it exists nowhere else.

A workspace may go when it was accepted, merged or rejected, or is older than `keep`. A completed one that nobody
accepted is kept until then, and even then its tip stays under a rescue ref in the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreagent import paths
from coreagent.dispatch import attached, bring, environment, hook, leftover
from coreagent.dispatch.workspace import Layout, layout
from coreagent.errors import CoreAgentError, displaced
from coreagent.models.agent import Reason
from coreagent.models.dispatch import RESTING, Attempt, Dispatch, Fate, Stage, State
from coreagent.plainfile import led_away, write_plain

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)


def write_status(place: Layout, dispatch: Dispatch, attempt: Attempt) -> None:
    """Write `.meta/status.json`, a copy of the row for people who look into the directory."""
    body = {
        "dispatch": dispatch.model_dump(mode="json", exclude={"options"}),
        "attempt": attempt.model_dump(mode="json"),
    }
    write_plain(place.meta / "status.json", json.dumps(body, indent=2).encode())


def keep_until(engine: Engine, dispatch: Dispatch) -> datetime:
    """Until when an undecided workspace stays."""
    return dispatch.changed_at + timedelta(days=engine.core.settings.dispatch.keep_days)


def why_kept(engine: Engine, dispatch: Dispatch, now: datetime) -> str:
    """Return why a workspace may not go now, "" when it may."""
    if dispatch.state not in RESTING:
        return f"it is {dispatch.state}"
    if (hold := attached.holder(engine, dispatch.id)) is not None:
        return f"somebody is attached to it ({hold.words()})"
    if dispatch.fate is not Fate.OPEN:
        return ""
    if dispatch.harvest.status == "rejected":
        way = "bring it over with `rescue apply`" if dispatch.harvest.rescue_ref else "`why` tells where it is"
        return f"its harvest was rejected; {way}, or `reject` it"
    if now < keep_until(engine, dispatch):
        if dispatch.state is State.COMPLETED and dispatch.reason is not Reason.NO_CHANGES:
            return "nobody accepted or rejected it yet"
        return f"kept until {keep_until(engine, dispatch):%Y-%m-%d}"
    return ""


async def let_go(engine: Engine, dispatch: Dispatch) -> Dispatch:
    """Archive and delete one workspace, `engine.deciding` about it. Safe to run twice, and after a crash in between.

    The row is marked last: a crash before leaves a row whose directory is gone or half gone, and recovery comes here
    again.
    """
    core = engine.core
    place = layout(core.home, core.settings, dispatch)
    archive = Path(paths.archive_dir(core.home, dispatch.id))
    tip = await preserve(engine, dispatch)
    found = tip or bring.Tip([])
    if tip is not None and dispatch.fate is not Fate.OPEN:
        await asyncio.to_thread(bring.drop_branch, dispatch)
    # The work is safe by now, and where the checkout is all that is left of it, it is out of the hook's reach.
    note = await hook.run_teardown(engine, dispatch, place, archive, checkout=tip is not None)
    core.crash_point("before-archive")
    await asyncio.to_thread(archive_meta, place, archive)
    core.crash_point("archived")
    try:
        await asyncio.to_thread(remove_tree, place.root)
    except OSError as error:
        raise CoreAgentError(
            "workspace_busy",
            f"{dispatch.workspace} cannot be deleted: {error.strerror or error}",
            cause=f"{error.filename or place.root} (its work is kept)",
            hint="is it made immutable (lsattr, chattr -R -i), or another user's? "
            f"then core-agent workspace clean {dispatch.name}",
            data={"workspace": dispatch.workspace, "path": str(error.filename or place.root)},
        ) from error
    await asyncio.to_thread(_forget, core.home, dispatch.id)
    core.crash_point("workspace-removed")
    return await engine.update(dispatch, extra=found.rows, workspace_gone=True, teardown_note=note)


async def preserve(engine: Engine, dispatch: Dispatch) -> bring.Tip | None:
    """Keep all that a workspace which is about to be removed holds and nobody has; None as `bring.keep_tip` has it.

    Raises: home_unsafe when something else stands in its place, and what the keeping of tips and files raises; then the
    workspace must stay.
    """
    core = engine.core
    place = layout(core.home, core.settings, dispatch)
    archive = Path(paths.archive_dir(core.home, dispatch.id))
    if laid := place.led_away() or led_away(archive, core.home):
        raise displaced(laid)
    tip = await bring.keep_tip(engine, dispatch)
    if tip is None:
        await asyncio.to_thread(_keep_whole, place, archive)
    most = engine.settings_of(dispatch).settings.harvest.max_kept_bytes
    found = tip or bring.Tip([])
    await asyncio.to_thread(leftover.keep, place, archive, found.left, found.replaced, most, dispatch)
    return tip


def _forget(home: str, dispatch_id: str) -> None:
    environment.forget(home, dispatch_id)
    index = Path(paths.index_copy(home, dispatch_id))
    for path in index.parent.glob(index.name + "*"):
        path.unlink(missing_ok=True)


def _keep_whole(place: Layout, archive: Path) -> None:
    """Move a checkout into the archive as it is: no commit of it can be made. The branch that it has stays as well."""
    if not place.repo.is_symlink() and place.repo.is_dir():
        archive.mkdir(mode=0o700, parents=True, exist_ok=True)
        move(place.repo, archive / leftover.WHOLE)


def archive_meta(place: Layout, archive: Path) -> None:
    """Move prompt, logs and reports out of a workspace that is about to go."""
    if not place.meta.is_dir() or place.meta.is_symlink():
        return
    archive.mkdir(mode=0o700, parents=True, exist_ok=True)
    for entry in place.meta.iterdir():
        if entry.name in ("prepared.json", hook.TEARDOWN_LOG, hook.TEARDOWN_DONE):
            continue  # the hook's are in the archive already, and what an agent called so is none of them
        if entry.name in leftover.RESERVED:
            continue  # what an agent called so would take the place of what is kept
        target = archive / entry.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        move(entry, target)


def move(source: Path, target: Path) -> None:
    """Move a file or a directory, also to another file system: `workspace_root` may be on one."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A copy would write through a link that lies in its place; a rename would not.
        target.unlink(missing_ok=True)
        shutil.move(source, target)


def set_orphan_aside(home: str, directory: Path, group: str) -> Path:
    """Move what no row knows into the archive. Returns where it is. Blocking."""
    target = Path(home, "archive", "orphans", f"{group}-{directory.name}")
    n = 1
    while target.exists():
        n += 1
        target = target.with_name(f"{group}-{directory.name}.{n}")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    move(directory, target)
    log.warning("nothing refers to %s; it was moved to %s", directory, target)
    return target


def remove_tree(root: Path) -> None:
    """Delete a directory that an agent could write to: read-only directories are made writable, links not followed."""
    if root.is_symlink() or not root.exists():
        root.unlink(missing_ok=True)
        return

    def make_writable(function: Any, path: str, _error: Any) -> None:
        parent = os.path.dirname(path)
        for directory in (parent, path):
            if os.path.isdir(directory) and not os.path.islink(directory):
                os.chmod(directory, 0o700)
        function(path)

    # Renamed first, so that a half-deleted tree never looks like a workspace.
    going = root.with_name(f".going-{root.name}-{os.getpid()}")
    os.replace(root, going)
    try:
        shutil.rmtree(going, onerror=make_writable)
    except OSError:
        with contextlib.suppress(OSError):
            os.replace(going, root)  # what cannot be deleted is looked for again where it was
        raise


def set_aside(cache: Path) -> Path | None:
    """Take a repository's cache out of its place in one step; where it is now, None when there was none.

    Whoever needs it from now on makes a new one; what was set aside can be removed at leisure.

    Raises: home_unsafe.
    """
    if laid := led_away(cache, cache.parents[1]):
        raise displaced(laid)
    going = cache.with_name(f".going-{cache.name}-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        os.replace(cache, going)
    except FileNotFoundError:
        return None
    Path(f"{cache}.lock").unlink(missing_ok=True)
    return going


async def clean_expired(engine: Engine) -> list[str]:
    """Let every workspace go that may go. Returns their names."""
    gone = []
    now = engine.core.now()
    for left in Path(engine.core.home, "repos").glob("*/.going-*"):  # by a daemon that died in between
        await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
    for known in list(engine.board.values()):
        if why_kept(engine, known, now):
            continue
        try:
            if await let_go_if(engine, known.id) == "":
                gone.append(known.workspace)
        except (CoreAgentError, OSError):
            log.exception("%s could not be let go; it stays", known.workspace)
    return gone


async def let_go_if(engine: Engine, dispatch_id: str) -> str:
    """Let a workspace go if it still may; returns why it stays."""
    async with engine.deciding(dispatch_id):
        dispatch = engine.board.get(dispatch_id)
        if dispatch is None:
            return ""
        why = why_kept(engine, dispatch, engine.core.now())
        if why and (merged := await merged_at(engine, dispatch)):
            dispatch = await engine.update(
                dispatch, fate=Fate.ACCEPTED, stage=Stage.ACCEPTED, accepted_sha=merged, previous_sha=""
            )
            why = ""
        if not why:
            await let_go(engine, dispatch)
        return why


async def merged_at(engine: Engine, dispatch: Dispatch) -> str:
    """The tip of the branch it was meant for, when a person merged an undecided work into that by hand; else ""."""
    done = dispatch.state is State.COMPLETED and dispatch.harvest.status == "complete"
    if not done or dispatch.fate is not Fate.OPEN or not dispatch.base_ref:
        return ""
    if attached.holder(engine, dispatch.id) is not None:
        return ""
    return await asyncio.to_thread(bring.holding, dispatch, dispatch.base_ref)
