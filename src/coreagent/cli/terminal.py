"""The terminal that a command sees: streams, size, colours, directory and environment of whoever asked.

Commands and views come in, in a thread of the daemon or in the person's own process, and cannot tell which. This room
knows neither the socket nor a command: it is given functions that take bytes.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.theme import Theme

WIDTH_UNKNOWN = 120
"""Columns when the output is a file or a pipe: wide, because there it is read by programs."""
LINES_UNKNOWN = 24
_HOLD = 32768


class CannotWrite(Exception):
    """Standard output takes nothing more (a full disk, a broken device), and nobody closed it on purpose."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")


class Channel(io.TextIOBase):
    """A text stream over a function that takes bytes. Holds back at most `_HOLD` characters until `flush`."""

    def __init__(self, sink: Callable[[bytes], None], tty: bool) -> None:
        self._sink = sink
        self._tty = tty
        self._held: list[str] = []
        self._size = 0

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def write(self, text: str) -> int:
        self._held.append(text)
        self._size += len(text)
        if self._size > _HOLD or (self._tty and "\n" in text):
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self._held:
            data = "".join(self._held).encode("utf-8", "backslashreplace")
            self._held.clear()
            self._size = 0
            self._sink(data)

    def write_bytes(self, data: bytes) -> None:
        """Write what is not text, after all that was written before."""
        self.flush()
        view = memoryview(data)
        for start in range(0, len(view), _HOLD):
            self._sink(bytes(view[start : start + _HOLD]))

    def isatty(self) -> bool:
        return self._tty

    def writable(self) -> bool:
        return True


def channel(sink: Callable[[bytes], None], tty: bool) -> TextIO:
    """A text stream over `sink`."""
    return cast("TextIO", Channel(sink, tty))


@dataclass
class Terminal:
    """What a command knows of the place that it was called from."""

    out: TextIO
    err: TextIO
    stdin: TextIO
    width: int
    height: int
    colour: bool
    interactive: bool
    """A person sits at both ends: standard input and output are terminals."""
    cwd: str
    env: dict[str, str] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether a moving display makes sense: output is a terminal that understands escapes."""
        return self.out.isatty() and self.env.get("TERM", "dumb") not in ("", "dumb")

    def console(self, *, stderr: bool = False, theme: Theme | None = None) -> Console:
        """A rich console on this terminal. It asks nothing of the process that it runs in."""
        from rich.console import Console

        stream = self.err if stderr else self.out
        depth = self.env.get("COLORTERM", "")
        colours = "truecolor" if depth in ("truecolor", "24bit") else "256"
        return Console(
            file=stream,
            width=self.width,
            height=self.height,
            color_system=colours if self.colour else None,  # type: ignore[arg-type]
            force_terminal=self.colour or stream.isatty(),
            force_interactive=self.live,
            force_jupyter=False,
            no_color=not self.colour,
            legacy_windows=False,
            highlight=False,
            emoji=False,
            theme=theme,
            _environ={},
        )

    def write_bytes(self, data: bytes) -> None:
        """Write bytes as they are; only for output that is no terminal."""
        if isinstance(self.out, Channel):
            self.out.write_bytes(data)
        else:
            self.out.write(data.decode("utf-8", "backslashreplace"))

    def path(self, text: str) -> str:
        """Make a path that a person typed absolute, from where they typed it."""
        if text.startswith("~"):
            user = self.env.get("HOME", "")
            if text == "~" or text.startswith("~/"):
                text = user + text[1:]
        return os.path.normpath(os.path.join(self.cwd or "/", text))

    def flush(self) -> None:
        self.out.flush()
        self.err.flush()


_CURRENT: ContextVar[Terminal] = ContextVar("terminal")


def terminal() -> Terminal:
    """The terminal of the command that runs in this context."""
    return _CURRENT.get()


@contextmanager
def using(chosen: Terminal) -> Iterator[Terminal]:
    token = _CURRENT.set(chosen)
    try:
        yield chosen
    finally:
        _CURRENT.reset(token)


def own_terminal(*, cwd: str, columns: int, lines: int, colour: bool, ttys: str, env: dict[str, str]) -> Terminal:
    """The terminal of this very process, on file descriptors 0, 1 and 2."""
    if ttys[0] == "-":
        stdin: TextIO = io.StringIO("")
    else:
        stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    return Terminal(
        out=channel(_writer(1), ttys[1] == "1"),
        err=channel(_writer(2), ttys[2] == "1"),
        stdin=stdin,
        width=columns or WIDTH_UNKNOWN,
        height=lines or LINES_UNKNOWN,
        colour=colour,
        interactive=ttys[:2] == "11",
        cwd=cwd,
        env=env,
    )


def _writer(fd: int) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                _wait_writable(fd)
            except BrokenPipeError:
                raise
            except OSError as error:
                if fd == 1 and error.errno != errno.EBADF:
                    raise CannotWrite(error) from error
                return  # closed by whoever started us: nobody wants to see this

    return write


def _wait_writable(fd: int) -> None:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def _unsafe() -> dict[int, str]:
    table = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    table[0x7F] = "\u2421"
    # C1 controls act like escapes on 8-bit terminals; the others move, hide or reorder what a person reads.
    hidden = [
        *range(0x80, 0xA0),
        0x061C,
        0x180E,
        0x200B,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2060, 0x2070),
    ]
    hidden += [0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xD800, 0xE000), *range(0xE0000, 0xE0080)]
    table.update({code: f"<U+{code:04X}>" for code in hidden})
    return table


_UNSAFE = _unsafe()


def clean(text: str) -> str:
    """Make text of an agent safe for a terminal: escapes, control and bidirectional characters become visible."""
    if text.isascii() and text.isprintable():
        return text
    return text.replace("\r\n", "\n").translate(_UNSAFE)


def flush_std() -> None:
    """Flush what third-party code may have printed behind our back. Raises: CannotWrite."""
    failed: OSError | None = None
    for stream in (sys.stderr, sys.stdout):
        if stream is not None:
            try:
                stream.flush()
            except ValueError:
                continue
            except OSError as error:
                if stream is sys.stdout and error.errno not in (errno.EBADF, errno.EPIPE):
                    failed = error
    if failed is not None:
        sys.stdout = None  # or the interpreter tries once more when it leaves, and complains in its own words
        raise CannotWrite(failed)
