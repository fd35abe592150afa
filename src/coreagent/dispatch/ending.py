"""What the end of a turn changes in its dispatch: state, money, session, and what comes next by itself.

A turn that a provider sent away waits for the reset and goes on in the same session; one that another agent may do
better goes to the next agent of its list; one whose session is lost starts a fresh one, once; everything else rests
until a person, or the pipeline, looks at it. What a turn was to say and no session knows is said by the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from coreagent import events, runners
from coreagent.dispatch import fallback, launch
from coreagent.dispatch.park import Park
from coreagent.dispatch.verdict import Verdict
from coreagent.models.agent import POISONED, Cost, Reason, Usage
from coreagent.models.dispatch import Attempt, Dispatch, Harvest, State
from coreagent.plural import plural

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine


def session_totals(dispatch: Dispatch, attempt: Attempt) -> tuple[Usage, Cost]:
    """What the session that an attempt goes on with has used so far; nothing when it begins one."""
    return (dispatch.session_usage, dispatch.session_cost) if attempt.resume_session else (Usage(), Cost())


def changes(
    engine: Engine,
    dispatch: Dispatch,
    attempt: Attempt,
    verdict: Verdict,
    question: str,
    controls: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of a dispatch after a turn that ended so. `controls` are what the same ending changes in its pool."""
    outcome, now = attempt.outcome, engine.core.now()
    before, paid = session_totals(dispatch, attempt)
    found: dict[str, Any] = {
        "state": verdict.state,
        "reason": verdict.reason,
        "detail": verdict.detail,
        "question": question if verdict.state is State.BLOCKED else "",
        "usage": dispatch.usage.plus(outcome.usage),
        "cost": launch.add_cost(dispatch.cost, dispatch.usage, outcome.cost, outcome.usage),
        "session_id": _session_after(attempt, verdict),
        "session_usage": before.plus(outcome.usage),
        "session_cost": launch.add_cost(paid, before, outcome.cost, outcome.usage),
        "model": dispatch.model or outcome.model,
        "denied_tools": outcome.denied_tools,
        "ended_at": now,
        "worked_s": dispatch.worked_s + attempt.worked_s(now),
        "rate_limited": 0,
    }
    said = "" if attempt.prompt == fallback.CONTINUE else attempt.prompt
    if verdict.reason in POISONED or _unheard(dispatch, attempt, verdict):
        # Nothing that the next turn goes on with knows of it.
        found["next_prompt"] = said
    most = engine.core.settings.dispatch.turns_alone
    goes_on = fallback.after_ending(engine, dispatch, verdict, controls, now)
    if goes_on is not None:
        # The next agent has a session of its own, and so was told the task only.
        goes_on["next_prompt"] = said
    elif verdict.state is State.QUEUED:
        goes_on = _wait_for_reset(dispatch, controls, found["session_id"])
        goes_on["next_prompt"] = found.get("next_prompt") or fallback.CONTINUE
    elif _starts_fresh(dispatch, attempt, verdict):
        goes_on = {"state": State.QUEUED, "next_kind": "fresh", "ended_at": None}
    if goes_on is None:
        return found
    if most and dispatch.alone + 1 >= most:
        detail = (
            f"went on by itself for {plural(most, 'turn')}; the last one ended with: {verdict.detail or verdict.reason}"
        )
        return found | {"state": State.PAUSED, "reason": Reason.TURNS_ALONE, "detail": detail}
    return found | goes_on | {"alone": dispatch.alone + 1}


def _session_after(attempt: Attempt, verdict: Verdict) -> str:
    """The session that the next turn can go on with: one that its CLI told of, and that is not spoilt."""
    if verdict.reason in POISONED:
        return ""
    return attempt.outcome.session_id or attempt.resume_session


def _unheard(dispatch: Dispatch, attempt: Attempt, verdict: Verdict) -> bool:
    """Whether a turn ended before its CLI told of a session: what it was to say is in no session then.

    A CLI without sessions never tells of one, and hears its prompt all the same.
    """
    if verdict.state is State.COMPLETED or not runners.load(dispatch.runner).resumable:
        return False
    return not attempt.outcome.session_id and not attempt.outcome.usage.total


def _starts_fresh(dispatch: Dispatch, attempt: Attempt, verdict: Verdict) -> bool:
    """Whether a fresh session takes the place of a lost one by itself: once, and then a person is asked."""
    lost = verdict.state is State.FAILED and verdict.reason is Reason.SESSION_LOST
    return lost and bool(attempt.resume_session) and not dispatch.alone


def _wait_for_reset(dispatch: Dispatch, controls: Mapping[str, Any], session: str) -> dict[str, Any]:
    """The fields of a dispatch that a provider sent away: it goes on with its pool, and as the same session."""
    park = Park.model_validate(controls[f"park:{dispatch.pool}"])
    resumable = bool(session) and runners.load(dispatch.runner).resumable
    return {
        "waiting_until": park.until,
        "waiting_for": "rate_limit",
        "rate_limited": dispatch.rate_limited + 1,
        "next_kind": "resume" if resumable else "fresh",
        "ended_at": None,
    }


def messages(dispatch: Dispatch, changed: Mapping[str, Any], harvest: Harvest, now: datetime) -> list[events.Message]:
    """What is told of a turn's end."""
    repo = f"{dispatch.org}/{dispatch.repo}"
    state: State = changed["state"]
    told: list[events.Message] = [
        events.AgentCompleted(agent=dispatch.agent, repo=repo, workspace=dispatch.workspace, status=state.value)
    ]
    if harvest.status == "complete":
        told.append(events.HarvestComplete(repo=repo, branch=dispatch.branch, files=harvest.files))
    elif harvest.status == "rejected":
        told.append(events.HarvestRejected(repo=repo, branch=dispatch.branch, reason=harvest.reason))
    if changed.get("waiting_for") == "rate_limit":
        seconds = (changed["waiting_until"] - now).total_seconds()
        told.append(events.RateLimitDetected(pool=dispatch.pool, duration=max(0.0, seconds)))
    return told
