"""`doctor --offline`: prove an installation from end to end with no key and no network.

A temporary home with its own daemon, a temporary repository, a model server of ours on loopback and, when it is
installed, the real claude CLI. Without it the built-in agent proves the rest. Everything made here is removed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from coreagent import runners
from coreagent.modelserver import ModelServer, Script, Step, Tool
from coreagent.plural import plural
from coreagent.runners.base import NoSettings

LIMIT_S = 180.0
FILE = "PROOF.txt"
TEXT = "written by the agent\n"
Finding = tuple[str, Literal["ok", "warn", "fail"], str, str]

_SCRIPTED = {"steps": [{"write": {"path": FILE, "content": TEXT}}, {"say": "done"}]}


def prove(env: Mapping[str, str]) -> Iterator[Finding]:
    """Dispatch, wait, accept, and look at the file; yields what was found."""
    found = runners.load("claude").find(env, NoSettings())
    if found.problem:
        yield "offline", "warn", f"{found.message}; the built-in agent takes its place", found.hint
    # Short, because a socket lies in it; under /tmp even where TMPDIR is deep.
    place = Path(tempfile.mkdtemp(prefix="core-agent-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
    try:
        with ModelServer([_conversation()]) as server:
            yield from _Proof(place, env, server.url, "scripted" if found.problem else "claude").run()
            if not found.problem:
                yield (
                    "model",
                    "ok" if server.requests else "fail",
                    f"{plural(len(server.requests), 'request')} answered here",
                    "",
                )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _conversation() -> Script:
    write = Tool("Write", {"file_path": "{cwd}/" + FILE, "content": TEXT})
    return Script(key="", steps=[Step(text="I write the file.", tools=[write]), Step(text="Done.")])


class _Proof:
    """One temporary installation and the commands that are run in it."""

    def __init__(self, place: Path, env: Mapping[str, str], url: str, agent: str) -> None:
        self.place, self.agent = place, agent
        self.repo = place / "repo"
        kept = {
            name: value for name, value in env.items() if not name.startswith(("GIT_", "ANTHROPIC_", "CLAUDE", "CORE_"))
        }
        self.env = {
            **kept,
            "HOME": str(place / "user"),
            "CORE_HOME": str(place / "home"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "sk-offline-proof",
        }

    def run(self) -> Iterator[Finding]:
        (self.place / "user").mkdir()
        self.repo.mkdir()
        try:
            self._repository()
            yield from self._dispatch()
        except (OSError, subprocess.SubprocessError) as error:
            yield "offline", "fail", str(error), ""
        finally:
            self._core_agent("daemon", "stop", "--now")

    def _repository(self) -> None:
        (self.repo / "README.md").write_text("# proof\n")
        who = ["-c", "user.name=core-agent", "-c", "user.email=proof@core-agent.invalid"]
        for words in (["init", "-q", "-b", "main"], ["add", "-A"], [*who, "commit", "-q", "-m", "first"]):
            subprocess.run(["git", *words], cwd=self.repo, env=self.env, check=True, capture_output=True, timeout=60)

    def _dispatch(self) -> Iterator[Finding]:
        words = ["dispatch", "--agent", self.agent, "--name", "proof", f"Write {FILE}."]
        if self.agent == "scripted":
            script = self.place / "script.yaml"
            script.write_text(json.dumps(_SCRIPTED))
            words += ["--script", str(script)]
        code, lines = self._core_agent(*words, "--wait", "--wait-timeout", f"{LIMIT_S:.0f}s")
        last = lines[-1] if lines else {}
        if code != 0:
            error = last.get("error", {})
            said = error.get("message") or last.get("detail") or f"exit code {code}"
            yield (
                "offline",
                "fail",
                f"{self.agent} did not complete ({last.get('reason') or error.get('slug')}): {said}",
                "",
            )
            return
        yield (
            "offline",
            "ok",
            f"{self.agent} worked in a workspace of its own, {plural(last.get('tokens', 0), 'token')}",
            "",
        )
        code, lines = self._core_agent("accept", "proof")
        landed = self.repo / FILE
        if code == 0 and landed.is_file() and landed.read_text() == TEXT:
            yield "offline", "ok", "its change was harvested, checked and accepted", ""
        else:
            error = lines[-1].get("error", {}) if lines else {}
            yield "offline", "fail", f"the change did not land: {error.get('message', f'exit code {code}')}", ""

    def _core_agent(self, *words: str) -> tuple[int, list[dict[str, Any]]]:
        """Run this very program and return its exit code and the JSON documents that it printed."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "coreagent", *words, "--json"],
            cwd=self.repo,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S + 60,
            check=False,
        )
        try:
            return done.returncode, [json.loads(done.stdout)]
        except ValueError:
            return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
