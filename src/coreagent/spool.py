"""The files of an attempt directory that must hold when the disk is full and the machine goes down.

Ground floor, standard library only. The shim comes in (it writes one Spool per stream and claims the attempt),
attempts.py (it claims an attempt that nobody will run) and the runners' parsers (they tell our lines from the
stream's). It must not know what the lines mean.
"""

from __future__ import annotations

import os
import time

from coreagent.plainjson import dumps

TYPE_CHECKING = False  # `typing` would cost the shim more than all of its other imports
if TYPE_CHECKING:
    from typing import Any


MARKS = (b'{"core_agent": "cut"', b'{"core_agent": "dropped"')
"""How a Spool's own lines begin. No line of the stream does in the file: see `quoted`."""


def quoted(block: bytes | bytearray) -> bytes | bytearray:
    """Put one space before each line of the stream that would look like ours, or like one that was quoted so.

    Then a reader knows both apart, and takes one space away to have the stream's own line back.
    """
    if MARKS[0] not in block and MARKS[1] not in block:
        return block
    lines = block.split(b"\n")
    return b"\n".join([b" " + line if line.lstrip(b" ").startswith(MARKS) else line for line in lines])


def unquoted(line: bytes) -> bytes:
    """The stream's own line of a line in the file; not for one of ours."""
    return line[1:] if line.startswith(b" ") and line.lstrip(b" ").startswith(MARKS) else line


def sync_dir(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def claim(directory: str, body: dict[str, Any]) -> bool:
    """Create `started` durably and with its whole text at once; False when somebody was first.

    Whoever wins decides: a shim that wins may exec, a daemon that wins (`{"void": true}`) may run the task again.
    """
    path = f"{directory}/started"
    own = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    fd = os.open(own, flags, 0o600)
    try:
        os.write(fd, (dumps(body) + "\n").encode())
        os.fsync(fd)
        try:
            os.link(own, path)  # exclusive like O_EXCL, but never seen half written
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                os.close(os.open(path, flags, 0o600))
            except FileExistsError:
                return False
            os.rename(own, path)
    finally:
        os.close(fd)
        remove(own)
    sync_dir(directory)
    return True


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def reserve(path: str, size: int) -> None:
    """Take disk space now that will be needed when there is none left."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            else:
                os.write(fd, bytes(size))
        finally:
            os.close(fd)
    except OSError:
        pass


class Spool:
    """Whole lines of one stream: the head goes to the file at once, the end is kept in memory and written at close.

    Past `head` bytes the middle is dropped (a marker line says how much), because the terminal event comes last.
    A full disk is treated the same way, and never stops the reading.
    """

    def __init__(self, path: str, head: int, tail: int, line: int) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        self.head, self.tail_max, self.line_max = head, tail, line
        self.size = self.dropped = self.cut = self.cut_total = self.held = 0
        self.part = bytearray()
        self.tail: list[bytes | bytearray] = []
        self.full, self.problem = False, ""

    def feed(self, data: bytes) -> None:
        if self.part:
            end = data.find(b"\n")
            if end < 0:
                self.hold(data)
                return
            self.hold(data[:end])
            self.end_line()
            data = data[end + 1 :]
        end = data.rfind(b"\n") + 1
        if end:
            self.keep(quoted(data[:end]))
        if end < len(data):
            self.hold(data[end:])

    def hold(self, data: bytes) -> None:
        room = self.line_max - len(self.part)
        self.part += data[:room]
        self.cut += max(0, len(data) - room)

    def end_line(self) -> None:
        line, cut = self.part, self.cut
        self.part, self.cut = bytearray(), 0
        line += b"\n"
        self.keep(quoted(line))
        if cut:
            self.cut_total += cut
            self.keep(b'{"core_agent": "cut", "bytes": %d}\n' % cut)

    def keep(self, block: bytes | bytearray) -> None:
        if not self.full:
            fit = len(block)
            if self.size + fit > self.head:
                self.full = True
                fit = block.rfind(b"\n", 0, max(0, self.head - self.size)) + 1
            block = block[self.append(block[:fit]) :]
        if block:
            self.tail.append(block)
            self.held += len(block)
            while self.held - len(self.tail[0]) >= self.tail_max:
                gone = len(self.tail.pop(0))
                self.held -= gone
                self.dropped += gone

    def append(self, block: bytes | bytearray) -> int:
        """Write whole lines; return how much was kept, which is less when the disk is full."""
        done = 0
        try:
            while done < len(block):
                done += os.write(self.fd, memoryview(block)[done:])
        except OSError as error:
            self.full, self.problem = True, error.strerror or "write failed"
            done = block.rfind(b"\n", 0, done) + 1
            try:
                os.ftruncate(self.fd, self.size + done)
            except OSError:
                pass
        self.size += done
        return done

    def close(self) -> None:
        """Write what was kept of the end: as much as fits, at least the last line."""
        if self.part:
            self.end_line()
        tail = b"".join(self.tail)
        if len(tail) > self.tail_max:
            start = tail.find(b"\n", len(tail) - self.tail_max - 1) + 1
            if start == len(tail):  # the last line alone is larger: it is likely the one that matters
                start = tail.rfind(b"\n", 0, -1) + 1
            self.dropped += start
            tail = tail[start:]
        last = tail.rfind(b"\n", 0, -1) + 1
        # All of it, or less and less of it when the disk is full.
        starts = [0, *(tail.find(b"\n", len(tail) - size) + 1 for size in (1 << 17, 1 << 14) if size < len(tail)), last]
        for start in starts:
            dropped = self.dropped + start
            marker = b'{"core_agent": "dropped", "bytes": %d}\n' % dropped if dropped else b""
            block = marker + tail[start:]
            before = self.size
            if self.append(block) == len(block):
                self.dropped = dropped
                break
            os.ftruncate(self.fd, before)
            self.size = before
        else:
            self.dropped += len(tail)
        try:
            os.fsync(self.fd)
        except OSError as error:
            self.problem = self.problem or error.strerror or "fsync failed"
        os.close(self.fd)
