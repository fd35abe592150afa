"""Worktrees that other tools made, found and described: git's own, and those of claude-squad and vibe-kanban.

Adopting comes in here. Everything is read, nothing is changed: neither the worktree, nor its repository, nor the other
tool's files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coreagent.dispatch import sessions
from coreagent.errors import CoreAgentError
from coreagent.git import ref as refs
from coreagent.git.cache import is_ancestor
from coreagent.git.inspect import Base, inspect
from coreagent.git.worktrees import Worktree, count, merge_base, worktrees
from coreagent.plainfile import read_plain

STATE_MAX = 64 << 20
Tool = Literal["git worktree", "claude-squad", "vibe-kanban"]


@dataclass(frozen=True)
class Source:
    """A worktree with work in it."""

    top: Path
    base: Base
    """Its HEAD and what is not committed there."""
    main: Base
    """The checkout of the person's that the repository was made with, at the branch where the work began."""
    start: str
    """The commit where it began."""
    commits: int
    tool: Tool
    title: str
    branch: str

    @property
    def name(self) -> str:
        """What people would call it."""
        return self.title or self.branch.rpartition("/")[2] or self.top.name


def look(path: Path, env: Mapping[str, str], onto: str = "") -> Source:
    """Describe the worktree around a directory. Blocking.

    Raises: not_a_repository and others of a bad place; invalid_argument when there is nothing to adopt.
    """
    base = inspect(path)
    known = worktrees(base.top)
    main = next((tree for tree in known if tree.main), None)
    if main is None:
        raise CoreAgentError(
            "bare_repository",
            f"{base.top} belongs to a bare repository",
            hint="clone it, and add the worktree's branch there; core-agent works beside a checkout of yours",
        )
    if main.path == base.top:
        raise CoreAgentError(
            "invalid_argument",
            f"{base.top} is the repository's own checkout, no worktree beside it",
            hint="core-agent dispatch --with-changes takes its uncommitted changes along",
        )
    return _source(base, main, env, onto)


def _source(base: Base, main: Worktree, env: Mapping[str, str], onto: str) -> Source:
    home = inspect(main.path, onto or None)
    told = _squad(env).get(str(base.top), {})
    noted = str(told.get("base_commit_sha", ""))
    start = noted if refs.is_sha(noted) and not onto and _leads_to(home.git_dir, noted, base.sha) else ""
    start = start or merge_base(home.git_dir, base.sha, home.sha)
    if not start:
        raise CoreAgentError(
            "invalid_argument",
            f"{base.top} and {home.ref or 'HEAD'} of {home.top} have no commit in common",
            hint="say where it began: --base BRANCH",
        )
    return Source(
        top=base.top,
        base=base,
        main=home,
        start=start,
        commits=count(home.git_dir, start, base.sha),
        tool=_tool(base.top, told, env),
        title=str(told.get("title", "")),
        branch=base.ref if base.kind == "branch" else "",
    )


def _leads_to(git_dir: Path, one: str, other: str) -> bool:
    try:
        return is_ancestor(git_dir, one, other)
    except CoreAgentError:
        return False  # it is not there any more


def candidates(path: Path, env: Mapping[str, str], ours: Path) -> list[Source]:
    """The worktrees of a repository that could be adopted; not those below `ours`. Blocking."""
    top = inspect(path).top
    known = worktrees(top)
    main = next((tree for tree in known if tree.main), None)
    if main is None:
        return []
    found = []
    for tree in known:
        if tree.main or tree.path.is_relative_to(ours):
            continue
        try:
            found.append(_source(inspect(tree.path), main, env, ""))
        except CoreAgentError:
            continue  # half made, half removed, or another person's: nothing to take over
    return found


def _tool(top: Path, told: Mapping[str, Any], env: Mapping[str, str]) -> Tool:
    squad = Path(env.get("HOME", "/nonexistent"), ".claude-squad", "worktrees")
    if told or top.is_relative_to(os.path.realpath(squad)):
        return "claude-squad"
    names = [parent.parent.name for parent in top.parents if parent.name == "worktrees"]
    return "vibe-kanban" if {"vibe-kanban", ".vibe-kanban", "vibe-kanban-dev"} & set(names) else "git worktree"


def _squad(env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What claude-squad noted, by the real path of the worktree; nothing when it cannot be read."""
    try:
        state = json.loads(read_plain(Path(env["HOME"], ".claude-squad", "state.json"))[:STATE_MAX])
        instances = state["instances"]
        instances = json.loads(instances) if isinstance(instances, str) else instances
    except (KeyError, OSError, ValueError, TypeError):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for one in instances if isinstance(instances, list) else ():
        tree = one.get("worktree") if isinstance(one, dict) else None
        if isinstance(tree, dict) and isinstance(tree.get("worktree_path"), str):
            found[os.path.realpath(tree["worktree_path"])] = {**tree, "title": one.get("title", "")}
    return found


def session_of(source: Source, env: Mapping[str, str], wanted: str = "") -> sessions.Session | None:
    """The claude session that was begun there. Blocking."""
    return sessions.find(env, source.top, wanted)
