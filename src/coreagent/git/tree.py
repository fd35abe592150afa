"""Files copied and read in trees that may be hostile: never through a symlink, never out of the tree.

The carrying of a person's files and the reading of an agent's come in here. It knows file systems, not git.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# ioctl number of FICLONE: share the blocks of a file (btrfs, xfs) instead of copying them.
_FICLONE = 0x40049409
_DOT_GIT = {".git", "git~1"}
# Characters HFS+ ignores in names, so that ".g\u200cit" is ".git" on a Mac.
_IGNORED_BY_HFS = dict.fromkeys([*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF])


def bad(path: str) -> str:
    """Why a path may not go into a commit; "" when it may."""
    if not path or path.startswith("/") or "\0" in path:
        return "not a path inside the repository"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "the name is not valid UTF-8"
    if any(ord(char) < 32 or ord(char) == 127 for char in path):
        return "the name holds control characters"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "the path has an empty, `.` or `..` part"
        if names_git(part):
            return "the path names a git directory"
    return ""


def names_git(part: str) -> bool:
    """Whether some file system (case-insensitive, NTFS short names and streams, HFS+) takes this name for `.git`."""
    for piece in part.split("\\"):
        name = piece.translate(_IGNORED_BY_HFS).split(":")[0].rstrip(". ").lower()
        if name in _DOT_GIT:
            return True
    return False


def inside(top: Path, path: str) -> bool:
    """Whether a relative path stays below `top` by its text and meets no symlink on the way to its last part."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        return False
    here = top
    for part in parts[:-1]:
        here = here / part
        try:
            if not stat.S_ISDIR(os.lstat(here).st_mode):
                return False
        except FileNotFoundError:
            return True
        except OSError:
            return False
    return True


def copy(source: Path, target: Path) -> int:
    """Copy a regular file or a symlink as it is; return its size. The target is replaced, never written through.

    Raises: OSError.
    """
    found = os.lstat(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:40]}.{os.getpid()}.part")
    if stat.S_ISLNK(found.st_mode):
        part.symlink_to(source.readlink())
    elif stat.S_ISREG(found.st_mode):
        _copy_file(source, part, found.st_mode)
    else:
        raise OSError(f"{source} is neither a file nor a symlink")
    part.replace(target)
    return found.st_size


def _copy_file(source: Path, part: Path, mode: int) -> None:
    incoming = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(incoming, "rb") as reader, part.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, incoming)
        except OSError:
            shutil.copyfileobj(reader, writer, 1024 * 1024)
        os.fchmod(writer.fileno(), stat.S_IMODE(mode) & 0o777)


def remove(path: Path) -> None:
    """Remove a file or symlink, or a whole directory, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def files(top: Path, start: str) -> Iterator[str]:
    """Every file and symlink below `start` (relative to `top`), less what lies in git directories."""
    pending = [start.rstrip("/")]
    while pending:
        here = pending.pop()
        readable(top / here)
        try:
            entries = list(os.scandir(top / here))
        except OSError:
            continue
        for entry in entries:
            path = f"{here}/{entry.name}" if here else entry.name
            if names_git(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                yield path


def readable(path: Path) -> bool:
    """Whether we can read a file or list a directory; gives ourselves the permission back where an agent took it."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    if stat.S_ISLNK(found.st_mode):
        return True
    need = 0o700 if stat.S_ISDIR(found.st_mode) else 0o400
    if found.st_mode & need != need:
        with contextlib.suppress(OSError):
            path.chmod(stat.S_IMODE(found.st_mode) | need)
    return os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(found.st_mode) else 0))
