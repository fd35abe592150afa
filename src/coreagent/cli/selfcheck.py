"""What a release must show before it takes over: `python -m coreagent.cli.selfcheck`, run by `core-agent upgrade`.

It opens a copy of the person's store, and goes through the contract's four scenes (15.7: dispatch, status, restart,
clean) in a temporary home with agents of its own. It prints one JSON line per scene. It is the new release that runs
here, and it never touches the home that it is to serve: a daemon on a copy of it would take its agents for its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coreagent.daemon.launch import ended

LIMIT_S = 60.0
SETTINGS = """\
version: 1
dispatch: {{default_agent: "command:quick"}}
concurrency: {{command: 1}}
commands:
  quick: {{argv: [/bin/sh, -c, 'echo done > "$CORE_AGENT_TASK.txt"']}}
  wait: {{argv: [/bin/sh, -c, 'until [ -e "{go}" ]; do sleep 0.05; done; echo done > "$CORE_AGENT_TASK.txt"']}}
"""


class Failed(Exception):
    """A scene did not go as it must."""


def main(argv: list[str] | None = None) -> int:
    """Run every scene; 0 when all went well."""
    parser = argparse.ArgumentParser(prog="python -m coreagent.cli.selfcheck")
    parser.add_argument("--store", default="", help="a copy of a store; it is changed")
    parser.add_argument("--dispatches", type=int, default=-1, help="how many the copy must hold")
    options = parser.parse_args(argv)
    # Short, because a socket lies in it; under /tmp even where TMPDIR is deep.
    place = Path(tempfile.mkdtemp(prefix="core-agent-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
    stage = Stage(place)
    scenes: list[tuple[str, Callable[[], None]]] = [
        ("dispatch", stage.dispatch),
        ("status", stage.status),
        ("restart", stage.restart),
        ("clean", stage.clean),
    ]
    if options.store:
        scenes.insert(0, ("store", lambda: open_store(options.store, options.dispatches)))
    fine = True
    try:
        for name, scene in scenes:
            problem = ""
            try:
                scene()
            except Exception as error:
                problem = str(error) or type(error).__name__
            sys.stdout.write(json.dumps({"scene": name, "ok": not problem, "problem": problem}) + "\n")
            sys.stdout.flush()
            if problem:
                fine = False
                break
    finally:
        stage.close()
    return 0 if fine else 1


def open_store(path: str, dispatches: int) -> None:
    """Open the copy twice, as this release would: what it changes in the file the first time must be there after."""
    from coreagent.store.store import Store

    for _ in range(2):
        store = Store.open(path, copy_every_s=0)
        try:
            snapshot = store.load()
            found = asyncio.run(_count(store))
        finally:
            store.close()
        if snapshot.problems:
            raise Failed(f"rows that cannot be read: {snapshot.problems[:3]}")
        if dispatches not in (-1, found):
            raise Failed(f"it holds {found} dispatches, not {dispatches}")


async def _count(store: Any) -> int:
    return int((await store.query("SELECT count(*) AS n FROM dispatches"))[0]["n"])


class Stage:
    """A temporary home, a repository, and the commands of this release."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.repo = place / "repo"
        self.go = place / "go"
        self.core = place / "home"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "CORE_"))}
        self.env = {
            **kept,
            "HOME": str(place / "user"),
            "CORE_HOME": str(self.core),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            **{f"GIT_{who}_{what}": "core-agent" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        for directory in (place / "user", self.repo, self.core):
            directory.mkdir(mode=0o700)
        (self.core / "agents.yaml").write_text(SETTINGS.format(go=self.go))
        (self.repo / "README.md").write_text("# check\n")
        for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
            subprocess.run(["git", *words], cwd=self.repo, env=self.env, check=True, capture_output=True, timeout=60)

    def ask(self, *words: str) -> Any:
        """Run a command of this release and return what it says."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "coreagent", *words, "--json"],
            cwd=self.repo,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise Failed(f"core-agent {' '.join(words)}: {(done.stdout + done.stderr).strip()[-300:]}")
        return json.loads(done.stdout)

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["workspace"].rpartition("/")[2]: row for row in self.ask("status", "--all")["workspaces"]}

    def until(self, states: dict[str, str]) -> dict[str, dict[str, Any]]:
        """Wait until these workspaces are in these states."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            rows = self.rows()
            now = {name: rows[name]["state"] if name in rows else "missing" for name in states}
            if now == states:
                return rows
            if time.monotonic() > deadline:
                raise Failed(f"expected {states}, found {now}")
            time.sleep(0.1)

    def give(self, name: str, agent: str, *more: str) -> None:
        self.ask("dispatch", name, "--name", name, "--agent", f"command:{agent}", *more)

    def dispatch(self) -> None:
        """One runs, two wait; the daemon is restarted; nothing is lost, and each runs once."""
        self.give("first", "wait")
        self.until({"first": "running"})
        self.give("second", "quick")
        self.give("urgent", "quick", "--priority", "5")
        before = [row["workspace"] for row in self.ask("queue", "list")["rows"]]
        self.ask("daemon", "restart")
        after = [row["workspace"] for row in self.ask("queue", "list")["rows"]]
        if before != after or len(after) != 2 or not after[0].endswith("/urgent"):
            raise Failed(f"the queue was {before} before a restart and {after} after it")
        self.go.touch()
        rows = self.until(dict.fromkeys(("first", "second", "urgent"), "completed"))
        if any(rows[name]["runs"] != 1 for name in ("first", "second", "urgent")):
            raise Failed("a task did not run exactly once")

    def status(self) -> None:
        """What status says is the same before and after a restart."""

        def said() -> dict[str, Any]:
            kept = ("state", "stage", "fate", "files", "runs", "branch")
            return {name: {key: row[key] for key in kept} for name, row in self.rows().items()}

        before = said()
        self.ask("daemon", "restart")
        if before != (after := said()):
            raise Failed(f"{before} became {after}")

    def restart(self) -> None:
        """Daemon, shim and agent die at once; afterwards there are no ghosts."""
        self.go.unlink()
        self.give("ghost", "wait")
        row = self.until({"ghost": "running"})["ghost"]
        daemon = self.ask("daemon", "status")["pid"]
        for pid in (daemon, row["pid"]):
            os.kill(pid, signal.SIGKILL)
        if not ended(daemon, LIMIT_S):  # until it is gone it may still take a connection, and answer nothing
            raise Failed(f"the daemon (pid {daemon}) cannot be killed")
        rows = self.until({"ghost": "failed"})
        if rows["ghost"]["reason"] != "died" or rows["ghost"]["pid"]:
            raise Failed(f"what died is told as {rows['ghost']['reason']}")
        if self.ask("status")["counts"]["running"]:
            raise Failed("a slot is still held")

    def clean(self) -> None:
        """Accepted and rejected workspaces go, the one that nobody judged stays."""
        self.ask("accept", "first")
        self.ask("reject", "ghost")
        self.ask("workspace", "clean")
        left = {place.name for place in (self.core / "workspace").glob("*/*/*") if not place.name.startswith(".")}
        if left != {"second", "urgent"} or not (self.repo / "first.txt").is_file():
            raise Failed(f"these are left: {sorted(left)}")

    def close(self) -> None:
        """Nothing is left behind, not even by a release that does not work."""
        try:
            self.ask("daemon", "stop", "--now")
        except (Failed, OSError, subprocess.SubprocessError, ValueError):
            pass  # it never started, or cannot stop; what can still be found is ended below
        lock = self.core / "run" / "daemon.lock"
        try:
            pid = int(lock.read_text().strip() or 0)
        except (OSError, ValueError):
            pid = 0
        if pid and _serves(pid, str(self.core)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.place, ignore_errors=True)


def _serves(pid: int, home: str) -> bool:
    from coreagent import process

    try:
        return process.alive(pid, process.start_time(pid) or 0) and home in process.environ_of(pid).get("CORE_HOME", "")
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
