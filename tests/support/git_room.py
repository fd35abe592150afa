"""A user's repository, a cache and a workspace with real git, for every test of the git package."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from coreagent.git.author import Author
from coreagent.git.cache import ensure_cache
from coreagent.git.check import Limits
from coreagent.git.checkout import Checkout, checkout
from coreagent.git.inspect import Base, inspect
from coreagent.git.snapshot import Snapshot, snapshot

AGENT = Author("Agent Smith", "agent@example.com")


def sh(cwd: Path, *args: str, ok: bool = True, **env: str) -> str:
    """Plain git as a person or an agent runs it."""
    full = {
        "PATH": os.environ["PATH"],
        "HOME": str(cwd),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "LC_ALL": "C",
        **{
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "Pat"), ("EMAIL", "pat@example.com"))
        },
        **env,
    }
    done = subprocess.run(["git", *args], cwd=cwd, env=full, capture_output=True, check=False)
    if ok:
        assert done.returncode == 0, done.stderr.decode()
    return os.fsdecode(done.stdout).strip()


def write(top: Path, path: str, text: str | bytes = "text\n") -> Path:
    target = top / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(text.encode() if isinstance(text, str) else text)
    return target


def fingerprint(top: Path) -> dict[str, str]:
    """Every file below a directory with kind, mode and content."""
    seen = {}
    for directory, names, files in os.walk(top):
        for name in [*names, *files]:
            path = Path(directory) / name
            mode = oct(path.lstat().st_mode)
            if path.is_symlink():
                body = str(path.readlink())
            elif path.is_file():
                body = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                body = ""
            seen[str(path.relative_to(top))] = f"{mode} {body}"
    return seen


@dataclass
class Room:
    """A user's repository, a cache, and one workspace."""

    home: Path
    user: Path
    cache: Path = field(init=False)
    repo: Path = field(init=False)
    index: Path = field(init=False)
    made: Checkout = field(init=False)
    base: Base = field(init=False)

    def __post_init__(self) -> None:
        self.cache = self.home / "repos" / "cache.git"
        self.repo = self.home / "ws" / "repo"
        self.index = self.home / "attempts" / "index"

    def prepare(self, **options: object) -> Room:
        self.base = inspect(self.user)
        ensure_cache(self.cache, self.base)
        self.made = checkout(self.cache, self.base, self.repo, "agent/job", self.index, AGENT, **options)  # type: ignore[arg-type]
        return self

    def snap(self, **limits: object) -> Snapshot:
        return snapshot(
            self.cache, self.repo, "job", self.made.start, self.index, AGENT, "Left over", Limits(**limits)  # type: ignore[arg-type]
        )  # fmt: skip

    def show(self, sha: str, path: str) -> str:
        return sh(self.cache, "show", f"{sha}:{path}")

    def names(self, sha: str) -> set[str]:
        return set(sh(self.cache, "ls-tree", "-r", "-z", "--name-only", sha).strip("\0").split("\0"))

    def slugs(self, snap: Snapshot) -> set[str]:
        return {problem.slug for problem in snap.problems}


def make_user(top: Path) -> Path:
    """A repository with one commit, as a person has it."""
    top.mkdir()
    sh(top, "init", "-q", "-b", "main")
    write(top, "README.md", "hello\n")
    write(top, "src/a.py", "a = 1\n")
    write(top, "src/b.py", "b = 1\n")
    write(top, ".gitignore", "*.log\n.env\nbuild/\n")
    sh(top, "add", "-A")
    sh(top, "commit", "-q", "-m", "first")
    return top


def make_room(tmp_path: Path) -> Room:
    return Room(tmp_path / "home", make_user(tmp_path / "user"))
