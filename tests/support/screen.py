"""A command on a terminal of its own: what a person would see, and what they type."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[()][A-Z0-9]|.)")


class Screen:
    """A program on a pseudo-terminal. Text is looked for without its blanks: programs draw those as cursor moves."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, rows: int = 50, columns: int = 160
    ) -> None:
        self.raw = b""
        self._seen = 0
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            argv, env={**env, "TERM": "xterm-256color"}, cwd=cwd, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def shown(self) -> str:
        """Everything drawn so far, without escapes and blanks."""
        return re.sub(r"\s+", "", _ESCAPES.sub(b"", self.raw).decode("utf-8", "replace"))

    def until(self, *texts: str, timeout_s: float = 30.0) -> str:
        """Wait until one of the texts is drawn after what was waited for before, and return it."""
        wanted = {re.sub(r"\s+", "", text): text for text in texts}
        ends = time.monotonic() + timeout_s
        while True:
            shown = self.shown()
            for bare, text in wanted.items():
                at = shown.find(bare, self._seen)
                if at >= 0:
                    self._seen = at + len(bare)
                    return text
            if not self._read(ends - time.monotonic()):
                raise AssertionError(f"{texts} not shown; last: {shown[-1500:]}")

    def quiet(self, for_s: float = 0.4) -> None:
        """Wait until nothing is drawn for a moment: dialogs ignore keys, or begin again, while they are coming up."""
        while self._read(for_s):
            continue

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self, timeout_s: float = 20.0) -> int:
        """Wait for the program to leave, reading what it still says; return its exit code."""
        ends = time.monotonic() + timeout_s
        while self._read(ends - time.monotonic()):
            continue
        return self.process.wait(max(0.1, ends - time.monotonic()))

    def _read(self, left: float) -> bool:
        if left <= 0 or not select.select([self._master], [], [], left)[0]:
            return False
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when the last one has closed the terminal
            return False
        self.raw += chunk
        return bool(chunk)
