"""An index in the daemon's hands turned into a commit of the cache.

Carried changes, leftovers and flattened histories come in here. Content is read from a work tree, never run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git.author import Author, identity
from coreagent.git.run import environment, git
from coreagent.git.stuck import git_over

# Git's largest answer worth asking per path: past this many single failures the tree is not worth saving piecemeal.
_MOST_FAILURES = 500


def stage(
    cache: Path,
    work_tree: Path,
    index: Path,
    removed: Sequence[str],
    added: Sequence[str],
    extra: Mapping[str, str] | None = None,
) -> list[tuple[str, str]]:
    """Take paths out of the index and files of the work tree into it; return the paths git refused, with its reason."""
    refused: list[tuple[str, str]] = []
    # The lock of the index is ours alone: it is a scratch copy.
    env = environment(git_dir=cache, work_tree=work_tree, index=index, extra=extra)
    if removed:
        _update(work_tree, env, ["--force-remove"], removed, refused)
    if added:
        _update(work_tree, env, ["--add", "--remove", "--replace"], added, refused)
    return refused


def _update(
    work_tree: Path, env: dict[str, str], how: list[str], paths: Sequence[str], refused: list[tuple[str, str]]
) -> None:
    """Update the index in one process; when git gives up on a path, halve until that path is found."""
    done = git_over(
        "update-index", *how, "-z", "--stdin",
        work_tree=work_tree, env=env,
        stdin=b"".join(os.fsencode(path) + b"\0" for path in paths), ok=None,
    )  # fmt: skip
    if done.code == 0:
        return
    said = os.fsdecode(done.err)
    if "No space left" in said or len(refused) > _MOST_FAILURES:
        raise CoreAgentError("no_space" if "No space left" in said else "git_failed", "files could not be taken in",
                             cause=said.strip()[-300:])  # fmt: skip
    if len(paths) == 1:
        refused.append((paths[0], (said.strip().splitlines() or ["refused"])[0].removeprefix("error: ")))
        return
    half = len(paths) // 2
    _update(work_tree, env, how, paths[:half], refused)
    _update(work_tree, env, how, paths[half:], refused)


def write_tree(cache: Path, index: Path, extra: Mapping[str, str] | None = None) -> str:
    return git("write-tree", cwd=cache, env=environment(git_dir=cache, index=index, extra=extra)).text


def write_commit(
    cache: Path, index: Path, parents: Sequence[str], message: str, author: Author, committer: Author, tree: str = ""
) -> str:
    """Commit what the index holds, or the given tree; no ref moves."""
    tree = tree or write_tree(cache, index)
    args = [arg for parent in parents for arg in ("-p", parent)]
    return git(
        "commit-tree", *args, "-F", "-", tree,
        cwd=cache, env=environment(git_dir=cache, extra=identity(author, committer)),
        stdin=message.encode("utf-8", "replace"),
    ).text  # fmt: skip
