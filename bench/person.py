"""A person on a machine of their own: a hermetic home, a daemon that writes down its steps, and calls to it.

Rows come in. Built on the tests' home, so that what is measured runs exactly as it is tested.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.home import Home

from coreagent.capability import Caller
from coreagent.cli.session import ask

MEMORY_MIN = 6 << 30


class Person(Home):
    """A home whose agents are two tiny programs: `stamp` prints the time, `noop` does nothing."""

    def __init__(self, lanes: int = 0, warm: int = 0) -> None:
        super().__init__()
        self.trace = self.dir / "trace"
        self.env["CORE_AGENT_TRACE"] = str(self.trace)
        self.trace.touch()
        self.trees = trees_root(self.dir)
        self._read = 0
        self.core.mkdir(mode=0o700)
        settings = {
            "version": 1,
            # Whatever rests may go at once, so that `workspace clean` can be a part of the measurement.
            "dispatch": {"keep_days": 0, "workspace_root": str(self.trees / "workspace")},
            # What lies ready takes time in between; only one row wants that.
            "warm": {"per_repo": warm},
            "concurrency": {"command": {"total": lanes}} if lanes else {},
            "commands": {
                "stamp": {"argv": [shutil.which("date") or "date", "+%s.%N"]},
                "noop": {"argv": [shutil.which("true") or "true"]},
            },
        }
        (self.core / "agents.yaml").write_text(json.dumps(settings))  # JSON is YAML

    def call(self, name: str, **arguments: Any) -> Any:
        """A capability of the daemon, over its socket, without the start of a client."""
        return ask(str(self.core), name, arguments, Caller(env=dict(self.env), cwd=str(self.user)))

    def dispatch(self, repo: Path, agent: str, task: str = "Do nothing.") -> str:
        """Queue a task over the socket; returns its id."""
        return str(self.call("dispatch", task=task, repo=str(repo), agent=f"command:{agent}")["dispatch_id"])

    def wait(self, count: int, limit_s: float = 600) -> list[tuple[str, float]]:
        """Return the daemon's steps, with their times, once `count` more attempts are put away.

        Read from the trace, so that waiting asks nothing of the daemon. Fails when one of them did not complete.
        """
        deadline, text = time.monotonic() + limit_s, ""
        with self.trace.open() as trace:
            trace.seek(self._read)
            while True:
                # Only what is new: who waits must not keep a core busy that the daemon and its agents would use.
                text += trace.read()
                if text.count(" put-away\n") >= count:
                    break
                if time.monotonic() > deadline:
                    raise RuntimeError(f"only {text.count(' put-away')} of {count} ended\n{self.log()[-2000:]}")
                time.sleep(0.005)
            self._read = trace.tell()
        counts = self.call("status")["counts"]
        if counts["failed"]:
            raise RuntimeError(f"{counts['failed']} failed\n{self.log()[-2000:]}")
        return [(name, float(at)) for at, name in (line.split(" ", 1) for line in text.splitlines())]

    def attempt(self, dispatch: str) -> Path:
        """Where the output of a finished dispatch lies."""
        return Path(self.call("workspace.show", workspace=dispatch)["path"], ".meta/attempts/1")

    def stamp(self, dispatch: str) -> float:
        """When the agent of a finished dispatch ran, by what it printed."""
        return float((self.attempt(dispatch) / "out").read_text())

    def close(self) -> None:
        try:
            super().close()
        finally:
            shutil.rmtree(self.trees, ignore_errors=True)

    def ready(self, limit_s: float = 60) -> None:
        """Return when a checkout lies ready."""
        deadline = time.monotonic() + limit_s
        while not list((self.core / "warm").glob("*.json")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no checkout was made in advance\n{self.log()[-2000:]}")
            time.sleep(0.05)

    def clean(self) -> None:
        """Let every workspace go."""
        self.call("workspace.clean")

    def warm(self) -> int:
        """Have a daemon that has answered; returns its pid."""
        self.run("status")
        return self.daemon_pid


@contextmanager
def person(lanes: int = 0, warm: int = 0) -> Iterator[Person]:
    """A person who leaves nothing behind."""
    one = Person(lanes, warm)
    try:
        yield one
    finally:
        one.close()


def trees_root(otherwise: Path) -> Path:
    """Where checkouts go, ours and the floor's: memory where there is enough of it.

    On a disk the same `git worktree add` takes one second or ten, depending on how many files were deleted in the last
    minutes (ext4 avoids their inodes), and every row deletes many. Stores, caches and spools stay on the disk.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > MEMORY_MIN:
        return Path(tempfile.mkdtemp(prefix="ca-bench-", dir=memory))
    return Path(tempfile.mkdtemp(prefix="trees-", dir=otherwise))
