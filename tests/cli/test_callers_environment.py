"""Whose environment is looked at: that of whoever asks, on every face, whatever the daemon was started with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.support.home import Home

from coreagent.capability import Caller
from coreagent.cli.session import exchange
from coreagent.daemon import launch

KEY = "key-of-the-person-7f3a"


@pytest.fixture
def desk(home: Home) -> tuple[Home, Path]:
    """A daemon whose PATH has no claude, and from then on a shell that has one and a key for it."""
    home.repo()
    home.run("daemon", "start")
    program = home.dir / "bin" / "claude"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "2.1.328 (Claude Code)"\n')
    program.chmod(0o755)
    home.env |= {"PATH": f"{program.parent}:{home.env['PATH']}", "ANTHROPIC_API_KEY": KEY}
    return home, program


def test_a_command_has_the_callers_environment(desk: tuple[Home, Path]) -> None:
    home, program = desk
    rows = {row["name"]: row for row in home.json("agents")}
    assert (rows["claude"]["path"], rows["claude"]["login"]) == (str(program), "yes")
    shown = home.json("dispatch", "x", "-a", "claude", "--dry-run", cwd=home.user / "repo")
    assert shown["argv"][0] == str(program)
    # It says nothing that claude would say, so its turn fails: but it was found, at once and when it was resumed.
    home.run("dispatch", "x", "-a", "claude", "-n", "one", "--wait", cwd=home.user / "repo", code=10)
    home.run("resume", "one", "--wait", code=10)
    row = home.json("status", "one")["workspaces"][0]
    assert (row["runs"], row["reason"]) == (2, "died")
    assert str(program) in home.run("attach", "one", "--print").out


def test_what_attach_prints_works_when_it_is_pasted_and_holds_no_secret(desk: tuple[Home, Path]) -> None:
    home, program = desk
    home.run("dispatch", "x", "-a", "claude", "-n", "one", "--wait", cwd=home.user / "repo", code=10)
    program.write_text('#!/bin/sh\ntest -f "$CLAUDE_CONFIG_DIR/.claude.json" && echo "$PWD $ANTHROPIC_API_KEY $*"\n')
    private = home.core / "workspace/local/repo/one"
    for file in private.rglob(".claude.json"):
        file.unlink()
    line = home.run("attach", "one", "--print").out
    assert KEY not in line
    pasted = subprocess.run(["sh", "-c", line], env=home.env, cwd="/", capture_output=True, text=True, check=True)
    assert pasted.stdout.startswith(f"{private}/repo {KEY} --")
    told = home.json("attach", "one")
    assert KEY not in json.dumps(told)
    assert "ANTHROPIC_API_KEY" in told["from_your_shell"]
    assert told["env"]["CLAUDE_CONFIG_DIR"].startswith(str(private))


def test_a_call_and_an_mcp_client_have_theirs(desk: tuple[Home, Path]) -> None:
    home, program = desk
    arguments = {"task": "x", "agent": "claude", "repo": str(home.user / "repo"), "dry_run": True}
    caller = Caller(cwd=str(home.user), env=home.env)
    with launch.reach(str(home.core), start=False) as sock:
        body = exchange(sock, {"call": "dispatch", "arguments": arguments}, caller)
    assert body is not None
    assert body["result"]["argv"][0] == str(program)

    info = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {
            "jsonrpc": "2.0",
            "id": 2,
            "method": "tools/call",
            "params": {"name": "agentic_dispatch", "arguments": arguments},
        },
    ]
    said = home.run("mcp", stdin="".join(json.dumps(line) + "\n" for line in lines)).out.splitlines()
    answer = next(one for one in map(json.loads, said) if one.get("id") == 2)
    assert answer["result"]["structuredContent"]["argv"][0] == str(program)
