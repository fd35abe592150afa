"""Text files that an agent reads and writes through its client: only below given directories, by no link out of them.

Ground floor, standard library only; shim_acp.py comes in. An agent that runs as the same user has other ways to the
disk; this one, at least, is not a hole in a sandbox around it. It must not know the protocol that asked.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False  # `typing` would cost the shim more than all of its other imports
if TYPE_CHECKING:
    from collections.abc import Sequence

READ_MAX = 8 << 20
"""A larger file is refused: its reply has to be held in memory until the agent reads it."""
NOT_OURS = ".git"
"""What lies below it belongs to git; what is written there is run by the next git command."""


class Refused(Exception):
    """Why a file was not read or written; its text goes to the agent."""


def place(path: object, roots: Sequence[str]) -> tuple[str, list[str]]:
    """Return the root that a path lies below, links resolved, and the names from there. Raises: Refused."""
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise Refused("the path is not absolute")
    real = os.path.realpath(path)
    for root in roots:
        if real == root or real.startswith(root.rstrip("/") + "/"):
            return root, [name for name in real[len(root) :].split("/") if name]
    raise Refused("the path is outside the workspace")


def inside(path: object, roots: Sequence[str], *, writing: bool) -> bool:
    """Whether a path lies below one of the roots, and what is written there is not git's."""
    try:
        root, names = place(path, roots)
    except Refused:
        return False
    return not (writing and _protected(root, names))


def read_text(path: object, roots: Sequence[str], line: object = None, limit: object = None) -> str:
    """Return a text file, or `limit` lines of it from the 1-based `line` on. Raises: Refused."""
    root, names = place(path, roots)
    fd = _open(root, names, os.O_RDONLY)
    try:
        raw = b""
        while len(raw) <= READ_MAX and (more := os.read(fd, READ_MAX + 1 - len(raw))):
            raw += more
    finally:
        os.close(fd)
    if len(raw) > READ_MAX:
        raise Refused(f"the file has more than {READ_MAX} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Refused("the file is not UTF-8 text") from None
    if isinstance(line, int) or isinstance(limit, int):
        start = max(0, line - 1) if isinstance(line, int) else 0
        lines = text.splitlines(keepends=True)
        text = "".join(lines[start : start + max(0, limit)] if isinstance(limit, int) else lines[start:])
    return text


def write_text(path: object, content: object, roots: Sequence[str], umask: int) -> None:
    """Replace a text file, or make it and the directories it needs. Raises: Refused."""
    root, names = place(path, roots)
    if not isinstance(content, str):
        raise Refused("the content is not text")
    if _protected(root, names):
        raise Refused("the path belongs to git")
    fd = _open(root, names, os.O_WRONLY | os.O_CREAT, umask)
    try:
        raw = memoryview(content.encode("utf-8", "replace"))
        os.ftruncate(fd, 0)
        while raw:
            raw = raw[os.write(fd, raw) :]
    except OSError as error:
        raise _told(error) from None
    finally:
        os.close(fd)


def _protected(root: str, names: list[str]) -> bool:
    return not names or (root != "/" and NOT_OURS in names)


def _open(root: str, names: list[str], flags: int, umask: int = 0) -> int:
    """Open a regular file from a resolved path, one name after the other: no link is followed that came meanwhile."""
    step = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in names[:-1]:
                if flags & os.O_CREAT:
                    try:
                        os.mkdir(name, 0o777 & ~umask, dir_fd=here)
                    except FileExistsError:
                        pass
                below = os.open(name, step, dir_fd=here)
                os.close(here)
                here = below
            fd = os.open(names[-1] if names else ".", flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=here)
        finally:
            os.close(here)
    except OSError as error:
        raise _told(error) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Refused("it is not a regular file")
        if flags & os.O_CREAT and found.st_size == 0 and stat.S_IMODE(found.st_mode) == 0o600:
            os.fchmod(fd, 0o666 & ~umask)  # the shim's own umask keeps everybody else out
    except BaseException:
        os.close(fd)
        raise
    return fd


def _told(error: OSError) -> Refused:
    # "Resource not found" is the protocol's word, and what gemini looks for before it makes a new file.
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
    return Refused(f"Resource not found: {os.strerror(errno.ENOENT)}" if missing else os.strerror(error.errno or 0))
