"""A first day on a machine without any agent's CLI: what `init` chooses, and what the README's commands say then."""

from __future__ import annotations

from pathlib import Path

from tests.support.home import Home


def stub(home: Home, name: str, version: str) -> Path:
    program = home.dir / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    home.env["PATH"] = f"{program.parent}:{home.env['PATH']}"
    return program


def test_without_an_agent_the_first_dispatch_says_what_to_install(home: Home) -> None:
    made = home.run("init")
    assert "no agent's CLI was found" in made.out
    assert "scripted" not in (home.core / "agents.yaml").read_text()
    repo = home.repo()
    refused = home.run("dispatch", "--name", "parser", "Accept ISO weeks in dates", cwd=repo, code=69).err
    assert "error[E4002]: the default agent is claude, and claude is not on the PATH" in refused
    assert "none of claude, " in refused
    assert "npm install -g @anthropic-ai/claude-code" in refused
    for words in (["status"], ["history"]):
        home.run(*words, cwd=repo)
    for verb in ("why", "logs", "diff", "resume", "accept", "reject"):
        done = home.run(verb, "parser", cwd=repo, code=None)
        assert "there is no workspace 'parser'" in done.err, done


def test_an_agent_that_is_ready_is_chosen_and_named(home: Home) -> None:
    stub(home, "claude", "2.1.328")
    stub(home, "codex", "codex-cli 9.0.0")
    env = {"OPENAI_API_KEY": "k", "CODEX_API_KEY": "k"}
    assert home.json("init", env=env)["default_agent"] == "codex"
    (home.core / "agents.yaml").write_text("version: 1\ndispatch: {default_agent: claude}\n")
    (home.dir / "bin" / "claude").unlink()
    refused = home.run("dispatch", "x", cwd=home.repo(), env=env, code=69).err
    assert "ready here: codex" in refused
    assert "--agent codex" in refused
