"""What a person has begun in a work tree and not ended: a rebase, a merge, a bisect.

Whoever is about to move a branch comes in here: git writes down which branch a rebase or a bisect will put back where
it was, and refuses to move that itself. Read by hand, without a git process; nothing is written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from coreagent.git import ref as refs

_MARKS = {
    "MERGE_HEAD": ("a merge", "git merge --abort"),
    "rebase-merge": ("a rebase", "git rebase --abort"),
    "rebase-apply/applying": ("a `git am`", "git am --abort"),
    "rebase-apply": ("a rebase", "git rebase --abort"),
    "CHERRY_PICK_HEAD": ("a cherry-pick", "git cherry-pick --abort"),
    "REVERT_HEAD": ("a revert", "git revert --abort"),
    "BISECT_LOG": ("a bisect", "git bisect reset"),
}


@dataclass(frozen=True)
class UnderWay:
    """What was begun, the command that takes it back, and the work tree that it is in."""

    what: str
    end: str
    place: Path

    @property
    def hint(self) -> str:
        return f"finish or abort it there (`{self.end}`), then"


def under_way(git_dir: Path) -> UnderWay | None:
    """What was begun in the work tree of a git directory; None when nothing was."""
    for mark, (what, end) in _MARKS.items():
        if (git_dir / mark).exists():
            return UnderWay(what, end, _place(git_dir))
    return None


def claim_on(git_dir: Path, name: str) -> UnderWay | None:
    """The rebase, bisect or `git am`, in any worktree of a repository, that will set the branch `name` (a full ref)."""
    common = refs.common_dir_of(git_dir)
    for one in (common, *_linked(common)):
        if name in _rebased(one):
            return UnderWay("a rebase", "git rebase --abort", _place(one))
        if name in _bisected(one):
            return UnderWay("a bisect", "git bisect reset", _place(one))
        if (one / "rebase-apply" / "applying").exists() and _lines(one / "HEAD")[:1] == [f"ref: {name}"]:
            return UnderWay("a `git am`", "git am --abort", _place(one))
    return None


def _linked(common_dir: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(common_dir / "worktrees"))
    except OSError:
        return []


def _rebased(git_dir: Path) -> list[str]:
    # With --update-refs it sets others too: three lines for each, the first of them its name.
    others = _lines(git_dir / "rebase-merge" / "update-refs")[::3]
    return [*_lines(git_dir / "rebase-merge" / "head-name"), *_lines(git_dir / "rebase-apply" / "head-name"), *others]


def _bisected(git_dir: Path) -> list[str]:
    if not (git_dir / "BISECT_LOG").exists():
        return []
    return ["refs/heads/" + line.removeprefix("refs/heads/") for line in _lines(git_dir / "BISECT_START")[:1]]


def _lines(path: Path) -> list[str]:
    try:
        return refs.read_small(path).splitlines()
    except OSError:
        return []


def _place(git_dir: Path) -> Path:
    """The work tree of a git directory, as far as that says where it is."""
    if linked := _lines(git_dir / "gitdir"):
        return Path(os.path.normpath(git_dir / linked[0])).parent
    return git_dir.parent if git_dir.name == ".git" else git_dir
