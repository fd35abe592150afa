"""The setup hook through the installed command: what it leaves is nobody's work, and it ends when it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.home import Home
from tests.support.world import World

from coreagent.daemon import launch

NOTHING = "\n  idle: {argv: [/bin/sh, -c, 'exit 0']}\n"


def world_with(home: Home, run: str, timeout_s: float = 60) -> World:
    settings = NOTHING + f"hooks: {{setup: {{run: {json.dumps(run)}, timeout_s: {timeout_s}}}}}\n"
    return World(home, settings=settings.lstrip("\n"))


def dispatched(world: World, agent: str) -> dict[str, Any]:
    reply = world.dispatch("a task", "--agent", f"command:{agent}")
    assert reply is not None
    return reply


def settled(world: World, agent: str) -> dict[str, Any]:
    reply = dispatched(world, agent)
    return world.settle()[reply["dispatch_id"]]


def log_of(home: Home, row: dict[str, Any]) -> Path:
    return home.core / "workspace" / row["workspace"] / ".meta" / "setup.log"


def others(home: Home) -> dict[int, str]:
    return home.strangers()


MESS = "echo new > made; mkdir -p sub; echo new > sub/made; echo more >> README.md; git config core.fsmonitor false"


def test_a_hook_and_an_idle_agent_changed_nothing(home: Home) -> None:
    world = world_with(home, MESS + "; git add -A; git commit -qm hook; git branch else")
    row = settled(world, "idle")
    assert (row["state"], row["reason"], row["stage"]) == ("completed", "no_changes", ""), row
    assert world.branches() == {"main"}
    log = log_of(home, row).read_text()
    assert "tracked file put back: README.md" in log
    assert "never be committed: 2" in log
    assert others(home) == {}


def test_only_the_agents_edits_come_home(home: Home) -> None:
    world = world_with(home, MESS)
    row = settled(world, "work")
    assert (row["state"], row["stage"], row["files"]) == ("completed", "harvested", 1), row
    changed = home.git("diff", "--name-only", "main", row["branch"], cwd=world.repo).split()
    assert changed == [f"made-{row['dispatch_id']}.txt"]
    assert "sub/made" not in home.run("diff", row["workspace"]).out
    home.run("accept", row["workspace"])
    assert home.git("show", "main:README.md", cwd=world.repo) == "hello\n"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("echo broken >&2; exit 3", "exit code 3"),
        ("echo waiting; sleep 600 & wait", "stopped after 0.5 s"),
        ("rm -rf .git", "removed or replaced the checkout's .git"),
        ("kill -9 $$", "signal 9"),
    ],
)
def test_a_hook_that_fails(home: Home, run: str, said: str) -> None:
    world = world_with(home, run, timeout_s=0.5)
    row = settled(world, "work")
    assert (row["state"], row["reason"]) == ("failed", "setup_failed"), row
    assert said in row["detail"], row
    assert str(log_of(home, row)) in row["detail"]
    assert log_of(home, row).is_file()
    assert world.executions() == []
    assert world.branches() == {"main"}
    assert others(home) == {}


def waiting_hook(home: Home) -> tuple[World, Path]:
    """A hook that tells each of its runs to a ledger, then waits for `go`; its child leaves the process group."""
    ledger, go = home.dir / "hooks", home.dir / "go"
    wait = f"trap '' TERM INT HUP; while [ ! -e {go} ]; do sleep 0.1; done"
    return world_with(home, f"setsid sh -c {json.dumps(wait)} & echo run >> {ledger}; wait"), ledger


def wait_for_hook(home: Home, ledger: Path) -> None:
    for _ in range(600):
        if ledger.exists() and any("trap" in what for what in home.processes().values()):
            return
        launch.ended(home.daemon_pid, 0.1)
    raise AssertionError(f"the hook does not run\n{home.log()[-3000:]}")


def test_a_cancel_ends_a_long_hook(home: Home) -> None:
    world, ledger = waiting_hook(home)
    reply = dispatched(world, "work")
    wait_for_hook(home, ledger)
    home.run("cancel", reply["workspace"])
    row = world.settle(timeout=20)[reply["dispatch_id"]]
    assert (row["state"], row["reason"]) == ("cancelled", "cancelled"), row
    assert others(home) == {}
    assert world.executions() == []


@pytest.mark.parametrize("how", ["kill", "leave"])
def test_a_daemon_that_goes_during_a_hook(home: Home, how: str) -> None:
    world, ledger = waiting_hook(home)
    reply = dispatched(world, "work")
    wait_for_hook(home, ledger)
    first = {pid for pid, what in others(home).items() if "trap" in what}
    if how == "kill":
        home.kill_daemon()
    else:
        home.stop("leave")
        assert others(home) == {}
    row = world.rows()[reply["dispatch_id"]]
    assert row["state"] in ("queued", "preparing"), row
    for _ in range(600):
        if ledger.read_text().count("run") == 2:
            break
        launch.ended(home.daemon_pid, 0.1)
    assert not first & set(home.processes()), "the first hook outlived its daemon"
    (home.dir / "go").touch()
    row = world.settle()[reply["dispatch_id"]]
    assert (row["state"], row["stage"], row["runs"]) == ("completed", "harvested", 1), row
    assert ledger.read_text().count("run") == 2
    assert len(world.executions()) == 1
    world.check_nothing_left(world.rows())
