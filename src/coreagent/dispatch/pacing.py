"""Learn what a start costs of a provider's window, and spread the starts so that the window is nearly used at its end.

Live runs report how much of a window is used and when it ends. Between two reports some starts were made: that is the
price of one. While more waits than the rest of the window can pay for, starts are spread evenly over what is left of
it, so that work goes on until the reset instead of ending at a wall; while everything that waits fits in, nothing is
held back. Pure values; the engine keeps them as controls.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from coreagent.dispatch.limits import Obstacle, Starts

NEW_WEIGHT = 0.3
"""How much the newest price counts against those before."""
KEPT_PRICE_FOR = timedelta(days=14)


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


def learn(before: Window | None, kind: str, used: float, resets_at: datetime, now: datetime, starts: Starts) -> Window:
    """The window after a report. A report that is older than the window's reset, or goes back, starts a new measure."""
    used = min(max(used, 0.0), 1.0)
    fresh = Window(kind=kind, used=used, resets_at=resets_at, seen_at=now, mark_used=used, mark_at=now)
    if before is None or now - before.seen_at > KEPT_PRICE_FOR:
        return fresh
    # Providers name the same reset a little differently each time.
    same = abs(before.resets_at - resets_at) < timedelta(minutes=5) and used >= before.mark_used
    if not same or before.mark_at is None:
        return fresh.model_copy(update={"price": before.price})
    made = starts.since(before.mark_at)
    if made < 1 or used <= before.mark_used:
        return before.model_copy(update={"used": used, "resets_at": resets_at, "seen_at": now})
    sample = (used - before.mark_used) / made
    price = sample if before.price is None else before.price * (1 - NEW_WEIGHT) + sample * NEW_WEIGHT
    return fresh.model_copy(update={"price": price})


def affordable(window: Window, now: datetime, starts: Starts, target: float) -> float | None:
    """How many more starts the window pays for until `target` of it is used; None when nothing is known."""
    if window.price is None or window.price <= 0 or window.resets_at <= now:
        return None
    # What began since the report has not shown in it yet.
    used = window.used + window.price * starts.since(window.seen_at)
    return max(0.0, (target - used) / window.price)


def pace_obstacle(windows: list[Window], now: datetime, starts: Starts, waiting: int, target: float) -> Obstacle | None:
    """Why the next start of a pool is held back for its windows' sake, or None."""
    found: Obstacle | None = None
    for window in windows:
        left = affordable(window, now, starts, target)
        if left is None or waiting <= left:
            continue
        if left < 1:
            until = window.resets_at
        else:
            last = starts.last(now) or now
            until = last + (window.resets_at - now) / left
        if until > now and (found is None or found.until is None or until > found.until):
            share = f"{window.used:.0%} of the {window.kind.replace('_', ' ')} window is used"
            found = Obstacle("pace", until, share)
    return found
