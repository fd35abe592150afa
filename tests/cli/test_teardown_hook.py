"""The teardown hook through the installed command: it runs before a workspace goes, and keeps none from going."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.home import Home
from tests.support.world import World


def world_with(home: Home, run: str, timeout_s: float = 60) -> World:
    return World(home, settings=f"hooks: {{teardown: {{run: {json.dumps(run)}, timeout_s: {timeout_s}}}}}\n")


def settled(world: World) -> dict[str, Any]:
    reply = world.dispatch("a task")
    assert reply is not None
    return world.settle()[reply["dispatch_id"]]


def archive(home: Home, row: dict[str, Any]) -> Path:
    return home.core / "archive" / row["dispatch_id"]


def facts(home: Home, row: dict[str, Any]) -> list[str]:
    return home.json("why", row["dispatch_id"])["facts"]


SAY = 'echo "$PWD $CORE_AGENT_WORKSPACE $CORE_AGENT_PORT"; ls'


@pytest.mark.parametrize("how", [("accept",), ("reject",)])
def test_it_runs_in_the_checkout_before_the_workspace_goes(home: Home, how: tuple[str, ...]) -> None:
    world = world_with(home, SAY)
    row = settled(world)
    shown = home.json("workspace", "show", row["workspace"])
    home.run(*how, row["workspace"], cwd=world.repo)
    place = home.core / "workspace" / row["workspace"]
    assert not place.exists()
    first, *rest = (archive(home, row) / "teardown.log").read_text().splitlines()
    assert first == f"{place}/repo {row['workspace']} {shown['ports'].partition('-')[0]}"
    assert f"made-{row['dispatch_id']}.txt" in rest
    assert home.json("history")[0]["note"] == ""
    assert home.strangers() == {}


def test_cleaning_runs_it_too(home: Home) -> None:
    world = World(home, settings="hooks: {teardown: {run: 'echo gone'}}\n")
    row = settled(world)
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text().replace("dispatch: {", "dispatch: {keep_days: 0, "))
    assert home.json("workspace", "clean")["removed"] == [row["workspace"]]
    assert (archive(home, row) / "teardown.log").read_text() == "gone\n"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("echo broken >&2; exit 3", "exit code 3"),
        ("setsid sleep 600 & sleep 600", "stopped after 0.5 s"),
        ("kill -9 $$", "signal 9"),
        (["/nonexistent/program"], "could not be started"),
        ("rm -rf .git; rm -rf ../repo", ""),
    ],
)
def test_a_failure_is_told_and_keeps_nothing(home: Home, run: Any, said: str) -> None:
    world = world_with(home, run, timeout_s=0.5)
    row = settled(world)
    home.run("accept", row["workspace"], cwd=world.repo)
    assert world.file_at("main", f"made-{row['dispatch_id']}.txt")
    assert not (home.core / "workspace" / row["workspace"]).exists()
    note = home.json("history")[0]["note"]
    assert said in note
    if said:
        assert any(said in fact and str(archive(home, row) / "teardown.log") in fact for fact in facts(home, row))
        assert said in " ".join(home.run("history").out.split())
    assert home.strangers() == {}


def test_an_agent_cannot_put_its_words_into_the_hook_s_log(home: Home) -> None:
    world = world_with(home, "echo true words")
    forge = (
        'mkdir -p ../.meta; echo forged > ../.meta/teardown.log; echo \'{"note": "forged"}\' > ../.meta/teardown.json'
    )
    text = (home.core / "agents.yaml").read_text()
    (home.core / "agents.yaml").write_text(
        text.replace("commands:\n", f"commands:\n  forge: {{argv: [/bin/sh, -c, {json.dumps(forge)}]}}\n")
    )
    reply = world.dispatch("a task", "--agent", "command:forge", "--expect", "none")
    assert reply is not None
    row = world.settle()[reply["dispatch_id"]]
    home.run("reject", row["workspace"])
    assert (archive(home, row) / "teardown.log").read_text() == "true words\n"
    assert "forged" not in home.json("history")[0]["note"]


def test_a_daemon_that_dies_in_between_runs_it_again_until_it_has_ended_once(home: Home) -> None:
    ledger = home.dir / "ledger-of-hooks"
    world = world_with(home, f"echo run >> {ledger}; [ -e {home.dir}/go ] || exec sleep 600", timeout_s=300)
    row = settled(world)
    accepting = home.start("accept", row["workspace"], cwd=world.repo)
    deadline = time.monotonic() + 30
    while not ledger.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (home.dir / "go").touch()
    home.kill_daemon()
    accepting.communicate(timeout=60)
    home.run("daemon", "start")
    while (home.core / "workspace" / row["workspace"]).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert home.json("history")[0]["fate"] == "accepted"
    assert ledger.read_text() == "run\n" * 2
    assert home.strangers() == {}


def test_a_repository_s_own_hook_waits_for_trust(home: Home) -> None:
    world = World(home)
    own = world.repo / ".core" / "agents.yaml"
    own.parent.mkdir()
    own.write_text("version: 1\nhooks: {teardown: {run: 'echo theirs'}}\n")
    home.git("add", "-A", cwd=world.repo)
    home.git("commit", "-qm", "settings", cwd=world.repo)
    row = settled(world)
    assert any("without the teardown hook" in fact for fact in facts(home, row))
    home.run("reject", row["workspace"])
    assert not (archive(home, row) / "teardown.log").exists()
    home.run("repo", "trust", "--yes", cwd=world.repo)
    row = settled(world)
    home.run("reject", row["workspace"])
    assert (archive(home, row) / "teardown.log").read_text() == "theirs\n"
