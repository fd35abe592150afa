"""Finding the claude CLI, and telling whether it is logged in without asking the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from coreagent.errors import CoreAgentError
from coreagent.runners.base import NoSettings
from coreagent.runners.claude import Claude


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + script + "\n")
    path.chmod(0o755)
    return path


def test_find(tmp_path: Path) -> None:
    runner = Claude()
    good = program(tmp_path / "bin" / "claude", "echo '2.1.328 (Claude Code)'")
    found = runner.find({"PATH": str(good.parent)}, NoSettings())
    assert (found.path, found.version, found.problem) == (str(good), "2.1.328", "")
    missing = runner.find({"PATH": "/nonexistent", "HOME": "/nonexistent"}, NoSettings())
    assert (missing.problem, "npm" in missing.hint) == ("runner_missing", True)
    assert runner.find({"PATH": str(good.parent)}, NoSettings(path="/nonexistent/claude")).problem == "runner_missing"


def test_an_old_one_is_refused_and_a_mute_one_is_missing(tmp_path: Path) -> None:
    runner = Claude()
    too_old = runner.find({}, NoSettings(path=str(program(tmp_path / "old", "echo 1.0.99"))))
    assert (too_old.problem, too_old.version) == ("runner_too_old", "1.0.99")
    with pytest.raises(CoreAgentError, match=r"1\.0\.99") as error:
        too_old.require()
    assert error.value.slug == "runner_too_old"
    assert runner.find({}, NoSettings(path=str(program(tmp_path / "mute", "exit 1")))).problem == "runner_missing"


def test_an_upgrade_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "claude"
    settings = NoSettings(path=str(path))
    program(path, "echo 2.0.1")
    assert Claude().find({}, settings).version == "2.0.1"
    program(path, "echo 2.10.11")
    assert Claude().find({}, settings).version == "2.10.11"


def test_the_native_installers_place_is_searched(tmp_path: Path) -> None:
    place = program(tmp_path / ".local" / "bin" / "claude", "echo 2.1.0")
    assert Claude().find({"PATH": "/nonexistent", "HOME": str(tmp_path)}, NoSettings()).path == str(place)


@pytest.mark.parametrize(
    ("env", "state"),
    [
        ({"ANTHROPIC_API_KEY": "k"}, "yes"),
        ({"ANTHROPIC_AUTH_TOKEN": "k"}, "yes"),
        ({"CLAUDE_CODE_OAUTH_TOKEN": "k"}, "yes"),
        ({"CLAUDE_CODE_USE_BEDROCK": "1"}, "unknown"),
        ({"ANTHROPIC_API_KEY": ""}, "no"),
        ({}, "no"),
    ],
)
def test_login_by_environment(env: dict[str, str], state: str, tmp_path: Path) -> None:
    assert Claude().login({"HOME": str(tmp_path), **env}, NoSettings()).state == state


def test_login_by_file(tmp_path: Path) -> None:
    (tmp_path / ".claude").mkdir()
    file = tmp_path / ".claude" / ".credentials.json"
    env = {"HOME": str(tmp_path)}
    file.write_text('{"claudeAiOauth": {"accessToken": "x"}}')
    assert Claude().login(env, NoSettings()).state == "yes"
    file.write_text("{")
    assert Claude().login(env, NoSettings()).state == "unknown"
    file.write_text("{}")
    assert Claude().login(env, NoSettings()).state == "no"
