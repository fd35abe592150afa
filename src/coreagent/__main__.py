"""The terminal client: says who asks for what, copies what comes back, leaves with the exit code.

It starts in the time of an empty Python because it imports `sys`, `os`, `_socket`, `_signal` and two ground-floor
modules (pinned by a test); everything else is imported where a rare path needs it. It knows no command.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import os
import sys

from coreagent import paths, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from coreagent.errors import CoreAgentError

INTERRUPTED = 130
CANNOT_WRITE = 1
TRIES = 8
UNEASY_S = 3.0
"""After so long without a sign of life a person is told whom we wait for."""
CALM_S = 10.0
"""After so long with one daemon, the tries to find the next one begin anew."""
COMPLETE = "_CORE_AGENT_COMPLETE"

_LEAVE_SCREEN = b"\x1b[?1049l\x1b[?25h"


class Again(Exception):
    """The daemon gives way to another one: connect and ask once more."""


class NotStarted(Exception):
    """The daemon could not be started; why has been told already, by the process that tried."""

    def __init__(self, code: int) -> None:
        super().__init__("the daemon does not run and could not be started")
        self.code = code


class Line:
    """One connection to the daemon, from the first frame to the exit code."""

    def __init__(self, sock: "_socket.socket", ttys: str) -> None:
        self.sock = sock
        self.ttys = ttys
        self.interrupts = 0
        self.again: list[str] = []
        """What to say to another daemon when this one goes away; [] when nothing is safe to say twice."""
        self.pumping = False
        self.wanted = False
        self.special_screen = False
        self._sending = False
        self.unsent = b""
        self.heard = False
        self.added = False
        """Something was sent after the opening, so that what the daemon left unread may be that."""
        self._told = False
        self._patience = wire.patience(os.environ)
        self._since = os.times().elapsed
        wait_at_most(sock, min(UNEASY_S, self._patience))

    def send(self, data: bytes) -> None:
        """Send whole frames; a signal handler that comes in between waits for its turn."""
        if self._sending or self.unsent:
            self.unsent += data
            return
        self._sending = True
        try:
            self._push(data)
            while self.unsent and not self.pumping:
                data, self.unsent = self.unsent, b""
                self._push(data)
        finally:
            self._sending = False

    def _push(self, data: bytes) -> None:
        if not self.pumping:
            while data:
                try:
                    data = data[self.sock.send(data) :]
                except BlockingIOError:
                    self._silence()
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        self.unsent = data[sent:] + self.unsent

    def flush(self) -> None:
        data, self.unsent = self.unsent, b""
        self.send(data)

    def signals(self) -> None:
        if _signal.getsignal(_signal.SIGINT) is not _signal.SIG_IGN:
            _signal.signal(_signal.SIGINT, self._on_interrupt)
        _signal.signal(_signal.SIGTERM, self._on_stop)
        if "1" in self.ttys:
            _signal.signal(_signal.SIGWINCH, self._on_window)

    def _on_interrupt(self, number: int, frame: object) -> None:
        self.interrupts += 1
        if self.interrupts > 1 or (self._told and not self.heard):
            self.leave(INTERRUPTED)
        self._tell(wire.frame(wire.INTERRUPT))

    def _on_stop(self, number: int, frame: object) -> None:
        self._tell(wire.frame(wire.STOP))
        self.leave(128 + number)

    def _on_window(self, number: int, frame: object) -> None:
        self.tell_window()

    def tell_window(self) -> None:
        columns, lines = wire.window(self.ttys)
        self._tell(wire.frame(wire.WINDOW, b"%d %d" % (columns, lines)))

    def _tell(self, data: bytes) -> None:
        self.added = True
        try:
            self.send(data)
        except OSError:
            pass  # the daemon is gone; the read that was interrupted finds out and says so

    def leave(self, code: int) -> None:
        """Leave now, the screen as a person wants it."""
        self.restore()
        os._exit(code)

    def restore(self) -> None:
        if self.special_screen:
            write(1, _LEAVE_SCREEN)
            self.special_screen = False
            if _signal.getsignal(_signal.SIGTSTP) is not _signal.SIG_IGN:
                _signal.signal(_signal.SIGTSTP, _signal.SIG_DFL)

    def _hear(self) -> bytes:
        """The daemon's next words; the first ones are not waited for for ever.

        Raises: CoreAgentError.
        """
        if self.pumping or (self.heard and self.again and self.ttys[1] == "0"):
            from coreagent.listening import read

            return read(self)
        if self.heard:
            return self.sock.recv(262144)
        while True:
            try:
                data = self.sock.recv(262144)
                break
            except BlockingIOError:
                self._silence()
        self.heard = bool(data)
        wait_at_most(self.sock, 0)
        return data

    def _silence(self) -> None:
        """A daemon that works says so within a second: say that this one does not, and give up in the end."""
        pid = wire.peer(self.sock)[0]
        if os.times().elapsed - self._since >= self._patience:
            from coreagent.errors import silent

            raise silent(pid)
        if not self._told and not self.heard:
            self._told = True
            write(2, f"the daemon (pid {pid}) does not answer; waiting up to {self._patience:g} s\n".encode())

    def copy(self) -> int:
        """Copy frames until the exit code comes, and return it.

        Raises: Again, ConnectionError when the daemon goes away, BadFrame, CoreAgentError when it never says a word.
        """
        decoder = wire.Decoder(wire.FROM_DAEMON)
        while True:
            data = self._hear()
            if not data:
                if self.interrupts:
                    return INTERRUPTED  # a frame that waited for our reader was cut short, as we asked
                raise ConnectionResetError
            for kind, payload in decoder.feed(data):
                if kind == wire.OUT:
                    if not self.special_screen and self.ttys[1] == "1" and b"\x1b[?" in payload:
                        from coreagent.listening import suspendable

                        self.special_screen = True
                        suspendable(self)
                    write(1, payload)
                elif kind == wire.ERR:
                    write(2, payload)
                elif kind == wire.EXIT:
                    return int(payload)
                elif kind == wire.RESUME:
                    self.again = [os.fsdecode(word) for word in payload.split(b"\0")]
                elif kind == wire.WANT:
                    self.pump()
                    self.wanted = True
                elif kind == wire.LOCAL:
                    here([os.fsdecode(word) for word in payload.split(b"\0")] if payload else [])
                elif kind == wire.NOTICE:
                    what, _, text = payload.partition(b"\0")
                    if what == wire.AGAIN:
                        raise Again
                    slug, _, message = text.decode("utf-8", "replace").partition("\0")
                    return fail(slug, message)

    def pump(self) -> None:
        """From now on, neither end may hold up the other: sending no longer waits."""
        if not self.pumping:
            self.pumping = True
            self.sock.setblocking(False)


def write(fd: int, data: bytes) -> None:
    """Write everything. A reader that went away ends us as it ends any program: by SIGPIPE.

    A standard output that takes nothing more (a full disk) ends us too, with a word about it.
    """
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            import select

            waiting = select.poll()
            waiting.register(fd, select.POLLOUT)
            waiting.poll()
        except BrokenPipeError:
            from coreagent.listening import unheard

            unheard()
        except OSError as error:
            import errno

            if fd == 1 and error.errno != errno.EBADF:
                write(2, f"error: cannot write to standard output: {error.strerror}\n".encode())
                os._exit(CANNOT_WRITE)
            return  # closed by whoever started us: nobody wants to see this


def connect(home: str, start: bool = True) -> "_socket.socket | None":
    """Connect to the daemon, starting it when it is not there; None when it is not to be started.

    Raises: CoreAgentError, NotStarted.
    """
    path = paths.daemon_socket(home)
    for attempt in range(3):
        sock = beyond_standard(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM))
        try:
            wait_at_most(sock, wire.patience(os.environ))
            sock.connect(path)
            wait_at_most(sock, 0)
        except BlockingIOError:
            sock.close()
            from coreagent.daemon.house import holder
            from coreagent.errors import silent

            raise silent(holder(home)) from None  # so many wait already that we are not even heard
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            sock.close()
            if not start:
                return None
            launch(home)
        except OSError as error:
            sock.close()
            from coreagent.daemon.launch import unreachable

            raise unreachable(home, error) from None
        else:
            uid = wire.peer(sock)[1]
            if uid not in (os.getuid(), 0, -1):
                from coreagent.errors import CoreAgentError

                raise CoreAgentError("foreign_user", f"the daemon of {home} belongs to user {uid}, not to you")
            return sock
        if attempt == 2:
            break
    from coreagent.daemon.launch import unreachable

    raise unreachable(home, None)


def wait_at_most(sock: "_socket.socket", seconds: float) -> None:
    """From now on a call that blocks ends with BlockingIOError after so long; 0 is never."""
    whole = int(seconds)
    limit = whole.to_bytes(8, sys.byteorder) + int((seconds - whole) * 1e6).to_bytes(8, sys.byteorder)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, limit)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, limit)


def beyond_standard(sock: "_socket.socket") -> "_socket.socket":
    """Where standard output is closed its number is free: what is meant for it must not go to the daemon."""
    if sock.fileno() > 2:
        return sock
    import fcntl

    above = _socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
    sock.close()
    return above


def launch(home: str) -> None:
    """Start the daemon, in a child: what that takes would stay in our memory for as long as an MCP session lasts."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            from coreagent.daemon.launch import launch as start

            def work() -> int:
                start(home)
                return 0

            code = guarded(work)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise NotStarted(code if code > 0 else 128 - code)


def leave(code: int) -> "NoReturn":
    # Nothing here is buffered or needs closing: skip the interpreter's own leave-taking.
    os._exit(code)


def extra_names(home: str) -> "list[str]":
    """The environment names that the settings add; the daemon wrote them down where a client can read them fast."""
    try:
        with open(paths.passed_names(home)) as file:
            return file.read().split()
    except OSError:
        return []


def here(argv: "list[str]") -> "NoReturn":
    """Run a command in this process and leave with its exit code, the interpreter's leave-taking included."""
    from coreagent.cli.run import in_process

    sys.exit(in_process(argv))


def introduce(argv: "list[str]", home: str) -> wire.Opening:
    """Say who asks, from where, with which program."""
    opening = wire.describe(argv, os.environ, extra_names(home))
    opening.version = paths.VERSION
    opening.executable = sys.executable
    return opening


def mcp() -> int:
    """Carry an MCP client's lines until it ends."""
    from coreagent.pump import Pump

    def reach() -> "_socket.socket":
        sock = connect(home)
        assert sock is not None
        sock.sendall(wire.frame(wire.MCP, introduce([], home).pack()))
        return sock

    home = paths.home()
    if not home:
        return fail("no_home", paths.homeless())

    def silence(pid: int) -> "CoreAgentError":
        from coreagent.errors import silent

        return silent(pid)

    return Pump(reach, lambda data: write(1, data), silence).run()


def ask(argv: "list[str]", start: bool = True) -> "int | None":
    """Have the daemon do it, wherever the daemon is by then; None when there is none and none is to be started.

    Raises: CoreAgentError, ConnectionError, BadFrame.
    """
    home = paths.home()
    if not home:
        return fail("no_home", paths.homeless())
    tries = TRIES
    again: list[str] = []
    while tries:
        began = os.times().elapsed
        sock = connect(home, start)
        if sock is None:
            return None
        opening = introduce(argv, home)
        line = Line(sock, opening.ttys)
        line.again = again
        line.signals()
        try:
            line.send(wire.frame(wire.OPEN, opening.pack()))
            return line.copy()
        except Again:
            pass
        except ConnectionError as error:
            if line.interrupts:
                return INTERRUPTED
            if not line.again:
                if line.heard:
                    raise
                from coreagent.cli.session import only_reads, unread

                if (line.added or not unread(error)) and (tries < TRIES or not only_reads(argv)):
                    raise
        finally:
            line.restore()
            unhand()
        sock.close()
        again = line.again
        argv = again or argv
        tries = TRIES if os.times().elapsed - began > CALM_S else tries - 1
    return fail("daemon_unreachable", "the daemon keeps giving way to another one")


def unhand() -> None:
    """Between two daemons, signals mean what they always mean."""
    if _signal.getsignal(_signal.SIGINT) is not _signal.SIG_IGN:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    _signal.signal(_signal.SIGWINCH, _signal.SIG_DFL)


def fail(slug: str, message: str, hint: str = "", cause: str = "") -> int:
    """Tell an error of the client itself and return its exit code."""
    from coreagent.errors import CODES, CoreAgentError

    return tell(CoreAgentError(slug if slug in CODES else "internal", message, hint=hint, cause=cause))


def tell(error: "object") -> int:
    from coreagent.errors import CoreAgentError

    assert isinstance(error, CoreAgentError)
    if "--json" in sys.argv:
        import json

        write(1, json.dumps(error.as_dict()).encode() + b"\n")
    else:
        write(2, "".join(line + "\n" for line in error.lines()).encode("utf-8", "backslashreplace"))
    return error.exit_code


def decide(argv: "list[str]") -> int:
    if os.environ.get(COMPLETE):
        code = ask(argv, start=False) if paths.home() else None
        return here(argv) if code is None else code
    if wire.runs_here(argv):
        here(argv)
    if argv == ["mcp"]:
        return mcp()
    return ask(argv) or 0


def guarded(work: "Callable[[], int]") -> int:
    """Do it; an error of the client itself is told, and its exit code returned."""
    try:
        return work()
    except KeyboardInterrupt:
        return INTERRUPTED
    except NotStarted as failed:
        return failed.code
    except (ConnectionError, wire.BadFrame) as error:
        from coreagent.errors import gone

        return tell(gone(str(error) or "the connection was closed"))
    except Exception as error:
        from coreagent.errors import CoreAgentError

        if not isinstance(error, CoreAgentError):
            raise
        return tell(error)


def main() -> None:
    """Run `core-agent` with the words of this process and leave."""
    leave(guarded(lambda: decide(sys.argv[1:])))


if __name__ == "__main__":
    main()
