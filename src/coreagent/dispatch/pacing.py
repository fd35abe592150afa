"""Learn what a start costs of a provider's window, and spread the starts so that the window is nearly used at its end.

Live runs report how much of a window is used and when it ends. Between two reports some starts were made: that is the
price of one. While more waits than the rest of the window can pay for, starts are spread evenly over what is left of
it, so that work goes on until the reset instead of ending at a wall; while everything that waits fits in, nothing is
held back. Reports come from runs only, so a pool in which nothing runs is never held until its reset for what an old
one said: now and then one is let through. Pure values; the engine keeps them as controls.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from coreagent.dispatch.limits import Obstacle, Starts

NEW_WEIGHT = 0.1
"""How much one start counts against the price as it was known before."""
MEASURED_MIN = 2.0
"""So many starts are a measure; fewer say more of where in its turn each agent was."""
WINDOW_MAX = timedelta(days=8)
"""A reset further ahead is a mistake of somebody's clock, as is a report that lies so far back."""
KEPT_PRICE_FOR = timedelta(days=14)
LOOK_LEAST = timedelta(hours=6)
LOOK_SHARE = 0.1
"""How long after the newest start or report one is let through that is not paid for, when nothing runs: this share of
the time to the reset, and not sooner than that."""


class Window(BaseModel):
    """One window of a pool (`five_hour`, `seven_day`, ...) as it was last reported."""

    model_config = ConfigDict(frozen=True)
    kind: str
    used: float
    """Share of the window that is used, 0 to 1."""
    resets_at: datetime
    seen_at: datetime
    price: float | None = None
    """Share that one start costs, as learned; None until two reports of one window had starts between them."""
    mark_used: float = 0.0
    mark_at: datetime | None = None
    """The report that the next price is measured from."""
    mark_running: int = 0
    """Agents that were at work then: what they had still to use shows in later reports."""


def learn(
    before: Window | None, kind: str, used: float, resets_at: datetime, now: datetime, starts: Starts, running: int
) -> Window:
    """The window after a report, while so many agents of the pool are at work.

    A report of a new window, or one that goes back, starts a new measure.
    """
    used = min(max(used, 0.0), 1.0)
    fresh = Window(
        kind=kind, used=used, resets_at=resets_at, seen_at=now, mark_used=used, mark_at=now, mark_running=running
    )
    if before is None or now - before.seen_at > KEPT_PRICE_FOR:
        return fresh
    # Providers name the same reset a little differently each time.
    same = abs(before.resets_at - resets_at) < timedelta(minutes=5) and used >= before.mark_used
    if not same or before.mark_at is None:
        return fresh.model_copy(update={"price": before.price})
    # An agent at work is taken to be halfway: half of what it costs is in the figures.
    made = starts.since(before.mark_at) + (before.mark_running - running) / 2
    if made < MEASURED_MIN or used <= before.mark_used:
        return before.model_copy(update={"used": used, "resets_at": resets_at, "seen_at": now})
    sample = (used - before.mark_used) / made
    kept = (1 - NEW_WEIGHT) ** made
    price = sample if before.price is None else before.price * kept + sample * (1 - kept)
    return fresh.model_copy(update={"price": price})


def affordable(window: Window, now: datetime, starts: Starts, running: int, target: float) -> float | None:
    """How many more starts the window pays for until `target` of it is used; None when nothing is known."""
    if window.price is None or window.price <= 0 or not now < window.resets_at <= now + WINDOW_MAX:
        return None
    # What began since the report has not shown in it, and what is at work has not shown in full: a wall costs more
    # than a start that comes a report later.
    unseen = max(starts.since(window.seen_at), running)
    left = (target - window.used) / window.price - unseen
    whole = (1 - window.used) / window.price - unseen
    if left < 1 <= whole + _ROUNDING and window.price > 1 - target:
        return 1.0  # so much costs one start that the target lies between two: the one that the window pays for is made
    return max(0.0, left)


_ROUNDING = 1e-6


def pace_obstacle(
    windows: list[Window], now: datetime, starts: Starts, running: int, waiting: int, target: float
) -> Obstacle | None:
    """Why the next start of a pool is held back for its windows' sake, or None."""
    found: Obstacle | None = None
    for window in windows:
        left = affordable(window, now, starts, running, target)
        if left is None or waiting <= left:
            continue
        last = starts.last(now) or window.seen_at
        if left >= 1:
            # Evenly over what is left from the newest start on: the moment does not move while nothing happens.
            until = last + (window.resets_at - last) / (left + 1)
        elif running:
            until = window.resets_at
        else:
            until = min(window.resets_at, _look_at(window, last))
        if until > now and (found is None or found.until is None or until > found.until):
            share = f"{window.used:.0%} of the {window.kind.replace('_', ' ')} window is used"
            found = Obstacle("pace", until, f"{share}, dispatch.pace_target is {target:g}")
    return found


def _look_at(window: Window, last: datetime) -> datetime:
    """When a start is due that shows whether the window is still as it was reported."""
    known = max(last, window.seen_at)
    return known + max(LOOK_LEAST, (window.resets_at - known) * LOOK_SHARE)
