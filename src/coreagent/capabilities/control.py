"""Steer: pause, cancel, the queue's controls, and handing a session over to a person."""

from __future__ import annotations

import asyncio
import difflib
import uuid
from typing import Literal

from coreagent import runners
from coreagent.capabilities.parameter import Pool, Repository, Workspace
from coreagent.capabilities.status import find_open, why_queued
from coreagent.capability import Caller, capability
from coreagent.core import Core
from coreagent.dispatch import after as order
from coreagent.dispatch import attached, bring, claim, environment, intake, launch, leftover, ports, prep, rows
from coreagent.dispatch.engine import Engine
from coreagent.dispatch.queue import ASKED
from coreagent.dispatch.verdict import UNHEEDED
from coreagent.dispatch.workspace import Layout, layout
from coreagent.errors import CoreAgentError
from coreagent.models.agent import POISONED, Reason
from coreagent.models.dispatch import ACTIVE, Attempt, Dispatch, Fate, State
from coreagent.models.report import AttachReply, MoveReply, QueueReport
from coreagent.plural import plural
from coreagent.runners.base import Plan, lay_out

STOP_WAIT_S = 60.0


@capability("pause", cli="pause")
async def pause(core: Core, workspace: Workspace) -> MoveReply:
    """Stop a workspace between turns, or end the turn that runs; its work is kept and `resume` goes on."""
    return await _stop(core, workspace, "pause")


@capability("cancel", cli="cancel", destructive=True)
async def cancel(core: Core, workspace: Workspace) -> MoveReply:
    """Stop a workspace for good; its work is kept until it is rejected or its time is over."""
    return await _stop(core, workspace, "cancel")


async def _stop(core: Core, workspace: Workspace, why: Literal["pause", "cancel", "attach"]) -> MoveReply:
    engine = core.engine
    found = await find_open(core, workspace)
    ended = False
    while True:
        # A turn that ends by a rate limit goes back to the queue, and a claim may come first: neither outruns a stop.
        while found.state in ACTIVE:
            found, ended = await _end_turn(core, found, why), True
        async with engine.deciding(found.id):
            found = engine.board.get(found.id, found)
            if found.state in ACTIVE:
                continue
            if ended and found.state is not State.QUEUED:
                break
            return move_reply(*await _stop_resting(core, found, why))
    notes = [UNHEEDED] if found.detail.endswith(UNHEEDED) else []
    return move_reply(found, "; ".join(filter(None, [*notes, leftover.saved(found.harvest)])))


async def _stop_resting(core: Core, found: Dispatch, why: str) -> tuple[Dispatch, str]:
    """Stop what waits or rests; called with the decision about it in hand."""
    target = State.CANCELLED if why == "cancel" else State.PAUSED
    if why == "attach" and found.state is not State.QUEUED:
        return found, ""
    if found.state is target:
        return found, f"it was {found.state} already"
    if found.state in (State.COMPLETED, State.FAILED) or (target is State.PAUSED and found.state is not State.QUEUED):
        raise CoreAgentError(
            "not_running",
            f"{found.workspace} is {found.state}; there is nothing to {why}",
            hint=f"`core-agent why {found.name}` tells more",
        )
    moved = await core.engine.update(
        found,
        state=target,
        reason=Reason.CANCELLED if why == "cancel" else Reason.PAUSED,
        detail=f"{'attached' if why == 'attach' else target} by a person",
        ended_at=core.now() if why == "cancel" else None,
        waiting_until=None,
        waiting_for="",
    )
    if why == "cancel":
        await asyncio.to_thread(environment.forget, core.home, found.id)
    return moved, ""


async def _end_turn(core: Core, found: Dispatch, why: str) -> Dispatch:
    """Stop the live attempt and wait until it is settled."""
    engine = core.engine
    await engine.end_turn(found.id, why)
    deadline = asyncio.get_running_loop().time() + STOP_WAIT_S
    while _same_turn(now := engine.board.get(found.id, found), found) and found.id in engine.board:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0 or not await engine.changed(left, engine.turns):
            raise CoreAgentError(
                "wait_timeout",
                f"{found.workspace} was told to stop and has not ended after {STOP_WAIT_S:g} s",
                hint=f"it will be settled when it ends: core-agent watch {found.name}",
            )
    return now


def _same_turn(now: Dispatch, found: Dispatch) -> bool:
    return now.state in ACTIVE and now.attempt_id == found.attempt_id


def move_reply(dispatch: Dispatch, note: str = "") -> MoveReply:
    return MoveReply(
        workspace=dispatch.workspace, state=dispatch.state, reason=dispatch.reason, fate=dispatch.fate, note=note
    )


@capability("attach.plan")
async def attach_plan(core: Core, caller: Caller, workspace: Workspace, dry_run: bool = False) -> AttachReply:
    """End the headless turn (not with `dry_run`) and tell what the person's terminal executes to go on in it.

    From now on until `attach.done`, or until the process that asked is gone, nobody else decides about the workspace.
    With `dry_run` too, what it needs is in place when no turn runs: the command line is there to be pasted.
    """
    engine = core.engine
    found = await find_open(core, workspace)
    place = layout(core.home, core.settings, found)
    if not await asyncio.to_thread(prep.is_ready, place, found):
        raise _without_checkout(found, place)
    await asyncio.to_thread(prep.check_checkout, core.home, place, found)
    plan = _interactive(core, caller, found, place)  # what cannot be attached to is not stopped
    if dry_run:
        if found.state not in ACTIVE and attached.holder(engine, found.id) is None:
            await asyncio.to_thread(lay_out, plan, place.root)
    else:
        async with engine.deciding(found.id):
            await attached.take(engine, engine.board.get(found.id, found), caller)
        try:
            found, plan = await _hand_over(core, caller, found, place)
        except BaseException:
            await attached.release(engine, found.id)
            raise
    told = {
        "CORE_AGENT_DISPATCH": found.id,
        "CORE_AGENT_TASK": found.task,
        "CORE_AGENT_WORKSPACE": found.workspace,
        "PWD": str(place.repo),
    }
    told |= ports.environment(found)
    return AttachReply(workspace=found.workspace, argv=plan.argv, cwd=str(place.repo), env={**plan.env, **told})


def _without_checkout(found: Dispatch, place: Layout) -> CoreAgentError:
    if found.state is State.QUEUED or found.state in ACTIVE:
        lacks = "its checkout is not ready" if place.repo.is_dir() else "has no checkout yet"
        return CoreAgentError(
            "workspace_busy",
            f"{found.workspace} is {found.state} and {lacks}, so there is no session to attach to",
            hint=f"attach when its agent runs: core-agent watch {found.name}; core-agent why {found.name} tells more",
        )
    if place.repo.is_dir():
        return CoreAgentError(
            "cannot_attach",
            f"the preparation of {found.workspace} did not come to its end, so there is no session to attach to",
            cause=found.detail,
            hint=f"core-agent resume {found.name} prepares it again; core-agent open {found.name} shows what is there",
        )
    return CoreAgentError(
        "workspace_gone", f"{found.workspace} has no checkout", hint="it was never prepared, or was removed by hand"
    )


async def _hand_over(core: Core, caller: Caller, found: Dispatch, place: Layout) -> tuple[Dispatch, Plan]:
    """End the headless turn and put in place what the interactive session needs."""
    engine = core.engine
    found = engine.board.get(found.id, found)
    if found.state in ACTIVE or found.state is State.QUEUED:
        await _stop(core, found.id, "attach")
        found = engine.board.get(found.id, found)
    plan = _interactive(core, caller, found, place)  # the turn may have told its session only at its end
    await asyncio.to_thread(lay_out, plan, place.root)
    if plan.session_id != found.session_id:
        found = await engine.update(found, session_id=plan.session_id)
    return found, plan


def _interactive(core: Core, caller: Caller, found: Dispatch, place: Layout) -> Plan:
    runner = runners.load(found.runner)
    goes_on = bool((found.runs or found.options.adopted) and found.session_id and found.reason not in POISONED)
    attempt = Attempt(
        id=core.new_id(),
        dispatch_id=found.id,
        n=found.attempts,
        session_id=str(uuid.uuid4()),
        resume_session=found.session_id if goes_on else "",
        claimed_at=core.now(),
    )
    env = launch.allowed_environment(core, caller, found.runner)
    return runner.interactive(launch.make_launch(core, found, attempt, runner, place, found.task, env))


@capability("attach.done")
async def attach_done(core: Core, caller: Caller, workspace: Workspace) -> MoveReply:
    """Bring home what a person did in a workspace after `attach` or by hand."""
    engine = core.engine
    found = await find_open(core, workspace)
    async with engine.deciding(found.id):
        found = engine.board.get(found.id, found)
        hold = attached.holder(engine, found.id)
        if hold is not None and hold.pid != caller.pid:
            attached.check(engine, found)
        try:
            return await _bring_what_was_done(core, found)
        finally:
            await attached.release(engine, found.id)


async def _bring_what_was_done(core: Core, found: Dispatch) -> MoveReply:
    engine = core.engine
    if found.fate is not Fate.OPEN:
        return move_reply(found, f"it was {found.fate} already")
    if found.state in ACTIVE or found.state is State.QUEUED:
        return move_reply(found, "it is at work again")
    place = layout(core.home, core.settings, found)
    made = await asyncio.to_thread(place.prepared.exists)
    if not made and not await asyncio.to_thread(bring.stands, core.home, place, found):
        return move_reply(found, "there is no checkout to bring anything from")
    brought = await bring.bring_home(engine, found)
    moved = await engine.update(
        found,
        extra=bring.rescue_rows(found, brought, found.reason, core.now()),
        harvest=brought.harvest,
        branch_sha=brought.branch_sha,
        stage=bring.stage_of(brought.harvest),
        accepted_sha="",
        previous_sha="",
    )
    files = brought.harvest.files
    return move_reply(moved, f"{plural(files, 'changed file')} on {found.branch}" if files else "")


@capability("queue.list", cli="queue list", read_only=True)
async def queue_list(core: Core) -> QueueReport:
    """List what waits, in the order in which it will start, and why it waits."""
    return rows.queue_report(core.engine)


def _check_pool(engine: Engine, pool: str) -> None:
    """Raise for a pool that nobody ever heard of: settings, runners and dispatches make them.

    Raises: pool_not_found.
    """
    settings = engine.core.settings
    engine.places.follow()
    known = {*settings.concurrency, *settings.rates, *runners.FAMILY, *(d.pool for d in engine.board.resting.values())}
    known |= {*engine.board.queued.pools_waiting(), *engine.running()}
    known |= {key.removeprefix("frozen:") for key in engine.controls if key.startswith("frozen:")}
    if pool and pool not in known:
        near = difflib.get_close_matches(pool, known, n=1)
        raise CoreAgentError(
            "pool_not_found",
            f"there is no pool {pool!r}",
            hint=f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known))}",
        )


@capability("queue.freeze", cli="queue freeze")
async def queue_freeze(core: Core, pool: Pool = "") -> QueueReport:
    """Start nothing new, in one pool or at all, until `queue start`; what runs goes on. Holds over a restart."""
    _check_pool(core.engine, pool)
    await core.engine.set_controls({f"frozen:{pool}" if pool else "frozen": "1"})
    return rows.queue_report(core.engine)


async def _go_on(core: Core, found: Dispatch) -> str:
    """Have a waiting one start as soon as it may; return what holds it up all the same."""
    async with core.engine.deciding(found.id):
        found = core.engine.board.get(found.id, found)
        if found.state is not State.QUEUED:
            raise CoreAgentError(
                "illegal_move",
                f"{found.workspace} is {found.state}, not queued",
                hint=f"`core-agent why {found.name}` tells what it needs",
            )
        freed = core.engine.after.freed(found) if order.is_held(found) else {}
        asked = await core.engine.update(found, **{**freed, "waiting_until": None, "waiting_for": ASKED})
    held = rows.held_up(core.engine, asked, core.engine.facts())
    if held is None or held.word == "frozen":
        return ""
    return f"{asked.workspace} still waits: {why_queued(core.engine, asked)}"


@capability("queue.start", tool="agentic_dispatch_start", cli="queue start")
async def queue_start(
    core: Core, caller: Caller, pool: Pool = "", repo: Repository = "", workspace: Workspace = ""
) -> QueueReport:
    """Let a frozen queue go on; with `pool`, one that is frozen, parked or paced; with `repo`, one that is left alone.

    A pool that is frozen is thawed and nothing more: when it is parked as well, `note` says so, and the same call again
    ends the park; that the whole queue is frozen is said there too. With `workspace`, a task waits no longer for a
    park, a rate limit, the pace, memory or other tasks; `note` says what holds it up all the same.
    """
    engine = core.engine
    note = ""
    _check_pool(engine, pool)
    if repo:
        found = intake.registered(engine, caller, repo)
        await engine.set_controls(engine.pools.close_breaker(f"{found.org}/{found.name}"))
    if pool:
        note = await _let_pool_go_on(engine, pool)
    if workspace:
        note = "; ".join(filter(None, [note, await _go_on(core, await find_open(core, workspace))]))
    if not pool and not repo and not workspace:
        await engine.set_controls({key: None for key in engine.controls if key.startswith("frozen")})
    elif "frozen" in engine.controls:
        note = "; ".join(filter(None, [note, "the whole queue is frozen still: `core-agent queue start` thaws it"]))
    engine.poke()
    return rows.queue_report(engine).model_copy(update={"note": note})


async def _let_pool_go_on(engine: Engine, pool: str) -> str:
    """Thaw a frozen pool, or else end its park, or else its pace; return what still holds it up."""
    if f"frozen:{pool}" in engine.controls:
        # Who ends a freeze need not know that the provider has refused meanwhile: that limit still stands.
        await engine.set_controls({f"frozen:{pool}": None})
        park = engine.pools.parks.get(pool)
        if park is None or park.until <= engine.core.now():
            return ""
        why = park.detail or park.why.replace("_", " ")
        return (
            f"pool {pool} is thawed and still parked until {park.until:%Y-%m-%d %H:%M:%S} UTC ({why}); "
            f"`core-agent queue start --pool {pool}` again ends that"
        )
    held = claim.of_pool(pool, engine.board.queued.waiting(pool), engine.facts())
    paced = held is not None and held.word == "pace"
    await engine.set_controls(engine.pools.unpark(pool) | (engine.pools.forget_windows(pool) if paced else {}))
    # All in one transaction's time: a park may hold up thousands.
    waiting = [d for d in engine.board.queued if d.pool == pool and d.waiting_until is not None]
    await asyncio.gather(*(engine.update(d, waiting_until=None, waiting_for="") for d in waiting))
    return ""


@capability("queue.shutdown", tool="agentic_dispatch_shutdown", cli="queue shutdown", destructive=True)
async def queue_shutdown(core: Core, now: bool = False) -> QueueReport:
    """Start nothing new and let what runs finish; with `now`, end the running turns too, keeping their work."""
    await core.engine.set_controls({"frozen": "1"})
    if now:
        running = list(core.engine.busy())
        ended = await asyncio.gather(*(_end_turn(core, d, "shutdown") for d in running), return_exceptions=True)
        for failed in ended:
            if isinstance(failed, BaseException):
                raise failed
    return rows.queue_report(core.engine)


@capability("queue.drop", cli="queue drop", destructive=True)
async def queue_drop(core: Core, workspace: Workspace) -> MoveReply:
    """Take a waiting dispatch off the queue."""
    found = await find_open(core, workspace)
    if found.state not in (State.QUEUED, State.CANCELLED):
        raise CoreAgentError(
            "illegal_move",
            f"{found.workspace} is {found.state}, not queued",
            hint=f"`core-agent cancel {found.name}` stops a running one",
        )
    return await _stop(core, found.id, "cancel")


@capability("poke", cli="queue poke")
async def poke(core: Core) -> QueueReport:
    """Look at the queue again now."""
    core.refresh_settings()
    core.engine.poke()
    return rows.queue_report(core.engine)
