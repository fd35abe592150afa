"""The usage windows that a claude stream tells of: shares, percentages, and what could be either."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.test_runner_claude import NOW, feed

from coreagent.runners.claude_stream import ClaudeParser


@pytest.mark.parametrize(
    ("told", "believed"),
    [
        ([0.5, 0.97, 1], [0.5, 0.97, 1.0]),
        ([0, 0.02, 1.04], [0.0, 0.02, 1.0]),
        ([1, 3, 1, 100], [None, 0.03, 0.01, 1.0]),
        ([0.5, 3, 0.5], [0.5, 0.03, 0.005]),
        ([1.5, 2], [None, None]),
        ([-1, True, "1", float("nan")], [None, None, None, None]),
    ],
)
def test_a_window_is_told_as_a_share_or_in_percent_and_never_guessed(
    told: list[Any], believed: list[float | None]
) -> None:
    parser = ClaudeParser(clock=lambda: NOW)
    for used, share in zip(told, believed, strict=True):
        parser.outcome.windows.clear()
        info = {"status": "allowed", "rateLimitType": "seven_day", "utilization": used, "resetsAt": NOW + 100}
        feed(parser, {"type": "rate_limit_event", "rate_limit_info": info})
        found = parser.outcome.windows.get("seven_day", (None, 0.0))[0]
        assert found == (None if share is None else pytest.approx(share))


def test_one_window_tells_how_the_others_of_its_event_are_meant() -> None:
    parser = ClaudeParser(clock=lambda: NOW)
    several = {kind: {"utilization": used, "resetsAt": NOW + 100} for kind, used in (("w", 1), ("five_hour", 40))}
    feed(parser, {"type": "rate_limit_event", "rate_limit_info": {"status": "allowed", "unifiedWindows": several}})
    assert parser.outcome.windows == {"w": (0.01, NOW + 100), "five_hour": (0.4, NOW + 100)}
