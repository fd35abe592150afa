"""The named repositories that rows are measured on: the same bytes and the same commit on every machine.

They are made once and kept in the temporary directory; a run holds a lock on the one it uses.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZES = {"small": 1_000, "large": 20_000}
"""Fixture -> number of files."""
VERSION = 1
"""Part of the directory's name; change it with what the fixtures hold."""
_DATE = "2026-01-02T03:04:05Z"
_OLD = 1_750_000_000
_WORDS = ["value", "count", "index", "total", "first", "other", "table", "query", "reply", "state"]


def root() -> Path:
    """Where fixtures and results lie."""
    path = Path(tempfile.gettempdir(), f"core-agent-bench-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid() or path.is_symlink():
        raise SystemExit(f"{path} is not ours")
    return path


def git(*args: str, cwd: Path) -> str:
    """Run git as a person on a machine where nothing is configured."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(cwd),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "Person"), ("EMAIL", "person@example.org"), ("DATE", _DATE))},
    }  # fmt: skip
    # Never maintenance in the background: it would collide with ours, and disturb what is measured.
    done = subprocess.run(
        ["git", "-c", "gc.auto=0", *args], cwd=cwd, env=env, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@contextmanager
def repository(name: str) -> Iterator[Path]:
    """A fixture, made when it is missing; nobody else has it meanwhile."""
    top = root() / f"{name}-v{VERSION}"
    with open(f"{top}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (top / ".git" / "made").exists():
            shutil.rmtree(top, ignore_errors=True)
            make(top, SIZES[name])
            (top / ".git" / "made").touch()
        tidy(top)
        yield top
        tidy(top)


def make(top: Path, files: int) -> None:
    """Write a repository of `files` files on `main`."""
    dice = random.Random(files)
    for number in range(files):
        path = top / f"src/p{number // 100:03}/f{number:05}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        body = "".join(f"{dice.choice(_WORDS)}_{line} = {dice.random()}\n" for line in range(dice.randint(5, 60)))
        path.write_text(f"# {number}\n{body}")
        # Older than the index, so that no `git status` has to read a file to know that it is unchanged.
        os.utime(path, (_OLD, _OLD))
    git("init", "-q", "-b", "main", cwd=top)
    git("add", "-A", cwd=top)
    git("commit", "-q", "-m", "all", cwd=top)
    git("gc", "-q", cwd=top)


def tidy(top: Path) -> None:
    """Take away what an earlier run left in the repository."""
    git("worktree", "prune", cwd=top)
    for ref in git("for-each-ref", "--format=%(refname)", "refs/heads/agent", cwd=top).split():
        git("update-ref", "-d", ref, cwd=top)
    git("status", "--porcelain", cwd=top)
