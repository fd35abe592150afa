"""One attempt, from its claim to its settled end. The only place that starts an agent.

claimed -> workspace prepared -> spec written -> shim spawned -> `started` -> agent ran -> `exit` -> brought home ->
settled in one transaction -> spool moved into the workspace. A restart enters at the first step that left no trace
(dispatch.recovery); `started` is the line that no attempt crosses twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreagent import attempts, events, paths, runners
from coreagent.dispatch import agentnote, bring, cleanup, ending, fallback, launch, prep
from coreagent.dispatch.live import LiveAttempt
from coreagent.dispatch.pools import Ending
from coreagent.dispatch.verdict import Evidence, Verdict, judge
from coreagent.dispatch.workspace import Layout, layout
from coreagent.errors import CoreAgentError, told
from coreagent.models.agent import Outcome, Reason
from coreagent.models.dispatch import ACTIVE, Attempt, Dispatch, State
from coreagent.plainfile import led_away, make_real

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

UNBORN_MOST = 3
"""Claims in a row that may come to no exec because their shim was killed."""
PASSING = ("no_space", "store_write_failed")
"""Errors that say nothing about the attempt, and go away."""
RETRY_MIN_S = 1.0
RETRY_MAX_S = 30.0


async def guarded(engine: Engine, claimed: Dispatch, work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; whatever goes wrong in it, the dispatch ends with a state and a reason, and its work stays.

    An attempt puts its things away after its end was told, when the next one of the same dispatch may live already:
    only what is still this attempt's own is touched.
    """
    try:
        await work
    except asyncio.CancelledError:
        raise  # the daemon leaves; the agent goes on under its shim
    except Exception as error:
        log.exception("attempt of %s failed", claimed.workspace)
        message = error.message if isinstance(error, CoreAgentError) else told(error)
        unknown = isinstance(error, CoreAgentError) and error.slug == "unknown_agent"
        await _give_up(engine, claimed, message[:400], Reason.CONFIGURATION if unknown else Reason.ERROR)
    finally:
        if _own(engine, claimed) is not None:
            del engine.live[claimed.id]
        engine.poke()


def _own(engine: Engine, claimed: Dispatch) -> LiveAttempt | None:
    live = engine.live.get(claimed.id)
    return live if live is not None and live.attempt.id == claimed.attempt_id else None


async def _give_up(engine: Engine, claimed: Dispatch, message: str, reason: Reason) -> None:
    """End an attempt that we cannot follow any more; its agent must be gone before its slot is free."""
    live = _own(engine, claimed)
    if live is not None and live.shim is not None:
        try:
            await live.shim.cancel("shutdown")
            await live.shim.wait()
        except Exception:
            log.exception("the shim of %s could not be stopped", claimed.workspace)
            await asyncio.to_thread(attempts.sweep, claimed.attempt_id)

    async def write() -> None:
        dispatch = engine.board.get(claimed.id)
        if dispatch is None or dispatch.state not in ACTIVE or dispatch.attempt_id != claimed.attempt_id:
            return
        now = engine.core.now()
        brought = await bring.bring_home(engine, dispatch) if dispatch.state is State.RUNNING else None
        changes: dict[str, Any] = {}
        if brought is not None:
            changes = {"harvest": brought.harvest, "branch_sha": brought.branch_sha}
            changes["stage"] = bring.stage_of(brought.harvest)
        attempt = engine.attempts.get(claimed.id)
        ended = attempt
        if attempt is not None and attempt.id == claimed.attempt_id:
            ended = attempt.model_copy(update={"ended_at": now, "reason": reason})
        extra = bring.rescue_rows(dispatch, brought, reason, now) if brought is not None else []
        await engine.update(
            dispatch,
            attempt=ended,
            extra=extra,
            state=State.FAILED,
            reason=reason,
            detail=message,
            ended_at=now,
            **changes,
        )

    await surely(engine, claimed, write)
    await engine.forget_environment(claimed.id)


async def run(engine: Engine, dispatch: Dispatch, attempt: Attempt) -> None:
    """Prepare, execute and settle a claimed attempt."""
    core = engine.core
    directory = Path(paths.attempt_dir(core.home, attempt.id))
    runner = runners.load(dispatch.runner)
    parser = runner.parser(*ending.session_totals(dispatch, attempt))
    live = LiveAttempt(engine, dispatch.workspace, attempt, directory, parser)
    engine.live[dispatch.id] = live
    live.stop_requested = engine.stop_wishes.pop(dispatch.id, "")
    if live.stop_requested:
        live.stopping.set()
    try:
        await engine.apply_settings(dispatch)
        dispatch = await prep.prepare(engine, dispatch, attempt)
        core.crash_point("prepared")
        live.limits = launch.limits_of(core, dispatch)
        attempt = await asyncio.to_thread(launch.ready, engine, dispatch, attempt, directory)
    except CoreAgentError as error:
        reason = Reason.SETUP_FAILED if error.slug == "setup_failed" else Reason.PREP_FAILED
        verdict = Verdict(State.FAILED, reason, _one_line(error))
        await _never_started(engine, dispatch, attempt, live, _stopped(live) or verdict, error)
        return
    async with engine.pools.gate.turn(engine, attempt, live.stopping):
        if stopped := _stopped(live):
            await _never_started(engine, dispatch, attempt, live, stopped)
            return
        shim = live.shim = engine.nursery.spawn(directory)  # from here on a stop goes to the shim
        core.crash_point("spawned")
        born = await shim.started() is not None
        if born:
            engine.pools.gate.executed(attempt.pool, core.now())
    if not born:
        await _unborn(engine, dispatch, attempt, live, shim)
        return
    claimed = attempt

    async def mark() -> None:
        nonlocal dispatch, attempt
        dispatch, attempt = await mark_started(engine, dispatch, claimed, shim.pid, shim.start)

    await surely(engine, dispatch, mark)
    live.attempt = attempt
    core.crash_point("running")
    await follow(engine, dispatch, attempt, live, shim)


def _stopped(live: LiveAttempt) -> Verdict | None:
    """The verdict on an attempt that a person stopped before its agent was executed."""
    if not live.stop_requested:
        return None
    return judge(Evidence(outcome=Outcome(), stopped_by=live.stop_requested))


async def mark_started(
    engine: Engine, dispatch: Dispatch, attempt: Attempt, shim_pid: int, shim_start: int
) -> tuple[Dispatch, Attempt]:
    """Record that the agent was executed: one more run."""
    now = engine.core.now()
    attempt = attempt.model_copy(update={"started_at": now, "shim_pid": shim_pid, "shim_start": shim_start})
    repo = f"{dispatch.org}/{dispatch.repo}"
    dispatch = await engine.update(
        dispatch,
        events.AgentStarted(agent=dispatch.agent, repo=repo, workspace=dispatch.workspace),
        attempt=attempt,
        state=State.RUNNING,
        started_at=dispatch.started_at or now,
        runs=dispatch.runs + 1,
        session_id=attempt.resume_session or attempt.session_id,
        next_prompt="",
        next_kind="resume",
    )
    return dispatch, attempt


async def _unborn(engine: Engine, dispatch: Dispatch, attempt: Attempt, live: LiveAttempt, shim: attempts.Shim) -> None:
    """The shim ended before it executed anything: the attempt may be repeated, but not for ever."""
    said = (await shim.wait()).spawn_error
    if stopped := _stopped(live):
        verdict = stopped
    elif attempt.n - dispatch.runs >= UNBORN_MOST:
        verdict = Verdict(State.FAILED, Reason.SPAWN_FAILED, said)
    else:
        log.warning("the shim of %s ended before its agent was executed: %s", dispatch.workspace, said)
        verdict = Verdict(State.QUEUED, None, said)
    await _never_started(engine, dispatch, attempt, live, verdict)


async def follow(engine: Engine, dispatch: Dispatch, attempt: Attempt, live: LiveAttempt, shim: attempts.Shim) -> None:
    """Read along until the attempt has ended, which may be at once, then settle it."""
    ended = await live.follow(shim)
    engine.core.crash_point("exited")
    if ended.died and not ended.executed:
        # `started` was seen, so it ran; its files are gone since (an agent of the same user can delete them).
        ended = dataclasses.replace(ended, executed=True, spawn_error="")
        await asyncio.to_thread(attempts.sweep, attempt.id, shim.pid, shim.start, ended.at)
    outcome = live.parser.end(ended.code, ended.signal, live.stderr_tail())
    await surely(engine, dispatch, lambda: settle(engine, dispatch, attempt, live, ended, outcome))


async def surely(engine: Engine, dispatch: Dispatch, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a step that may be run twice, again and again while the disk is full: what happened must not get lost."""
    delay = RETRY_MIN_S
    while True:
        try:
            await step()
            engine.troubles.pop(dispatch.id, None)
            return
        except CoreAgentError as error:
            if error.slug not in PASSING:
                raise
            engine.troubles[dispatch.id] = f"the state of {dispatch.workspace} cannot be written yet: {error.message}"
            log.warning("%s (%s)", engine.troubles[dispatch.id], error.cause)
            if engine.stopping:
                raise asyncio.CancelledError from error  # the next daemon takes it up from what lies on disk
        await asyncio.sleep(delay)
        delay = min(delay * 2, RETRY_MAX_S)


async def settle(
    engine: Engine,
    dispatch: Dispatch,
    attempt: Attempt,
    live: LiveAttempt,
    ended: attempts.ShimExit,
    outcome: Outcome,
) -> None:
    """Bring the work home, judge the evidence, and end the attempt in one transaction. Safe to run twice."""
    core = engine.core
    place = layout(core.home, core.settings, dispatch)
    question = await asyncio.to_thread(agentnote.read, place.repo, "BLOCKED.md")
    brought = await bring.bring_home(engine, dispatch)
    core.crash_point("brought-home")
    dispatch, attempt = await conclude(engine, dispatch, attempt, live, ended, outcome, brought, question)
    core.crash_point("settled")
    try:
        await asyncio.to_thread(put_away, core.home, place, dispatch, attempt, live.directory)
    except OSError:
        # Its end is written, which is what counts; the next daemon tries again.
        log.exception("what attempt %s left could not be put away", attempt.id)
    await engine.forget_environment(dispatch.id)
    core.crash_point("put-away")


async def conclude(
    engine: Engine,
    dispatch: Dispatch,
    attempt: Attempt,
    live: LiveAttempt,
    ended: attempts.ShimExit,
    outcome: Outcome,
    brought: bring.Home,
    question: str,
) -> tuple[Dispatch, Attempt]:
    """Judge the evidence, and write what follows of it for the dispatch and for its pool in one transaction."""
    core = engine.core
    ended_at = datetime.fromtimestamp(ended.at, UTC)
    by_wish = ended.stopped_by in ("pause", "attach", "shutdown") and live.stop_requested == "cancel"
    stopped_by = "cancel" if by_wish else ended.stopped_by
    verdict = judge(
        Evidence(
            outcome=outcome,
            stopped_by=stopped_by,
            spawn_error=ended.spawn_error,
            died=ended.died,
            changed=brought.changed,
            question=question,
            forced=ended.forced,
        )
    )
    attempt = attempt.model_copy(
        update={
            "ended_at": ended_at,
            "started_at": attempt.started_at if ended.executed else None,
            "exit_code": ended.code,
            "exit_signal": ended.signal,
            "stopped_by": stopped_by,
            "reason": verdict.reason,
            "outcome": outcome.model_copy(update={"last_text": outcome.last_text[-2000:]}),
            "harvest": brought.harvest,
        }
    )
    # Failures that end at the same moment are counted one after the other: several of them are an outage.
    alone = contextlib.nullcontext() if verdict.state in (State.COMPLETED, State.BLOCKED) else engine.pools.counting
    async with alone:
        now = core.now()
        dispatch = engine.places.placed(dispatch)  # what a provider said of it holds where it would go on
        ended_so = Ending(
            verdict.state,
            verdict.reason,
            verdict.detail,
            outcome,
            attempt.claimed_at,
            ended.usage.max_rss_bytes,
            goes_on=fallback.after_ending(engine, dispatch, verdict, {}, now) is not None,
        )
        controls = engine.pools.ended(dispatch, ended_so, now, core.settings.dispatch.breaker)
        # The last report of its stream may have come with its end.
        others = max(0, engine.running()[attempt.pool] - 1)
        controls |= engine.pools.reported(attempt.pool, outcome.windows, now, others)
        changes = ending.changes(engine, dispatch, attempt, verdict, question, controls)
        changes["harvest"] = brought.harvest
        changes["branch_sha"] = brought.branch_sha
        if not ended.executed:
            # What it was to say was never said.
            changes |= {"runs": dispatch.runs - 1, "next_prompt": attempt.prompt, "next_kind": attempt.kind}
        changes["stage"] = bring.stage_of(brought.harvest)
        extra = bring.rescue_rows(dispatch, brought, verdict.reason, ended_at)
        told = ending.messages(dispatch, changes, brought.harvest, now)
        dispatch = await engine.update(dispatch, *told, attempt=attempt, extra=extra, controls=controls, **changes)
    if not ended.executed:
        engine.pools.never_started(attempt.pool, attempt.id)
    return dispatch, attempt


async def _never_started(
    engine: Engine,
    dispatch: Dispatch,
    attempt: Attempt,
    live: LiveAttempt,
    verdict: Verdict,
    error: CoreAgentError | None = None,
) -> None:
    """End an attempt whose agent was not executed; `error` is what kept it from that."""
    now = engine.core.now()
    ended = attempt.model_copy(update={"ended_at": now, "reason": verdict.reason})

    async def write() -> None:
        known = engine.board[dispatch.id]
        changes: dict[str, Any] = {
            "state": verdict.state,
            "reason": verdict.reason,
            "detail": verdict.detail,
            "ended_at": None if verdict.state is State.QUEUED else now,
        }
        if error is not None and verdict.state is State.FAILED:
            changes |= fallback.unusable(engine, known, error, now) or {}
        unusable = error is not None and error.slug in fallback.UNUSABLE
        ended_so = Ending(verdict.state, verdict.reason, verdict.detail, Outcome(), attempt.claimed_at, 0, unusable)
        async with engine.pools.counting:
            controls = engine.pools.ended(known, ended_so, now, engine.core.settings.dispatch.breaker)
            await engine.update(known, attempt=ended, controls=controls, **changes)

    await surely(engine, dispatch, write)
    engine.pools.never_started(attempt.pool, attempt.id)
    await asyncio.to_thread(_remove_spool, engine.core.home, live.directory)
    Path(paths.attempt_socket(engine.core.home, attempt.id)).unlink(missing_ok=True)
    await engine.forget_environment(dispatch.id)


def put_away(home: str, place: Layout, dispatch: Dispatch, attempt: Attempt, directory: Path) -> None:
    """Move an ended attempt's spool into its workspace; secrets go, output stays. Safe to run twice.

    Into the archive when there is no workspace any more, or something else stands where it was.
    """
    if _is_spool(home, directory):
        (directory / "spec.json").unlink(missing_ok=True)
        (directory / "stdin").unlink(missing_ok=True)
        shelf = _shelf(home, place, dispatch, attempt.n)
        if shelf is not None:
            for name in ("out", "err", "records", "started", "exit"):
                source = directory / name
                if source.exists():
                    cleanup.move(source, shelf / name)
            if place.meta.is_dir() and not place.led_away():
                cleanup.write_status(place, dispatch, attempt)
            _remove_spool(home, directory)
    Path(paths.attempt_socket(home, attempt.id)).unlink(missing_ok=True)


def _shelf(home: str, place: Layout, dispatch: Dispatch, n: int) -> Path | None:
    """Where the output of an attempt is put, made; None where that leads into somebody's files, and the spool stays."""
    if place.root.is_dir() and not place.led_away():
        make_real(place.attempt(n), place.root)
        return place.attempt(n)
    archived = Path(paths.archive_dir(home, dispatch.id), "attempts", str(n))
    if led_away(archived, home):
        return None
    archived.mkdir(mode=0o700, parents=True, exist_ok=True)
    return archived


def _is_spool(home: str, directory: Path) -> bool:
    """Whether there is a spool; a link that was laid in its very place is taken away."""
    laid = led_away(directory, home)
    if laid == str(directory):
        directory.unlink(missing_ok=True)
    return not laid and directory.is_dir()


def _remove_spool(home: str, directory: Path) -> None:
    if not _is_spool(home, directory):
        return
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            cleanup.remove_tree(entry)  # an agent's: ours are files
        else:
            entry.unlink(missing_ok=True)
    directory.rmdir()


def _one_line(error: CoreAgentError) -> str:
    # What only a person can give, or make smaller, a person must be told how to.
    hint = f"; {error.hint}" if error.slug in ("consent_needed", "too_large") else ""
    return error.message + (f" ({error.cause})" if error.cause else "") + hint
