"""How often a pool may start an agent: the daily limit, the pace of a day, and what of both is used up.

Pure: a claim comes in with the clock's reading, the pool's rates and its starts. Times are aware UTC; a machine's time
zone plays no part. Source: the contract's section 10 and domain.md, "Dispatch".
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from coreagent.config import RateSettings, parse_reset_utc

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Obstacle:
    """Why something may not start now."""

    word: str
    """One of the words of `waiting_for`."""
    until: datetime | None = None
    """When to look again; None: an event tells."""
    detail: str = ""
    """What a person is told beside the word."""


class Starts:
    """The starts of one pool in the last days.

    A claim counts from the moment it is made, so that two claims cannot both take the last start of a day; one whose
    agent was never executed is taken back.
    """

    def __init__(self, starts: Iterable[tuple[datetime, str]] = ()) -> None:
        self._entries = sorted(starts)
        self._last = self._entries[-1][0] if self._entries else None

    def note(self, at: datetime, attempt_id: str) -> None:
        insort(self._entries, (at, attempt_id))
        self._last = at

    def take_back(self, attempt_id: str) -> None:
        """The attempt came to no exec. Its moment still counts for the pause before the next one."""
        self._entries = [entry for entry in self._entries if entry[1] != attempt_id]

    def since(self, moment: datetime) -> int:
        """How many started at or after `moment`; those of a clock that was ahead count, so no day is given twice."""
        return len(self._entries) - bisect_left(self._entries, (moment, ""))

    def of_day(self, now: datetime, reset_utc: str) -> int:
        """How many count against the daily limit now."""
        # More than a day ahead: a clock that was far off wrote them, and they must not use up every day until then.
        return self.since(day_start(now, reset_utc)) - self.since(now + DAY)

    def last(self, now: datetime) -> datetime | None:
        """The newest start, never in the future: a clock that was set back must not stretch a pause."""
        if self._last is not None and self._last > now:
            self._last = now
        return self._last

    def forget_before(self, moment: datetime) -> None:
        """Drop what no limit asks for any more."""
        del self._entries[: bisect_left(self._entries, (moment, ""))]


def day_start(now: datetime, reset_utc: str) -> datetime:
    """The newest daily reset that is not after `now`."""
    today = datetime.combine(now.astimezone(UTC).date(), parse_reset_utc(reset_utc), UTC)
    return today if today <= now else today - DAY


def next_reset(now: datetime, rate: RateSettings) -> datetime:
    """When the day of `daily_limit` begins anew."""
    return day_start(now, rate.reset_utc) + DAY


def pause(now: datetime, rate: RateSettings) -> timedelta:
    """The least time between two starts at this hour: `burst_delay` in the last hours of a day, else the sustained."""
    in_burst = next_reset(now, rate) - now <= timedelta(hours=rate.burst_window)
    return timedelta(seconds=max(rate.min_delay, rate.burst_delay if in_burst else rate.sustained_delay))


def after_pause(now: datetime, rate: RateSettings, last: datetime) -> datetime:
    """When the pause after a start at `last` is over, or is to be looked at again."""
    until = last + pause(now, rate)
    # The burst hours may begin before the pause is over, and theirs may be the shorter one.
    burst = next_reset(now, rate) - timedelta(hours=rate.burst_window)
    return min(until, burst) if burst > now else until


def rate_obstacle(now: datetime, rate: RateSettings, starts: Starts) -> Obstacle | None:
    """Why a pool of this rate may start nothing now, or None."""
    if rate.daily_limit:
        used = starts.of_day(now, rate.reset_utc)
        if used >= rate.daily_limit:
            return Obstacle("daily_limit", next_reset(now, rate), f"{used} of {rate.daily_limit} starts used today")
    last = starts.last(now)
    if last is None:
        return None
    until = after_pause(now, rate, last)
    return Obstacle("min_delay", until) if until > now else None
