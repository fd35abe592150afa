"""Limits through the installed command: what stops a task is told, ends when it should, and a person can end it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.home import Home
from tests.support.world import World

from coreagent.dispatch import admission

REFUSED = "turns:\n- steps: [{rate_limit: {resets_in: %s}}]\n- steps: [{write: {path: late.txt, content: late}}]\n"
FINE = "steps:\n- write: {path: made.txt, content: made}\n"


def script(home: Home, name: str, text: str) -> str:
    path = home.dir / name
    path.write_text(text)
    return str(path)


def give(world: World, task: str, *argv: str, code: int = 0) -> None:
    world.home.run("dispatch", task, *argv, cwd=world.repo, code=code)


def pool(home: Home, name: str) -> dict[str, Any]:
    return next(p for p in home.json("status")["pools"] if p["pool"] == name)


def row(home: Home, name: str) -> dict[str, Any]:
    found: dict[str, Any] = home.json("status", name)["workspaces"][0]
    return found


def until(home: Home, name: str, **wanted: str) -> dict[str, Any]:
    for _ in range(150):
        found = row(home, name)
        if all(found[key] == value for key, value in wanted.items()):
            return found
        home.run("watch", name, "--once", "--timeout", "200ms", "--json", code=None)
    raise AssertionError(f"never {wanted}: {found}")


def test_a_rate_limit_parks_the_pool_and_a_person_lets_it_go_on(home: Home) -> None:
    world = World(home)
    refused = script(home, "refused.yaml", REFUSED % 3600)
    give(world, "first", "--name", "first", "--agent", "scripted", "--script", refused)
    waits = until(home, "first", waiting_for="rate_limit")
    assert (waits["state"], waits["reason"]) == ("queued", "rate_limit")
    parked = pool(home, "scripted")
    assert (parked["parked_for"], parked["held_by"]) == ("rate_limit", "parked")
    # What comes later waits for the same reset, and another pool does not.
    fine = script(home, "fine.yaml", FINE)
    give(world, "second", "--name", "second", "--agent", "scripted", "--script", fine)
    assert row(home, "second")["waiting_for"] == "parked"
    give(world, "third", "--name", "third", "--wait")
    said = home.run("why", "second").out
    assert "Pool scripted is parked until" in " ".join(said.split())
    assert "rate limit lifts at" in " ".join(home.run("why", "first").out.split())
    assert "parked by a rate limit until" in " ".join(home.run("status").out.split())
    listed = home.json("queue", "list")["rows"]
    assert {r["waiting_for"] for r in listed} == {"rate_limit", "parked"}
    assert "its pool is parked, until" in home.run("queue", "list", env={"COLUMNS": "160"}).out
    # A park outlives the daemon.
    home.run("daemon", "stop")
    assert pool(home, "scripted")["parked_for"] == "rate_limit"
    home.run("queue", "start", "--pool", "scripted")
    until(home, "second", state="completed")
    assert until(home, "first", state="completed")["runs"] == 2
    kinds = [a["kind"] for a in home.json("workspace", "show", "first")["attempts"]]
    assert kinds == ["dispatch", "resume"]


def test_a_person_has_one_go_at_once_and_is_told_what_holds_it_up_all_the_same(home: Home) -> None:
    world = World(home)
    refused, fine = script(home, "refused.yaml", REFUSED % 3600), script(home, "fine.yaml", FINE)
    give(world, "first", "--name", "first", "--agent", "scripted", "--script", refused)
    until(home, "first", waiting_for="rate_limit")
    for name in ("second", "third", "fourth"):
        give(world, name, "--name", name, "--agent", "scripted", "--script", fine)
    assert home.json("queue", "start", "second")["note"] == ""
    until(home, "second", state="completed")
    # The first success of the pool ended nothing: what the provider named still stands for the others.
    assert row(home, "third")["waiting_for"] == "parked"
    home.run("resume", "third")
    until(home, "third", state="completed")
    home.run("queue", "freeze", "--pool", "scripted")
    note = home.json("queue", "start", "fourth")["note"]
    assert note == (
        "local/repo/fourth still waits: Pool scripted is frozen; "
        "`core-agent queue start --pool scripted` lets it go on."
    )
    home.run("queue", "start", "first")
    home.run("queue", "start", "--pool", "scripted")
    until(home, "fourth", state="completed")
    until(home, "first", state="completed")


def test_a_reset_that_comes_lets_the_pool_go_on_by_itself(home: Home) -> None:
    world = World(home)
    refused = script(home, "refused.yaml", REFUSED % 2)
    give(world, "first", "--name", "first", "--agent", "scripted", "--script", refused)
    until(home, "first", waiting_for="rate_limit")
    assert until(home, "first", state="completed")["runs"] == 2
    kinds = [a["kind"] for a in home.json("workspace", "show", "first")["attempts"]]
    assert kinds == ["dispatch", "resume"]


def test_a_daily_limit_is_counted_and_told(home: Home) -> None:
    world = World(home, settings="rates: {command: {daily_limit: 2}}\n")
    for name in ("one", "two"):
        give(world, "work", "--name", name, "--wait")
    give(world, "work", "--name", "three")
    found = row(home, "three")
    assert (found["state"], found["waiting_for"]) == ("queued", "daily_limit")
    assert found["waiting_until"]
    used = pool(home, "command")
    assert (used["today"], used["daily_limit"]) == (2, 2)
    home.run("daemon", "stop")
    assert pool(home, "command")["today"] == 2
    assert "no start left today (2 of 2 starts used today)" in " ".join(home.run("why", "three").out.split())
    assert "today 2/2" in home.run("status", env={"COLUMNS": "160"}).out
    agents = {a["name"]: a for a in home.json("agents")}
    assert agents["command:work"]["use"]["today"] == 2
    # A saved file is in force at once.
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text().replace("daily_limit: 2", "daily_limit: 3"))
    until(home, "three", state="completed")


def test_a_repository_that_always_fails_is_left_alone(home: Home) -> None:
    world = World(home)
    settings = home.core / "agents.yaml"
    text = settings.read_text().replace("default_agent: 'command:work'", "default_agent: 'command:work', breaker: 2")
    settings.write_text(text + "  bad: {argv: [/bin/false]}\n")
    other = home.repo("other")
    for name in ("one", "two"):
        give(world, "fail", "--name", name, "--agent", "command:bad", "--wait", code=10)
    give(world, "fail", "--name", "three")
    found = row(home, "three")
    assert (found["state"], found["waiting_for"]) == ("queued", "breaker")
    assert pool(home, "command")["held_by"] == ""
    home.run("dispatch", "work", "--name", "fine", "--wait", cwd=other)
    said = " ".join(home.run("why", "three").out.split())
    assert "local/repo is left alone until" in said
    assert "core-agent queue start --repo local/repo" in said
    home.run("queue", "start", "--repo", "local/repo")
    until(home, "three", state="completed")


def test_an_outage_with_one_repository_in_use_holds_back_the_rest(home: Home) -> None:
    world = World(home)
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text().replace("concurrency: {", "concurrency: {scripted: 1, "))
    down = script(home, "down.yaml", "steps:\n- fail: {reason: model_error, message: overloaded}\n")
    names = [f"n{n}" for n in range(8)]
    for name in names:
        give(world, "work", "--name", name, "--agent", "scripted", "--script", down)
    until(home, "n7", waiting_for="breaker")
    assert [row(home, name)["state"] for name in names] == ["failed"] * 5 + ["queued"] * 3
    said = " ".join(home.run("why", "n7").out.split())
    assert "5 failures in a row in local/repo: model_error: overloaded" in said


def test_the_next_agent_of_a_list_goes_on(home: Home) -> None:
    world = World(home, settings="  bad: {argv: [/bin/false]}\n  idle: {argv: [/bin/true]}\n")
    give(world, "work", "--name", "one", "--agent", "command:bad,command:work", "--wait")
    one = row(home, "one")
    assert (one["state"], one["agent"], one["runs"]) == ("completed", "command:work", 2)
    # What changed nothing is only then a reason when that is asked for.
    give(world, "work", "--name", "two", "--agent", "command:idle,command:work", "--wait")
    assert (row(home, "two")["reason"], row(home, "two")["agent"]) == ("no_changes", "command:idle")
    give(world, "work", "--name", "three", "--agent", "command:idle,command:work", "--escalate", "--wait")
    assert (row(home, "three")["state"], row(home, "three")["agent"]) == ("completed", "command:work")


def test_a_parked_pool_is_gone_around(home: Home) -> None:
    world = World(home)
    refused = script(home, "refused.yaml", REFUSED % 3600)
    give(world, "first", "--name", "first", "--agent", "scripted,command:work", "--script", refused, "--wait")
    found = row(home, "first")
    assert (found["state"], found["agent"]) == ("completed", "command:work")
    give(world, "second", "--name", "second", "--agent", "scripted,command:work", "--script", refused, "--wait")
    assert row(home, "second")["agent"] == "command:work"
    assert row(home, "second")["runs"] == 1


def test_what_a_command_was_seen_to_take_must_fit_the_next_time(home: Home) -> None:
    hold = "import time; x = bytearray(800 << 20); open('made.txt', 'w').write('x'); time.sleep(0.3)"
    gate = "while [ ! -e $HOME/open ]; do sleep 0.05; done"
    more = f"  big: {{argv: [{sys.executable}, -c, {json.dumps(hold)}]}}\n"
    world = World(home, settings=more + f"  beside: {{argv: [/bin/sh, -c, {json.dumps(gate)}]}}\n")
    settings = home.core / "agents.yaml"
    text = settings.read_text()
    give(world, "learn", "--name", "learn", "--agent", "command:big", "--wait")
    free = admission.free_memory()
    assert free is not None
    reserve = "{default_agent: 'command:work', memory_reserve_mib: %d}"
    settings.write_text(text.replace("{default_agent: 'command:work'}", reserve % max(1, (free >> 20) - 500)))
    give(world, "runs", "--name", "beside", "--agent", "command:beside")
    until(home, "beside", state="running")
    for name in ("one", "two", "three"):
        give(world, "again", "--name", name, "--agent", "command:big")
    assert {row(home, name)["waiting_for"] for name in ("one", "two", "three")} == {"memory"}
    said = " ".join(home.run("why", "two").out.split())
    assert re.search(r"command:big takes about 8\d\d MiB, \d+ MiB are free, and \d+ MiB stay free", said), said
    assert "it starts all the same when no other agent runs" in said
    assert "core-agent queue start two" in said
    home.run("queue", "start", "two")
    until(home, "two", state="completed")
    (home.dir / "u" / "open").touch()
    until(home, "one", state="completed")
    until(home, "three", state="completed")
    # More than the machine has: nothing starts, not even what nobody knows anything of.
    settings.write_text(text.replace("{default_agent: 'command:work'}", reserve % 999_999))
    give(world, "small", "--name", "small")
    assert row(home, "small")["waiting_for"] == "memory"
    assert "999999 MiB stay free (dispatch.memory_reserve_mib)" in " ".join(home.run("why", "small").out.split())
    settings.write_text(text.replace("{default_agent: 'command:work'}", reserve % 0))
    until(home, "small", state="completed")


def test_the_end_of_a_freeze_is_not_the_end_of_a_park(home: Home) -> None:
    world = World(home)
    refused = script(home, "refused.yaml", REFUSED % 3600)
    give(world, "first", "--name", "first", "--agent", "scripted", "--script", refused)
    until(home, "first", waiting_for="rate_limit")
    home.run("queue", "freeze", "--pool", "scripted")
    said = " ".join(home.run("queue", "start", "--pool", "scripted").out.split())
    assert "pool scripted is thawed and still parked until" in said
    assert "`core-agent queue start --pool scripted` again ends that" in said
    assert pool(home, "scripted")["parked_for"] == "rate_limit"
    assert row(home, "first")["waiting_for"] == "rate_limit"
    assert home.json("queue", "start", "--pool", "scripted")["note"] == ""
    assert until(home, "first", state="completed")["runs"] == 2


@pytest.mark.parametrize("agents", ["['command:missing-program', 'command:work']", "'command:work'"])
def test_the_default_agent_may_be_a_list(home: Home, agents: str) -> None:
    world = World(home, settings="  missing-program: {argv: [/nowhere/at/all]}\n")
    settings: Path = home.core / "agents.yaml"
    settings.write_text(settings.read_text().replace("'command:work'", agents, 1))
    give(world, "work", "--name", "one", "--wait")
    assert row(home, "one")["agent"] == "command:work"


def test_a_frozen_pool_stands_still_until_it_is_started(home: Home) -> None:
    world = World(home)
    home.run("queue", "freeze", "--pool", "command")
    give(world, "work", "--name", "one")
    assert row(home, "one")["waiting_for"] == "frozen_pool"
    assert home.json("queue", "start", "--pool", "nowhere", code=1)["error"]["slug"] == "pool_not_found"
    home.run("queue", "start", "--pool", "command")
    until(home, "one", state="completed")
