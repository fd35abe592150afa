"""Lines that are drawn again in the same place, and a screen of its own for `--watch`.

Both write whole frames in one call, so that a slow terminal never shows half of one. On anything that is not a
terminal nothing is drawn: the caller prints plain lines instead.
"""

from __future__ import annotations

from types import TracebackType

from coreagent.cli.terminal import Terminal
from coreagent.cli.views.text import fit, width_of
from coreagent.plural import plural

_CLEAR_LINE = "\x1b[K"
_CLEAR_BELOW = "\x1b[J"
FOOT = 2
"""Lines of a screen that its footer takes."""


class Live:
    """A few lines at the bottom of what was printed, drawn again and again until `clear`."""

    def __init__(self, terminal: Terminal, height: int = 0) -> None:
        """`height`: lines that are drawn already, by whoever drew before."""
        self._terminal = terminal
        self._height = height

    @property
    def height(self) -> int:
        return self._height

    def draw(self, lines: list[str]) -> None:
        """Replace what was drawn before. A line wider than the screen would wrap and break the count: it is cut."""
        width = self._terminal.width
        shown = [line if width_of(line) < width else fit(line, width - 1) for line in lines]
        self._terminal.out.write(self._up() + "".join(line + _CLEAR_LINE + "\r\n" for line in shown) + _CLEAR_BELOW)
        self._terminal.out.flush()
        self._height = len(shown)

    def above(self, lines: list[str]) -> None:
        """Print lines that stay, above the drawn ones (which the next `draw` sets again)."""
        self._terminal.out.write(self._up() + _CLEAR_BELOW + "".join(line + "\n" for line in lines))
        self._terminal.out.flush()
        self._height = 0

    def clear(self) -> None:
        """Take the drawn lines away."""
        if self._height:
            self._terminal.out.write(self._up() + _CLEAR_BELOW)
            self._terminal.out.flush()
            self._height = 0

    def _up(self) -> str:
        return f"\r\x1b[{self._height}A" if self._height else "\r"


class Screen:
    """The alternate screen, left as it was found whatever happens inside."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def __enter__(self) -> Screen:
        self._terminal.out.write("\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J")
        self._terminal.out.flush()
        return self

    def draw(self, lines: list[str], footer: str) -> None:
        """Show the lines from the top; what does not fit is counted in the footer."""
        width, height = self._terminal.width, max(4, self._terminal.height)
        room = height - FOOT
        hidden = len(lines) - room
        shown = lines[:room] + [""] * max(0, -hidden)
        if hidden > 0:
            footer = f"{plural(hidden, 'more line')} below   {footer}"
        frame = "".join(
            (line if width_of(line) <= width else fit(line, width)) + _CLEAR_LINE + "\r\n" for line in shown
        )
        self._terminal.out.write("\x1b[H" + frame + _CLEAR_LINE + "\r\n" + fit(footer, width - 1) + _CLEAR_BELOW)
        self._terminal.out.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._terminal.out.write("\x1b[?25h\x1b[?1049l")
        self._terminal.out.flush()
