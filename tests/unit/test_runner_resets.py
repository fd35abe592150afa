"""Resets as CLIs put them into words."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreagent.runners.resets import RESET_MAX_S, RESET_MIN_S, believable, in_text

NOW = datetime(2026, 11, 21, 6, 48, 30).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please try again in 11.054s.", 11.054),
        ("Please try again in 250ms.", RESET_MIN_S),
        ("try again in 1m30s", 90),
        ("Try again in 3 days 4 hours, 5 minutes.", 3 * 86400 + 4 * 3600 + 300),
        ("Please retry in 20s", 20),
        ("Your quota will reset after; resets in 2h", 7200),
        ("try again in 90 days", RESET_MAX_S),
        ("put again in 5 parts", None),
        ("too many requests", None),
        ("", None),
    ],
)
def test_spans(text: str, seconds: float | None) -> None:
    found = in_text(text, NOW)
    assert found == (pytest.approx(NOW + seconds, abs=0.01) if seconds is not None else None)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("or try again at 8:48 AM.", datetime(2026, 11, 21, 8, 49)),
        ("or try again at 8:48 PM.", datetime(2026, 11, 21, 20, 49)),
        ("or try again at 12:05 AM.", datetime(2026, 11, 22, 0, 6)),
        ("or try again at 6:47 AM.", datetime(2026, 11, 21, 6, 48, 31)),
        ("or try again at 6:40 AM.", datetime(2026, 11, 22, 6, 41)),
        ("or try again at Nov 24th, 2026 6:58 AM.", datetime(2026, 11, 24, 6, 59)),
        ("or try again at Nov 24th, 2020 6:58 AM.", None),
        ("or try again at Nov 99th, 2026 6:58 AM.", None),
        ("or try again at 99:99 AM.", None),
    ],
)
def test_clocks_are_local_and_their_minute_is_waited_out(text: str, moment: datetime | None) -> None:
    assert in_text(text, NOW) == (moment.timestamp() if moment else None)


@pytest.mark.parametrize("value", [None, True, "soon", float("nan"), float("inf"), NOW - 61])
def test_what_is_no_reset(value: Any) -> None:
    assert believable(value, NOW) is None


@given(st.text(max_size=200), st.floats(0, 4e9))
def test_whatever_is_said_the_reset_is_near(text: str, now: float) -> None:
    for said in (text, f"try again in {text}", f"try again at {text}"):
        found = in_text(said, now)
        assert found is None or now + RESET_MIN_S <= found <= now + RESET_MAX_S


@given(st.integers(0, 23), st.integers(0, 59))
def test_every_minute_of_the_day_comes_within_a_day(hour: int, minute: int) -> None:
    half = "AM" if hour < 12 else "PM"
    found = in_text(f"try again at {hour % 12 or 12}:{minute:02} {half}", NOW)
    assert found is not None
    assert NOW < found <= NOW + 86400 + 60
    assert abs(found - NOW) <= 60 or time.localtime(found - 60).tm_hour == hour
