"""A managed checkout brought to where its remote is: forward, or, when a person says so, back.

`repo sync` and the handler of WorkspacePushed come in here, for checkouts that were registered as managed only.
Forward is git's own fast-forward, which refuses rather than overwrite anything. Going back first keeps everything that
would be lost as a commit of the daemon's cache.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from coreagent.errors import CoreAgentError, shell_word
from coreagent.git import fetch
from coreagent.git import ref as refs
from coreagent.git.advance import advance
from coreagent.git.author import DAEMON, identity
from coreagent.git.cache import import_commit, is_ancestor, lay_out, locked, object_format
from coreagent.git.commit import stage, write_commit, write_tree
from coreagent.git.diff import numstat
from coreagent.git.harvest import move, user_git_dir, worktrees_on
from coreagent.git.inspect import resolve
from coreagent.git.pack import carry, present
from coreagent.git.rescue import Rescue, rescue_save
from coreagent.git.run import disk, environment, git
from coreagent.git.under_way import UnderWay, claim_on, under_way
from coreagent.git.worktrees import merge_base
from coreagent.plural import plural


@dataclass(frozen=True)
class Kept(Rescue):
    """A state that a branch or its checkout had."""

    files: int
    """Files that it changes: a commit since it parted from what took its place, anything else since HEAD."""


@dataclass(frozen=True)
class Moved:
    """Where a branch stood, where it stands now, and what was kept of what it had."""

    before: str
    after: str
    kept: tuple[Kept, ...] = ()


def forward(top: Path, branch: str) -> Moved:
    """Fast-forward a branch to `origin/<branch>`, in its checkout when it has one. On any error it has not moved.

    Raises: no_such_ref, diverged, dirty_checkout, branch_moved, repo_not_found, git_failed, git_timeout, no_space.
    """
    refs.require(branch)
    git_dir = user_git_dir(top)
    name = f"refs/heads/{branch}"
    before, after = resolve(git_dir, name), _target(git_dir, top, branch)
    if not before:
        raise CoreAgentError("no_such_ref", f"there is no branch {branch} in {top}",
                             hint=f"git -C {shell_word(top)} switch {shlex.quote(branch)} makes it")  # fmt: skip
    if before == after or is_ancestor(git_dir, after, before):
        return Moved(before, before)
    if not is_ancestor(git_dir, before, after):
        ahead, behind = fetch.distance(git_dir, before, after)
        raise CoreAgentError(
            "diverged",
            f"{branch} of {top} has {plural(ahead, 'commit')} that origin/{branch} has not, and lacks {behind}",
            hint="push or rebase them; `core-agent repo sync --reset` goes on and keeps them under a rescue ref",
        )
    places = worktrees_on(top, name)
    if claim := claim_on(git_dir, name):
        raise _unfinished(claim)
    if not places:
        move(git_dir, name, after, before, "core-agent: sync")
        return Moved(before, after)
    overwritten = (
        f"{places[0]} has changes that are in the way of origin/{branch}",
        "commit or stash them; `core-agent repo sync --reset` keeps them under a rescue ref and goes on",
    )
    advance(places[0], branch, before, after, overwritten, "sync again", identity(DAEMON, DAEMON))
    return Moved(before, after)


def _target(git_dir: Path, top: Path, branch: str) -> str:
    after = fetch.tip(git_dir, branch)
    if not after:
        raise CoreAgentError(
            "no_such_ref",
            f"origin of {top} has no branch {branch}",
            hint=f"git -C {shell_word(top)} branch --remotes lists them",
        )
    return after


def reset(cache: Path, top: Path, branch: str, name: str) -> Moved:
    """Have the checkout stand on `branch` at `origin/<branch>`, whatever it held; what would be lost is kept before.

    Untracked files that are not in the way stay. `name` is what the rescues are called.

    Raises: no_such_ref, dirty_checkout while a merge or the like is under way, git_failed, git_timeout, no_space.
    """
    refs.require(branch)
    git_dir = user_git_dir(top)
    after = _target(git_dir, top, branch)
    if found := under_way(git_dir) or claim_on(git_dir, f"refs/heads/{branch}"):
        raise _unfinished(found)
    head, before = resolve(git_dir, "HEAD"), resolve(git_dir, f"refs/heads/{branch}")
    with disk():
        kept = _keep(cache, top, git_dir, name, head or after, [before], after)
    args = ("checkout", "--quiet", "--force", "--no-track", "-B", branch, after)
    env = environment(user_config=True, extra={"GIT_OPTIONAL_LOCKS": "1", **identity(DAEMON, DAEMON)})
    git(*args, cwd=top, env=env)
    return Moved(before, after, tuple(kept))


def _unfinished(found: UnderWay) -> CoreAgentError:
    return CoreAgentError(
        "dirty_checkout", f"{found.what} is under way in {found.place}", hint=f"{found.hint} sync again"
    )


def _keep(cache: Path, top: Path, git_dir: Path, name: str, head: str, tips: list[str], after: str) -> list[Kept]:
    """Bring everything that is only here into the cache, each under a rescue ref."""
    with locked(cache):
        if not (cache / "HEAD").exists():
            lay_out(cache, object_format(refs.common_dir_of(git_dir)), bare=True)
        for sha in dict.fromkeys([head, *tips]):
            if sha and not present(cache, [sha]):
                import_commit(cache, git_dir, sha)
    lost = [sha for sha in dict.fromkeys([*tips, head]) if sha and not is_ancestor(git_dir, sha, after)]
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".sync.") as scratch:
        lost += _staged(cache, top, git_dir, head, Path(scratch))
        lost += _changed(cache, top, git_dir, head, after, Path(scratch))
    kept = []
    for sha in lost:
        base = merge_base(git_dir, after, sha) if sha in (*tips, head) else head
        saved = rescue_save(cache, name, sha)
        kept.append(Kept(saved.name, saved.n, saved.ref, saved.sha, numstat(cache, base, sha).files if base else 0))
    return kept


def _staged(cache: Path, top: Path, git_dir: Path, head: str, scratch: Path) -> list[str]:
    """What was staged, as a commit, when the work tree has it otherwise."""
    status = git("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules=all",
                 cwd=top, env=environment(user_config=True)).out  # fmt: skip
    if not any(len(entry) > 2 and entry[0:1] in b"MADT" and entry[1:2] in b"MD" for entry in status.split(b"\0")):
        return []
    index = scratch / "staged"
    shutil.copyfile(git_dir / "index", index)
    # Loose objects that nothing refers to, as `git stash create` makes them; then on to the cache.
    env = environment(git_dir=git_dir, index=index, extra=identity(DAEMON, DAEMON))
    tree = git("write-tree", cwd=git_dir, env=env).text
    made = git("commit-tree", "-p", head, "-m", "Staged before a reset", tree, cwd=git_dir, env=env).text
    with locked(cache):
        carry(git_dir, cache, [made], [head])
    return [made]


def _changed(cache: Path, top: Path, git_dir: Path, head: str, after: str, scratch: Path) -> list[str]:
    """Changed tracked files, and untracked ones that the target would overwrite, as a commit on HEAD."""
    index = scratch / "index"
    git("read-tree", head, cwd=cache, env=environment(git_dir=cache, index=index))
    before = write_tree(cache, index)
    out = git("diff-index", "--name-only", "-z", "--no-renames", "--ignore-submodules=all", head, "--",
              cwd=top, env=environment(user_config=True)).out  # fmt: skip
    coming = git("diff-tree", "-r", "--name-only", "-z", "--no-renames", "--diff-filter=AT", head, after,
                 cwd=git_dir, env=environment(git_dir=git_dir)).out  # fmt: skip
    paths = {os.fsdecode(path) for path in (out + coming).split(b"\0") if path}
    paths |= _in_the_way(top, paths)
    there = sorted(path for path in paths if _is_file(top / path))
    gone = sorted(path for path in paths if not os.path.lexists(top / path))
    refused = stage(cache, top, index, gone, there)
    if refused:
        path, why = refused[0]
        raise CoreAgentError("dirty_checkout", f"{path} of {top} cannot be kept, so nothing was reset", cause=why)
    tree = write_tree(cache, index)
    if tree == before:
        return []
    return [write_commit(cache, index, [head], "Uncommitted before a reset\n", DAEMON, DAEMON, tree)]


def _in_the_way(top: Path, paths: set[str]) -> set[str]:
    """Files that stand where a directory is to be, and those in directories that stand where a file is to be."""
    found = set()
    for path in paths:
        if (top / path).is_dir() and not (top / path).is_symlink():
            found |= {str((Path(directory) / file).relative_to(top))
                      for directory, _, files in os.walk(top / path) for file in files}  # fmt: skip
        for parent in list(Path(path).parents)[:-1]:
            if _is_file(top / parent):
                found.add(str(parent))
    return found


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()
