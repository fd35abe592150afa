"""What an ending means: terminal event x exit x evidence in git -> state and reason (domain.md, the table).

Pure. Exit code 0 is never proof: only the protocol's terminal event and what git shows count.
"""

from __future__ import annotations

from dataclasses import dataclass

from coreagent.models.agent import Outcome, Reason
from coreagent.models.dispatch import State

# What stopped_by of the shim becomes. A person's stop and a limit are different endings.
_STOPS: dict[str, tuple[State, Reason]] = {
    "cancel": (State.CANCELLED, Reason.CANCELLED),
    "pause": (State.PAUSED, Reason.PAUSED),
    "attach": (State.PAUSED, Reason.PAUSED),
    "shutdown": (State.PAUSED, Reason.PAUSED),
    "timeout": (State.FAILED, Reason.TIMEOUT),
    "idle_timeout": (State.FAILED, Reason.IDLE_TIMEOUT),
    "output_limit": (State.FAILED, Reason.OUTPUT_LIMIT),
}


UNHEEDED = "its shim did not answer and was killed"


@dataclass(frozen=True)
class Evidence:
    """All that is known of an attempt that ended."""

    outcome: Outcome
    stopped_by: str = ""
    spawn_error: str = ""
    died: bool = False
    """The shim itself was killed and left no exit record."""
    forced: bool = False
    """The shim had to be killed, because it did not do what `stopped_by` asked for."""
    changed: bool = False
    """The tree at the end differs from the tree at the start of the dispatch."""
    question: str = ""
    """Text of a non-empty BLOCKED.md."""


@dataclass(frozen=True)
class Verdict:
    state: State
    reason: Reason | None = None
    detail: str = ""


def judge(evidence: Evidence) -> Verdict:
    """Return the state and reason that the evidence supports, never a better one."""
    outcome = evidence.outcome
    if evidence.spawn_error:
        return Verdict(State.FAILED, Reason.SPAWN_FAILED, evidence.spawn_error)
    if evidence.stopped_by in _STOPS and outcome.terminal != "success":
        state, reason = _STOPS[evidence.stopped_by]
        text = _STOP_TEXT[evidence.stopped_by]
        return Verdict(state, reason, f"{text}; {UNHEEDED}" if evidence.forced else text)
    if evidence.question:
        return Verdict(State.BLOCKED, Reason.BLOCKED, evidence.question.strip().splitlines()[0][:200])
    if evidence.died and outcome.terminal != "success":
        return Verdict(State.FAILED, Reason.DIED, "the process that held the agent was killed")
    if outcome.terminal == "success":
        return Verdict(State.COMPLETED, None if evidence.changed else Reason.NO_CHANGES)
    if outcome.terminal == "error":
        reason = outcome.reason or Reason.ERROR
        if reason is Reason.RATE_LIMIT:
            return Verdict(State.QUEUED, reason, outcome.message[:400])
        return Verdict(State.FAILED, reason, outcome.message[:400])
    return Verdict(State.FAILED, Reason.DIED, outcome.message[:400] or "the agent ended without saying how")


_STOP_TEXT = {
    "cancel": "cancelled by a person",
    "pause": "paused by a person",
    "attach": "handed over to an interactive session",
    "shutdown": "stopped with its daemon or its machine",
    "timeout": "the wall-clock limit was reached",
    "idle_timeout": "no output for the idle limit",
    "output_limit": "the output limit was reached",
}
