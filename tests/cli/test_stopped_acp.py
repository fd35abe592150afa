"""An agent of the protocol that calls its stop a good end: what waits behind it stays where it is."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from tests.support.home import Home
from tests.support.world import World

AGENT = Path(__file__).parents[1] / "support" / "acp_agent.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a subreaper")
def test_what_waits_for_a_cancelled_turn_is_not_released(home: Home) -> None:
    world = World(home)
    settings = home.core / "agents.yaml"
    argv = [sys.executable, "-I", "-S", str(AGENT), "stops well"]
    settings.write_text(settings.read_text() + f"acp:\n  polite:\n    argv: {argv!r}\n")
    world.dispatch("x", "--name", "first", "--agent", "acp:polite")
    world.dispatch("y", "--name", "second", "--after", "first")
    seen = home.core / "workspace" / "local" / "repo" / "first" / "repo" / "seen.jsonl"
    ends = time.monotonic() + 30
    while not seen.exists() or "session/prompt" not in seen.read_text():
        assert time.monotonic() < ends, home.log()
        time.sleep(0.02)
    home.run("cancel", "first")
    home.run("wait", "first", code=12)
    rows = {row["workspace"].rpartition("/")[2]: row for row in home.json("status", "--all")["workspaces"]}
    assert (rows["first"]["state"], rows["first"]["reason"]) == ("cancelled", "cancelled")
    assert (rows["second"]["state"], rows["second"]["waiting_for"]) == ("queued", "after_failed")
    assert not world.executions()
