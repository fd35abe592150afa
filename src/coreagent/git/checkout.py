"""A workspace's `repo/`: a repository of its own whose objects come from the cache.

Dispatch comes in here once per workspace. The `.git` is laid out by hand while one git process fills the work tree
under the cache's config, so that nothing of the user's or the tree's gets executed. It must not know what an agent is,
only which files of its making never belong in a commit.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git import ref as refs
from coreagent.git import tree
from coreagent.git.author import Author
from coreagent.git.bring import BringLimits, bring_changes, bring_included, literal
from coreagent.git.cache import carry_shallow, cuts, ensure_cache, lay_out, object_format
from coreagent.git.inspect import Base
from coreagent.git.module import modules_of
from coreagent.git.pack import quoted
from coreagent.git.record import Module, Record, save
from coreagent.git.run import TIMEOUT_S, Done, disk, environment, failure, start, timed_out

# What passes between the agent and us, and the directories of agent tools.
AGENT_SIDE = ("BLOCKED.md", "ANSWER.md", ".claude/", ".codex/", ".gemini/")


@dataclass(frozen=True)
class Checkout:
    """What a new workspace holds."""

    start: str
    """The commit the agent begins from: the base, or the base with the user's own changes on top. Snapshots and diffs
    are measured from here."""
    left_out: int
    """Dirty entries of the user's tree that the workspace starts without."""
    carried: int
    """Changed files of the user's that were carried in."""
    included: int = 0
    """Ignored files copied because `.worktreeinclude` names them."""
    skipped: tuple[str, ...] = ()
    """What was not carried, one line each with the reason."""


@dataclass(frozen=True)
class Ready:
    """Files of a commit that lie ready on the same file system, with the daemon's index of them (git.warm)."""

    tree: Path
    index: Path
    sha: str
    directories: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Directory below the tree -> its inode and change time: nothing can come into one or leave it without a trace."""


def checkout(
    cache: Path,
    base: Base,
    repo_dir: Path,
    branch: str,
    index_copy: Path,
    author: Author,
    with_changes: bool = False,
    *,
    exclude: Sequence[str] = AGENT_SIDE,
    limits: BringLimits | None = None,
    warm: Ready | None = None,
) -> Checkout:
    """Make `repo_dir` a repository on `branch` at the base commit; keep the daemon's copy of the index apart from it.

    On failure nothing is left behind. `exclude` are gitignore patterns.
    What is `warm` is moved here, and only the difference to the base is written.

    Raises: too_large, git_failed, git_timeout, no_space, invalid_name.
    """
    refs.require(branch)
    with disk():
        repo_dir.mkdir(parents=True, mode=0o700)
        index_copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return _checkout(cache, base, repo_dir, branch, index_copy, author, with_changes,
                             list(exclude), limits or BringLimits(), warm)  # fmt: skip
        except BaseException:
            tree.remove(repo_dir)
            with contextlib.suppress(OSError):
                index_copy.unlink()
            raise


def _checkout(
    cache: Path,
    base: Base,
    repo_dir: Path,
    branch: str,
    index_copy: Path,
    author: Author,
    with_changes: bool,
    exclude: list[str],
    limits: BringLimits,
    warm: Ready | None,
) -> Checkout:
    if warm is not None:
        # In this order: files without an index would all be written again, an index without files is a lie.
        warm.tree.replace(repo_dir)
        warm.index.replace(index_copy)
    if warm is None or warm.sha != base.sha:
        fill(cache, base.sha, repo_dir, index_copy, lambda: own_git(cache, base, repo_dir, branch, author))
    else:
        own_git(cache, base, repo_dir, branch, author)
    exclude = [_anchored(pattern) for pattern in exclude]
    start_sha, carried, skipped = base.sha, 0, []
    if with_changes and base.dirty:
        brought = bring_changes(cache, base, repo_dir, index_copy, limits)
        start_sha, carried, skipped = brought.sha, brought.count, brought.skipped
    included: list[str] = []
    if (base.top / ".worktreeinclude").is_file():
        included, lines = bring_included(base, repo_dir, limits)
        skipped = [*skipped, *lines]
    modules, lines = _modules(cache, base, repo_dir, index_copy, author)
    skipped = [*skipped, *lines]
    git_dir = repo_dir / ".git"
    lines = exclude + [literal(path) for path in included]
    (git_dir / "info" / "exclude").write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
    if start_sha != base.sha:
        (git_dir / "refs" / "heads" / branch).write_text(start_sha + "\n")
    shutil.copy2(index_copy, git_dir / "index")
    save(
        index_copy,
        Record(top=str(repo_dir.resolve()), start=start_sha, exclude=exclude, included=included, modules=modules),
    )
    return Checkout(start_sha, 0 if with_changes else base.dirty, carried, len(included), tuple(skipped))


def fill(cache: Path, sha: str, work_tree: Path, index: Path, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Write a commit's files into an empty directory, with the index of it; do `meanwhile` while git works."""
    args, env = filling(cache, sha, work_tree, index)
    with start(*args, cwd=work_tree, env=env, stdin=subprocess.DEVNULL) as process:
        meanwhile()
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise timed_out(args, TIMEOUT_S) from None
    if process.returncode != 0:
        raise failure(args, Done(process.returncode, out, err))


def filling(cache: Path, sha: str, work_tree: Path, index: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """The git that writes a commit's files: into an empty directory all of them, else what differs from the index."""
    env = environment(git_dir=cache, work_tree=work_tree, index=index, config=[
        ("core.bare", "false"),
        # Many files wait on the disk: a few writers win back more than starting them costs. Few files do not.
        ("checkout.workers", "4"),
        ("checkout.thresholdForParallelism", "5000"),
        *_DARWIN,
    ])  # fmt: skip
    return ("read-tree", "-u", "--reset", sha), env


_DARWIN = [("core.ignoreCase", "true"), ("core.precomposeUnicode", "true")] if sys.platform == "darwin" else []


def own_git(cache: Path, base: Base, repo_dir: Path, branch: str, author: Author) -> None:
    """The agent's own `.git`: objects by alternates, no remote, and none of the person's signing or watching."""
    git_dir = repo_dir / ".git"
    lay_out(git_dir, object_format(cache), bare=False, more=_agent_config(author))
    (git_dir / "objects" / "info" / "alternates").write_text(quoted(cache / "objects") + "\n", errors="surrogateescape")
    carry_shallow(git_dir, cuts(cache))
    heads = git_dir / "refs" / "heads"
    for name in {branch, base.ref} if base.kind == "branch" else {branch}:
        path = heads / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(base.sha + "\n")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            # The base branch is called `agent`, so `agent/<name>` cannot stand beside it; ours is the one needed.
            if name == branch:
                tree.remove(heads / base.ref)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(base.sha + "\n")
    (git_dir / "HEAD").write_text(f"ref: refs/heads/{branch}\n")


def _agent_config(author: Author) -> str:
    lines = ["\tlogallrefupdates = true", "\tfsmonitor = false"]
    lines += [f"\t{key[5:]} = {value}" for key, value in _DARWIN]
    lines += ["[user]", f"\tname = {_value(author.name)}", f"\temail = {_value(author.email)}"]
    # Inherited from the person's global config these would wait for a passphrase or start a watcher per workspace.
    lines += ["[commit]", "\tgpgsign = false", "[tag]", "\tgpgsign = false", "[gc]", "\tauto = 0"]
    return "\n".join(lines) + "\n"


def _value(text: str) -> str:
    clean = "".join(char for char in text if char.isprintable())
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _anchored(pattern: str) -> str:
    return pattern if pattern.startswith(("/", "!", "#")) or "/" in pattern.rstrip("/") else f"/{pattern}"


def _modules(
    cache: Path, base: Base, repo_dir: Path, index_copy: Path, author: Author
) -> tuple[list[Module], list[str]]:
    """Fill submodules from the user's own local copies; what is not there stays an empty directory, and is told."""
    if not (repo_dir / ".gitmodules").is_file():
        return [], []
    made, skipped = [], []
    for number, (path, sha, source) in enumerate(modules_of(base, cache, repo_dir, index_copy)):
        index = index_copy.with_name(f"{index_copy.name}.{number}")
        own = ""
        if source is not None:
            inner_cache = cache.with_name(cache.name + ".modules") / refs_name(path)
            inner = Base(top=repo_dir / path, git_dir=source, ref="", kind="detached", sha=sha, dirty=0,
                         shallow=False, default_branch="", object_format=base.object_format)  # fmt: skip
            with contextlib.suppress(CoreAgentError):  # not in the local copy: stays empty, never from the network
                ensure_cache(inner_cache, inner)
                (repo_dir / path).rmdir()
                within = checkout(inner_cache, inner, repo_dir / path, "agent/work", index, author, exclude=())
                skipped += [f"{path}/{line}" for line in within.skipped]
                own = str(inner_cache)
        if not own:
            skipped.append(f"{path}: a submodule whose commit your repository has no copy of; it was left empty")
        made.append(Module(path=path, sha=sha, cache=own, index=str(index)))
    return made, skipped


def refs_name(path: str) -> str:
    """A submodule's path as one directory name."""
    return path.replace("%", "%25").replace("/", "%2F")
