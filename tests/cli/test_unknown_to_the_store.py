"""What the store does not know is not nobody's: a store that cannot be used, an older copy, another root."""

from __future__ import annotations

import os
import shutil

import pytest
from tests.support.home import Home
from tests.support.recover import begin, gated, made, narrowed
from tests.support.world import shims_of

from coreagent.daemon import launch


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root, and no setpriv to be less")
def test_a_store_that_cannot_be_opened_leaves_everything_in_its_place(home: Home) -> None:
    """What the daemon in memory does not know is not nobody's: agents go on, and everything is found as it was."""
    world, gate = gated(home, limit=1)
    with (home.core / "agents.yaml").open("a") as file:
        file.write("  token: {argv: [/bin/sh, -c, 'echo $TOKEN > token.txt']}\nenv: {allow: [TOKEN]}\n")
    assert world.dispatch("make a file", "--name", "done")
    world.settle()
    first, shim = begin(world, "busy", "--name", "busy")
    waits = home.run("dispatch", "t", "-a", "command:token", "--name", "waits", "--json", cwd=world.repo,
                     env={"TOKEN": "a secret"}).json()["dispatch_id"]  # fmt: skip
    home.run("daemon", "stop")
    database = home.core / "db.duckdb"
    database.chmod(0o400)
    root = home.core / "workspace/local/repo"
    before = sorted(p.name for p in root.iterdir())
    try:
        report = narrowed(home, "status")
        assert (report["workspaces"], report["strangers"]) == ([], 1)
        assert "Permission denied" in str(report["warnings"])
        assert "local/repo/busy" in str(report["warnings"])
        assert "1 running that the store does not know" in home.run("status").out
        assert "1 more that the store does not know" in home.run("daemon", "status").out
        for argv in (["history"], ["queue", "list"], ["workspace", "list"]):
            assert "the store cannot be used" in home.run(*argv).err
        refused = narrowed(home, "dispatch", "again", "--name", "busy", "--ephemeral", code=1)["error"]
        assert isinstance(refused, dict)
        assert refused["slug"] == "workspace_busy"
        reply = narrowed(home, "dispatch", "busy", "--ephemeral")
        assert reply["workspace"] == "local/repo/busy-2"
        # The one slot of its pool is taken by the agent that the store does not know.
        assert "Pool command has 1 of 1 slot in use: local/repo/busy." in home.run("why", "busy-2").out
        settings = home.core / "agents.yaml"
        settings.write_text(settings.read_text().replace("{command: 1}", "{command: 2}"))
        home.run("queue", "poke")
        world.settle()
        settings.write_text(settings.read_text().replace("{command: 2}", "{command: 1}"))
        assert shims_of(home.core) == [shim]
        stopped = home.run("daemon", "stop", "--now").out
        assert "1 running agent that the store does not know goes on" in stopped
        assert shims_of(home.core) == [shim]
    finally:
        database.chmod(0o600)
    rows = world.rows()
    assert sorted(p.name for p in root.iterdir()) == before
    assert "local-repo-busy-2" in str(home.json("status")["warnings"])
    assert (rows[first]["state"], rows[waits]["state"]) == ("running", "queued")
    assert str(reply["dispatch_id"]) not in rows
    gate.touch()
    rows = world.settle()
    assert (rows[first]["state"], rows[first]["runs"]) == ("completed", 1)
    assert world.file_at("agent/waits", "token.txt") == "a secret\n"


def test_a_workspace_stays_where_it_was_made_when_the_settings_say_another_root(home: Home) -> None:
    world, gate = gated(home, limit=2)
    first, _ = begin(world, "one", "--name", "one")
    ghq = home.dir / "ghq"
    theirs = ghq / "github.com" / "me" / "project"
    theirs.mkdir(parents=True)
    (theirs / "precious.txt").write_text("mine")
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text().replace("dispatch: {", f"dispatch: {{workspace_root: {ghq}, "))
    second, _ = begin(world, "two", "--name", "two")
    assert (ghq / "local/repo/two/repo").is_dir()
    home.kill_daemon()
    gate.touch()
    rows = world.settle()
    assert {rows[one]["state"] for one in (first, second)} == {"completed"}
    home.run("accept", "one", cwd=world.repo)
    home.run("accept", "two", cwd=world.repo)
    assert not (home.core / "workspace/local/repo/one").exists()
    assert not (ghq / "local/repo/two").exists()
    home.run("daemon", "restart")
    assert (theirs / "precious.txt").read_text() == "mine"
    assert not (home.core / "archive/orphans").exists()


def test_an_agent_that_the_store_does_not_know_is_left_alone_while_it_runs(home: Home) -> None:
    """The store was put back to an older copy: what is newer goes on, and is kept and told of when it has ended."""
    world, gate = gated(home)
    made(world)
    home.run("daemon", "stop")
    older = {path: path.read_bytes() for path in home.core.glob("db.duckdb*")}
    _, shim = begin(world, "new", "--name", "new")
    home.kill_daemon()
    for path in home.core.glob("db.duckdb*"):
        path.unlink()
    for path, content in older.items():
        path.write_bytes(content)
    for spec in home.core.glob("attempts/*/spec.json"):
        spec.unlink()
    report = home.json("status")
    assert report["strangers"] == 1
    assert "no limit of a pool counts local/repo/new" in str(report["warnings"])
    assert shims_of(home.core) == [shim]
    assert (home.core / "workspace/local/repo/new/repo").is_dir()
    gate.touch()
    launch.ended(shim, 20)
    home.run("daemon", "restart")
    assert "archive/orphans" in str(home.json("status")["warnings"])
    (kept,) = (home.core / "archive/orphans").glob("local-repo-new/repo/done-*.txt")
    assert kept.read_text() == "done\n"
