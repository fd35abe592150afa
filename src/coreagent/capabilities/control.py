"""Steer: pause, cancel, the queue's controls, and handing a session over to a person."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Literal

from coreagent import runners
from coreagent.capabilities.parameter import Pool, Workspace
from coreagent.capabilities.status import find_open
from coreagent.capability import Caller, capability
from coreagent.core import Core
from coreagent.dispatch import bring, environment, launch, rows
from coreagent.dispatch.workspace import layout
from coreagent.errors import CoreAgentError
from coreagent.models.agent import POISONED, Reason
from coreagent.models.dispatch import ACTIVE, Attempt, Dispatch, State
from coreagent.models.report import AttachReply, MoveReply, QueueReport
from coreagent.runners.base import allow, lay_out

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
    target = State.CANCELLED if why == "cancel" else State.PAUSED
    if found.state is target:
        return move_reply(found, f"it was {found.state} already")
    if found.state in ACTIVE:
        found = await _end_turn(core, found, why)
        return move_reply(found, "its work is kept" if found.harvest.status != "none" else "")
    reason = Reason.CANCELLED if why == "cancel" else Reason.PAUSED
    if found.state in (State.COMPLETED, State.FAILED) or (target is State.PAUSED and found.state is not State.QUEUED):
        raise CoreAgentError(
            "not_running",
            f"{found.workspace} is {found.state}; there is nothing to {why}",
            hint=f"`core-agent why {found.name}` tells more",
        )
    moved = await engine.update(
        found, state=target, reason=reason, detail=f"{target} by a person",
        ended_at=core.now() if why == "cancel" else None, waiting_until=None, waiting_for="",
    )  # fmt: skip
    if why == "cancel":
        await asyncio.to_thread(environment.forget, core.home, found.id)
    return move_reply(moved)


async def _end_turn(core: Core, found: Dispatch, why: str) -> Dispatch:
    """Stop the live attempt and wait until it is settled."""
    engine = core.engine
    await engine.end_turn(found.id, why)
    deadline = asyncio.get_running_loop().time() + STOP_WAIT_S
    while engine.board[found.id].state in ACTIVE:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0 or not await engine.changed(left):
            raise CoreAgentError(
                "wait_timeout",
                f"{found.workspace} was told to stop and has not ended after {STOP_WAIT_S:g} s",
                hint=f"it will be settled when it ends: core-agent watch {found.name}",
            )
    return engine.board[found.id]


def move_reply(dispatch: Dispatch, note: str = "") -> MoveReply:
    return MoveReply(
        workspace=dispatch.workspace, state=dispatch.state, reason=dispatch.reason, fate=dispatch.fate, note=note
    )


@capability("attach.plan")
async def attach_plan(core: Core, caller: Caller, workspace: Workspace, dry_run: bool = False) -> AttachReply:
    """End the headless turn (not with `dry_run`) and tell what the person's terminal executes to go on in it."""
    engine = core.engine
    found = await find_open(core, workspace)
    place = layout(core.home, core.settings, found)
    if not place.repo.is_dir():
        raise CoreAgentError(
            "workspace_gone", f"{found.workspace} has no checkout", hint="it was never prepared, or was removed by hand"
        )
    runner = runners.load(found.runner)
    own = launch.runner_settings(core, found.runner)
    env = allow(caller.env or core.env, runner, own, core.settings.env.allow)
    attempt = Attempt(
        id=core.new_id(),
        dispatch_id=found.id,
        n=found.attempts,
        session_id=found.session_id,
        resume_session="" if found.reason in POISONED else found.session_id,
        claimed_at=core.now(),
    )
    made = launch.make_launch(core, found, attempt, runner, place, found.task)
    plan = runner.interactive(dataclasses.replace(made, env=env))
    if dry_run:
        pass
    elif found.state in ACTIVE:
        found = await _end_turn(core, found, "attach")
    elif found.state is State.QUEUED:
        found = await engine.update(found, state=State.PAUSED, reason=Reason.PAUSED, detail="attached by a person")
    if not dry_run:
        await asyncio.to_thread(lay_out, plan)
    told = {"CORE_AGENT_DISPATCH": found.id, "CORE_AGENT_WORKSPACE": found.workspace, "PWD": str(place.repo)}
    return AttachReply(workspace=found.workspace, argv=plan.argv, cwd=str(place.repo), env={**plan.env, **told})


@capability("attach.done")
async def attach_done(core: Core, workspace: Workspace) -> MoveReply:
    """Bring home what a person did in a workspace after `attach` or by hand."""
    engine = core.engine
    found = await find_open(core, workspace)
    if found.state in ACTIVE or found.state is State.QUEUED:
        return move_reply(found, "it is at work again")
    brought = await bring.bring_home(engine, found)
    extra = bring.rescue_rows(found, brought.harvest, found.reason, core.now())
    moved = await engine.update(found, extra=extra, harvest=brought.harvest, stage=bring.stage_of(brought.harvest))
    files = brought.harvest.files
    return move_reply(moved, f"{files} changed file{'s' if files != 1 else ''} on {found.branch}" if files else "")


@capability("queue.list", cli="queue list", read_only=True)
async def queue_list(core: Core) -> QueueReport:
    """List what waits, in the order in which it will start, and why it waits."""
    return rows.queue_report(core.engine)


@capability("queue.freeze", cli="queue freeze")
async def queue_freeze(core: Core, pool: Pool = "") -> QueueReport:
    """Start nothing new, in one pool or at all, until `queue start`; what runs goes on. Holds over a restart."""
    await core.engine.set_control(f"frozen:{pool}" if pool else "frozen", "1")
    return rows.queue_report(core.engine)


@capability("queue.start", tool="agentic_dispatch_start", cli="queue start")
async def queue_start(core: Core, pool: Pool = "") -> QueueReport:
    """Let a frozen queue, or one pool of it, go on; a pool that waits for a rate limit starts now."""
    engine = core.engine
    for key in [k for k in engine.controls if k == (f"frozen:{pool}" if pool else "frozen") or not pool]:
        if key.startswith("frozen"):
            await engine.set_control(key, "")
    for waiting in list(engine.board.values()):
        if pool and waiting.pool == pool and waiting.state is State.QUEUED and waiting.waiting_until is not None:
            await engine.update(waiting, waiting_until=None, waiting_for="")
    engine.poke()
    return rows.queue_report(engine)


@capability("queue.shutdown", tool="agentic_dispatch_shutdown", cli="queue shutdown", destructive=True)
async def queue_shutdown(core: Core, now: bool = False) -> QueueReport:
    """Start nothing new and let what runs finish; with `now`, end the running turns too, keeping their work."""
    await core.engine.set_control("frozen", "1")
    if now:
        running = list(core.engine.busy())
        await asyncio.gather(*(_end_turn(core, d, "shutdown") for d in running))
    return rows.queue_report(core.engine)


@capability("queue.drop", cli="queue drop", destructive=True)
async def queue_drop(core: Core, workspace: Workspace) -> MoveReply:
    """Take a waiting dispatch off the queue."""
    found = await find_open(core, workspace)
    if found.state is not State.QUEUED:
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
