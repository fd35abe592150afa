"""Every row of docs/recovery.md through the installed command: what a person sees when the store, the daemon, a shim
or a workspace is not as it should be, and that nothing is lost on the way.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from tests.support.home import Home
from tests.support.recover import begin, gated, made, narrowed
from tests.support.world import World, kill, shims_of

from coreagent import paths
from coreagent.daemon import launch

# -- the store -------------------------------------------------------------------------------------------------------


def test_a_store_held_by_a_living_daemon(home: Home) -> None:
    """A second daemon exits and names the first, by the lock; without the lock, by the store."""
    world = World(home)
    made(world)
    pid = home.daemon_pid
    second = home.run("daemon", "run", code=1)
    assert "E6007" in second.err
    assert f"pid {pid}" in second.err
    (home.core / "run" / "daemon.lock").unlink()
    second = home.run("daemon", "run", code=69)
    assert "E5001" in second.err
    assert f"process {pid}" in second.err
    assert len(world.rows()) == 1
    assert home.daemon_pid == 0 or home.daemon_pid == pid
    home.json("daemon", "status", code=None)
    kill(pid, 1)
    (home.core / "run" / "daemon.sock").unlink(missing_ok=True)
    assert len(world.rows()) == 1
    assert home.daemon_pid == pid


def test_a_store_newer_than_this_program(home: Home) -> None:
    world = World(home)
    made(world)
    home.run("daemon", "stop")
    database = home.core / "db.duckdb"
    with duckdb.connect(str(database)) as newer:
        newer.execute("INSERT INTO migrations SELECT 9999, 'from tomorrow', '99.0.0', run_at FROM migrations LIMIT 1")
    before = database.read_bytes()
    refused = home.run("status", code=1)
    assert "E5002" in refused.err
    assert "newer core-agent" in refused.err
    assert "upgrade core-agent; nothing was changed" in refused.err
    assert home.json("status", code=1)["error"]["data"]["version"] == 9999
    assert home.run("dispatch", "another", cwd=world.repo, code=1).err.startswith("error[E5002]")
    assert "E5002" in home.run("doctor", code=1).out or "newer" in home.run("doctor", code=1).out
    assert database.read_bytes() == before
    assert home.daemon_pid == 0


def test_a_damaged_store(home: Home) -> None:
    world = World(home)
    made(world)
    told = world.history()
    home.run("daemon", "stop")
    database = home.core / "db.duckdb"
    whole = database.read_bytes()
    damaged = whole[:4096] + b"\0" * 8192 + whole[12288:]
    database.write_bytes(damaged)
    refused = home.run("status", code=1)
    assert "E5003" in refused.err
    assert "it was left as it is" in refused.err
    assert "core-agent doctor --repair" in refused.err
    assert home.json("dispatch", "x", cwd=world.repo, code=1)["error"]["slug"] == "store_damaged"
    assert database.read_bytes() == damaged
    assert home.json("doctor", code=1)["ok"] is False
    said = home.run("doctor", "--repair").out
    assert "the damaged files are kept" in said
    assert world.history() == told
    assert world.settle() != {}


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root, and no setpriv to be less")
def test_a_store_that_cannot_be_opened(home: Home) -> None:
    """It runs in memory, says so wherever a person looks, and takes only what may be lost."""
    world = World(home)
    made(world)
    told = world.history()
    home.run("daemon", "stop")
    database = home.core / "db.duckdb"
    database.chmod(0o400)
    before = database.read_bytes()
    try:
        report = narrowed(home, "status")
        assert "in memory only" in str(report["warnings"])
        assert report["workspaces"] == []
        assert narrowed(home, "daemon", "status")["ephemeral"] is True
        assert "in memory only" in home.run("status").out
        assert "in memory only" in home.run("daemon", "status").out
        refused = narrowed(home, "dispatch", "x", code=1)["error"]
        assert isinstance(refused, dict)
        assert refused["slug"] == "store_ephemeral"
        assert "--ephemeral" in refused["hint"]
        reply = narrowed(home, "dispatch", "in memory", "--name", "in-memory", "--ephemeral")
        row = world.settle()[str(reply["dispatch_id"])]
        assert (row["state"], row["stage"]) == ("completed", "harvested")
        assert world.file_at(row["branch"], f"made-{row['dispatch_id']}.txt") == "in memory\n"
        home.run("daemon", "stop")
        diagnosis = narrowed(home, "doctor", code=1)
        assert [c["name"] for c in diagnosis["checks"] if c["state"] == "fail"] == ["store"]  # type: ignore[attr-defined]
        assert database.read_bytes() == before
    finally:
        database.chmod(0o600)
    # Mended: everything that was confirmed before is there again; what was in memory is set aside, not deleted.
    assert set(told) <= set(world.history())
    assert world.branches() >= {"agent/make-file", "agent/in-memory"}


# -- restarts --------------------------------------------------------------------------------------------------------


def test_queue_registry_and_counts_after_a_restart(home: Home) -> None:
    world, gate = gated(home, limit=1)
    home.run("repo", "add", str(world.repo), "--org", "acme", "--name", "app")
    first, shim = begin(world, "one")
    for name, priority in (("two", "0"), ("three", "5")):
        assert world.dispatch(name, "--agent", "command:gated", "--priority", priority)
    home.run("queue", "freeze", "codex")

    def known() -> list[object]:
        """All but when the remote is asked next, which a new daemon decides anew."""
        repos = [{key: value for key, value in row.items() if "fetch" not in key} for row in home.json("repo", "list")]
        return [home.json("queue", "list"), repos, home.json("status")["counts"]]

    before = known()
    assert [r["workspace"].split("/")[-1] for r in home.json("queue", "list")["rows"]] == ["three", "two"]
    pool = {p["pool"]: p for p in home.json("status")["pools"]}["command"]
    assert (pool["running"], pool["limit"], pool["queued"]) == (1, 1, 2)
    for way in ("restart", "kill"):
        if way == "restart":
            home.run("daemon", "restart")
        else:
            home.kill_daemon()
        assert known() == before
        assert world.rows()[first]["pid"] == shim  # adopted: the same shim
    gate.touch()
    rows = world.settle()
    assert [r["state"] for r in rows.values()] == ["completed"] * 3
    assert {r["runs"] for r in rows.values()} == {1}
    world.check_nothing_left(rows)


def test_a_shim_that_died(home: Home) -> None:
    """With and without a daemon there to see it; the work is kept, the slot is free, nothing runs again by itself."""
    world, _ = gated(home, limit=1)
    first, shim = begin(world, "dies under the daemon")
    kill(shim)
    row = world.settle()[first]
    assert (row["state"], row["reason"], row["runs"]) == ("failed", "died", 1)
    second, shim = begin(world, "dies while nobody looks")
    home.kill_daemon()
    assert shims_of(home.core) == [shim]
    kill(shim)
    row = world.settle()[second]
    assert (row["state"], row["reason"], row["runs"]) == ("failed", "died", 1)
    assert "died" in home.run("why", second).out
    (home.dir / "gate").touch()
    assert home.json("resume", second)["resumed"] is True
    rows = world.settle()
    assert (rows[second]["state"], rows[second]["runs"]) == ("completed", 2)
    world.check_nothing_left(rows)


def test_orphaned_directories(home: Home) -> None:
    """What no row knows is moved out of the way, never deleted."""
    world = World(home)
    made(world)
    home.run("daemon", "stop")
    lost = home.core / "workspace" / "local" / "repo" / "lost" / "repo"
    lost.mkdir(parents=True)
    (lost.parent / ".meta").mkdir()
    (lost / "precious.txt").write_text("work")
    (home.core / "workspace" / "local" / "repo" / "theirs").mkdir()  # nothing tells that this was a workspace
    spool = home.core / "attempts" / "01J00000000000000000000000"
    spool.mkdir(parents=True)
    (spool / "out").write_text("said")
    (home.core / "workspace" / "local" / "repo" / ".going-old-1").mkdir()
    rows = world.rows()
    assert [r["workspace"] for r in rows.values()] == ["local/repo/make-file"]
    orphans = home.core / "archive" / "orphans"
    assert (orphans / "local-repo-lost" / "repo" / "precious.txt").read_text() == "work"
    assert (orphans / f"attempts-{spool.name}" / "out").read_text() == "said"
    assert not lost.exists()
    assert not spool.exists()
    assert [p.name for p in sorted((home.core / "workspace" / "local" / "repo").iterdir())] == ["make-file", "theirs"]


# -- letting go ------------------------------------------------------------------------------------------------------


def test_clean_keeps_what_nobody_judged(home: Home) -> None:
    world, _ = gated(home)
    names = {}
    for name in ("taken", "refused", "open"):
        assert world.dispatch(f"make {name}", "--name", name)
    world.settle()
    names["busy"], _ = begin(world, "busy", "--name", "busy")
    home.run("accept", "taken", cwd=world.repo)
    home.run("reject", "refused")
    tried = home.json("workspace", "clean", "--dry-run")
    assert tried["dry_run"] is True
    told = home.json("workspace", "clean")
    assert told["kept"] == {
        "local/repo/open": "nobody accepted or rejected it yet",
        "local/repo/busy": "it is running",
    }
    assert tried["kept"] == told["kept"]
    here = {p.name for p in (home.core / "workspace" / "local" / "repo").iterdir()}
    assert here == {"open", "busy"}
    # What went left its prompt, log and report in the archive, and its row in the history.
    archived = {p.parent.name for p in (home.core / "archive").glob("*/prompt.md")}
    fates = {r["workspace"].split("/")[-1]: (r["fate"], r["dispatch_id"]) for r in home.json("history")}
    assert {name: fate for name, (fate, _) in fates.items()} == {
        "taken": "accepted",
        "refused": "rejected",
        "open": "open",
        "busy": "open",
    }
    assert archived == {fates["taken"][1], fates["refused"][1]}
    assert world.branches() == {"main", "agent/open"}
    assert home.json("workspace", "clean", "busy")["kept"] == {"local/repo/busy": "it is running"}
    home.run("cancel", "busy")


def test_clean_recognises_what_was_merged_by_hand_and_keeps_what_was_edited_after(home: Home) -> None:
    world = World(home)
    for name in ("plain", "edited", "open"):
        assert world.dispatch(f"make {name}", "--name", name)
    world.settle()
    (home.core / "workspace/local/repo/edited/repo/later.txt").write_text("by hand")
    for name in ("plain", "edited"):
        home.git("merge", "-q", "--no-edit", f"agent/{name}", cwd=world.repo)
    tried = home.json("workspace", "clean", "--dry-run")
    assert {r["fate"] for r in world.rows().values()} == {"open"}
    told = home.json("workspace", "clean")
    assert sorted(told["removed"]) == sorted(tried["removed"]) == ["local/repo/edited", "local/repo/plain"]
    assert told["kept"] == {"local/repo/open": "nobody accepted or rejected it yet"}
    fates = {r["workspace"].split("/")[-1]: r["fate"] for r in home.json("history")}
    assert fates == {"plain": "accepted", "edited": "accepted", "open": "open"}
    assert world.branches() == {"main", "agent/open"}
    (kept,) = home.json("rescue", "list")
    assert "later.txt" in home.git("ls-tree", "-r", "--name-only", kept["sha"], cwd=home.core / "repos/local/repo.git")


def test_expiry_keeps_a_completed_tip_reachable(home: Home) -> None:
    """keep_days: 0 lets everything go that rests; work that nobody accepted stays under a rescue ref."""
    world = World(home)
    settings = home.core / "agents.yaml"
    reply = world.dispatch("make a file")
    assert reply is not None
    row = world.settle()[reply["dispatch_id"]]
    settings.write_text(settings.read_text().replace("'command:work'}", "'command:work', keep_days: 0}"))
    home.run("queue", "poke")
    told = home.json("workspace", "clean")
    assert told["removed"] == [row["workspace"]]
    assert world.rows() == {}
    assert not list((home.core / "workspace").glob("*/*/*"))
    kept = home.json("rescue", "list")
    assert [(k["workspace"], k["ref"]) for k in kept] == [(row["workspace"], "refs/core-agent/rescue/make-file/1")]
    assert home.git("for-each-ref", "refs/core-agent", cwd=world.repo) == ""
    home.run("rescue", "apply", row["workspace"], "--branch", "back", code=None)
    branches = world.branches()
    assert "back" in branches, branches
    assert world.file_at("back", f"made-{reply['dispatch_id']}.txt") == "make a file\n"


# -- stop ------------------------------------------------------------------------------------------------------------


def test_stop_leaves_agents_running_and_says_so(home: Home) -> None:
    world, gate = gated(home)
    first, shim = begin(world, "go on")
    said = home.run("daemon", "stop").out
    assert "1 running agent goes on; the next daemon finds it" in said, said
    assert home.daemon_pid == 0
    os.kill(shim, 0)
    gate.touch()
    assert launch.ended(shim, 30)
    row = world.settle()[first]
    assert (row["state"], row["runs"], row["stage"]) == ("completed", 1, "harvested")


def test_stop_drain_waits_for_agents_and_starts_nothing(home: Home) -> None:
    world, gate = gated(home, limit=1)
    first, _ = begin(world, "first")
    second = world.dispatch("second", "--agent", "command:gated")
    assert second is not None
    pid = home.daemon_pid
    said = home.run("daemon", "stop", "--drain").out
    assert "waits for 1 running turn; nothing new starts" in said, said
    report = home.json("status")
    assert any("draining" in w for w in report["warnings"]), report["warnings"]
    assert home.json("daemon", "status")["draining"] is True
    gate.touch()
    assert launch.ended(pid, 30)
    rows = world.rows()  # starts the next one
    assert rows[first]["state"] == "completed"
    assert world.settle()[second["dispatch_id"]]["state"] == "completed"


def test_stop_now_ends_turns_and_keeps_their_work(home: Home) -> None:
    world, gate = gated(home)
    (home.core / "agents.yaml").write_text(
        (home.core / "agents.yaml").read_text().replace('"while [', '"echo half > half.txt; while [')
    )
    first, shim = begin(world, "half")
    said = home.run("daemon", "stop", "--now").out
    assert "1 running turn ended; its work is kept" in said, said
    assert home.daemon_pid == 0
    assert launch.ended(shim, 5)
    row = world.rows()[first]
    assert (row["state"], row["reason"], row["runs"]) == ("paused", "paused", 1)
    assert world.file_at(row["branch"], "half.txt") == "half\n"
    gate.touch()
    home.run("resume", first)
    assert world.settle()[first]["state"] == "completed"


# -- another release -------------------------------------------------------------------------------------------------


@pytest.fixture
def newer(home: Home) -> Path:
    """The interpreter of an installation of a newer release: the same one under a higher number."""
    place = home.dir / "new"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    package = home.dir / "lib" / "coreagent"
    shutil.copytree(Path(paths.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    ground = package / "paths.py"
    ground.write_text(ground.read_text().replace(f'VERSION = "{paths.VERSION}"', 'VERSION = "99.0.0"'))
    (site,) = place.glob("lib/python*/site-packages")
    others = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "new.pth").write_text("\n".join([str(package.parent), *others]) + "\n")
    return place / "bin" / "python"


def test_a_newer_client_replaces_the_daemon_under_a_running_agent(home: Home, newer: Path) -> None:
    world, gate = gated(home, limit=1)
    first, shim = begin(world, "long")
    second = world.dispatch("waits", "--agent", "command:gated")
    assert second is not None
    old = home.json("daemon", "status")
    assert old["version"] == paths.VERSION

    def of_newer(*argv: str) -> dict[str, object]:
        done = subprocess.run(
            [newer, "-P", "-m", "coreagent", *argv, "--json"], env=home.env, cwd=world.repo, capture_output=True
        )
        assert done.returncode == 0, (done, home.log()[-3000:])
        return dict(json.loads(done.stdout))

    report = of_newer("status")
    assert report["counts"]["running"] == 1  # type: ignore[index]
    new = of_newer("daemon", "status")
    assert (new["version"], new["pid"]) == ("99.0.0", old["pid"])
    # An older client is served by the newer daemon, and changes nothing about it.
    assert world.rows()[first]["pid"] == shim
    third = world.dispatch("of the older", "--agent", "command:gated")
    assert third is not None
    assert home.json("daemon", "status")["version"] == "99.0.0"
    assert home.log().count(" serves ") == 2
    gate.touch()
    rows = world.settle()
    assert {(r["state"], r["runs"]) for r in rows.values()} == {("completed", 1)}
    assert set(rows) == {first, second["dispatch_id"], third["dispatch_id"]}
    world.check_nothing_left(rows)
