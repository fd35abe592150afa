"""Remotes: fetched by hand and by the clock, followed by managed checkouts only, and started from where asked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.git_room import fingerprint
from tests.support.home import Home
from tests.support.world import World


class Shared:
    """A world whose repository has a bare remote, and somebody else who pushes there."""

    def __init__(self, home: Home, settings: str = "") -> None:
        self.home = home
        self.world = World(home, settings=settings)
        self.repo = self.world.repo
        self.remote = home.user / "remote.git"
        self.other = home.user / "other"
        home.git("clone", "-q", "--bare", str(self.repo), str(self.remote), cwd=home.user)
        home.git("remote", "add", "origin", str(self.remote), cwd=self.repo)
        home.git("fetch", "-q", "origin", cwd=self.repo)
        home.git("clone", "-q", str(self.remote), str(self.other), cwd=home.user)

    def push(self, name: str) -> str:
        (self.other / name).write_text("news\n")
        self.home.git("add", "-A", cwd=self.other)
        self.home.git("commit", "-qm", name, cwd=self.other)
        self.home.git("push", "-q", "origin", "HEAD:main", cwd=self.other)
        return self.home.git("rev-parse", "HEAD", cwd=self.other).strip()

    def at(self, ref: str) -> str:
        return self.home.git("rev-parse", ref, cwd=self.repo).strip()

    def row(self) -> dict[str, Any]:
        (row,) = self.home.json("repo", "list")
        return row

    def until(self, wanted: str, ref: str) -> None:
        deadline = time.monotonic() + 20
        while self.at(ref) != wanted:
            assert time.monotonic() < deadline, self.home.log()[-3000:]
            time.sleep(0.05)


def test_fetch_moves_nothing_of_the_persons(home: Home) -> None:
    shared = Shared(home)
    home.run("repo", "add", str(shared.repo))
    sha, head = shared.push("new.txt"), shared.at("HEAD")
    kept = {p: w for p, w in fingerprint(shared.repo).items() if not p.startswith((".git/objects", ".git/refs/remotes"))
            and not p.startswith(".git/logs/refs/remotes")}  # fmt: skip
    assert home.json("repo/fetch", cwd=shared.repo)[0]["moved"] == ["origin/main"]
    after = fingerprint(shared.repo)
    assert {path: after.get(path) for path in kept} == kept
    assert (shared.at("origin/main"), shared.at("HEAD")) == (sha, head)
    assert "nothing new" in home.run("repo", "fetch", "--all").out
    assert shared.row()["fetched_at"]
    # Not managed: told so, and not moved.
    told = home.json("repo", "sync", "repo")
    assert (told["state"], told["managed"], shared.at("HEAD")) == ("fetched", False, head)
    refused = home.json("repo", "sync", "repo", "--reset", "--yes", code=1)["error"]
    assert refused["slug"] == "not_managed"


def test_a_remote_that_fails_is_told_with_its_reason(home: Home) -> None:
    shared = Shared(home)
    home.run("repo", "add", str(shared.repo))
    shared.remote.rename(home.user / "elsewhere.git")
    error = home.json("repo", "fetch", "repo", code=69)["error"]
    assert (error["slug"], bool(error["cause"]), "fetch" in error["hint"]) == ("fetch_failed", True, True)
    done = home.run("repo", "fetch", "--all", code=1)
    assert "could not be fetched" in done.out
    row = shared.row()
    assert (row["fetch_failures"], "could not be fetched" in row["fetch_error"]) == (2, True)
    shown = home.run("repo", "list").out
    assert "failed" in shown
    assert "again in" in shown
    (home.user / "elsewhere.git").rename(shared.remote)
    home.run("repo", "fetch", "repo")
    assert shared.row()["fetch_failures"] == 0


def test_the_clock_fetches_registered_ones_and_clones_under_the_workspace_root(home: Home) -> None:
    shared = Shared(home, "sync: {fetch_minutes: 0.005}\n")
    clone = home.core / "workspace" / "acme" / "app"
    clone.parent.mkdir(parents=True)
    home.git("clone", "-q", str(shared.remote), str(clone), cwd=home.user)
    agents = clone / "task-1" / "repo"  # what an agent could make is deeper, and is left alone
    home.git("clone", "-q", str(shared.remote), str(agents), cwd=home.user)
    sha = shared.push("new.txt")
    home.run("repo", "add", str(shared.repo))
    shared.until(sha, "origin/main")
    deadline = time.monotonic() + 20
    while home.git("rev-parse", "origin/main", cwd=clone).strip() != sha:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert home.git("rev-parse", "origin/main", cwd=agents).strip() != sha
    assert shared.at("HEAD") != sha


def test_a_managed_checkout_follows_and_is_reset_with_everything_kept(home: Home) -> None:
    shared = Shared(home)
    row = home.json("repo", "add", str(shared.repo), "--org", "acme", "--managed")
    assert row["managed"]
    assert "(managed)" in home.run("repo", "list").out
    sha = shared.push("new.txt")
    told = home.json("repo/sync", "acme/repo")
    assert (told["state"], told["after"], shared.at("HEAD")) == ("forwarded", sha, sha)
    assert (shared.repo / "new.txt").is_file()
    assert home.json("repo", "sync", cwd=shared.repo)["state"] == "current"
    # A commit of its own: refused, until a person says what is to become of it.
    (shared.repo / "own.txt").write_text("own\n")
    home.git("add", "own.txt", cwd=shared.repo)
    home.git("commit", "-qm", "own", cwd=shared.repo)
    (shared.repo / "README.md").write_text("not committed\n")
    sha = shared.push("more.txt")
    assert home.json("repo", "sync", "repo", code=1)["error"]["slug"] == "diverged"
    assert home.json("repo", "sync", "repo", "--reset", code=1)["error"]["slug"] == "consent_needed"
    done = home.run("repo", "sync", "repo", "--reset", "--yes")
    assert "rescue apply acme/repo/main@checkout" in done.out
    assert shared.at("HEAD") == sha
    assert home.git("status", "--porcelain", cwd=shared.repo) == ""
    assert len(home.json("rescue", "list", "acme/repo/main@checkout")) == 2
    home.run("rescue", "apply", "acme/repo/main@checkout", "--branch", "back")
    assert shared.world.file_at("back", "README.md") == "not committed\n"
    assert shared.world.file_at("back", "own.txt") == "own\n"
    assert not home.json("repo", "add", str(shared.repo), "--own")["managed"]


def test_a_push_is_told_of_by_hand_or_by_a_hook(home: Home) -> None:
    shared = Shared(home)
    assert home.json("repo", "pushed", "repo", code=1)["error"]["slug"] == "repo_not_found"
    home.run("repo", "add", str(shared.repo))
    sha, head = shared.push("new.txt"), shared.at("HEAD")
    said = " ".join(home.run("repo", "pushed", cwd=shared.repo).out.split())
    assert "1 branch moved: origin/main" in said
    assert "the checkout is your own" in said
    assert (shared.at("origin/main"), shared.at("HEAD")) == (sha, head)
    home.run("repo", "add", "--managed", str(shared.repo))
    told = home.json("repo/pushed", "core/repo", "--branch", "main")
    assert (told["state"], told["after"], shared.at("HEAD")) == ("forwarded", sha, sha)
    assert "has all that origin has" in home.run("repo", "pushed", "repo").out
    shared.remote.rename(home.user / "elsewhere.git")
    done = home.run("repo", "pushed", "repo", code=1)
    assert "could not be fetched" in done.out
    told = home.json("repo", "pushed", "repo", code=1)
    assert (told["state"], bool(told["error"]), bool(told["hint"])) == ("failed", True, True)


def test_a_dispatch_says_how_old_it_is_and_starts_fresh_when_asked(home: Home) -> None:
    shared = Shared(home)
    sha, head = shared.push("new.txt"), shared.at("HEAD")
    home.run("repo", "fetch", cwd=shared.repo)
    old = shared.world.dispatch("old", "--name", "old")
    assert old is not None
    assert "1 commit behind origin/main" in " ".join(old["notes"])
    assert old["base_sha"] == head
    newest = shared.push("newest.txt")
    new = shared.world.dispatch("new", "--name", "new", "--fetch")
    assert new is not None
    assert (new["base_sha"], new["base_ref"]) == (newest, "main")
    assert "starts from origin/main" in " ".join(new["notes"])
    assert newest != sha
    rows = shared.world.settle()
    assert {row["state"] for row in rows.values()} == {"completed"}
    assert shared.at("HEAD") == head
    home.run("accept", "new", cwd=shared.repo)
    assert home.git("merge-base", "--is-ancestor", newest, "main", cwd=shared.repo) == ""
    shared.remote.rename(home.user / "elsewhere.git")
    assert home.run("dispatch", "x", "--fetch", cwd=shared.repo, code=69).err
    assert "x" not in {row["task"] for row in home.json("status", "--all")["workspaces"]}


def test_fetching_before_each_dispatch_is_a_setting_and_stops_none(home: Home) -> None:
    shared = Shared(home, "sync: {before_dispatch: true}\n")
    newest = shared.push("new.txt")
    made = shared.world.dispatch("new", "--name", "new")
    assert made is not None
    assert made["base_sha"] == newest
    shared.remote.rename(home.user / "elsewhere.git")
    made = shared.world.dispatch("more", "--name", "more")
    assert made is not None
    assert "starts from what is known here" in " ".join(made["notes"])
    (shared.repo / "README.md").write_text("mine\n")
    (home.user / "elsewhere.git").rename(shared.remote)
    carried = shared.world.dispatch("carry", "--name", "carry", "--with-changes")
    assert carried is not None
    assert (carried["base_sha"], "belong to it" in " ".join(carried["notes"])) == (shared.at("HEAD"), True)
    shared.world.settle()


@pytest.mark.parametrize("minutes", ["-1", "often"])
def test_a_bad_setting_is_named(home: Home, minutes: str) -> None:
    Path(home.core).mkdir(mode=0o700)
    (home.core / "agents.yaml").write_text(f"version: 1\nsync: {{fetch_minutes: {minutes}}}\n")
    assert "sync.fetch_minutes" in json.dumps(home.json("doctor", code=None))
