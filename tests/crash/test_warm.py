"""A daemon that dies while a checkout is laid ready, or handed over: nothing half made is ever an agent's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.home import Home
from tests.support.world import World

ON = "warm: {min_files: 1, free_mib: 0}\n"


def pool(home: Home) -> tuple[list[dict[str, Any]], list[Path]]:
    """Records of the checkouts that lie ready, and the directories that are there."""
    place = home.core / "workspace" / ".warm"
    records = [json.loads(path.read_text()) for path in (home.core / "warm").glob("*.json")]
    return records, list(place.iterdir()) if place.is_dir() else []


def until(home: Home, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, home.log()[-3000:]
        time.sleep(0.05)


def is_whole(home: Home) -> bool:
    records, trees = pool(home)
    return len(records) == 1 and [str(tree) for tree in trees] == [records[0]["tree"]]


@pytest.mark.parametrize("point", ["warm-filled", "warm-made"])
def test_a_death_while_it_is_made(home: Home, point: str) -> None:
    world = World(home, settings=ON)
    home.run("daemon", "start", env={"CORE_AGENT_CRASH_AT": point})
    pid = home.daemon_pid
    assert world.dispatch("one", "--name", "one")
    world.settle()
    until(home, lambda: home.daemon_pid != pid)
    records, trees = pool(home)
    assert (len(records), len(trees)) == (int(point == "warm-made"), 1)
    home.run("status")
    # What had its record is kept, and what had none is thrown away.
    until(home, lambda: is_whole(home) if point == "warm-made" else pool(home) == ([], []))
    _goes_on(home, world, 1)


def test_a_death_while_it_is_handed_over(home: Home) -> None:
    world = World(home, settings=ON)
    home.run("daemon", "start", env={"CORE_AGENT_CRASH_AT": "warm-taken"})
    assert world.dispatch("one", "--name", "one")
    world.settle()
    until(home, lambda: is_whole(home))
    (taken,) = pool(home)[0]
    pid = home.daemon_pid
    world.dispatch("two", "--name", "two", code=None)  # it may die before it has said what was left out
    until(home, lambda: home.daemon_pid != pid)
    assert {row["state"] for row in world.settle().values()} == {"completed"}
    assert not Path(taken["tree"]).exists()
    _goes_on(home, world, 2)


def _goes_on(home: Home, world: World, done: int) -> None:
    assert world.dispatch("last", "--name", "last")
    rows = world.settle()
    assert {row["state"] for row in rows.values()} == {"completed"}
    assert [row["files"] for row in rows.values()] == [1] * (done + 1)
    assert len(world.executions()) == done + 1
    until(home, lambda: is_whole(home))
    found = {path.name for path in (home.core / "warm").iterdir()}
    (record,) = pool(home)[0]
    assert found == {f"{record['id']}.json", f"{record['id']}.index"}
    home.run("daemon", "stop")
    assert is_whole(home)
