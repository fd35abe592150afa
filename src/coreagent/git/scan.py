"""A workspace's work tree compared with the daemon's index of it.

The snapshot comes in here, and the live diff of a running agent. One git process under the cache's config; what git
names is then looked at file by file, because an agent may have put anything there.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from coreagent.git import tree
from coreagent.git.check import Limits, Problem
from coreagent.git.record import Record
from coreagent.git.run import environment, failure
from coreagent.git.stuck import git_over
from coreagent.plural import plural

_UNLISTED = re.compile(r"could not open directory '(.*?)/?'")
# A directory the agent locked may hold another one; each round opens everything below it.
_ROUNDS = 3
_MOST_EMBEDDED_FILES = 20_000


@dataclass
class Scan:
    """Paths to take into the index and out of it."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Files and directories with content that no commit will hold."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


def scan(cache: Path, repo_dir: Path, index: Path, record: Record, limits: Limits, *, sparse: bool = False) -> Scan:
    """Find what differs between the index and the work tree.

    `sparse`: the agent narrowed its checkout, so an absent file is no deletion.

    Raises: git_failed, git_timeout.
    """
    found = Scan()
    tags = listed(cache, repo_dir, index, found)
    modules = {module.path for module in record.modules}
    total = 0
    for path, tag in tags.items():
        if path in modules or path.rstrip("/") in modules:
            continue  # looked at on their own
        if tag == "?" and (record.excluded(path) or record.excluded(path.rstrip("/"))):
            if not record.ours(path.rstrip("/")):
                found.left.append(path.rstrip("/"))
            continue
        if any(tree.names_git(part) for part in path.split("/")):
            found.problems.append(Problem("bad_path", path, "the path names a git directory"))
            found.left.append(path.rstrip("/"))
        elif path.endswith("/"):
            found.problems.append(Problem("embedded_repository", path.rstrip("/")))
            found.left.append(path.rstrip("/"))  # its own `.git`, and whatever else the walk below passes over
            for inner in _some(repo_dir, path):
                total = _judge(found, repo_dir, inner, "?", limits, total, sparse)
        else:
            total = _judge(found, repo_dir, path, tag, limits, total, sparse)
    return found


def listed(cache: Path, repo_dir: Path, index: Path, found: Scan) -> dict[str, str]:
    """Let git list modified, deleted and new paths with their tags; open locked directories and ask again."""
    env = environment(git_dir=cache, work_tree=repo_dir, index=index)
    args = ("ls-files", "-z", "-t", "--modified", "--deleted", "--others", "--exclude-standard")
    for last in range(_ROUNDS):
        done = git_over(*args, work_tree=repo_dir, env=env, ok=None)
        if done.code != 0:
            raise failure(args, done)
        locked = [os.fsdecode(name) for name in _UNLISTED.findall(os.fsdecode(done.err))]
        opened = [path for path in locked if tree.inside(repo_dir, path + "/x") or tree.readable(repo_dir / path)]
        for path in opened:
            for _ in tree.files(repo_dir, path):
                pass  # walking gives the permissions back
        if not opened or last == _ROUNDS - 1:
            found.problems += [Problem("unreadable", path) for path in locked]
            found.left += locked
            break
    tags: dict[str, str] = {}
    for item in done.out.split(b"\0"):
        if item:
            tags.setdefault(os.fsdecode(item[2:]), item[:1].decode())
    return tags


def _some(repo_dir: Path, path: str) -> list[str]:
    inner = []
    for name in tree.files(repo_dir, path):
        inner.append(name)
        if len(inner) >= _MOST_EMBEDDED_FILES:
            break
    return inner


def _judge(found: Scan, repo_dir: Path, path: str, tag: str, limits: Limits, total: int, sparse: bool) -> int:
    """Sort one path; return the bytes of leftovers so far."""
    try:
        entry = os.lstat(repo_dir / path) if tree.inside(repo_dir, path) else None
    except (FileNotFoundError, NotADirectoryError):
        entry = None
    except OSError as error:
        found.problems.append(Problem("unreadable", path, error.strerror or ""))
        found.left.append(path)
        return total
    if entry is None or stat.S_ISDIR(entry.st_mode):
        if tag != "?" and not sparse:
            found.removed.append(path)
    elif not stat.S_ISREG(entry.st_mode) and not stat.S_ISLNK(entry.st_mode):
        found.problems.append(Problem("special_file", path))
        found.removed.append(path)
    elif not tree.readable(repo_dir / path):
        found.problems.append(Problem("unreadable", path))
        found.left.append(path)
    elif total + entry.st_size > limits.rescue_bytes:
        detail = f"{plural(entry.st_size, 'byte')}; left in the workspace"
        found.problems.append(Problem("too_large", path, detail))
        found.left.append(path)
    else:
        found.added.append(path)
        return total + entry.st_size
    return total
