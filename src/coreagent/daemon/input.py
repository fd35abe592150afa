"""Standard input of a command in the daemon: asked for piece by piece, so nothing piles up.

The command's thread reads, the daemon's loop puts in what the client sent. It knows no frame but `WANT`.
"""

from __future__ import annotations

import io
import queue
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TextIO, cast


class Input(io.RawIOBase):
    """A raw stream that asks the client for its next piece when the command reads."""

    def __init__(
        self, want: Callable[[], None], interruptible: Callable[[Callable[[], None]], AbstractContextManager[None]]
    ) -> None:
        self._want = want
        self._interruptible = interruptible
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._rest = b""
        self._ended = False
        self.asked = False
        """Whether a piece is owed; the client may send one then, and no other time."""

    def offer(self, piece: bytes) -> bool:
        """Take what the client sent, b"" for the end; False when nothing was asked for. Called on the loop."""
        if not self.asked:
            return False
        self.asked = False
        self._pieces.put(piece)
        return True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if not self._rest and not self._ended:
            self._rest = self._next()
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)

    def _next(self) -> bytes:
        if not self.asked:
            self.asked = True
            self._want()
        while True:
            with self._interruptible(lambda: self._pieces.put(None)):
                piece = self._pieces.get()
            if piece is not None:
                self._ended = not piece
                return piece

    def text(self) -> TextIO:
        return io.TextIOWrapper(
            io.BufferedReader(cast("io.RawIOBase", self)), encoding="utf-8", errors="surrogateescape"
        )
