"""Tasks that come together, and what is taken over, through the installed command."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_verbs import slug, until
from tests.support.home import Home
from tests.support.world import World, kill

FILE = """\
version: 1
batch: night
vars: {what: table}
tasks:
  - {name: schema, task: "make a {{what}}"}
  - {name: api, task: serve it, after: schema, on_top: true, agent: [command:work]}
  - {name: docs, task: describe it, after: [schema, api]}
"""
BAD = """\
commands:
  fails: {argv: [/bin/sh, -c, "exit 3"]}
  asks: {argv: [/bin/sh, -c, "echo why > BLOCKED.md"]}
"""


def world_of(home: Home, **how: Any) -> World:
    world = World(home, **how)
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text().replace("commands:\n", BAD))
    return world


def rows_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_file_of_tasks_to_its_end(home: Home) -> None:
    world = world_of(home)
    (world.repo / "tasks.yaml").write_text(FILE)
    plan = home.run("dispatch", "--file", "tasks.yaml", "--dry-run", cwd=world.repo).out
    assert [line.split()[1] for line in plan.splitlines()[3:6]] == [
        f"local/repo/{n}" for n in ("schema", "api", "docs")
    ]
    assert "make a table" in plan
    assert world.rows() == {}
    done = home.run("dispatch", "--file", "tasks.yaml", "--wait", cwd=world.repo)
    assert "3 completed" in done.out
    rows = world.rows()
    assert {row["state"] for row in rows.values()} == {"completed"}
    api = next(d for d, row in rows.items() if row["workspace"].endswith("/api"))
    first = next(d for d, row in rows.items() if row["workspace"].endswith("/schema"))
    assert world.file_at("agent/api", f"made-{first}.txt") == "make a table\n"
    assert world.file_at("agent/api", f"made-{api}.txt") == "serve it\n"
    order = [dispatch for dispatch, _ in world.executions()]
    assert [rows[d]["workspace"].rsplit("/", 1)[1] for d in order] == ["schema", "api", "docs"]
    again = home.json("dispatch", "--file", "-", stdin=FILE, cwd=world.repo)
    assert [task["reused"] for task in again["tasks"]] == [True, True, True]
    assert len(world.executions()) == 3
    assert home.run("wait", "night").out.count("completed") == 4
    assert set(again) == {"batch", "tasks", "dry_run", "notes"}
    world.check_nothing_left(rows)


def test_what_is_wrong_with_a_file(home: Home) -> None:
    world = world_of(home)
    bad = world.repo / "bad.yaml"
    for text, told, code in (
        (FILE.replace("after: schema", "afetr: schema"), "bad_task_file", 2),
        (FILE.replace("after: schema", "after: docs"), "bad_task_file", 2),
        (FILE.replace("command:work", "command:wrok"), "unknown_agent", 1),
    ):
        bad.write_text(text)
        assert slug(home, "dispatch", "--file", "bad.yaml", code=code, cwd=world.repo) == told
    bad.write_text(FILE.replace("after: schema", "afetr: schema"))
    said = home.run("dispatch", "--file", "bad.yaml", cwd=world.repo, code=2).err
    assert "bad.yaml:6:33: tasks.1.afetr: there is no such key" in said
    assert "did you mean `after`?" in said
    assert slug(home, "dispatch", "--file", "none.yaml", code=2, cwd=world.repo) == "invalid_argument"
    assert slug(home, "dispatch", "more", "--file", "bad.yaml", code=2, cwd=world.repo) == "conflicting_options"
    assert slug(home, "dispatch", "--file", "bad.yaml", "--count", "2", code=2, cwd=world.repo) == "conflicting_options"
    assert slug(home, "wait", "nothing") == "workspace_not_found"
    for several in (["--count", "0"], ["--count", "1"], ["--agents", " , "]):
        assert slug(home, "dispatch", "do", *several, code=2, cwd=world.repo) == "invalid_argument"
    assert slug(home, "dispatch", "do", "--agents", "", code=2, cwd=world.repo) == "invalid_argument"
    both = ["--count", "0", "--agents", "a,b"]
    assert slug(home, "dispatch", "do", *both, code=2, cwd=world.repo) == "conflicting_options"
    assert world.rows() == {}


def test_after_and_what_a_person_can_do(home: Home) -> None:
    world = world_of(home)
    world.dispatch("x", "--name", "first", "--agent", "command:fails")
    held = home.run(
        "dispatch", "y", "--name", "second", "--after", "first", "--wait", "--json", cwd=world.repo, code=11
    )
    last = rows_of(held.out)[-1]
    assert (last["state"], last["waiting_for"], last["stuck"]) == ("queued", "after_failed", True)
    assert "first failed: error" in home.run("status").out
    assert "NEEDS YOU" in home.run("status").out
    assert "core-agent queue start second" in home.run("why", "second").out
    report = home.json("queue", "start", "second")
    assert set(report) >= {"total", "rows"}
    assert until(world, last["dispatch_id"], "completed")
    assert slug(home, "queue", "start", "second") == "illegal_move"
    assert slug(home, "queue", "start", "nobody") == "pool_not_found"
    third = world.dispatch("z", "--name", "third", "--after", "first", "--after", "second")
    assert third is not None
    assert home.json("queue", "drop", "third")["state"] == "cancelled"
    assert slug(home, "dispatch", "a", "--after", "nobody", cwd=world.repo) == "workspace_not_found"
    assert slug(home, "dispatch", "a", "--on-top", code=2, cwd=world.repo) == "conflicting_options"


def test_how_waiting_for_a_batch_ends(home: Home) -> None:
    world = world_of(home)
    for agents, code in (("command:work,command:asks", 11), ("command:work,command:fails", 10)):
        done = home.run("dispatch", "do", "--agents", agents, "--wait", "--json", cwd=world.repo, code=code)
        reply, *rows = rows_of(done.out)
        assert len(reply["tasks"]) == 2
        assert {row["dispatch_id"] for row in rows} == {task["dispatch_id"] for task in reply["tasks"]}
    file = "tasks:\n  - {name: q, task: x, agent: command:asks}\n  - {name: r, task: y, after: q}\n"
    assert home.run("dispatch", "--file", "-", "--wait", stdin=file, cwd=world.repo, code=11)
    home.run("dispatch", "do", "--count", "2", "--agent", "command:long", "--name", "w", cwd=world.repo)
    assert "2 of 2 still go on" in home.run("wait", "w", "--timeout", "300ms", code=75).err
    home.run("cancel", "w-1")
    home.run("cancel", "w-2")
    assert home.run("wait", "w", code=12).code == 12


def test_siblings_are_compared_and_one_is_picked(home: Home) -> None:
    world = world_of(home)
    home.run("dispatch", "do it", "--count", "3", "--wait", cwd=world.repo)
    report = home.json("compare", "do-it", "--test", 'test -n "$HOME" && ls made-*')
    assert {"workspace", "agent", "state", "files", "tests", "cost", "tokens", "worked_s", "same_as"} <= set(
        report["rows"][0]
    )
    assert [row["tests"]["verdict"] for row in report["rows"]] == ["passed"] * 3
    text = home.run("compare", "do-it-1", "do-it-2").out
    assert "RESULT" in text
    assert "unknown" in text
    assert "made-" in home.run("compare", "do-it", "--diff", "do-it-1", "do-it-2").out
    assert slug(home, "compare", "nothing") == "batch_not_found"
    picked = home.json("pick", "do-it-2", "--squash")
    assert (picked["accepted"]["strategy"], len(picked["rejected"])) == ("squash", 2)
    assert picked["undo"].startswith("git -C ")
    again = home.json("pick", "do-it-2")
    assert (again["accepted"], again["undo"]) == (None, picked["undo"])
    assert world.rows() == {}
    assert world.branches() == {"main"}
    assert len(home.json("rescue", "list")) == 2
    os.system(f"cd {world.repo} && {picked['undo']}")
    assert not list(world.repo.glob("made-*"))
    world.check_nothing_left({})


def test_a_batch_over_the_death_of_its_daemon(home: Home) -> None:
    world = world_of(home, seconds=0.5, limit=1)
    home.run("dispatch", "--file", "-", stdin=FILE, cwd=world.repo)
    waits = home.start("wait", "night", "--json")
    while not world.executions():
        home.run("watch", "--once", "--timeout", "200ms", "--json", code=None)
    kill(home.daemon_pid)
    out, err = waits.communicate(timeout=60)
    assert waits.returncode == 0, err
    rows = world.rows()
    assert [row["state"] for row in rows.values()] == ["completed"] * 3
    assert len(world.executions()) == 3
    told = [(row["workspace"], row["state"], row["waiting_for"]) for row in rows_of(out.decode())]
    assert told[-1][1] == "completed"
    world.check_nothing_left(rows)


@pytest.mark.parametrize("point", ["queued", "settled", "before-claim"])
def test_a_dependent_survives(home: Home, point: str) -> None:
    world = world_of(home)
    home.run("daemon", "start", env={"CORE_AGENT_CRASH_AT": point})
    for _ in range(2):
        home.run("dispatch", "--file", "-", stdin=FILE, cwd=world.repo, code=None)
    rows = world.settle()
    assert sorted(row["workspace"].rsplit("/", 1)[1] for row in rows.values()) == ["api", "docs", "schema"]
    assert {row["state"] for row in rows.values()} == {"completed"}
    assert len(world.executions()) == 3
    world.check_nothing_left(rows)


def test_pick_survives(home: Home) -> None:
    world = world_of(home)
    home.run("dispatch", "do it", "--count", "2", "--wait", cwd=world.repo)
    home.stop()
    home.run("daemon", "start", env={"CORE_AGENT_CRASH_AT": "picked"})
    home.run("pick", "do-it-1", code=None)
    home.run("pick", "do-it-1", code=None)
    assert sorted(row["fate"] for row in world.history().values()) == ["accepted", "rejected"]
    assert world.rows() == {}
    assert world.branches() == {"main"}
    world.check_nothing_left({})


def test_a_path_with_a_space_is_told_as_a_shell_takes_it(home: Home) -> None:
    world = world_of(home)
    there = home.user / "my trees" / "fix"
    home.git("worktree", "add", "-q", "-b", "fix", str(there), cwd=world.repo)
    told = home.run("adopt", "--list", cwd=world.repo).out
    words = shlex.split(told.partition("next: ")[2])
    assert words == ["core-agent", "adopt", str(there)]
    home.git("worktree", "remove", str(there), cwd=world.repo)


def test_a_worktree_is_adopted(home: Home) -> None:
    world = world_of(home)
    there = home.user / "trees" / "fix"
    home.git("worktree", "add", "-q", "-b", "fix", str(there), cwd=world.repo)
    (there / "half.txt").write_text("half\n")
    text = home.run("adopt", "--list", cwd=world.repo).out
    assert "1 uncommitted" in text
    assert str(there) in text
    (row,) = home.json("adopt", "--list", cwd=world.repo)
    assert (row["path"], row["branch"], row["source"]) == (str(there), "fix", "git worktree")
    reply = home.json("adopt", "trees/fix")
    assert (reply["workspace"], reply["state"], reply["files"], reply["again"]) == (
        "local/repo/fix",
        "paused",
        1,
        False,
    )
    assert world.file_at("agent/fix", "half.txt") == "half\n"
    assert home.json("adopt", str(there))["again"] is True
    assert "stays as it is" in home.run("adopt", str(there)).out
    home.run("resume", "fix", "--wait")
    home.run("accept", "fix")
    assert (world.repo / "half.txt").exists()
    assert home.git("status", "--porcelain", cwd=there).strip() == "?? half.txt"
    assert slug(home, "adopt", str(world.repo), code=2) == "invalid_argument"
    home.git("worktree", "remove", "--force", str(there), cwd=world.repo)


def test_an_adoption_survives(home: Home) -> None:
    world = world_of(home)
    there = home.user / "trees" / "fix"
    home.git("worktree", "add", "-q", "-b", "fix", str(there), cwd=world.repo)
    (there / "half.txt").write_text("half\n")
    home.run("daemon", "start", env={"CORE_AGENT_CRASH_AT": "adopting"})
    home.run("adopt", str(there), code=None)
    reply = home.json("adopt", str(there))
    assert (reply["state"], reply["files"], len(world.rows())) == ("paused", 1, 1)
    assert world.file_at("agent/fix", "half.txt") == "half\n"
    home.git("worktree", "remove", "--force", str(there), cwd=world.repo)


def test_the_shell_completes_what_there_is(home: Home) -> None:
    world = world_of(home)
    world.dispatch("x", "--name", "first")
    for words in ("core-agent pick f", "core-agent compare f", "core-agent dispatch --after f"):
        env = {"_CORE_AGENT_COMPLETE": "bash", "COMP_LINE": words, "COMP_WORDBREAKS": " \n"}
        assert home.run(env=env, cwd=Path(world.repo)).out.split() == ["first"], words
