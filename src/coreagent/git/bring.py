"""The user's own files brought into a workspace: uncommitted changes, and ignored files that were asked for.

Checkout comes in here when it was told to. The user's tree is only read. Everything copied is bounded, and nothing is
followed or written through a symlink.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git import tree
from coreagent.git.author import DAEMON
from coreagent.git.cache import locked, note, require_own
from coreagent.git.commit import stage, write_commit
from coreagent.git.inspect import Base
from coreagent.git.run import environment, git
from coreagent.plainfile import read_plain
from coreagent.plural import plural

_MOST_LOOKED_AT = 50_000
CARRIES = "refs/core-agent/carry/"


@dataclass(frozen=True)
class BringLimits:
    """How much of the user's tree may be copied into one workspace."""

    files: int = 2_000
    total_bytes: int = 200 * 1024 * 1024
    included_files: int = 20_000
    included_bytes: int = 1024 * 1024 * 1024


@dataclass
class Brought:
    """What `bring_changes` did."""

    sha: str
    count: int = 0
    skipped: list[str] = field(default_factory=list)


def bring_changes(cache: Path, base: Base, repo_dir: Path, index: Path, limits: BringLimits) -> Brought:
    """Lay the user's changed, deleted and untracked files over the work tree and make a commit of them in the cache.

    As a commit of its own they are no part of what the agent changed.

    Raises: too_large, git_failed, no_space.
    """
    require_own(cache)
    brought = Brought(sha=base.sha)
    removed, added = [], []
    for path, tracked in _dirty(base, brought.skipped):
        if (source := _source(base.top, path)) is not None and source.st_size >= 0:
            added.append((path, source.st_size))
        elif tracked:
            removed.append(path)
        else:
            brought.skipped.append(f"{path}: not a file")
    brought.skipped += [f"{path}: a pipe, a socket or a device" for path in _special(base.top)]
    _bounded(len(added) + len(removed), sum(size for _, size in added), limits.files, limits.total_bytes, "changes")
    for path in removed:
        if tree.inside(repo_dir, path):
            tree.remove(repo_dir / path)
    copied = []
    for path, _ in added:
        if tree.inside(repo_dir, path) and _copied(base.top / path, repo_dir / path, path, brought.skipped):
            copied.append(path)
    if not copied and not removed:
        return brought
    for path, why in stage(cache, repo_dir, index, removed, copied):
        brought.skipped.append(f"{path}: {why}")
    brought.count = len(copied) + len(removed)
    brought.sha = write_commit(cache, index, [base.sha], "Uncommitted changes at dispatch\n", DAEMON, DAEMON)
    with locked(cache):
        note(cache, CARRIES + brought.sha, brought.sha)
    return brought


def bring_included(base: Base, repo_dir: Path, limits: BringLimits) -> tuple[list[str], list[str]]:
    """Copy the ignored files that `.worktreeinclude` names; return their paths, and what was skipped with the reason.

    Raises: too_large, git_failed, no_space.
    """
    wanted = git(
        "ls-files", "-z", "--others", "--ignored", "--exclude-from=.worktreeinclude",
        cwd=base.top, env=environment(),
    ).out  # fmt: skip
    # Their own global excludes count too: that is where people put `.env`. "./" keeps a name from being pathspec magic.
    asked = b"".join(b"./" + path + b"\0" for path in wanted.split(b"\0") if path)
    env = environment(user_config=True, extra={"GIT_LITERAL_PATHSPECS": "0"})
    ignored = git("check-ignore", "-z", "--stdin", cwd=base.top, env=env, stdin=asked, ok=(0, 1)).out
    done: list[str] = []
    skipped = _led_out(base.top)
    total = 0
    for path in (name.removeprefix("./") for name in _paths(ignored)):
        source = _source(base.top, path)
        if source is None or "\n" in path:
            skipped.append(f"{path}: not a file")
            continue
        if stat.S_ISLNK(source.st_mode) and escapes(path, str((base.top / path).readlink())):
            skipped.append(f"{path}: a symlink that leads out of the repository")
            continue
        total += source.st_size
        _bounded(len(done) + 1, total, limits.included_files, limits.included_bytes, "files of .worktreeinclude")
        if os.path.lexists(repo_dir / path) or not tree.inside(repo_dir, path):
            skipped.append(f"{path}: the base commit has something there")
        elif _copied(base.top / path, repo_dir / path, path, skipped):
            done.append(path)
    return done, skipped


def _special(top: Path) -> list[str]:
    """What git never tells of, because it can be no file of a commit; bounded, and nothing that they ignore."""
    found, pending, seen = [], [""], 0
    while pending and seen < _MOST_LOOKED_AT:
        here = pending.pop()
        with contextlib.suppress(OSError), os.scandir(top / here) as entries:
            for entry in entries:
                seen += 1
                path = f"{here}/{entry.name}" if here else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != ".git":
                        pending.append(path)
                elif not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
                    found.append(path)
    if not found:
        return []
    env = environment(user_config=True, extra={"GIT_LITERAL_PATHSPECS": "0"})
    asked = b"".join(b"./" + os.fsencode(path) + b"\0" for path in found)
    ignored = set(_paths(git("check-ignore", "-z", "--stdin", cwd=top, env=env, stdin=asked, ok=(0, 1, 128)).out))
    return sorted(path for path in found if f"./{path}" not in ignored)


def _led_out(top: Path) -> list[str]:
    """Lines of `.worktreeinclude` that name something out of the repository: git silently matches them with nothing."""
    try:
        lines = read_plain(top / ".worktreeinclude", follow=True).decode("utf-8", "surrogateescape").splitlines()
    except (OSError, ValueError):
        return []
    said = []
    for line in (line.strip() for line in lines):
        path = line.strip("/")
        if not path or line.startswith(("#", "!")):
            continue
        if ".." in path.split("/"):
            said.append(f"{line}: leads out of the repository")
        elif line.startswith("~/") or (line.startswith("/") and not _below(top, path) and os.path.lexists(line)):
            said.append(f"{line}: lies outside of the repository")
        elif not tree.inside(top, path) and os.path.lexists(top / path):
            said.append(f"{line}: lies behind a symlink")
    return said


def _below(top: Path, path: str) -> bool:
    return os.path.lexists(top / path) or any(char in path for char in "*?[")


def literal(path: str) -> str:
    """A path as a gitignore pattern that matches only itself."""
    text = re.sub(r"([\\*?\[])", r"\\\1", path)
    return "/" + (text[:-1] + "\\ " if text.endswith(" ") else text)


def escapes(path: str, target: str) -> bool:
    """Whether a symlink at `path` leads out of the tree, or could by way of another link, or into a git directory."""
    parts = target.split("/")
    if target.startswith("/") or not target:
        return True
    climbed = 0
    for number, part in enumerate(parts):
        if part == "..":
            # After a name, `..` is relative to wherever that name leads, which may be a link.
            if any(earlier not in ("..", ".", "") for earlier in parts[:number]):
                return True
            climbed += 1
        elif tree.names_git(part):
            return True
    return climbed > path.count("/")


def _dirty(base: Base, skipped: list[str]) -> list[tuple[str, bool]]:
    """The user's dirty paths, each with whether it is tracked."""
    args = ("status", "--porcelain=v2", "-z", "--no-renames", "--untracked-files=all")
    env = environment(user_config=True)
    done = git(*args, cwd=base.top, env=env, ok=None)
    if done.code != 0:  # because of a submodule that is broken, if it can be answered without them
        done = git(*args, "--ignore-submodules=all", cwd=base.top, env=env)
    found = []
    for record in _paths(done.out):
        if record.startswith("1 "):
            _, _, module, *_, path = record.split(" ", 8)
            if module.startswith("S"):
                skipped.append(f"{path}: {_of_module(module)}")
            else:
                found.append((path, True))
        elif record.startswith("u "):
            skipped.append(f"{record.split(' ', 10)[10]}: not merged yet")
        elif record.startswith("? "):
            path = record[2:]
            if path.endswith("/"):
                skipped.append(f"{path}: a repository of its own")
            else:
                found.append((path, False))
    return found


def _of_module(state: str) -> str:
    """What is changed of a submodule, by git's `S<commit><modified><untracked>`."""
    said = ["another commit"] * (state[1] == "C") + ["changes"] * (state[2:] != "..")
    return f"{' and '.join(said) or 'a change'} of a submodule"


def _source(top: Path, path: str) -> os.stat_result | None:
    """The user's file or symlink; None for anything else, or behind a symlink."""
    if not tree.inside(top, path) or any(tree.names_git(part) for part in path.split("/")):
        return None
    try:
        found = os.lstat(top / path)
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode) else None


def _copied(source: Path, target: Path, path: str, skipped: list[str]) -> bool:
    try:
        tree.copy(source, target)
    except OSError as error:
        if error.errno is not None and os.strerror(error.errno).startswith("No space"):
            raise
        skipped.append(f"{path}: {error.strerror or error}")
        return False
    return True


def _bounded(files: int, size: int, most_files: int, most_bytes: int, what: str) -> None:
    if files > most_files or size > most_bytes:
        raise CoreAgentError(
            "too_large",
            f"the {what} are too many to carry: {plural(files, 'file')}, {size / 2**20:,.0f} MiB",
            hint=f"at most {most_files:,} files and {most_bytes // 2**20:,} MiB; commit or ignore the rest",
        )


def _paths(out: bytes) -> list[str]:
    return [os.fsdecode(part) for part in out.split(b"\0") if part]
