"""Files in places where an agent of the same user could have put something else: a pipe, a device, a link.

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


def _checked(path: str | os.PathLike[str], descriptor: int, mode: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return open(descriptor, mode)  # type: ignore[return-value]  # a binary mode
