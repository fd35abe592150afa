"""A checkout that lay ready, through the installed command: the next task begins in it, and it differs in nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.support.home import Home
from tests.support.world import World

ON = "warm: {min_files: 1, free_mib: 0}\n"


def ready(home: Home) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while not (found := list((home.core / "warm").glob("*.json"))):
        assert time.monotonic() < deadline, home.log()[-3000:]
        time.sleep(0.05)
    return json.loads(found[0].read_text())


def place(home: Home, name: str) -> Path:
    return home.core / "workspace" / "local" / "repo" / name / "repo"


def test_the_next_task_begins_in_it(home: Home) -> None:
    world = World(home, settings=ON)
    world.dispatch("one", "--name", "one")
    world.settle()
    inode = Path(ready(home)["tree"], "README.md").stat().st_ino
    made = world.dispatch("two", "--name", "two")
    assert made is not None
    assert world.settle()[made["dispatch_id"]]["files"] == 1
    assert (place(home, "two") / "README.md").stat().st_ino == inode
    assert world.file_at("agent/two", f"made-{made['dispatch_id']}.txt") == "two\n"
    home.run("accept", "two", cwd=world.repo)
    home.run("accept", "one", cwd=world.repo)
    home.run("repo", "remove", "local/repo")
    assert list((home.core / "warm").iterdir()) == []
    assert list((home.core / "workspace" / ".warm").iterdir()) == []


def test_a_setup_hook_runs_after_it_was_taken(home: Home) -> None:
    world = World(home, settings=ON + 'hooks: {setup: {run: "pwd > where; echo >> runs"}}\n')
    world.dispatch("one", "--name", "one")
    world.settle()
    tree = Path(ready(home)["tree"])
    assert not (tree / "where").exists()
    world.dispatch("two", "--name", "two")
    world.settle()
    assert (place(home, "two") / "where").read_text().strip() == str(place(home, "two"))
    assert (place(home, "two") / "runs").read_text() == "\n"


def test_an_agent_finds_no_other_name_for_its_files(home: Home) -> None:
    """Nothing that a task was given leads to the place where its files lay before, or to what lies there now."""
    world = World(home, settings=ON)
    world.dispatch("one", "--name", "one")
    world.settle()
    ready(home)
    world.dispatch("two", "--name", "two")
    world.settle()
    top = place(home, "two").parent
    for path in top.rglob("*"):
        assert not path.is_symlink()
        if path.is_file():
            assert b"/.warm" not in path.read_bytes(), path
            assert path.stat().st_nlink == 1


def test_what_is_left_out_is_counted_all_the_same(home: Home) -> None:
    """With a checkout that lies ready, the scan of the person's work tree is done beside everything else."""
    world = World(home, settings=ON)
    world.dispatch("one", "--name", "one")
    world.settle()
    ready(home)
    (world.repo / "README.md").write_text("changed\n")
    (world.repo / "new.txt").write_text("new\n")
    made = world.dispatch("two", "--name", "two")
    assert made is not None
    assert made["left_out"] == 2
    assert "2 changed or untracked files" in " ".join(made["notes"])
    world.settle()
    assert (place(home, "two") / "README.md").read_text() == "hello\n"
    prompt = (place(home, "two").parent / ".meta" / "prompt.md").read_text()
    assert "not committed is not in your checkout" in prompt
    assert "2 " in " ".join(home.json("why", "two")["facts"])
    assert home.json("dispatch", "x", "--dry-run", cwd=world.repo)["left_out"] == 2
    assert (world.dispatch("three", "--with-changes") or {})["left_out"] == 0
    world.settle()
