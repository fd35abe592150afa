"""Which agent goes on with a task when the one it was given to cannot: `--agent a,b,c`.

The list is tried in order: when the pool of one is parked while the task waits, and when a turn ends with a reason that
another model may cure; with `--escalate`, cheap first, also when the evidence is missing (nothing was changed). The
next agent starts a session of its own in the same workspace and finds what the one before it left.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from coreagent import config
from coreagent.dispatch import launch
from coreagent.dispatch.verdict import Verdict
from coreagent.errors import CoreAgentError
from coreagent.models.agent import Cost, Reason, Usage
from coreagent.models.dispatch import Dispatch, State, Tried
from coreagent.poolnames import model_of, pool_of

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

CURABLE: frozenset[Reason] = frozenset(
    {
        Reason.AUTH,
        Reason.BUDGET,
        Reason.MODEL_ERROR,
        Reason.MODEL_REFUSED,
        Reason.CONTEXT_OVERFLOW,
        Reason.BAD_REQUEST,
        Reason.MAX_TURNS,
        Reason.NETWORK,
        Reason.CONFIGURATION,
        Reason.SPAWN_FAILED,
        Reason.DIED,
        Reason.IDLE_TIMEOUT,
        Reason.ERROR,
    }
)
"""What another agent may do better. A person's stop, the wall clock and what the repository causes are not in it."""
UNUSABLE = frozenset({"runner_missing", "runner_too_old", "not_logged_in", "consent_needed"})
"""Errors of a launch that say that this agent cannot be used here at all."""
PARKED = "parked"
CONTINUE = "Continue where you left off."
"""What a turn says that has nothing else to say: it is nothing that a person said."""


def after_ending(
    engine: Engine, dispatch: Dispatch, verdict: Verdict, controls: Mapping[str, Any], now: datetime
) -> dict[str, Any] | None:
    """The fields of a dispatch whose next agent goes on after a turn that ended so; None when there is none."""
    if verdict.reason is Reason.RATE_LIMIT or (verdict.state is State.FAILED and verdict.reason in CURABLE):
        return _next(engine, dispatch, str(verdict.reason), now, parked_now=f"park:{dispatch.pool}" in controls)
    lacking = verdict.reason is Reason.NO_CHANGES and dispatch.options.expect == "changes"
    if dispatch.options.escalate and lacking:
        return _next(engine, dispatch, str(verdict.reason), now)
    return None


def unusable(engine: Engine, dispatch: Dispatch, error: CoreAgentError, now: datetime) -> dict[str, Any] | None:
    """The same for an agent that could not even be started."""
    return _next(engine, dispatch, error.slug, now) if error.slug in UNUSABLE else None


async def go_around_parks(engine: Engine) -> None:
    """Hand what waits for a parked pool to the next agent of its list."""
    now = engine.core.now()
    parked = [pool for pool, park in engine.pools.parks.items() if park.until > now]
    for dispatch_id in [i for pool in parked for i in sorted(engine.board.queued.flexible.get(pool, ()))]:
        waiting = engine.board.get(dispatch_id)
        if waiting is None or waiting.state is not State.QUEUED or dispatch_id in engine.arriving:
            continue
        changes = around_park(engine, waiting, now)
        if changes is not None:
            await engine.update(waiting, **changes)


def around_park(engine: Engine, dispatch: Dispatch, now: datetime) -> dict[str, Any] | None:
    """The same for a task that waits in a parked pool."""
    park = engine.pools.parks.get(dispatch.pool)
    if park is None or park.until <= now:
        return None
    return _next(engine, dispatch, PARKED, now)


def _next(
    engine: Engine, dispatch: Dispatch, why: str, now: datetime, *, parked_now: bool = False
) -> dict[str, Any] | None:
    tried = [*dispatch.tried, Tried(agent=dispatch.agent, reason=why, at=now)]
    gone = {one.agent for one in tried if not one.passing}
    for text in dispatch.options.agents:
        if text in gone:
            continue
        try:
            chosen = config.resolve_agent(text, engine.core.settings)
            env = launch.environment_of(engine.core, dispatch.model_copy(update={"runner": chosen.runner}))
            own = launch.own_model(engine.core, env, chosen.runner)
        except CoreAgentError:
            continue  # the settings changed since it was asked for
        model = model_of(chosen.runner, chosen.model, engine.core.settings, own)
        pool = pool_of(chosen.runner, model, engine.core.settings)
        park = engine.pools.parks.get(pool)
        if (park is not None and park.until > now) or (parked_now and pool == dispatch.pool):
            tried.append(Tried(agent=text, reason=PARKED, at=now, passing=True))
            continue
        return {
            "state": State.QUEUED,
            "agent": text,
            "runner": chosen.runner,
            "model": chosen.model,
            "identity": chosen.identity,
            "own_model": own,
            "tried": tried,
            "session_id": "",
            "session_usage": Usage(),
            "session_cost": Cost(),
            "next_kind": "fresh" if dispatch.runs else dispatch.next_kind,
            "next_prompt": "" if dispatch.next_prompt == CONTINUE else dispatch.next_prompt,
            "waiting_until": None,
            "waiting_for": "",
            "ended_at": None,
        }
    return None


def story(dispatch: Dispatch) -> list[tuple[datetime, str]]:
    """What became of each agent that had the task, or was passed over, before the one that has it now."""
    told = []
    for at, one in enumerate(dispatch.tried):
        after = next((other.agent for other in dispatch.tried[at + 1 :] if not _passed_over(other)), dispatch.agent)
        why = one.reason.replace("_", " ")
        if one.reason == PARKED:
            what = f"{one.agent} was passed over: its pool was parked"
        elif one.reason in UNUSABLE:
            what = f"{one.agent} was passed over: {why}"
        elif one.reason == Reason.NO_CHANGES:
            what = f"{one.agent} changed nothing; {after} goes on"
        elif one.reason == Reason.RATE_LIMIT:
            what = f"{one.agent} met its rate limit; {after} goes on"
        else:
            what = f"{one.agent} failed ({why}); {after} goes on"
        told.append((one.at, what))
    return told


def _passed_over(one: Tried) -> bool:
    return one.reason == PARKED or one.reason in UNUSABLE
