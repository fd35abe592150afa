"""Programs of agents that are not as they should be: two of one name, too old, gone, not logged in, updated."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.home import Home

THREAD = "01a1fcbd-872f-7443-b15c-d1d5eeb2c778"
PLAYS = f"""\
#!/bin/sh
[ "$1" = --version ] && {{ echo "codex-cli VERSION"; exit; }}
echo '{{"type":"thread.started","thread_id":"{THREAD}"}}'
touch "$HOME/began"
while [ ! -e "$HOME/go" ]; do sleep 0.05; done
echo hello > a.txt
echo '{{"type":"turn.completed","usage":{{"input_tokens":10,"output_tokens":1}}}}'
"""


def put(directory: Path, version: str) -> Path:
    """Lay a codex of that version into a directory; an update replaces the file, as installers do."""
    directory.mkdir(exist_ok=True)
    fresh = directory / ".codex.new"
    fresh.write_text(PLAYS.replace("VERSION", version))
    fresh.chmod(0o755)
    return fresh.replace(directory / "codex")


@pytest.fixture
def programs(home: Home) -> Path:
    directory = home.dir / "bin"
    put(directory, "0.169.0")
    home.env |= {"PATH": f"{directory}:{home.env['PATH']}", "CODEX_API_KEY": "sk"}
    return directory


def test_the_one_that_is_used_is_told_and_the_other_too(home: Home, programs: Path) -> None:
    other = put(home.dir / "later", "0.170.0")
    home.env["PATH"] += f":{other.parent}"
    row = next(row for row in home.json("agents") if row["name"] == "codex")
    assert (row["path"], row["version"], row["others"]) == (f"{programs}/codex", "0.169.0", [str(other)])
    shown = "".join(home.run("agents").out.split())
    assert f"{programs}/codexisused;thereisalso{other}" in shown
    checks = [check for check in home.json("doctor", code=None)["checks"] if check["name"] == "codex"]
    assert [check["state"] for check in checks] == ["ok", "warn"]
    assert "runners.codex.path" in checks[1]["hint"]
    # Chosen in the settings, it is the one, and there is nothing to tell.
    (home.core / "agents.yaml").write_text(f"version: 1\nrunners: {{codex: {{path: {other}}}}}\n")
    row = next(row for row in home.json("agents") if row["name"] == "codex")
    assert (row["path"], row["version"], row["others"]) == (str(other), "0.170.0", [])


def test_too_old_gone_or_without_a_login_is_refused_before_anything_is_made(home: Home, programs: Path) -> None:
    repo = home.repo()
    for prepare, slug in (
        (lambda: put(programs, "0.99.0"), "runner_too_old"),
        (lambda: (programs / "codex").unlink(), "runner_missing"),
        (lambda: (put(programs, "0.169.0"), home.env.pop("CODEX_API_KEY")), "not_logged_in"),
    ):
        prepare()
        refused = home.json("dispatch", "x", "--agent", "codex", cwd=repo, code=None)
        assert refused["error"]["slug"] == slug
        assert refused["error"]["hint"]
    assert home.json("status", "--all")["workspaces"] == []


def test_what_is_too_old_or_gone_is_refused_by_resume_too(home: Home, programs: Path) -> None:
    repo = home.repo()
    home.run("queue", "freeze")
    home.run("dispatch", "x", "--agent", "codex", "-n", "mine", cwd=repo)
    home.run("pause", "mine")
    home.run("queue", "start")
    for prepare, slug in (
        (lambda: put(programs, "0.99.0"), "runner_too_old"),
        (lambda: put(programs, "banana"), "runner_missing"),
        (lambda: (programs / "codex").unlink(), "runner_missing"),
    ):
        prepare()
        refused = home.json("resume", "mine", code=69)
        assert refused["error"]["slug"] == slug
        assert home.json("status", "mine")["workspaces"][0]["state"] == "paused"
    put(programs, "0.169.0")
    home.run("resume", "mine")
    (home.user / "go").touch()
    assert until(home, "mine", "completed")["runs"] == 1


def test_one_that_is_too_old_by_the_time_it_is_started_fails_with_a_clear_reason(home: Home, programs: Path) -> None:
    repo = home.repo()
    home.run("queue", "freeze")
    home.run("dispatch", "x", "--agent", "codex", "-n", "late", cwd=repo)
    put(programs, "0.99.0")
    home.run("queue", "start")
    row = until(home, "late", "failed")
    assert (row["state"], row["runs"]) == ("failed", 0)
    assert "0.99.0; at least 0.100.0 is needed" in row["detail"]
    # Nothing is lost: with a good one it is asked again.
    put(programs, "0.170.0")
    (home.user / "go").touch()
    home.run("resume", "late", "--wait", "--wait-timeout", "20s")
    row = home.json("status", "late", "--all")["workspaces"][0]
    assert (row["state"], row["runs"], row["tokens"]) == ("completed", 1, 11)


def test_an_update_in_mid_run_changes_neither_the_run_nor_what_is_told_of_it(home: Home, programs: Path) -> None:
    repo = home.repo()
    home.run("dispatch", "x", "--agent", "codex", "-n", "one", cwd=repo)
    until(home, "one", "running")
    while not (home.user / "began").exists():
        home.run("status", "one")
    put(programs, "0.200.0")
    (home.user / "go").touch()
    until(home, "one", "completed")
    home.run("resume", "one", "and more", "--wait", "--wait-timeout", "20s")
    attempts = home.json("workspace", "show", "one")["attempts"]
    assert [(a["version"], a["reason"]) for a in attempts] == [("0.169.0", None), ("0.200.0", None)]
    assert "codex 0.169.0" in home.run("why", "one").out


def until(home: Home, name: str, state: str) -> dict[str, Any]:
    """Ask until the workspace is in that state, and return its row."""
    ends = time.monotonic() + 30
    while True:
        row: dict[str, Any] = home.json("status", name, "--all")["workspaces"][0]
        if row["state"] == state:
            return row
        assert time.monotonic() < ends, row
