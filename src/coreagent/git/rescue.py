"""Work that could not be harvested, kept under refs of the cache until a person wants it.

The engine saves here whenever a harvest is refused or a workspace goes away with work in it; people list and apply.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git import ref as refs
from coreagent.git.cache import locked, note
from coreagent.git.harvest import deliver, move, user_git_dir
from coreagent.git.inspect import resolve
from coreagent.git.pack import present

RESCUES = "refs/core-agent/rescue/"


@dataclass(frozen=True)
class Rescue:
    """One saved state of a workspace."""

    name: str
    n: int
    """Counts from 1 for each workspace."""
    ref: str
    sha: str


def rescue_save(cache: Path, name: str, sha: str) -> Rescue:
    """Keep a commit of the cache for good; the same commit is kept once.

    Raises: invalid_name, rescue_not_found when the cache has no such commit.
    """
    refs.require(name, "workspace")
    if not present(cache, [sha]):
        raise CoreAgentError("rescue_not_found", f"commit {sha[:10]} is not in the cache")
    with locked(cache):
        saved = rescue_list(cache, name)
        for rescue in saved:
            if rescue.sha == sha:
                return rescue
        n = saved[-1].n + 1 if saved else 1
        rescue = Rescue(name, n, f"{RESCUES}{name}/{n}", sha)
        note(cache, rescue.ref, sha)
    return rescue


def rescue_list(cache: Path, name: str = "") -> list[Rescue]:
    """What was saved of one workspace, or of all, by name and number; no process, the refs have one writer."""
    top = cache / RESCUES
    found = []
    for directory, _, files in os.walk(top / name if name else top):
        owner = str(Path(directory).relative_to(top))
        for file in files:
            if file.isdecimal():
                sha = refs.read_small(Path(directory) / file).strip()
                found.append(Rescue(owner, int(file), f"{RESCUES}{owner}/{file}", sha))
    return sorted((rescue for rescue in found if not name or rescue.name == name), key=lambda r: (r.name, r.n))


def rescue_apply(cache: Path, user_top: Path, name: str, n: int = 0, branch: str = "") -> Rescue:
    """Bring a saved state into the user's repository as a new branch; `n` 0 is the newest, "" is `rescue/<name>-<n>`.

    Raises: rescue_not_found, branch_moved when the branch exists already, repo_not_found, git_failed, no_space.
    """
    refs.require(name, "workspace")
    saved = rescue_list(cache, name)
    chosen = next((rescue for rescue in reversed(saved) if n in (0, rescue.n)), None)
    if chosen is None:
        raise CoreAgentError(
            "rescue_not_found",
            f"nothing was rescued of {name}" if not saved else f"{name} has no rescue {n}",
            hint="core-agent rescue list shows what there is",
        )
    target = f"refs/heads/{refs.require(branch or f'rescue/{name}-{chosen.n}')}"
    git_dir = user_git_dir(user_top)
    current = resolve(git_dir, target)
    if current == chosen.sha:
        return chosen
    if current:
        raise CoreAgentError(
            "branch_moved",
            f"branch {target.removeprefix('refs/heads/')} exists already",
            hint="name another one with --branch",
        )
    deliver(cache, git_dir, chosen.sha)
    move(git_dir, target, chosen.sha, "", "core-agent: rescue")
    return chosen
