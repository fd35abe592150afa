"""The only way into the user's repository: one branch, its reflog, and the objects it needs.

The engine comes in here with a commit that was checked. Nothing else there is written: no FETCH_HEAD, no config, no
gc, no hook runs. Landing and rescue use the same way in.
"""

from __future__ import annotations

from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git import ref as refs
from coreagent.git.author import DAEMON, identity
from coreagent.git.cache import common
from coreagent.git.inspect import resolve
from coreagent.git.pack import carry
from coreagent.git.run import environment, git
from coreagent.git.under_way import claim_on


def harvest(cache: Path, user_top: Path, branch: str, sha: str, expected_old: str = "") -> None:
    """Point `refs/heads/<branch>` of the user's repository at a commit of the cache.

    `expected_old` is what the last harvest put there, "" when the branch must be new. Doing it again changes nothing.

    Raises: branch_moved, repo_not_found, git_failed, git_timeout, no_space, invalid_name.
    """
    refs.require(branch)
    git_dir = user_git_dir(user_top)
    name = f"refs/heads/{branch}"
    current = resolve(git_dir, name)
    if current == sha:
        return
    if current != expected_old:
        raise _moved(branch, current)
    if places := worktrees_on(user_top, name):
        raise CoreAgentError(
            "branch_moved",
            f"branch {branch} is checked out in {places[0]}",
            hint="switch that worktree to another branch, or accept what is there",
        )
    if claim := claim_on(git_dir, name):
        raise CoreAgentError(
            "branch_moved",
            f"{claim.what} of branch {branch} is under way in {claim.place}",
            hint=f"{claim.hint} resume or rescue the work",
        )
    deliver(cache, git_dir, sha)
    move(git_dir, name, sha, expected_old, "core-agent: harvest")


def user_git_dir(user_top: Path) -> Path:
    """The git directory of the user's work tree.

    Raises: repo_not_found.
    """
    git_dir = refs.git_dir_of(user_top)
    if git_dir is None or not git_dir.is_dir():
        raise CoreAgentError(
            "repo_not_found", f"there is no repository at {user_top} any more", hint="was it moved? core-agent repo add"
        )
    return git_dir


def deliver(cache: Path, git_dir: Path, sha: str) -> None:
    """Copy a commit's objects into the user's repository and make sure that they are whole there."""
    have = common(cache, git_dir)
    carry(cache, git_dir, [sha], have)
    if have and not _whole(git_dir, sha):
        # What we took for granted had been pruned in part: send everything.
        carry(cache, git_dir, [sha])


def _whole(git_dir: Path, sha: str) -> bool:
    done = git("rev-list", "--objects", "--quiet", "--not", "--all", "--not", "--end-of-options", sha,
               cwd=git_dir, env=environment(git_dir=git_dir), ok=None)  # fmt: skip
    return done.code == 0


def move(git_dir: Path, name: str, sha: str, old: str, why: str) -> None:
    """Move a ref of the user's repository if it still is where we last saw it.

    Raises: branch_moved, git_failed, no_space.
    """
    done = git(
        "update-ref", "--no-deref", "--create-reflog", "-m", why, "--end-of-options", name, sha, old or "0" * len(sha),
        cwd=git_dir, env=environment(git_dir=git_dir, extra=identity(DAEMON, DAEMON)), ok=None,
    )  # fmt: skip
    if done.code == 0:
        return
    branch = name.removeprefix("refs/heads/")
    cause = done.err.decode("utf-8", "replace").strip().splitlines()[-1:]
    if resolve(git_dir, name) != old:
        raise _moved(branch, resolve(git_dir, name))
    raise CoreAgentError(
        "branch_moved" if b"exists" in done.err else "git_failed",
        f"branch {branch} could not be written",
        cause=cause[0] if cause else "",
        hint="is another git at work in this repository, or a branch in the way of this name?",
    )


def worktrees_on(user_top: Path, name: str) -> list[Path]:
    """The worktrees of the user's repository that have a branch checked out."""
    git_dir = user_git_dir(user_top)
    env, list_them = environment(git_dir=git_dir), ("worktree", "list", "--porcelain")
    done, end = git(*list_them, "-z", cwd=git_dir, env=env, ok=None), "\0"
    if done.code != 0:
        done, end = git(*list_them, cwd=git_dir, env=env), "\n"  # git before 2.36
    # Of a main worktree whose git directory lies elsewhere (a submodule's, say) git names that directory.
    main = user_top if refs.common_dir_of(git_dir) == git_dir else None
    places: list[Path] = []
    here: Path | None = None
    for line in done.text.split(end):
        if line.startswith("worktree "):
            here, main = main or Path(line[9:]), None
        elif line == f"branch {name}" and here is not None:
            places.append(here)
    return places


def _moved(branch: str, current: str) -> CoreAgentError:
    return CoreAgentError(
        "branch_moved",
        f"branch {branch} has moved: it is at {current[:10] or 'nothing'}, not where this task left it",
        hint=f"others committed on it; rename it (git branch -m {branch} {branch}-mine) and resume or rescue the work",
        data={"branch": branch, "current": current},
    )
