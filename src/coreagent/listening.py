"""Where a command takes its time: the terminal client hears more than the daemon then, and may be stopped by Ctrl-Z.

The client comes in. It loads this late: most commands are over before anything of this matters.
"""

import _signal  # type: ignore[import-not-found]
import os
import select

from coreagent import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from coreagent.__main__ import Line

ENTER_SCREEN = b"\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"
_NOBODY = select.POLLERR | select.POLLHUP


def read(line: "Line") -> bytes:
    """The daemon's next words; meanwhile what waits is sent, and standard input read when it is wanted.

    Ends this process as a write would when nobody reads our output any more.
    """
    # Sending never waits here: the daemon may itself be waiting for us to read.
    while True:
        poll = select.poll()
        poll.register(line.sock, select.POLLIN | (select.POLLOUT if line.unsent else 0))
        if line.wanted and not line.unsent:
            poll.register(0, select.POLLIN)
        if line.ttys[1] == "0":
            poll.register(1, 0)
        ready = dict(poll.poll())
        if ready.get(1, 0) & _NOBODY:
            unheard()
        events = ready.get(line.sock.fileno(), 0)
        if events & select.POLLOUT:
            line.flush()
        if events & ~select.POLLOUT:
            return line.sock.recv(262144)
        if 0 in ready:
            _take_input(line)


def _take_input(line: "Line") -> None:
    """Answer one `WANT`: one piece of standard input, or its end."""
    try:
        data = os.read(0, 65536)
    except OSError:
        data = b""
    line.wanted = False
    line.send(wire.frame(wire.INPUT, data) if data else wire.frame(wire.END))


def unheard() -> None:
    """End as any program does whose reader went away: by SIGPIPE."""
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    os.kill(os.getpid(), _signal.SIGPIPE)


def suspendable(line: "Line") -> None:
    """From now on Ctrl-Z gives the shell its screen back first, and takes the other one again afterwards."""
    if _signal.getsignal(_signal.SIGTSTP) is _signal.SIG_DFL:
        _signal.signal(_signal.SIGTSTP, lambda number, frame: _suspend(line))


def _suspend(line: "Line") -> None:
    line.restore()
    os.kill(os.getpid(), _signal.SIGTSTP)
    while not _in_front():
        os.kill(os.getpid(), _signal.SIGSTOP)  # woken in the background: the screen is another's
    os.write(1, ENTER_SCREEN)
    line.special_screen = True
    suspendable(line)
    line.tell_window()  # it may be another by now; the daemon draws anew


def _in_front() -> bool:
    try:
        return os.tcgetpgrp(1) == os.getpgrp()
    except OSError:
        return True  # the terminal is gone: whoever writes there finds out
