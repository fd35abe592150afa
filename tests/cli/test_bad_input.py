"""Bad input: a code, what was wrong and what to do, the same on every face; nothing is lost and nothing is made."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from tests.support.home import COMMAND, Home
from tests.support.world import World

from coreagent import paths
from coreagent.capability import Caller
from coreagent.cli.session import ask
from coreagent.errors import CODES, EXIT_CODES, CoreAgentError


@dataclass(frozen=True)
class Bad:
    """A dispatch that must be refused: what it is called with, and the words that its message or hint must hold."""

    slug: str
    arguments: dict[str, Any]
    words: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    stdin: str | None = None
    hint: bool = True
    task: str = field(default="do it")


def option(name: str, value: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    return {name: value}, (f"--{name.replace('_', '-')}={value}",)


def bad(slug: str, name: str, value: object, *words: str, hint: bool = True, **more: Any) -> Bad:
    arguments, argv = option(name, value)
    return Bad(slug, {**arguments, **more}, words, argv, hint=hint)


LONG = "x" * (1 << 20)
CASES = {
    "unknown agent": bad("unknown_agent", "agent", "clod", "clod", "claude"),
    "unknown command": bad("unknown_agent", "agent", "command:nope", "nope"),
    "agent like an option": bad("unknown_agent", "agent", "--help"),
    "not a repository": bad("not_a_repository", "repo", "{user}/plain", "plain"),
    "bare": bad("bare_repository", "repo", "{user}/bare.git", "bare"),
    "no commit yet": bad("unborn_head", "repo", "{user}/unborn", "commit"),
    "no such directory": bad("repo_not_found", "repo", "nowhere", "nowhere"),
    "missing branch": bad("no_such_ref", "branch", "nope", "nope"),
    "branch like an option": bad("invalid_name", "branch", "--help", "--help"),
    "branch that climbs": bad("invalid_name", "branch", "../../main"),
    "missing tag": bad("no_such_ref", "tag", "v9", "v9"),
    "pull request without a task": replace(bad("issue_unavailable", "pr", 7, "pull request 7", "--pr"), task=""),
    "missing pull request": bad("no_such_ref", "pr", 99, "git fetch origin pull/99/head"),
    "unknown template": bad("template_not_found", "template", "codign", "coding"),
    "template that climbs": bad("template_not_found", "template", "../../agents"),
    "unknown persona": bad("persona_not_found", "persona", "nobody", "nobody"),
    "name that climbs": bad("invalid_name", "name", "../x", "../x"),
    "name like an option": bad("invalid_name", "name", "--help", "--help"),
    "name of a directory": bad("invalid_name", "name", ".."),
    "name with a slash": bad("invalid_name", "name", "a/b"),
    "name with a line break": bad("invalid_name", "name", "a\nb"),
    "name without end": bad("invalid_name", "name", "x" * 300),
    "two starts": Bad("conflicting_options", {"issue": 1, "pr": 2}, ("--issue", "--pr"), ("--issue", "1", "--pr", "2")),
    "task of a megabyte": Bad("too_large", {}, ("120 KiB",), stdin=LONG, task=LONG),
    "task with NUL": Bad("invalid_argument", {}, ("NUL",), stdin="a\0b", task="a\0b", hint=False),
    "script that is none": bad("bad_script", "agent", "scripted"),
    "priority out of range": bad("invalid_argument", "priority", 10**30),
}


@pytest.fixture
def world(home: Home) -> World:
    world = World(home)
    (home.user / "plain").mkdir()
    home.git("init", "-q", "--bare", str(home.user / "bare.git"), cwd=home.user)
    home.git("init", "-q", str(home.user / "unborn"), cwd=home.user)
    return world


def everything(home: Home) -> list[str]:
    """All that a refused dispatch could leave behind."""
    kept = ("workspace", "attempts", "pending", "archive", "repos", "index")
    return sorted(str(p) for name in kept for p in (home.core / name).rglob("*"))


async def over_mcp(home: Home, cwd: Path, calls: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    server = StdioServerParameters(command=str(COMMAND), args=["mcp"], env=home.env, cwd=str(cwd))
    told = {}
    async with Client(stdio_client(server)) as client:
        for name, arguments in calls.items():
            answer = await client.call_tool("agentic_dispatch", arguments)
            assert answer.is_error, name
            assert answer.structured_content is not None
            told[name] = answer.structured_content["error"]
    return told


def test_a_refused_dispatch_is_the_same_everywhere(world: World) -> None:
    home = world.home
    home.run("status")
    branches, before = world.branches(), everything(home)
    wanted = {}
    for name, case in CASES.items():
        given = {k: v.replace("{user}", str(home.user)) if isinstance(v, str) else v for k, v in case.arguments.items()}
        wanted[name] = {"task": case.task, **given}
    for name, case in CASES.items():
        words = [word.replace("{user}", str(home.user)) for word in case.argv]
        argv = ["dispatch", *words, "-" if case.stdin else case.task]
        code = EXIT_CODES[CODES[case.slug].kind]
        said = home.json(*argv, stdin=case.stdin, cwd=world.repo, code=None)
        assert said["error"]["slug"] == case.slug, (name, said)
        text = home.run(*argv, stdin=case.stdin, cwd=world.repo, code=code)
        assert text.out == "", name
        lines = text.err.splitlines()
        assert lines[0].startswith(f"error[{CODES[case.slug].code}]: "), (name, text.err)
        assert any(line.startswith("hint: ") for line in lines) or not case.hint, (name, text.err)
        for word in case.words:
            assert word in text.err, (name, text.err)
        caller = Caller(cwd=str(world.repo), env=home.env)
        with pytest.raises(CoreAgentError) as framed:
            ask(str(home.core), "dispatch", wanted[name], caller, start=False)
        assert framed.value.as_dict()["error"] == said["error"], name
        wanted[name + " said"] = said["error"]
    calls = {name: {"repo": str(world.repo), **wanted[name]} for name in CASES}
    for name, error in asyncio.run(over_mcp(home, world.repo, calls)).items():
        assert error == wanted[name + " said"], name
    assert home.json("status", "--all")["workspaces"] == []
    assert home.json("repo", "list") == []
    assert home.json("history") == []
    assert everything(home) == before
    assert world.branches() == branches
    assert "Traceback" not in home.log()


def test_arguments_that_no_command_takes(world: World) -> None:
    """What only the command line can be asked: usage errors, exit code 2, with the command whose help says more."""
    home = world.home
    for argv in (
        ["dispatch"],
        ["dispatch", "x", "--timeout", "soon"],
        ["dispatch", "x", "--timeout", "0s"],
        ["dispatch", "x", "--var", "novalue"],
        ["dispatch", "x", "--expect", "wonders"],
        ["dispatch", "x", "--priority", "high"],
        ["dispatch", "x", "--no-such-option"],
        ["no-such-command"],
        ["status", "a", "b"],
        ["accept"],
        ["accept", "x", "--squash", "--merge"],
        ["daemon", "stop", "--drain", "--now"],
        ["history", "--limit", "many"],
        ["why", ""],
    ):
        error = home.json(*argv, cwd=world.repo, code=2)["error"]
        assert error["kind"] in ("usage", "invalid"), argv
        text = home.run(*argv, cwd=world.repo, code=2).err
        assert text.startswith(f"error[{error['code']}]: "), (argv, text)
    for argv in (["why", "--", "--help"], ["why", "../x"], ["accept", "a/b/c/d"], ["logs", "x\x1b[2Jy"]):
        done = home.run(*argv, cwd=world.repo, code=1)
        assert done.err.startswith("error[E2008]: "), (argv, done.err)
        assert "\x1b" not in done.err


def test_settings_with_a_mistake(world: World) -> None:
    """Line, column, key and the nearest valid key; what runs is not touched, nothing starts on a guess."""
    home = world.home
    home.run("status")
    settings = home.core / "agents.yaml"
    good = settings.read_text()
    for text, words in (
        ("dispatch:\n  default_agnet: claude\n", ("agents.yaml:2:3", "dispatch.default_agnet", "default_agent")),
        ("dispatch:\n  keep_days: often\n", ("agents.yaml:2:3", "dispatch.keep_days")),
        ("concurrency: [1, 2]\n", ("agents.yaml:1:", "concurrency")),
        ("dispatch: {default_agent: 'x\n", ("agents.yaml:",)),
        ("version: 2\n", ("agents.yaml:1:1", "version")),
    ):
        settings.write_text(text)
        # A daemon that knows good settings goes on with them and says so; one that never had any starts nothing.
        home.run("daemon", "stop")
        Path(paths.last_good_settings(str(home.core))).unlink(missing_ok=True)
        error = home.json("dispatch", "x", cwd=world.repo, code=2)["error"]
        assert error["slug"] == "settings_invalid", error
        told = json.dumps(error)
        assert str(settings) in told
        for word in words:
            assert word in told, (word, error)
        caller = Caller(cwd=str(world.repo), env=home.env)
        with pytest.raises(CoreAgentError) as framed:
            ask(str(home.core), "dispatch", {"task": "x"}, caller, start=False)
        assert framed.value.as_dict()["error"] == error
        assert asyncio.run(over_mcp(home, world.repo, {"x": {"task": "x", "repo": str(world.repo)}}))["x"] == error
        assert any("agents.yaml" in w for w in home.json("status")["warnings"])
        assert home.json("doctor", code=1)["ok"] is False
    settings.write_text(good)
    assert home.json("status")["warnings"] == []
    settings.write_text("dispach: {}\n")
    reply = world.dispatch("x", "--dry-run")
    assert reply is not None
    assert "did you mean `dispatch`" in " ".join(reply["notes"])
    assert "the last good settings are in force" in reply["notes"]
    assert not [note for note in reply["notes"] if "hint:" in note or "caused by:" in note]


def test_a_current_directory_that_was_removed(world: World) -> None:
    gone = world.home.user / "gone"
    gone.mkdir()
    script = f'rmdir "$PWD"; exec {COMMAND} dispatch x -a scripted'
    done = subprocess.run(
        ["sh", "-c", script], cwd=gone, env=world.home.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.startswith("error[E1002]")) == (2, True)
    assert "no current directory" in done.stderr
    assert "not there any more" in done.stderr
    assert "--repo" in done.stderr


def test_nowhere_to_live(world: World) -> None:
    home = world.home
    long = {"CORE_HOME": "/tmp/" + "x" * 120}
    file = home.dir / "file"
    file.write_text("")
    for env, slug in (
        ({"HOME": ""}, "no_home"),
        ({"CORE_HOME": "below"}, "no_home"),
        ({"CORE_HOME": "~/core"}, "no_home"),
        ({"HOME": "."}, "no_home"),
        (long, "socket_path_too_long"),
        ({"CORE_HOME": str(file)}, "daemon_start_failed"),
        ({"CORE_HOME": "/proc/nowhere"}, "daemon_start_failed"),
    ):
        code = EXIT_CODES[CODES[slug].kind]
        for argv in (["status"], ["dispatch", "x"], ["daemon", "status"], ["daemon", "start"], ["init"], ["mcp"]):
            if slug != "socket_path_too_long" and argv == ["daemon", "status"]:
                continue
            if argv == ["mcp"]:
                assert f"error[{CODES[slug].code}]" in home.run(*argv, env=env, code=code).err, argv
                continue
            error = home.json(*argv, env=env, code=code)["error"]
            assert error["slug"] == slug, (argv, error)
            assert error["message"]
            assert error["hint"]
    assert not (home.user / "below").exists()
    said = home.run("status", env={"CORE_HOME": "below"}, code=2).err
    assert "CORE_HOME is 'below', which is no absolute path" in said
    assert "no absolute path" in home.run("doctor", env={"CORE_HOME": "below"}, code=None).out
    for name in ("CORE_HOME", "HOME"):
        env = {"CORE_HOME": "", name: f"{home.dir}/c\udcff"}
        assert home.json("status", env=env, code=2)["error"]["slug"] == "no_home"
        said = home.run("status", env=env, code=2).err
        assert f"{name} is '{home.dir}/c\\udcff', which is no UTF-8" in said
    assert not Path(long["CORE_HOME"]).exists()
    assert home.daemon_pid == 0
