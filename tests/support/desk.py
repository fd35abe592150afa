"""A home with a real agent CLI on its PATH, a repository, and a model of ours that the CLI talks to."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreagent.daemon import launch
from coreagent.models.agent import Usage
from coreagent.modelserver import ModelServer, Script, Step, Tool
from tests.support.claude import KEY, require_claude
from tests.support.home import Home

USAGE = Usage(input=1000, output=50, cache_read=30, cache_write=20)
CALL = USAGE.total
"""Tokens of one answer of the model."""
WAIT_S = 45.0


def write(name: str, content: str = "hello\n") -> Tool:
    return Tool("Write", {"file_path": "{cwd}/" + name, "content": content})


def shell(command: str) -> Tool:
    return Tool("Bash", {"command": command, "description": "x"})


def edit(key: str, *names: str, **first: Any) -> Script:
    """Two answers: write the files, then say that it is done."""
    return Script(key, [Step("I will.", [write(n) for n in names], usage=USAGE, **first), Step("Done.", usage=USAGE)])


def sleeper(seconds: int) -> str:
    """A command line of which a process can be told by its number of seconds."""
    return f"{sys.executable} -c 'import time; time.sleep({seconds})'"


@dataclass(frozen=True)
class Cli:
    """A real CLI: its runner's name, its program, and what leads it to the model."""

    name: str
    path: str
    env: Mapping[str, str]


def claude_cli(server: ModelServer) -> Cli:
    env = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_API_KEY": KEY,
        "CLAUDE_CODE_MAX_RETRIES": "0",
        "API_TIMEOUT_MS": "30000",
    }
    return Cli("claude", require_claude(), env)


class Desk:
    """What a person has before them; every command is the installed one."""

    def __init__(
        self, home: Home, server: ModelServer, settings: str = "", cli: Cli | None = None, at_once: int = 2
    ) -> None:
        self.home, self.server = home, server
        cli = cli or claude_cli(server)
        self.repo = home.repo()
        home.git("config", "user.name", "Person", cwd=self.repo)
        home.git("config", "user.email", "person@example.org", cwd=self.repo)
        home.core.mkdir(mode=0o700, exist_ok=True)
        (home.core / "agents.yaml").write_text(
            f"version: 1\ndispatch: {{default_agent: {cli.name}}}\nconcurrency: {{{cli.name}: {at_once}}}\n" + settings
        )
        home.env["PATH"] = f"{Path(cli.path).parent}:{home.env['PATH']}"
        # The daemon is started without them: an agent that has them got them from its own client.
        home.run("daemon", "start")
        home.env |= cli.env

    def dispatch(self, task: str, name: str, *argv: str, code: int | None = 0, wait: bool = True) -> dict[str, Any]:
        """Dispatch, wait for the end unless told otherwise, and return the row of `status`."""
        waiting = ["--wait", "--wait-timeout", f"{WAIT_S:.0f}s"] if wait else []
        self.home.run("dispatch", task, "--name", name, *waiting, *argv, "--json", cwd=self.repo, code=code)
        return self.row(name)

    def resume(self, name: str, *argv: str, code: int | None = 0) -> dict[str, Any]:
        self.home.run("resume", name, *argv, "--wait", "--wait-timeout", f"{WAIT_S:.0f}s", "--json", code=code)
        return self.row(name)

    def row(self, name: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.home.json("status", name, "--all")["workspaces"]
        return rows[0]

    def show(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = self.home.json("workspace", "show", name)
        return told

    def until(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the row of `status` is as wanted, and return it."""
        seq, ends = 1, time.monotonic() + WAIT_S
        while True:
            row = self.row(name)
            if wanted(row):
                return row
            if time.monotonic() > ends:
                raise AssertionError(f"{row}\n{self.home.log()[-3000:]}")
            lines = self.home.run("watch", name, "--since", str(seq), "--once", "--timeout", "1s", "--json", code=None)
            seq = max([seq, *(json.loads(line)["seq"] for line in lines.out.splitlines())])

    def checkout(self, name: str) -> Path:
        return self.home.core / "workspace" / "local" / "repo" / name / "repo"

    def at_branch(self, name: str, file: str) -> str:
        return self.home.git("show", f"agent/{name}:{file}", cwd=self.repo)

    def agents(self) -> dict[int, str]:
        """What runs in this home beside the daemon."""
        return self.home.strangers()

    def wait_for_file(self, path: Path) -> None:
        ends = time.monotonic() + WAIT_S
        while not path.exists():
            if time.monotonic() > ends:
                raise AssertionError(f"{path} does not come\n{self.home.log()[-3000:]}")
            time.sleep(0.02)

    def wait_for_end(self, pid: int) -> None:
        if not launch.ended(pid, WAIT_S):
            raise AssertionError(f"process {pid} does not end")

    def said(self, name: str) -> list[dict[str, Any]]:
        """The results that the CLI itself printed, attempt by attempt."""
        meta = self.checkout(name).parent / ".meta"
        # It is put there right after the end was told.
        runs = self.row(name)["runs"]
        deadline = time.monotonic() + 20
        while meta.is_dir() and len(list(meta.glob("**/out"))) < runs and time.monotonic() < deadline:
            time.sleep(0.02)
        found = []
        for out in sorted(meta.glob("**/out")):
            records = [json.loads(line) for line in out.read_text().splitlines()]
            found += [record for record in records if record.get("type") == "result"]
        return found


@contextmanager
def seated(home: Home, scripts: Sequence[Script], settings: str = "") -> Iterator[Desk]:
    """A desk whose model plays these scripts; at the end nothing runs that should not."""
    with ModelServer(scripts) as server:
        desk = Desk(home, server, settings)
        yield desk
        assert desk.agents() == {}
