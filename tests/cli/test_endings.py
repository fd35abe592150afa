"""How an ending reads to a person: nothing changed though something should have, and a branch that holds more."""

from __future__ import annotations

from pathlib import Path

from tests.support.home import Home
from tests.support.world import World


def given(home: Home) -> World:
    world = World(home)
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text() + "  idle: {argv: [/bin/true]}\n")
    return world


def test_nothing_changed_needs_a_look_unless_it_was_wanted(home: Home) -> None:
    world = given(home)
    asked = ("dispatch", "x", "-a", "command:idle", "--wait")
    # The task is over either way: the exit code says what became of it, and that is `completed`.
    said = home.run(*asked, "-n", "fix", cwd=world.repo).out
    assert "changes were expected, and none came" in said
    home.run(*asked, "-n", "report", "--expect", "none", cwd=world.repo)
    rows = {row["workspace"].rpartition("/")[2]: row for row in home.json("status", "--all")["workspaces"]}
    assert {name: (row["state"], row["reason"], row["needs_me"]) for name, row in rows.items()} == {
        "fix": ("completed", "no_changes", True),
        "report": ("completed", "no_changes", False),
    }
    assert "changes were expected and none came" in home.json("why", "fix")["headline"]
    assert "core-agent logs fix" in home.json("why", "fix")["next"]
    assert "as it was meant to" in home.json("why", "report")["headline"]


def test_what_a_person_added_to_the_branch_is_not_left_out_by_accept(home: Home) -> None:
    world = given(home)
    made = world.dispatch("x", "-n", "fix")
    assert made is not None
    world.settle()
    home.git("switch", "-q", made["branch"], cwd=world.repo)
    Path(world.repo, "mine").write_text("mine\n")
    home.git("add", "mine", cwd=world.repo)
    home.git("commit", "-q", "-m", "mine", cwd=world.repo)
    home.git("switch", "-q", "main", cwd=world.repo)
    refused = home.run("accept", "fix", cwd=world.repo, code=None)
    assert "error[E2013]" in refused.err
    assert f"git merge {made['branch']}" in refused.err
    assert not Path(world.repo, "mine").exists()
    # What the hint says works: all of it lands, and the branch stays.
    home.git("merge", "-q", made["branch"], cwd=world.repo)
    home.run("reject", "fix")
    assert made["branch"] in world.branches()
