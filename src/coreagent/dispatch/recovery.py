"""What happened while nobody looked: run once before the engine claims (docs/recovery.md).

Per attempt the files decide, in this order: a living shim is adopted; `exit` is settled; `started` without a living
shim means the agent died; nothing at all means that the agent never ran, and the dispatch goes back to the queue.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from coreagent import attempts, paths, runners
from coreagent.dispatch import attached, cleanup, ending, environment, launch, trial, warm
from coreagent.dispatch import attempt as attempts_of_work
from coreagent.dispatch.live import LiveAttempt
from coreagent.dispatch.workspace import Layout, layout, root_of
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import ACTIVE, Attempt, Dispatch, Fate, State
from coreagent.plural import plural

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

SHOWN = 5
"""So many names are told of what was moved."""


async def reconcile(engine: Engine) -> None:
    """Tidy what nothing refers to; then adopt, settle or requeue every attempt that was under way.

    In this order: as soon as an attempt is followed again it may settle and put its own spool away.
    """
    strangers = await engine.strangers.look()
    if engine.core.store.ephemeral:
        return  # it knows of nothing, so that everything there would look like nobody's
    await asyncio.to_thread(_finish_putting_away, engine, strangers)
    await asyncio.to_thread(trial.clear, Path(engine.core.home, "trials"))
    wanted = {d.id for d in engine.board.values() if d.state in ACTIVE or d.state is State.QUEUED}
    await asyncio.to_thread(environment.forget_others, engine.core.home, wanted)
    await _finish_letting_go(engine)
    await asyncio.to_thread(_set_orphans_aside, engine, set(strangers.values()))
    for dispatch in list(engine.board.values()):
        if dispatch.state in ACTIVE:
            try:
                await engine.recover_attempt(engine, dispatch)
            except Exception as error:
                if isinstance(error, CoreAgentError) and error.slug in attempts_of_work.PASSING:
                    raise
                # One row that makes no sense is no reason to forget the others.
                engine.watch_over(dispatch, _end(engine, dispatch, error))


async def _end(engine: Engine, dispatch: Dispatch, error: Exception) -> None:
    """Leave nothing running of an attempt that cannot be followed, then have it fail with that error."""
    attempt = engine.attempts.get(dispatch.id)
    if attempt is not None and attempt.id == dispatch.attempt_id:
        directory = paths.attempt_dir(engine.core.home, attempt.id)
        shim = attempts.adopt(directory, attempt.shim_pid, attempt.shim_start)
        if shim is not None:
            await shim.cancel("shutdown")
            await shim.wait()
    if dispatch.attempt_id:
        mine = attempt if attempt is not None and attempt.id == dispatch.attempt_id else None
        led = (mine.shim_pid, mine.shim_start, mine.claimed_at.timestamp()) if mine else ()
        await asyncio.to_thread(attempts.sweep, dispatch.attempt_id, *led)
    raise error


async def recover(engine: Engine, dispatch: Dispatch) -> None:
    """Adopt, settle or requeue one attempt that was under way."""
    attempt = engine.attempts.get(dispatch.id)
    if attempt is None or attempt.id != dispatch.attempt_id:
        raise CoreAgentError("internal", "what is known of its attempt was lost; nobody can tell whether it ran")
    runner = runners.load(dispatch.runner)
    directory = Path(paths.attempt_dir(engine.core.home, attempt.id))
    if attempt.started_at is None:
        if not directory.is_dir() or await asyncio.to_thread(attempts.void, directory):
            await requeue(engine, dispatch, attempt, directory)
            return
        started = attempts.read_started(directory) or attempts.Started()
        if started.void:
            await requeue(engine, dispatch, attempt, directory)
            return
        dispatch, attempt = await attempts_of_work.mark_started(
            engine, dispatch, attempt, started.shim_pid, started.shim_start
        )
    # The store knows that it ran: whatever became of its files (an agent can delete them), it is never run again.
    shim = attempts.adopt(directory, attempt.shim_pid, attempt.shim_start) or attempts.Shim(
        str(directory), attempt.shim_pid, attempt.shim_start, child=False
    )
    parser = runner.parser(*ending.session_totals(dispatch, attempt))
    live = LiveAttempt(engine, dispatch.workspace, attempt, directory, parser)
    live.limits = launch.limits_of(engine.core, dispatch)
    engine.live[dispatch.id] = live
    engine.watch_over(dispatch, attempts_of_work.follow(engine, dispatch, attempt, live, shim))


async def requeue(engine: Engine, dispatch: Dispatch, attempt: Attempt, directory: Path) -> None:
    """The claim came to no exec: it may be run again, as a new attempt."""
    await asyncio.to_thread(attempts.sweep, attempt.id)  # a setup hook may have outlived its daemon
    ended = attempt.model_copy(update={"ended_at": engine.core.now()})
    await engine.update(dispatch, attempt=ended, state=State.QUEUED, waiting_for="restart")
    engine.pools.never_started(attempt.pool, attempt.id)
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    Path(paths.attempt_socket(engine.core.home, attempt.id)).unlink(missing_ok=True)


def _finish_putting_away(engine: Engine, strangers: Collection[str]) -> None:
    """Spools whose attempt was settled by a daemon that died right after."""
    core = engine.core
    by_attempt = {a.id: a for a in engine.attempts.values()}
    root = Path(core.home, "attempts")
    for directory in sorted(root.iterdir()) if root.is_dir() else []:
        attempt = by_attempt.get(directory.name)
        try:
            if directory.name in strangers:
                continue
            if attempt is None:
                attempts.sweep(directory.name)
                cleanup.set_orphan_aside(core.home, directory, "attempts")
            elif attempt.ended_at is not None:
                dispatch = engine.board[attempt.dispatch_id]
                place = layout(core.home, core.settings, dispatch)
                attempts_of_work.put_away(core.home, place, dispatch, attempt, directory)
        except OSError:
            log.exception("what attempt %s left could not be put away; it stays", directory.name)


async def _finish_letting_go(engine: Engine) -> None:
    for dispatch in list(engine.board.values()):
        attached_to = attached.holder(engine, dispatch.id)
        if dispatch.fate is not Fate.OPEN and dispatch.state not in ACTIVE and attached_to is None:
            try:
                await cleanup.let_go(engine, dispatch)
            except Exception:
                log.exception("%s could not be let go; it stays", dispatch.workspace)


def _set_orphans_aside(engine: Engine, strangers: Collection[str]) -> None:
    """Workspaces that no row knows (a store restored from an older copy): kept in the archive, out of the way.

    Only what has the marks of a workspace: `workspace_root` may be a directory that a person has other things in.
    """
    core = engine.core
    roots = {of: root_of(core.home, core.settings, of) for of in {"", *(d.root for d in engine.board.values())}}
    known = {(roots[d.root], d.org, d.repo, d.name) for d in engine.board.values()}
    moved = []
    for root, org in ((place, org) for place in set(roots.values()) for org in _directories(place)):
        for repo in _directories(org) if org.name != warm.DIRECTORY else ():
            # A clone of the person's there, as the contract has them, is no workspaces' parent gone astray.
            for place in () if (repo / ".git").exists() else _directories(repo):
                names = (org.name, repo.name, place.name)
                if (root, *names) in known or "/".join(names) in strangers:
                    continue
                if place.name.startswith(".going-"):
                    shutil.rmtree(place, ignore_errors=True)
                    continue
                if not Layout(place).meta.is_dir():
                    continue
                try:
                    moved.append(cleanup.set_orphan_aside(core.home, place, f"{org.name}-{repo.name}"))
                except OSError:
                    log.exception("nothing refers to %s, and it could not be moved; it stays", place)
    if moved:
        more = f" and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
        engine.troubles["orphans"] = (
            f"the store knows nothing of {plural(len(moved), 'workspace')}; moved to {moved[0].parent}: "
            f"{', '.join(path.name for path in moved[:SHOWN])}{more}"
        )


def _directories(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []  # not there, or nothing that we may look into
