"""The worktrees of a repository as git itself lists them; nothing is written there.

Adopting comes in here. It must not know which tool made a worktree.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from coreagent.git.run import environment, git


@dataclass(frozen=True)
class Worktree:
    """One work tree of a repository."""

    path: Path
    sha: str
    branch: str
    """"" when its HEAD is detached."""
    main: bool
    """The one that the repository was made with."""


def worktrees(top: Path) -> list[Worktree]:
    """Every work tree of the repository at `top` that is still there, the main one first.

    Raises: git_failed.
    """
    out = git("worktree", "list", "--porcelain", "-z", cwd=top, env=environment()).out
    found: list[Worktree] = []
    for number, block in enumerate(os.fsdecode(out).split("\0\0")):
        words = dict(line.partition(" ")[::2] for line in block.split("\0") if line)
        if "worktree" not in words or "bare" in words or not os.path.isdir(words["worktree"]):
            continue
        branch = words.get("branch", "").removeprefix("refs/heads/")
        found.append(Worktree(Path(os.path.realpath(words["worktree"])), words.get("HEAD", ""), branch, number == 0))
    return found


def merge_base(git_dir: Path, one: str, other: str) -> str:
    """The newest commit that two have in common, "" when there is none."""
    done = git("merge-base", "--end-of-options", one, other, cwd=git_dir, env=environment(git_dir=git_dir), ok=(0, 1))
    return done.text.split("\n")[0] if done.code == 0 else ""


def count(git_dir: Path, base: str, tip: str) -> int:
    """How many commits `tip` has that `base` has not."""
    done = git("rev-list", "--count", "--end-of-options", tip, f"^{base}", cwd=git_dir,
               env=environment(git_dir=git_dir), ok=None)  # fmt: skip
    return int(done.text) if done.code == 0 and done.text.isdigit() else 0
