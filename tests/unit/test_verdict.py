"""What an ending means: every row of the table in the domain notes."""

from __future__ import annotations

import pytest

from coreagent.dispatch.verdict import Evidence, judge
from coreagent.models.agent import Outcome, Reason
from coreagent.models.dispatch import State

SUCCESS = Outcome(terminal="success")
NONE = Outcome(terminal="none")


def error(reason: Reason) -> Outcome:
    return Outcome(terminal="error", reason=reason, message="it said why")


@pytest.mark.parametrize(
    ("evidence", "state", "reason"),
    [
        (Evidence(SUCCESS, changed=True), State.COMPLETED, None),
        (Evidence(SUCCESS), State.COMPLETED, Reason.NO_CHANGES),
        (Evidence(SUCCESS, changed=True, question="which one?"), State.BLOCKED, Reason.BLOCKED),
        (Evidence(error(Reason.AUTH), question="which one?"), State.BLOCKED, Reason.BLOCKED),
        (Evidence(NONE, question="which one?"), State.BLOCKED, Reason.BLOCKED),
        *[
            (Evidence(error(r), changed=c), State.FAILED, r)
            for r in (Reason.AUTH, Reason.CONTEXT_OVERFLOW, Reason.BUDGET, Reason.MODEL_ERROR, Reason.ERROR)
            for c in (True, False)
        ],
        (Evidence(Outcome(terminal="error")), State.FAILED, Reason.ERROR),
        (Evidence(error(Reason.RATE_LIMIT), changed=True), State.QUEUED, Reason.RATE_LIMIT),
        (Evidence(NONE, changed=True), State.FAILED, Reason.DIED),
        (Evidence(NONE, died=True), State.FAILED, Reason.DIED),
        (Evidence(NONE, stopped_by="cancel", changed=True), State.CANCELLED, Reason.CANCELLED),
        (Evidence(NONE, stopped_by="cancel", question="?"), State.CANCELLED, Reason.CANCELLED),
        (Evidence(error(Reason.ERROR), stopped_by="cancel"), State.CANCELLED, Reason.CANCELLED),
        (Evidence(NONE, stopped_by="pause"), State.PAUSED, Reason.PAUSED),
        (Evidence(NONE, stopped_by="shutdown"), State.PAUSED, Reason.PAUSED),
        (Evidence(NONE, stopped_by="timeout"), State.FAILED, Reason.TIMEOUT),
        (Evidence(NONE, stopped_by="idle_timeout"), State.FAILED, Reason.IDLE_TIMEOUT),
        # A turn that ended well before the stop reached it ended well.
        (Evidence(SUCCESS, stopped_by="cancel", changed=True), State.COMPLETED, None),
        (Evidence(SUCCESS, died=True, changed=True), State.COMPLETED, None),
        (Evidence(NONE, spawn_error="no such file"), State.FAILED, Reason.SPAWN_FAILED),
    ],
)
def test_the_table(evidence: Evidence, state: State, reason: Reason | None) -> None:
    verdict = judge(evidence)
    assert (verdict.state, verdict.reason) == (state, reason)


def test_the_error_s_own_words_are_kept() -> None:
    assert judge(Evidence(error(Reason.AUTH))).detail == "it said why"
    assert judge(Evidence(SUCCESS, question="\n which one?\nmore")).detail == "which one?"
