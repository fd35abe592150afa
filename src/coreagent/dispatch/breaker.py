"""The circuit breaker of a repository: what fails there again and again is left alone for a while.

A repository whose every task fails (a broken setup hook, a test command that never ends) would eat the slots and the
money of all others. What a provider may have caused counts too, because with one repository in use nothing tells the
two apart and the whole queue would fail; it is taken back when the pool is parked for it (dispatch.park). Pure values.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from coreagent.dispatch.park import OUTAGE
from coreagent.models.agent import Reason
from coreagent.models.dispatch import State

PAUSES = tuple(timedelta(minutes=n) for n in (5, 15, 60, 240))
# What says nothing of the repository: a limit of the provider's, or this machine.
_ELSEWHERE = frozenset({Reason.RATE_LIMIT, Reason.SPAWN_FAILED})
_OUTAGE_PAUSES = 3
"""A provider is asked again after an hour at the latest, also by the one repository that is in use."""


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


def after(
    before: Breaker,
    state: State,
    reason: Reason | None,
    detail: str,
    now: datetime,
    most: int,
    *,
    in_vain: bool = False,
) -> Breaker:
    """The breaker after a turn ended so; `most` failures in a row open it, 0 never does.

    One that was tried `in_vain` after an outage opens it at once: the next to be tried is of another repository.
    """
    if state in (State.COMPLETED, State.BLOCKED):
        return Breaker()
    if state is not State.FAILED or reason in _ELSEWHERE or not most:
        return before
    failures = before.failures + 1
    last = f"{reason}: {detail}" if detail else str(reason)
    # Those that were under way when it opened say nothing new: only what was tried after its pause opens it for longer.
    if before.open_at(now) or (failures < most and not before.tripped and not in_vain):
        return before.model_copy(update={"failures": failures, "last": last})
    opened = before.opened + 1
    longest = _OUTAGE_PAUSES if reason in OUTAGE else len(PAUSES)
    until = now + PAUSES[min(opened, longest) - 1]
    return Breaker(failures=failures, opened=opened, until=until, last=last)


def forgive(before: Breaker, failures: int, most: int) -> Breaker:
    """The breaker when so many of its failures turn out to have been the provider's."""
    left = before.failures - failures
    if left <= 0:
        return Breaker()
    if left >= most:
        return before.model_copy(update={"failures": left})
    return Breaker(failures=left, last=before.last)
