"""Files and directories in places where an agent of the same user could have put something else: a pipe, a link.

Ground floor. Everyone who reads or writes below the home comes in here. Nothing in here waits: opening a pipe does,
until somebody opens its other end.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

_QUICK = os.O_CLOEXEC | os.O_NONBLOCK


def open_plain(path: str | os.PathLike[str], *, follow: bool = False) -> BinaryIO:
    """Open a regular file for reading; a link only when told to.

    Raises: OSError, also for everything that is no regular file.
    """
    return _checked(path, os.open(path, os.O_RDONLY | _QUICK | (0 if follow else os.O_NOFOLLOW)), "rb")


def read_plain(path: str | os.PathLike[str], most: int = 64 << 20, *, follow: bool = False) -> bytes:
    """The content of a regular file, as far as `most`.

    Raises: OSError, also for everything that is no regular file.
    """
    with open_plain(path, follow=follow) as file:
        return file.read(most)


def append_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to write at its end, a new one where there is none; never through a link.

    Raises: OSError, also for everything that is no regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | _QUICK
    return _checked(path, os.open(path, flags, 0o600), "ab")


def open_own(path: str | os.PathLike[str], flags: int) -> int:
    """A descriptor of a file of mode 0600 that is made where there is none, never through a link; not truncated.

    Raises: OSError.
    """
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def write_plain(path: str | os.PathLike[str], content: bytes) -> None:
    """Put a file of mode 0600 in the place of whatever is there, at once and never through a link."""
    part = f"{os.fspath(path)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(part, flags, 0o600)
    except FileExistsError:  # left by a crash, or laid there
        os.unlink(part)
        descriptor = os.open(part, flags, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(part, path)


def led_away(path: str | os.PathLike[str], below: str | os.PathLike[str]) -> str:
    """The first part of `path`, from the directory `below` on, that is no real directory; "" when there is none.

    Whoever removes, moves or writes in there asks first: a link in its place leads into somebody's own files. What is
    above `below` is the person's to arrange. Parts that are not there end the way.

    Raises: ValueError when it is not below, OSError.
    """
    top, whole = os.path.normpath(os.fspath(below)), os.path.normpath(os.fspath(path))
    if not whole.startswith(top + os.sep):
        raise ValueError(f"{whole} is not below {top}")
    here = top
    for part in os.path.relpath(whole, top).split(os.sep):
        here = os.path.join(here, part)
        try:
            if not stat.S_ISDIR(os.lstat(here).st_mode):
                return here
        except FileNotFoundError:
            return ""
    return ""


def make_real(path: str | os.PathLike[str], below: str | os.PathLike[str]) -> None:
    """Make a directory of mode 0700, and those on the way to it, in place of links and files that were laid there.

    Raises: OSError.
    """
    while laid := led_away(path, below):
        os.unlink(laid)
    os.makedirs(path, mode=0o700, exist_ok=True)


def _checked(path: str | os.PathLike[str], descriptor: int, mode: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return open(descriptor, mode)  # type: ignore[return-value]  # a binary mode
