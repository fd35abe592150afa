"""The circuit breaker of a repository: what fails there again and again is left alone for a while.

A repository whose every task fails (a broken setup hook, a test command that never ends) would eat the slots and the
money of all others. Failures that the provider caused do not count here (dispatch.park). Pure values.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from coreagent.models.agent import Reason
from coreagent.models.dispatch import State

PAUSES = tuple(timedelta(minutes=n) for n in (5, 15, 60, 240))
# What says nothing of the repository: the provider's doing, or a person's.
_ELSEWHERE = frozenset(
    {Reason.AUTH, Reason.RATE_LIMIT, Reason.MODEL_ERROR, Reason.NETWORK, Reason.BUDGET, Reason.SPAWN_FAILED}
)


class Breaker(BaseModel):
    """How a repository has fared since its last success."""

    model_config = ConfigDict(frozen=True)
    failures: int = 0
    opened: int = 0
    """How often it opened in a row."""
    until: datetime | None = None
    """Nothing starts there before; after it one task is tried."""
    last: str = ""
    """The newest failure, for people."""

    def open_at(self, now: datetime) -> bool:
        return self.until is not None and self.until > now

    @property
    def tripped(self) -> bool:
        """Open, or waiting for the one task that shows whether it may close."""
        return self.until is not None


def after(before: Breaker, state: State, reason: Reason | None, detail: str, now: datetime, most: int) -> Breaker:
    """The breaker after a turn ended so; `most` failures in a row open it, 0 never does."""
    if state in (State.COMPLETED, State.BLOCKED):
        return Breaker()
    if state is not State.FAILED or reason in _ELSEWHERE or not most:
        return before
    failures = before.failures + 1
    last = f"{reason}: {detail}" if detail else str(reason)
    # Those that were under way when it opened say nothing new: only what was tried after its pause opens it for longer.
    if before.open_at(now) or (failures < most and not before.tripped):
        return before.model_copy(update={"failures": failures, "last": last})
    opened = before.opened + 1
    until = now + PAUSES[min(opened, len(PAUSES)) - 1]
    return Breaker(failures=failures, opened=opened, until=until, last=last)
