"""Whether anything below a directory was touched since it was looked at, without a look at its files.

The kernel puts what happens to a watched directory and its entries into a queue before the call that did it returns,
so that an empty queue is an answer (inotify(7)). It does not tell of what is written to a file by way of a hard link
that was made elsewhere. Only Linux has it, and only so many watches; where there is none, every file is looked at.

By hand and not by a library: `watchfiles` tells later what is asked here now, and others search for the C library with
a compiler.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

MOST = 4096
"""So many directories at most: a person has a bounded number of watches, and their editor wants some too."""
_READ = 1 << 16
_EVENT = struct.Struct("iIII")  # which watch, what, cookie, length of the name that follows
_ONLYDIR, _DONT_FOLLOW, _ISDIR, _OPEN = 0x01000000, 0x02000000, 0x40000000, 0x20
# Of entries: modified, their metadata changed, closed after writing, moved from, moved to, created, deleted. Of the
# directory: deleted, moved. And opened: what was opened may be written by a mapping, of which nothing more is told.
_TOUCHED = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | _OPEN


class Stillness:
    """A watch over directories, each without what is below it. Close it: each costs the kernel about a kilobyte."""

    def __init__(self, queue: int) -> None:
        self._queue = queue

    @classmethod
    def over(cls, directories: Sequence[Path]) -> Self | None:
        """Begin to watch; None where that cannot be done, or not for so many. Blocking."""
        if sys.platform != "linux" or len(directories) > MOST:
            return None
        library: Any = ctypes.CDLL(None, use_errno=True)
        queue: int = library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if queue < 0:
            return None  # too many of this user's
        for directory in directories:
            if library.inotify_add_watch(queue, os.fsencode(directory), _TOUCHED | _ONLYDIR | _DONT_FOLLOW) < 0:
                os.close(queue)
                return None
        return cls(queue)

    def holds(self, *, read: bool = False) -> bool:
        """Whether nothing was touched up to now; `read`: by more than reading. Once it was, ask no more."""
        listed = _ISDIR | _OPEN  # somebody looked into a directory
        return all(what == listed or (read and what == _OPEN) for what in self._told())

    def _told(self) -> Iterator[int]:
        while True:
            try:
                said = os.read(self._queue, _READ)
            except BlockingIOError:
                return
            at = 0
            while at < len(said):
                _, what, _, length = _EVENT.unpack_from(said, at)
                yield what
                at += _EVENT.size + length

    def close(self) -> None:
        """Stop watching. Takes some 10 ms for a thousand directories, in which the kernel waits."""
        os.close(self._queue)
