"""Dispatches as people and programs see them: derived on every look from the board and the live attempts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from coreagent.dispatch import after, attached, claim, launch, limits, prep
from coreagent.dispatch.limits import Obstacle, Starts
from coreagent.dispatch.workspace import layout
from coreagent.models.agent import Reason
from coreagent.models.dispatch import ACTIVE, Dispatch, Fate, State
from coreagent.models.report import (
    Counts,
    ModelCap,
    PoolRow,
    QueueReport,
    QueueRow,
    StatusReport,
    WindowRow,
    WorkspaceRow,
)

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

TASK_SHOWN = 120
QUEUED_SHOWN = 200
"""How many of those that wait `status` shows."""
QUEUED_MOST = 1000
NAMED = 5
NOTICES = "notify:"
"""How the names of troubles begin that are about notices which do not arrive."""
ASK_NOBODY = ("command", "scripted")
"""Runners to which permissions mean nothing, so that no consent is asked for either."""


def needs_me(dispatch: Dispatch) -> bool:
    """True when nothing goes on without a person."""
    if dispatch.fate is not Fate.OPEN:
        return False
    if dispatch.state in (State.BLOCKED, State.FAILED, State.PAUSED) or dispatch.waiting_for == after.FAILED:
        return True
    return dispatch.state is State.COMPLETED and not (
        dispatch.reason is Reason.NO_CHANGES and dispatch.options.expect == "none"
    )


def bypasses(dispatch: Dispatch) -> bool:
    """Whether its agent runs without asking because its person agreed: programs and scripts know no permissions."""
    return dispatch.options.permissions == "bypass" and dispatch.runner not in ASK_NOBODY


def row(engine: Engine, dispatch: Dispatch, obstacle: Obstacle | None = None) -> WorkspaceRow:
    """One line of `status`; `obstacle` is what holds a waiting one up."""
    live = engine.live.get(dispatch.id)
    hold = attached.holder(engine, dispatch.id)
    outcome = live.outcome if live else None
    attempt = engine.attempts.get(dispatch.id)
    last = outcome or (attempt.outcome if attempt else None)
    active = dispatch.state in ACTIVE
    cost = dispatch.cost
    if active and outcome is not None:
        cost = launch.add_cost(cost, dispatch.usage, outcome.cost, outcome.usage)
    return WorkspaceRow(
        workspace=dispatch.workspace,
        dispatch_id=dispatch.id,
        state=dispatch.state,
        reason=dispatch.reason,
        stage=dispatch.stage,
        fate=dispatch.fate,
        waiting_until=obstacle.until if obstacle else dispatch.waiting_until,
        waiting_for=obstacle.word if obstacle else dispatch.waiting_for,
        detail=dispatch.detail or (obstacle.detail if obstacle else ""),
        question=dispatch.question,
        stuck=after.is_held(dispatch) and engine.after.stuck(dispatch),
        needs_me=needs_me(dispatch),
        attached_pid=hold.pid if hold else 0,
        attached_since=hold.since if hold else None,
        agent=dispatch.agent,
        pool=dispatch.pool,
        model=dispatch.model or (outcome.model if outcome else ""),
        bypass=bypasses(dispatch),
        branch=dispatch.branch,
        task=(dispatch.task.splitlines() or [""])[0][:TASK_SHOWN],
        priority=dispatch.priority,
        runs=dispatch.runs,
        pid=attempt.shim_pid if attempt and active else 0,
        elapsed_s=worked(engine, dispatch),
        since=dispatch.state_since or dispatch.changed_at,
        last_tool=last.last_tool if last else "",
        last_text=(last.last_text if last else "")[:400],
        tokens=dispatch.usage.total + (outcome.usage.total if outcome and active else 0),
        cost=cost,
        files=dispatch.harvest.files,
        insertions=dispatch.harvest.insertions,
        deletions=dispatch.harvest.deletions,
        denied_tools=dispatch.denied_tools,
        harvest_reason=dispatch.harvest.reason,
        rescue_ref=dispatch.harvest.rescue_ref,
        not_carried=prep.not_carried(dispatch),
        created_at=dispatch.created_at,
        changed_at=dispatch.changed_at,
    )


def worked(engine: Engine, dispatch: Dispatch) -> float | None:
    """How long the agents of a dispatch have worked so far; None when none was executed."""
    attempt = engine.attempts.get(dispatch.id)
    now = attempt.worked_s(engine.core.now()) if attempt is not None and attempt.ended_at is None else 0.0
    return dispatch.worked_s + now if dispatch.runs else None


def report(engine: Engine, everything: bool = False, only: Dispatch | None = None) -> StatusReport:
    """The whole of `status`: what runs, what waits and why, what needs a person; oldest first.

    Of what waits, the soonest: a queue may be long, and the counts tell how long.
    """
    facts, board = engine.facts(), engine.board
    counted = {state.value: count for state, count in board.counts.items()}
    if only is not None:
        shown = [only]
    else:
        soonest = itertools.islice(board.queued, QUEUED_MOST if everything else QUEUED_SHOWN)
        shown = [*board.active.values(), *soonest, *(d for d in board.resting.values() if everything or needs_me(d))]
    shown.sort(key=lambda d: (d.created_at, d.id))
    rows = [row(engine, d, held_up(engine, d, facts)) for d in shown]
    said = [*warnings(engine), *_made_without(shown)]
    hidden = 0 if only is not None else len(board.queued) - sum(d.state is State.QUEUED for d in shown)
    return StatusReport(
        counts=Counts(**counted),
        workspaces=rows,
        queued_hidden=hidden,
        strangers=len(engine.strangers) if only is None else 0,
        pools=pools(engine),
        warnings=said,
    )


def held_up(engine: Engine, dispatch: Dispatch, facts: claim.Facts) -> Obstacle | None:
    """Why a queued dispatch does not start now; None when it is not queued or about to start."""
    return claim.obstacle(dispatch, engine.board.queued, facts) if dispatch.state is State.QUEUED else None


def pools(engine: Engine) -> list[PoolRow]:
    """What holds for each pool now, and what of its limits is used up."""
    facts, queue = engine.facts(), engine.board.queued
    settings = engine.core.settings
    names = {*queue.pools, *facts.running, *settings.concurrency, *settings.rates, *facts.parks}
    return [pool_row(engine, name, facts) for name in sorted(names)]


def pool_row(engine: Engine, name: str, facts: claim.Facts) -> PoolRow:
    """One pool; also one that nothing is known of yet."""
    settings = engine.core.settings
    limit, rate, park = settings.concurrency.get(name), settings.rates.get(name), facts.parks.get(name)
    starts = facts.starts.get(name, Starts())
    waiting = engine.board.queued.waiting(name)
    stopped = claim.of_pool(name, waiting, facts)
    resets = limits.next_reset(facts.now, rate) if rate else None
    return PoolRow(
        pool=name,
        running=facts.running.get(name, 0),
        limit=limit.total if limit else 0,
        queued=waiting,
        frozen=facts.frozen or name in facts.frozen_pools,
        parked_until=park.until if park and park.until > facts.now else None,
        parked_for=park.why if park and park.until > facts.now else "",
        models=[
            ModelCap(model=model, running=facts.models.get((name, model), 0), limit=most)
            for model, most in (sorted(limit.models.items()) if limit else [])
        ],
        today=starts.of_day(facts.now, rate.reset_utc if rate else "00:00"),
        daily_limit=rate.daily_limit if rate else 0,
        resets_at=resets,
        next_start=stopped.until if stopped else None,
        held_by=stopped.word if stopped else "",
        windows=[
            WindowRow(kind=w.kind, used=w.used, resets_at=w.resets_at)
            for w in facts.windows.get(name, [])
            if w.resets_at > facts.now
        ],
    )


def _made_without(shown: list[Dispatch]) -> list[str]:
    """Which open workspaces lack what their repository wanted for them; to trust it now does not change them."""
    lacking: dict[str, list[str]] = {}
    for dispatch in shown:
        if dispatch.settings_note and dispatch.fate is Fate.OPEN and not dispatch.workspace_gone:
            lacking.setdefault(dispatch.settings_note, []).append(dispatch.name)
    said = []
    for note, names in lacking.items():
        what, _, why = note.partition(": ")
        who = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        if what.startswith("without "):
            was = "was" if len(names) == 1 else "were"
            why = why.partition(";")[0].replace(" are not trusted", " were not trusted then")
            said.append(f"{who} {was} prepared {what}: {why}")
        else:
            said.append(f"{who}: {note}")
    return said


def warnings(engine: Engine, *, notices: bool = True) -> list[str]:
    """What a person must know wherever they look; with `notices`, also which of them do not arrive."""
    core, said = engine.core, []
    if core.store.ephemeral:
        said.append(f"state is in memory only and ends with the daemon: {core.store.why}")
    said += core.problems
    said += [told for key, told in engine.troubles.items() if notices or not key.startswith(NOTICES)]
    if "frozen" in engine.controls:
        said.append("the queue is frozen; `core-agent queue start` lets it go on")
    if engine.draining:
        said.append("the daemon is draining: nothing new starts")
    return said


def queue_report(engine: Engine, limit: int = QUEUED_MOST) -> QueueReport:
    """What waits, soonest first; at most `limit` of it, since a queue may be long."""
    facts = engine.facts()
    queue = engine.board.queued
    shown = list(itertools.islice(queue, limit))
    held = [claim.obstacle(d, queue, facts) for d in shown]
    return QueueReport(
        frozen=facts.frozen,
        frozen_pools=sorted(facts.frozen_pools),
        total=len(queue),
        rows=[
            QueueRow(
                position=position,
                workspace=d.workspace,
                agent=d.agent,
                pool=d.pool,
                priority=d.priority,
                waiting_for=obstacle.word if obstacle else d.waiting_for,
                waiting_until=obstacle.until if obstacle else d.waiting_until,
                queued_at=d.queued_at,
            )
            for position, (d, obstacle) in enumerate(zip(shown, held, strict=True), 1)
        ],
    )


def workspace_path(engine: Engine, dispatch: Dispatch) -> str:
    return str(layout(engine.core.home, engine.core.settings, dispatch).root)
