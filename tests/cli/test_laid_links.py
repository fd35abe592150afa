"""Agents that lay links where the daemon writes, moves and removes: nothing of the person's is touched through one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.cli.test_hostile_agents import allowed, files_of
from tests.support.home import Home
from tests.support.world import World

SPOOL = "a=$K/attempts/$CORE_AGENT_ATTEMPT; mv $a $a.x; ln -s"
LINKS = {
    "pending": "rm -rf $K/pending; ln -sfn $U/repo $K/pending",
    "attempts": "mv $K/attempts $K/attempts.x; ln -sfn $U/many $K/attempts",
    "trials": "rm -rf $K/trials; ln -sfn $U/many $K/trials",
    "archive": "rm -rf $K/archive; ln -sfn $U/many $K/archive",
    "its archive": "mkdir -p $K/archive; ln -sfn $U/many $K/archive/$CORE_AGENT_DISPATCH",
    "index": "mv $K/index $K/index.x; ln -sfn $U/many $K/index",
    "warm": "rm -rf $K/warm; ln -sfn $U/many $K/warm",
    "what lies ready": "rm -rf $K/workspace/.warm; ln -sfn $U/many $K/workspace/.warm",
    "a record of what lies ready": 'mkdir -p $K/warm; echo \'{"id": "x", "org": "o", "repo": "r", "sha": "s", '
    '"tree": "\'$U\'/repo", "cache": "c", "bytes": 1, "made": 1, "directories": {}}\' > $K/warm/x.json',
    "its spool, to files": f"{SPOOL} $U/files $a; sleep 0.3",
    "its spool, to the repository": f"{SPOOL} $U/repo $a; sleep 0.3",
    "its workspace": "cd ../..; mv w w.x; ln -sfn $U/fake/w w",
    "its workspace's parent": "cd ../../..; mv repo repo.x; ln -sfn $U/fake repo",
    "kept output": "cd ..; mkdir -p .meta; rm -rf .meta/attempts; ln -sfn $U/repo .meta/attempts",
    "its kept output": "cd ..; mkdir -p .meta/attempts; ln -sfn $U/repo .meta/attempts/1",
    "notes": "cd ..; mv .meta .meta.x; ln -sfn $U/many .meta",
    "a private home": "cd ..; rm -rf .home; ln -sfn $U/many .home",
    "scratch": "cd ..; rm -rf .tmp; ln -sfn $U/many .tmp",
    "the cache": "mv $K/repos/local/repo.git $K/repos/x; ln -sfn $U/repo/.git $K/repos/local/repo.git",
    "its refs": "r=$K/repos/local/repo.git/refs; rm -rf $r/core-agent; ln -sfn $U/repo/.git/refs/heads $r/core-agent",
    "all its refs": "r=$K/repos/local/repo.git; rm -rf $r/refs; ln -sfn $U/repo/.git/refs $r/refs",
    "its objects": "r=$K/repos/local/repo.git; rm -rf $r/objects; ln -sfn $U/many $r/objects",
    "its lock": "ln -sfn $U/files/new $K/repos/local/repo.git.lock",
    "workspace": "[ -L $K/workspace ] || mv $K/workspace $K/workspace.x; ln -sfn $U/fake $K/workspace",
    "db.duckdb.mark": "ln -sfn $U/files/a $K/db.duckdb.mark",
    "run/daemon.lock": "ln -sfn $U/files/a $K/run/daemon.lock",
    "run/start.lock": "ln -sfn $U/files/a $K/run/start.lock",
    "run/daemon.log": "ln -sfn $U/files/a $K/run/daemon.log",
    "the cache's parent": "[ -L $K/repos/local ] || { mv $K/repos/local $K/repos/x; mkdir $U/l; "
    "ln -sfn $U/repo/.git $U/l/repo.git; ln -sfn $U/l $K/repos/local; }",
}


def fill(user: Path) -> None:
    for name in ("many/one/f", "many/two/f", "many/w/x", "files/a", "files/out", "fake/w/repo/f", "fake/w/.meta/m",
                 "fake/local/repo/w/repo/f"):  # fmt: skip
        path = user / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")


# Those of one line share a home: each needs a daemon of its own otherwise, and what they lay is in nobody else's way.
TOGETHER = (
    ("a record of what lies ready", "its spool, to files", "its spool, to the repository", "kept output",
     "its kept output", "notes", "a private home", "scratch", "its archive", "what lies ready"),
    ("trials", "warm", "pending"),  # in this order: nothing can be dispatched once the last is laid
    ("run/daemon.lock", "run/start.lock", "run/daemon.log"),
)  # fmt: skip
GROUPS = [*TOGETHER, *((where,) for where in LINKS if not any(where in group for group in TOGETHER))]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0])
def test_no_link_leads_the_daemon_to_somebodys_files(home: Home, group: tuple[str, ...]) -> None:
    world = World(home)
    (world.repo / "1").mkdir()
    for name in ("out", "records", "1/out", "x.sh"):
        (world.repo / name).write_text("mine\n")
    home.git("add", "-A", cwd=world.repo)
    home.git("commit", "-qm", "two", cwd=world.repo)
    fill(home.user)
    env = json.dumps({"U": str(home.user), "K": str(home.core)})
    settings = home.core / "agents.yaml"
    commands = ""
    for n, where in enumerate(group):
        script = json.dumps("echo work > work.txt; " + LINKS[where])
        commands += f"  bad{n}: {{argv: [/bin/sh, -c, {script}], env: {env}}}\n"
    settings.write_text(settings.read_text() + commands)
    before = {name: files_of(home.user / name) for name in ("repo", "many", "files", "fake")}

    names = ["w" if n == 0 else f"w{n}" for n in range(len(group))]
    for n, name in enumerate(names):
        assert world.dispatch("be bad", "--agent", f"command:bad{n}", "--name", name) is not None
    world.settle()
    for name in names:
        home.run("resume", name, code=None)
    world.settle()
    for name in names:
        home.run("reject", name, code=None)
    for words in (["workspace", "clean"], ["daemon", "restart"]):
        home.run(*words, code=None)
    home.run("dispatch", "another", "--name", "other", "--wait", cwd=world.repo, code=None)

    for name, known in before.items():
        now = files_of(home.user / name)
        assert {n: now.get(n) for n in known} == known, f"something in {name} was changed or removed"
        assert [n for n in now if n not in known and not (name == "repo" and allowed(n))] == []

    for where in group:
        the_way_out(home, home.core / where)
    assert home.run("status").code == 0
    assert not [path for path in (home.core / "attempts").glob("*") if os.path.islink(path)]


def the_way_out(home: Home, laid: Path) -> None:
    """It is the one that the error names: what lies there is removed, and all goes on."""
    if not laid.is_symlink():
        return
    home.kill_daemon()
    refused = home.json("status", code=None)
    if "error" in refused:  # a store that cannot be opened has a daemon all the same, which says so
        assert refused["error"]["slug"] == "home_unsafe" and str(home.core) in refused["error"]["message"]
    else:
        assert str(laid) in str(refused["warnings"])
        home.run("daemon", "stop")
    laid.unlink()
