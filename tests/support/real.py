"""The real agent CLIs for tests: the versions that package.json pins, and running one turn of one as the shim would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from coreagent import runners
from coreagent.models.agent import AgentEvent, Cost, EventKind, Outcome, Usage
from coreagent.modelserver import ModelServer
from coreagent.runners.base import Launch, NoSettings, Parser, lay_out

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "claude": "@anthropic-ai/claude-code",
    "codex": "@openai/codex",
    "gemini": "@google/gemini-cli",
    "opencode": "opencode-ai",
}


def pinned_version(name: str) -> str:
    """The version of that CLI which package.json pins."""
    version: str = json.loads((ROOT / "package.json").read_text())["dependencies"][PACKAGES[name]]
    return version


@lru_cache(maxsize=8)
def find(name: str) -> str:
    """Return the pinned CLI: $CORE_AGENT_<NAME>, or node_modules; "" when there is none."""
    for place in (os.environ.get(f"CORE_AGENT_{name.upper()}", ""), str(_installed(name))):
        if place and os.access(place, os.X_OK):
            return place
    return ""


def require(name: str) -> str:
    """Return the CLI. Without one: skip loudly on a person's machine; in CI install it, and fail when that fails."""
    if not find(name) and os.environ.get("CI") == "true":
        _install()
        find.cache_clear()
    path = find(name)
    if path:
        return path
    message = f"the {name} CLI is missing: run `scripts/install-agents`, or set CORE_AGENT_{name.upper()} to it"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def _installed(name: str) -> Path:
    return ROOT / "node_modules" / ".bin" / name


def _install() -> None:
    """Install the pins of package.json into node_modules, once for all test processes."""
    command = [sys.executable, str(ROOT / "scripts" / "install-agents")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        pytest.fail(f"the agents' CLIs cannot be installed:\n{done.stdout}{done.stderr}")


@dataclass
class Ran:
    """One finished turn."""

    outcome: Outcome
    exit_code: int
    events: list[AgentEvent]
    stderr: str
    raw: list[dict[str, Any]] = field(default_factory=list)

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]


@dataclass
class Bench:
    """A hermetic workspace with a git checkout, one session of one CLI, and the model server."""

    root: Path
    server: ModelServer
    launch: Launch
    runner: str

    @property
    def repo(self) -> Path:
        return self.root / "repo"

    def run(self, prompt: str, *, resume: str = "", previous: Cost | Usage | None = None, **changes: Any) -> Ran:
        """Run one turn to its end."""
        with self.start(prompt, resume=resume, previous=previous, **changes) as turn:
            return turn.finish()

    @contextmanager
    def start(
        self, prompt: str, *, resume: str = "", previous: Cost | Usage | None = None, **changes: Any
    ) -> Iterator[Turn]:
        """Start one turn; whatever is left of it is killed at the end."""
        env = {**self.launch.env, **changes.pop("env", {})}
        launch = replace(self.launch, prompt=prompt, resume_session=resume, env=env, **changes)
        runner = runners.load(self.runner)
        plan = runner.plan(launch)
        lay_out(plan, launch.workspace_dir)
        prompt_file = self.root / "prompt"
        prompt_file.write_bytes(plan.stdin or b"")
        parser = (
            runner.parser(previous_usage=previous)
            if isinstance(previous, Usage)
            else runner.parser(previous_cost=previous)
        )
        with prompt_file.open("rb") as stdin:
            process = subprocess.Popen(
                plan.argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=launch.repo_dir,
                env=plan.env,
                start_new_session=True,
            )
        try:
            yield Turn(process, parser, plan.session_id)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


@dataclass
class Turn:
    """A turn that is running."""

    process: subprocess.Popen[bytes]
    parser: Parser
    session_id: str
    events: list[AgentEvent] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)

    def read_until(self, wanted: Callable[[AgentEvent], bool]) -> AgentEvent:
        """Feed lines until an event is the wanted one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            for event in self._feed(line):
                if wanted(event):
                    return event
        raise AssertionError("the stream ended before the event came")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def finish(self, timeout_s: float = 30.0) -> Ran:
        out, err = self.process.communicate(timeout=timeout_s)
        for line in out.splitlines():
            self._feed(line)
        code = self.process.returncode
        outcome = self.parser.end(code if code >= 0 else None, -code if code < 0 else None, err)
        return Ran(outcome, code, self.events, err.decode(), self.raw)

    def _feed(self, line: bytes) -> list[AgentEvent]:
        events = self.parser.feed(line)
        self.events += events
        self.raw.append(json.loads(line))
        return events


def bench(root: Path, server: ModelServer, runner: str, path: str, env: Mapping[str, str]) -> Bench:
    """Lay out a workspace below `root` for one CLI; `env` is what leads it to the server."""
    for name in ("repo", "specs", "home", "config"):
        (root / name).mkdir(parents=True)
    base = {
        "PATH": os.environ["PATH"],
        "HOME": str(root / "home"),
        "LANG": "C.UTF-8",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
    }
    subprocess.run(["git", "init", "-q", str(root / "repo")], check=True, env=base)
    launch = Launch(
        prompt="",
        session_id=str(uuid.uuid4()),
        repo_dir=str(root / "repo"),
        workspace_dir=str(root),
        tmp_dir=str(root / "tmp"),
        config_home=str(root / "config"),
        settings=NoSettings(path=path),
        env={**base, **env},
    )
    return Bench(root, server, launch, runner)


def descendant(pid: int, mark: str, timeout_s: float = 10.0) -> int:
    """Wait for a process below `pid` whose command line begins with `mark`, and return it."""
    if not sys.platform.startswith("linux"):
        pytest.skip("walks /proc")
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _line(entry).startswith(mark) and _below(int(entry.name), pid):
                return int(entry.name)
        time.sleep(0.02)
    raise AssertionError(f"no {mark!r} started")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int, timeout_s: float = 5.0) -> bool:
    """Whether a process is gone within a moment: its parent may leave before its signal has arrived."""
    limit = time.monotonic() + timeout_s
    while alive(pid):
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def _line(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def _below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False
