"""`repo remove`: a repository is forgotten when nothing of it is open, and nothing is lost by it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.home import Home
from tests.support.world import World


def cache(home: Home) -> Path:
    return home.core / "repos" / "local" / "repo.git"


def test_it_is_refused_while_a_workspace_is_open(home: Home) -> None:
    world = World(home)
    world.dispatch("task", "--name", "one")
    world.settle()
    refused = home.json("repo", "remove", "local/repo", code=1)["error"]
    assert (refused["slug"], refused["data"]) == ("workspace_busy", {"workspaces": ["one"]})
    assert len(home.json("repo", "list")) == 1
    home.run("accept", "one", cwd=world.repo)
    told = home.json("repo", "remove", "local/repo")
    assert (told["repo"]["name"], told["cache"], told["rescued"]) == ("repo", "removed", 0)
    assert not list((home.core / "repos" / "local").iterdir())
    assert home.json("repo", "list") == []
    assert home.json("repo", "remove", "local/repo", code=1)["error"]["slug"] == "repo_not_found"
    # What happened stays known, also to the next daemon, and the same repository may come again.
    home.run("daemon", "restart")
    assert home.json("repo", "list") == []
    assert [row["workspace"] for row in home.json("history")] == ["local/repo/one"]
    world.dispatch("again", "--name", "two")
    assert {row["state"] for row in world.settle().values()} == {"completed"}


def test_rescued_work_outlives_it(home: Home) -> None:
    world = World(home)
    reply = world.dispatch("task", "--name", "one")
    assert reply is not None
    world.settle()
    home.run("reject", "one")
    done = home.run("repo", "remove", str(world.repo))
    assert "its cache stays too, with 1 rescued state" in done.out
    assert cache(home).is_dir()
    assert (world.repo / "README.md").is_file()
    home.run("rescue", "apply", "one", "--branch", "back")
    assert world.file_at("back", f"made-{reply['dispatch_id']}.txt") == "task\n"


@pytest.mark.parametrize("how", ["local/repo", "repo", "path"])
def test_one_whose_directory_is_gone_can_be_named(home: Home, how: str) -> None:
    repo = home.repo()
    home.run("repo", "add", str(repo), "--org", "local")
    shutil.rmtree(repo)
    assert home.json("repo", "remove", str(repo) if how == "path" else how)["cache"] == "none"
    assert home.json("repo", "list") == []


def test_a_name_of_two_is_asked_back(home: Home) -> None:
    for org in ("a", "b"):
        home.run("repo", "add", str(home.repo(org)), "--org", org, "--name", "app")
    assert "a/app, b/app" in home.json("repo", "remove", "app", code=1)["error"]["hint"]
    home.run("repo", "remove", "a/app")
    assert [row["org"] for row in home.json("repo", "list")] == ["b"]
