"""A small world for tests that kill things: a home, a repository, agents that keep a ledger of their executions.

The ledger is what the invariants are checked against: each agent appends one line with its dispatch and attempt when
it is executed, so "run twice" and "never run" are seen from outside of everything that is under test.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from tests.support.home import Home

RESTING = {"paused", "blocked", "completed", "failed", "cancelled"}
WORK = """
echo "$CORE_AGENT_DISPATCH $CORE_AGENT_ATTEMPT" >> {ledger}
echo working
sleep {seconds}
echo "$CORE_AGENT_TASK" > "made-$CORE_AGENT_DISPATCH.txt"
"""


class World:
    """A home whose `command:work` agent writes a file and tells the ledger."""

    def __init__(self, home: Home, *, seconds: float = 0.0, limit: int = 0, settings: str = "") -> None:
        self.home = home
        self.repo = home.repo()
        home.git("config", "user.name", "Person", cwd=self.repo)
        home.git("config", "user.email", "person@example.org", cwd=self.repo)
        self.ledger = home.dir / "ledger"
        home.core.mkdir(mode=0o700, exist_ok=True)
        script = json.dumps(WORK.format(ledger=self.ledger, seconds=seconds))
        long = json.dumps(WORK.format(ledger=self.ledger, seconds=600))
        (home.core / "agents.yaml").write_text(
            "version: 1\n"
            "dispatch: {default_agent: 'command:work'}\n"
            f"concurrency: {{command: {limit}}}\n"
            "commands:\n"
            f"  work: {{argv: [/bin/sh, -c, {script}]}}\n"
            f"  long: {{argv: [/bin/sh, -c, {long}]}}\n" + settings
        )

    def dispatch(self, task: str, *argv: str, code: int | None = 0) -> dict[str, Any] | None:
        """Dispatch and return the reply; None when the command did not succeed and `code` allows that."""
        done = self.home.run("dispatch", task, "--json", *argv, cwd=self.repo, code=code)
        return done.json() if done.code == 0 else None

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every known workspace by its dispatch id, as `status --all` tells it."""
        report = self.ask("status", "--all")
        return {row["dispatch_id"]: row for row in report["workspaces"]}

    def history(self) -> dict[str, dict[str, Any]]:
        return {row["dispatch_id"]: row for row in self.ask("history", "--limit", "10000")}

    def ask(self, *argv: str) -> Any:
        """A reading command; asked again when the daemon died under it, as a person would."""
        for _ in range(5):
            done = self.home.run(*argv, "--json", code=None)
            if done.code == 0:
                return done.json()
            assert done.code == 69, done
        raise AssertionError(f"no daemon answers\n{self.home.log()[-3000:]}")

    def executions(self) -> list[tuple[str, str]]:
        """(dispatch, attempt) of every execution so far."""
        try:
            lines = self.ledger.read_text().split("\n")
        except FileNotFoundError:
            return []
        return [(line.split()[0], line.split()[1]) for line in lines if line]

    def settle(self, *, timeout: float = 60) -> dict[str, dict[str, Any]]:
        """Wait until every dispatch rests, and return the rows."""
        deadline = time.monotonic() + timeout
        while True:
            rows = self.rows()
            if all(row["state"] in RESTING for row in rows.values()):
                return rows
            if time.monotonic() > deadline:
                busy = {row["workspace"]: row["state"] for row in rows.values() if row["state"] not in RESTING}
                raise AssertionError(f"still not at rest: {busy}\n{self.home.log()[-3000:]}")
            self.home.run("watch", "--once", "--timeout", "500ms", "--json", code=None)

    def branches(self) -> set[str]:
        return set(self.home.git("for-each-ref", "--format=%(refname:short)", "refs/heads", cwd=self.repo).split())

    def file_at(self, branch: str, name: str) -> str:
        return self.home.git("show", f"{branch}:{name}", cwd=self.repo)

    def check_nothing_left(self, rows: dict[str, dict[str, Any]]) -> None:
        """No spool, environment file, socket, lock or directory that nothing refers to; no process but the daemon."""
        core = self.home.core
        # A state is told as soon as it is durable; the spool and the socket are put away right after.
        deadline = time.monotonic() + 5
        while (any((core / "attempts").glob("*")) or len(list((core / "run").glob("*.sock"))) > 1) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.01)
        assert list((core / "attempts").glob("*")) == []
        assert list((core / "pending").glob("*")) == []
        known = {row["workspace"] for row in rows.values()}
        on_disk = {str(p.relative_to(core / "workspace")) for p in (core / "workspace").glob("*/*/*")}
        assert on_disk <= known, f"directories that nothing refers to: {on_disk - known}"
        assert not (core / "archive" / "orphans").exists()
        assert [p.name for p in (core / "run").glob("*.sock")] in ([], ["daemon.sock"])
        others = self.home.strangers()
        assert not others, f"processes are left: {others}"
        assert list(self.repo.glob(".git/*.lock")) == []


def kill(pid: int, number: int = 9) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def shims_of(core: Path) -> list[int]:
    """Pids of the shims that serve this home, from their locks."""
    pids = []
    for lock in (core / "attempts").glob("*/lock"):
        words = lock.read_text().split()
        if words:
            pids.append(int(words[0]))
    return pids
