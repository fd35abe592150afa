"""What must be looked at before an agent's work may enter the user's repository.

The snapshot comes in here with two commits; out go problems, each a slug, a path and whether it stands in the way.
It judges names, kinds and sizes, never the meaning of a change.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from coreagent.git import tree
from coreagent.git.bring import escapes
from coreagent.git.diff import Change
from coreagent.git.run import environment, git
from coreagent.plural import plural

_LINK, _GITLINK, _GONE = "120000", "160000", "000000"
# Further problems of a commit that is refused anyway tell nobody anything.
_MOST = 100


@dataclass(frozen=True)
class Problem:
    """One finding."""

    slug: str
    """bad_path, symlink_escape, binary, too_large, too_many_files, embedded_repository, submodule_changed, unreadable,
    special_file, workspace_replaced, damaged_history, case_collision, history_rewritten, agent_file_committed,
    git_removed, other_branch."""
    path: str = ""
    detail: str = ""
    blocking: bool = True
    """Whether it keeps the work out of the user's repository; else it is only to be shown."""


@dataclass(frozen=True)
class Limits:
    """What one harvest may bring."""

    max_files: int = 2_000
    max_file_bytes: int = 10 * 1024 * 1024
    max_total_bytes: int = 100 * 1024 * 1024
    binaries: str = "allow"
    """`allow` or `reject`."""
    rescue_bytes: int = 1024 * 1024 * 1024
    """A leftover file beyond this is not even kept in the cache; it stays in the workspace."""


def check(cache: Path, found: list[Change], limits: Limits) -> list[Problem]:
    """Judge the difference between the start and the agent's work."""
    problems: list[Problem] = []
    if len(found) > limits.max_files:
        problems.append(Problem("too_many_files", detail=f"{plural(len(found), 'file')}, at most {limits.max_files:,}"))
    present = [change for change in found if change.new_mode != _GONE]
    for change in present:
        if why := tree.bad(change.path):
            problems.append(Problem("bad_path", change.path, why))
        if change.new_mode == _GITLINK:
            slug = "submodule_changed" if change.old_mode == _GITLINK else "embedded_repository"
            problems.append(Problem(slug, change.path))
        if change.binary and limits.binaries == "reject":
            problems.append(Problem("binary", change.path))
    problems += _links(cache, [change for change in present if change.new_mode == _LINK])
    problems += _sizes(cache, [change for change in present if change.new_mode != _GITLINK], limits)
    problems += _collisions([change.path for change in present if change.old_mode == _GONE])
    return problems[:_MOST]


def _links(cache: Path, links: list[Change]) -> list[Problem]:
    if not links:
        return []
    out = _batch(cache, "--batch", links)
    problems = []
    for change in links:
        header, _, out = out.partition(b"\n")
        size = int(header.split()[2])
        target, out = out[:size], out[size + 1 :]
        if escapes(change.path, os.fsdecode(target)):
            problems.append(Problem("symlink_escape", change.path, f"-> {os.fsdecode(target[:200])}"))
    return problems


def _sizes(cache: Path, files: list[Change], limits: Limits) -> list[Problem]:
    if not files:
        return []
    lines = _batch(cache, "--batch-check=%(objectsize)", files).split()
    problems, total = [], 0
    for change, line in zip(files, lines, strict=True):
        total += int(line)
        if int(line) > limits.max_file_bytes:
            detail = f"{plural(int(line), 'byte')}, at most {limits.max_file_bytes:,}"
            problems.append(Problem("too_large", change.path, detail))
    if total > limits.max_total_bytes:
        problems.append(Problem("too_large", "", f"{plural(total, 'byte')} in all, at most {limits.max_total_bytes:,}"))
    return problems


def _batch(cache: Path, how: str, files: list[Change]) -> bytes:
    asked = "".join(f"{change.sha}\n" for change in files).encode()
    return git("cat-file", how, cwd=cache, env=environment(git_dir=cache), stdin=asked).out


def _collisions(added: list[str]) -> list[Problem]:
    seen: dict[str, str] = {}
    problems = []
    for path in added:
        other = seen.setdefault(path.casefold(), path)
        if other != path:
            problems.append(Problem("case_collision", path, f"differs from {other} only in case", blocking=False))
    return problems
