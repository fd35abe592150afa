"""When a rate limit lifts, as far as a CLI's own words can be believed. Pure; the clock is handed in."""

from __future__ import annotations

import math
import re
import time
from datetime import datetime
from typing import Final

# How far ahead a reset is believed: a little more than the longest window there is (seven days). One that is long over
# is no reset at all, or an agent would be sent away every second by a provider whose clock is wrong.
RESET_MIN_S: Final = 1.0
RESET_PAST_S: Final = 60.0
RESET_MAX_S: Final = 8 * 86400.0

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART: Final = r"(\d+(?:\.\d+)?)\s*(ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|weeks?)"
_PARTS: Final = rf"((?:{_PART}(?![a-z])[\s,]*(?:and )?)+)"
_SPAN: Final = re.compile(r"(?:again|retry|resets?)[^.\n]{0,20}? in " + _PARTS, re.IGNORECASE)
_DATE: Final = r"(?:([A-Z][a-z]{2})[a-z]* (\d{1,2})(?:st|nd|rd|th)?,? (\d{4}),? )?"
_CLOCK: Final = re.compile(rf"(?:again|resets?) at {_DATE}(1[0-2]|0?\d):([0-5]\d) ?([AP]M)", re.IGNORECASE)


def believable(resets: object, now: float) -> float | None:
    """Return a reset in Unix seconds, within the limits of belief; None for what is none."""
    if isinstance(resets, bool) or not isinstance(resets, int | float) or not math.isfinite(resets):
        return None
    if resets <= now - RESET_PAST_S:
        return None
    return min(max(float(resets), now + RESET_MIN_S), now + RESET_MAX_S)


def in_text(text: str, now: float) -> float | None:
    """Return the reset that a sentence names: "try again in 11.054s", "in 2 hours 5 minutes", "at 8:48 AM"."""
    if span := _SPAN.search(text):
        seconds = sum(float(number) * _unit(unit) for number, unit in re.findall(_PART, span[1], re.IGNORECASE))
        return believable(now + seconds, now)
    if clock := _CLOCK.search(text):
        return believable(_at(clock, now), now)
    return None


def _unit(name: str) -> float:
    name = name.lower()
    return _UNITS["ms" if name.startswith(("ms", "milli")) else name[0]]


def _at(clock: re.Match[str], now: float) -> float | None:
    """The next time that local clocks show this. They show no seconds, so a minute is added."""
    month, day, year, hour, minute, half = clock.groups()
    hours = int(hour) % 12 + (12 if half.upper() == "PM" else 0)
    try:
        if month:
            date = datetime.strptime(f"{month.title()} {day} {year}", "%b %d %Y")
            return date.replace(hour=hours, minute=int(minute)).timestamp() + 60
        today = time.localtime(now)
        fields = (today.tm_year, today.tm_mon, today.tm_mday, hours, int(minute), 0, 0, 0, -1)
        at = time.mktime(fields) + 60
        # An hour that is over today is tomorrow's; one that is only just over is this one.
        return at if at > now - RESET_PAST_S else time.mktime((*fields[:2], fields[2] + 1, *fields[3:])) + 60
    except (ValueError, OverflowError):
        return None
