"""Memory that only the work of a moment ago needed goes back to the system when the daemon becomes quiet.

The daemon's main room starts it and says when something stirred. It knows pages and the allocator, and nothing of what
the daemon does. An idle daemon would otherwise keep for ever what its start and its largest command touched: most of
it is code of the database's library that is read once, and is in the kernel's page cache anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import sys
from collections.abc import AsyncIterable, Iterator
from typing import Any

QUIET_S = 0.75
"""Between two commands of one person, so that a script of many commands is not slowed by pages that come and go."""
_DONTNEED = 4


class Thrift:
    """Gives back what is not needed, once after each time of work."""

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._quiet_s = quiet_s
        self._timer: asyncio.TimerHandle | None = None
        self._giving: asyncio.Future[None] | None = None
        self._settled = False

    def stirred(self) -> None:
        """Something was done; when nothing more is done for a while, what it took is given back."""
        self.close()
        self._timer = self._loop.call_later(self._quiet_s, self._give)

    async def follow(self, events: AsyncIterable[object]) -> None:
        """Agents work without any client: what is told of them stirs too."""
        async for _ in events:
            self.stirred()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _give(self) -> None:
        if self._giving is not None and not self._giving.done():
            self.stirred()
            return
        gc.collect()
        if not self._settled:
            # What is there after the start stays: later collections need not look at it again.
            self._settled = True
            gc.freeze()
        self._giving = self._loop.run_in_executor(None, give_back)


def give_back() -> None:
    """Free the allocator's empty pages, and forget code pages that can be had from the page cache. Never raises."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError, ValueError):
        library: Any = ctypes.CDLL(None, use_errno=True)
        for start, length in clean_code():
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_DONTNEED))
        library.malloc_trim(ctypes.c_size_t(0))  # not in every libc; so it comes last


def clean_code() -> Iterator[tuple[int, int]]:
    """(start, length) of every mapping of code from a file of which this process has changed no page.

    Only those may be forgotten: a changed page (a debugger's breakpoint, a relocation) exists nowhere else.
    """
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        found: list[tuple[int, int]] = []
        for line in file:
            words = line.split(None, 5)
            if len(words) == 6 and "-" in words[0] and not words[0].endswith(":"):
                start, _, end = words[0].partition("-")
                code = words[1] == "r-xp" and words[5].startswith("/")
                place = (int(start, 16), int(end, 16) - int(start, 16)) if code else None
            elif len(words) == 5 and "-" in words[0]:
                place = None
            elif words[0] == "Anonymous:" and place is not None and words[1] == "0":
                found.append(place)
    yield from found
