"""The commits an agent made, taken out of its own `.git` without running anything that is configured there.

The snapshot comes in here. Refs are read by hand; objects are read through the cache's git directory with the agent's
object directory as an alternate, and checked on arrival.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git import ref as refs
from coreagent.git.cache import is_ancestor
from coreagent.git.check import Problem
from coreagent.git.pack import carry, present
from coreagent.git.record import Record
from coreagent.git.run import environment, git

TIMEOUT_S = 180.0
_MOST_REFS = 64


@dataclass
class History:
    """What the agent's repository says it did."""

    tip: str
    """Where its HEAD stands, or the start when it made no commit."""
    others: dict[str, str] = field(default_factory=dict)
    """Further branches and the stash that hold commits of its own."""
    sparse: bool = False
    problems: list[Problem] = field(default_factory=list)


def read_history(cache: Path, repo_dir: Path, start: str, theirs: set[str], previous: str) -> History:
    """Bring the agent's commits into the cache.

    `theirs` are commits of the user's that are there already, `previous` is what an earlier snapshot made.

    Raises: no_space, git_timeout.
    """
    history = History(tip=start)
    git_dir = repo_dir / ".git"
    if not _is_dir(git_dir) or not _is_dir(git_dir / "objects"):
        history.problems.append(Problem("git_removed", ".git", "its commits cannot be read", blocking=False))
        return history
    history.sparse = (git_dir / "info" / "sparse-checkout").is_file()
    _, found = refs.heads(git_dir)
    work = {name: sha for name, sha in found.items() if sha not in theirs and sha != start}
    tips = {name: sha for name, sha in work.items() if sha != previous}
    if len(tips) > _MOST_REFS:
        tips = dict(sorted(tips.items(), key=lambda item: item[0] != "HEAD")[:_MOST_REFS])
    if tips:
        tips = _import(cache, git_dir / "objects", tips, start, history)
    head = found.get("HEAD", start)
    there = {start, previous, *theirs, *tips.values()}
    if head in there:
        history.tip = head
    elif head != start and not any(problem.slug == "damaged_history" for problem in history.problems):
        history.problems.append(Problem("damaged_history", "HEAD", "the commit is not there"))
    history.others = {name: sha for name, sha in work.items() if sha in there and name != "HEAD" and sha != history.tip}
    return history


def _import(cache: Path, objects: Path, tips: dict[str, str], start: str, history: History) -> dict[str, str]:
    """Copy what the tips reach, all at once, or one by one when one of them is damaged."""
    try:
        carry(cache, cache, dict.fromkeys(tips.values()), [start], source_objects=objects, timeout_s=TIMEOUT_S)
        arrived = dict(tips)
    except CoreAgentError as error:
        if error.slug != "git_failed":
            raise
        arrived = {}
        for name, sha in tips.items():
            try:
                carry(cache, cache, [sha], [start], source_objects=objects, timeout_s=TIMEOUT_S)
                arrived[name] = sha
            except CoreAgentError as inner:
                if inner.slug != "git_failed":
                    raise
                problem = Problem("damaged_history", name, inner.cause[:300], blocking=name == "HEAD")
                history.problems.append(problem)
    commits = set(present(cache, arrived.values()))
    return {name: sha for name, sha in arrived.items() if sha in commits}


def committed_exclusions(cache: Path, start: str, tip: str, record: Record) -> list[str]:
    """Agent-side or carried files that any commit of the agent's added. They would stay in the history for ever."""
    listed = git("rev-list", "--end-of-options", tip, f"^{start}", cwd=cache, env=environment(git_dir=cache)).out
    out = git(
        "diff-tree", "--stdin", "-r", "-m", "--root", "-z", "--name-only", "--no-commit-id", "--diff-filter=A",
        "--no-renames", "--no-ext-diff", "--no-textconv",
        cwd=cache, env=environment(git_dir=cache), stdin=listed,
    ).out  # fmt: skip
    names = {os.fsdecode(name) for name in out.split(b"\0") if name}
    return sorted(name for name in names if record.excluded(name))


def descends(cache: Path, start: str, tip: str) -> bool:
    return is_ancestor(cache, start, tip)


def messages(cache: Path, start: str, tip: str) -> str:
    """What the agent wrote about its commits, oldest first, bounded."""
    done = git("log", "--reverse", "--max-count=50", "--format=%B", "--no-show-signature", "--end-of-options",
               tip, f"^{start}", cwd=cache, env=environment(git_dir=cache))  # fmt: skip
    return done.out.decode("utf-8", "replace")[:20_000].strip()


def _is_dir(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False
