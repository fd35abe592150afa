"""Ref names and refs read by hand, without a git process.

The other modules of this package come in here on the hot path and wherever a repository must not be trusted to a git
process (an agent's `.git`). Reads only; it must not know what the refs are for.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from coreagent.errors import CoreAgentError

ZERO = "0" * 40
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_BAD = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
# Far beyond any real ref file; an agent may have put a gigabyte there.
_MOST = 64 * 1024 * 1024


def is_sha(text: str) -> bool:
    return _SHA.fullmatch(text) is not None


def valid(name: str) -> bool:
    """Whether git would take this as a branch or tag name (git check-ref-format --branch), and it is no option."""
    if len(name.encode("utf-8", "surrogateescape")) > 200 or name in ("", "@", "HEAD") or name.startswith("-"):
        return False
    if _BAD.search(name) or name.startswith("/") or name.endswith(("/", ".")):
        return False
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return not any(part.startswith(".") or part.endswith(".lock") for part in name.split("/"))


def require(name: str, what: str = "branch") -> str:
    """Return the name, or refuse it.

    Raises: invalid_name.
    """
    if not valid(name):
        raise CoreAgentError(
            "invalid_name",
            f"{name!r} cannot be the name of a {what}",
            hint="git check-ref-format --branch NAME tells what git takes",
        )
    return name


def git_dir_of(top: Path) -> Path | None:
    """The git directory of a work tree's top: `.git` itself, or where a `.git` file (linked worktree) points."""
    entry = top / ".git"
    try:
        if entry.is_dir():
            return entry
        text = read_small(entry, follow=True)
    except OSError:
        return None
    if not text.startswith("gitdir: "):
        return None
    return Path(os.path.normpath(top / text[8:].rstrip("\n")))


def common_dir_of(git_dir: Path) -> Path:
    """The directory shared by all worktrees of a repository (refs, objects, config)."""
    try:
        text = (git_dir / "commondir").read_text().rstrip("\n")
    except (OSError, UnicodeDecodeError):
        return git_dir
    return Path(os.path.normpath(git_dir / text))


def read_small(path: Path, *, follow: bool = False) -> str:
    """Read a small regular file. Never waits on a FIFO, and follows a symlink only when told to."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        return os.fsdecode(file.read(_MOST))


def read(common_dir: Path, name: str) -> str:
    """The hash that a full ref name of a person's repository stands for, loose or packed; "" when there is none."""
    try:
        text = read_small(common_dir / name).strip()
        return text if is_sha(text) else ""
    except OSError:
        pass
    try:
        for line in read_small(common_dir / "packed-refs").splitlines():
            if line.endswith(name) and line[-len(name) - 1] == " ":
                sha = line[: -len(name) - 1]
                return sha if is_sha(sha) else ""
    except OSError:
        pass
    return ""


def heads(git_dir: Path) -> tuple[str, dict[str, str]]:
    """Read a git directory nobody may trust: its HEAD's branch ("" when detached) and all its refs with their shas.

    "HEAD" is among the refs when it points at a commit. Only `refs/heads` and `refs/stash` are read.
    """
    refs: dict[str, str] = {}
    try:
        for line in read_small(git_dir / "packed-refs").splitlines():
            sha, _, name = line.partition(" ")
            if is_sha(sha) and (name.startswith("refs/heads/") or name == "refs/stash"):
                refs[name] = sha
    except OSError:
        pass
    _loose(git_dir / "refs" / "heads", "refs/heads/", refs, 0)
    _one(git_dir / "refs" / "stash", "refs/stash", refs)
    branch = ""
    try:
        text = read_small(git_dir / "HEAD").strip()
    except OSError:
        text = ""
    if text.startswith("ref: "):
        name = text[5:].strip()
        branch = name.removeprefix("refs/heads/")
        if name in refs:
            refs["HEAD"] = refs[name]
    elif is_sha(text):
        refs["HEAD"] = text
    return branch, refs


def _loose(directory: Path, prefix: str, refs: dict[str, str], depth: int) -> None:
    if depth > 20 or len(refs) > 10_000 or directory.is_symlink():
        return
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _loose(Path(entry.path), f"{prefix}{entry.name}/", refs, depth + 1)
        else:
            _one(Path(entry.path), prefix + entry.name, refs)


def _one(path: Path, name: str, refs: dict[str, str]) -> None:
    try:
        text = read_small(path).strip()
    except OSError:
        return
    if is_sha(text):
        refs[name] = text
