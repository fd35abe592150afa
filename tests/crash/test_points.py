"""Every named crash point: the daemon dies there as if killed, the next one finds its way, and nothing is lost,
nothing runs twice, nothing is left over.

The points are read from the source, so that a new one is tested by being written.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.support.home import Home
from tests.support.world import World

import coreagent

SOURCE = Path(coreagent.__file__).parent
POINTS = sorted({m for p in SOURCE.rglob("*.py") for m in re.findall(r"crash_point\(\"([^\"]+)\"\)", p.read_text())})
LETTING_GO = {"landing-noted", "landed", "accepted", "before-archive", "archived", "workspace-removed"}
REJECTING = {"rejected"}
ELSEWHERE = {"picked", "adopting"}
"""Shown in tests/cli/test_batches.py."""
RUNNING = [p for p in POINTS if p not in LETTING_GO | REJECTING | ELSEWHERE]


def test_the_points_are_known() -> None:
    assert len(POINTS) >= 20
    assert set(POINTS) > LETTING_GO | REJECTING


@pytest.mark.parametrize("point", RUNNING)
def test_a_task_survives(home: Home, point: str) -> None:
    world = World(home)
    started = home.run("daemon", "start", env={"CORE_AGENT_CRASH_AT": point})
    assert started.code == 0
    reply = world.dispatch("make a file", code=None)
    rows = world.settle()
    if point == "before-queue":
        # The client was not told that the task is queued, and it is not: nothing of it is anywhere.
        assert reply is None
        assert rows == {}
        assert world.executions() == []
        world.check_nothing_left(rows)
        return
    assert len(rows) == 1
    ((found, row),) = rows.items()
    assert (row["state"], row["reason"], row["stage"]) == ("completed", None, "harvested")
    assert [d for d, _ in world.executions()] == [found]
    assert row["runs"] == 1
    assert world.file_at(row["branch"], f"made-{found}.txt") == "make a file\n"
    assert row["files"] == 1
    world.check_nothing_left(rows)


@pytest.mark.parametrize("how", ["--merge", "--squash"])
@pytest.mark.parametrize("point", sorted(LETTING_GO))
def test_accept_survives(home: Home, point: str, how: str) -> None:
    world = World(home)
    home.run("daemon", "start", env={"CORE_AGENT_CRASH_AT": point})
    reply = world.dispatch("make a file")
    assert reply is not None
    world.settle()
    home.run("accept", how, reply["workspace"], code=None)
    # A second accept either does the rest or says that it is done; never anything twice.
    home.run("accept", how, reply["workspace"], code=None)
    row = world.history()[reply["dispatch_id"]]
    assert row["fate"] == "accepted"
    assert world.rows() == {}
    assert (world.repo / f"made-{reply['dispatch_id']}.txt").read_text() == "make a file\n"
    landed = 1 if how == "--squash" else 2
    assert len(home.git("log", "--format=%H", "main", cwd=world.repo).split()) == 1 + landed
    assert world.branches() == {"main"}
    assert (home.core / "archive" / reply["dispatch_id"] / "prompt.md").exists()
    world.check_nothing_left({})


@pytest.mark.parametrize("point", sorted(REJECTING | {"before-archive", "archived", "workspace-removed"}))
def test_reject_survives(home: Home, point: str) -> None:
    world = World(home)
    home.run("daemon", "start", env={"CORE_AGENT_CRASH_AT": point})
    reply = world.dispatch("make a file")
    assert reply is not None
    world.settle()
    home.run("reject", reply["workspace"], code=None)
    home.run("reject", reply["workspace"], code=None)
    assert world.history()[reply["dispatch_id"]]["fate"] == "rejected"
    assert world.rows() == {}
    assert world.branches() == {"main"}
    home.run("rescue", "apply", reply["workspace"])
    assert any(b.startswith("rescue/") for b in world.branches())
    world.check_nothing_left({})
