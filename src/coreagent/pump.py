"""`core-agent mcp`: carry an MCP client's lines to the daemon and back, across restarts of the daemon.

The terminal client comes in with a way to connect. An MCP client speaks to this process for hours and cannot begin
anew, so when the daemon goes away its greeting is said again to the next one, at once, and calls that were lost with it
are answered with an error. It knows of MCP only what that takes: the greeting, ids, and lines.
"""

import _socket
import json
import os
import select
from collections.abc import Callable

from coreagent import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from coreagent.errors import CoreAgentError

PIECE = 65536
MESSAGE_MAX = 8 << 20
"""Bytes of one message from a client; the largest argument is a task's text."""
TOO_LONG = -32600
CALM_S = 1.0
HASTY = 3
"""After so many daemons in a row that were lost sooner than `CALM_S`, none is sought before somebody asks.

One is usual: the door of a daemon that was killed is open for a moment longer than its other ends."""
_ENDS = 1024
"""How much of the beginning and the end of a message that is too long is kept, to find its id."""
UNREACHABLE = -32000
"""The JSON-RPC code of an error of ours."""


class Lines:
    """Cut bytes into lines. One that is too long is not kept: in its place comes the error that answers it."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._head = b""
        self._long = False

    def feed(self, data: bytes) -> "list[tuple[bytes, bytes]]":
        """The lines that these bytes complete, each with the error that answers it, or with b""."""
        found = []
        while data:
            piece, newline, data = data.partition(b"\n")
            self._waiting += piece
            if len(self._waiting) > MESSAGE_MAX or self._long:
                if not self._long:
                    self._long, self._head = True, bytes(self._waiting[:_ENDS])
                del self._waiting[:-_ENDS]
            if newline:
                found.append(self.end())
        return found

    def end(self) -> "tuple[bytes, bytes]":
        """The line that has no end yet, as if it had one here."""
        line, self._waiting = bytes(self._waiting), bytearray()
        if not self._long:
            return line, b""
        self._long = False
        message = f"a message may have {MESSAGE_MAX} bytes at most"
        return b"", refusal(identity_of(self._head, line), TOO_LONG, message)

    @property
    def size(self) -> int:
        return len(self._waiting)


def refusal(identity: str, code: int, message: str) -> bytes:
    """The line that answers a request with an error; `identity` is its id as JSON."""
    error = {"code": code, "message": message}
    return json.dumps({"jsonrpc": "2.0", "id": json.loads(identity), "error": error}).encode() + b"\n"


def identity_of(head: bytes, tail: bytes) -> str:
    """The id, as JSON, of a message of which only both ends are known: where no value but words stands beside it."""
    import re

    words, identity = rb'"(?:jsonrpc|method)"\s*:\s*"[^"\\]*"', rb'"id"\s*:\s*(\d{1,18}|"[^"\\]{0,200}")'
    found = re.match(rb"\s*\{\s*(?:" + words + rb"\s*,\s*)*" + identity + rb"\s*,", head) or re.search(
        rb",\s*" + identity + rb"\s*(?:,\s*" + words + rb"\s*)*\}\s*$", tail
    )
    return found.group(1).decode("utf-8", "replace") if found else "null"


class Pump:
    """One MCP client for as long as it lives. `reach` connects and says who asks, or raises."""

    def __init__(
        self,
        reach: "Callable[[], _socket.socket]",
        write: "Callable[[bytes], None]",
        silent: "Callable[[int], CoreAgentError]",
        source: int = 0,
    ) -> None:
        self._reach = reach
        self._silent = silent
        self._write = write
        self._source = source
        self._sock: _socket.socket | None = None
        self._decoder = wire.Decoder(wire.FROM_DAEMON)
        self._unsent = b""
        self._wanted = False
        self._ended = False
        self._typed = Lines()
        self._heard = b""
        self._greeting = b""
        self._ready = b""
        self._open: dict[str, None] = {}
        self._swallow = ""
        self._since = 0.0
        self._hasty = 0
        self._half = wire.patience(os.environ) / 2
        """Half of what a client waits is spent on listening, the other half on asking whether anybody is there."""
        self._word_at = 0.0

    def run(self) -> int:
        """Carry until the client ends its input or the daemon ends the session; the exit code."""
        self._connect()
        while True:
            poll = select.poll()
            if self._sock is not None:
                poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            if not self._ended and not self._unsent and (self._wanted or self._sock is None):
                poll.register(self._source, select.POLLIN)
            elif self._sock is None:
                return 0
            left = self._left()
            ready = dict(poll.poll(None if left is None else left * 1000 + 1))
            if not ready:
                if left is not None and self._left() == 0.0:
                    self._check_life()
                continue
            if self._source in ready:
                self._take_input()
            if self._sock is not None and self._sock.fileno() in ready:
                code = self._exchange(ready[self._sock.fileno()])
                if code is not None:
                    return code

    def _left(self) -> "float | None":
        """How long the daemon may still be silent; None while nobody waits for a word of it."""
        if self._sock is None or (self._wanted and not self._open and not self._ended):
            return None
        return max(0.0, self._word_at + self._half - os.times().elapsed)

    def _check_life(self) -> None:
        """A call may take long, but a daemon that lives says so to whoever comes anew. Raises: daemon_silent."""
        assert self._sock is not None
        pid = wire.peer(self._sock)[0]
        if self._answers():
            self._word_at = os.times().elapsed
            return
        error = self._silent(pid)
        self._sock.close()
        self._sock, self._unsent = None, b""
        for identity in list(self._open):
            self._refuse(identity, f"{error.message}; {error.hint}")
        if self._ended:
            raise error

    def _answers(self) -> bool:
        try:
            other = self._reach()
        except Exception:
            return False
        poll = select.poll()
        poll.register(other, select.POLLIN)
        heard = bool(poll.poll(self._half * 1000))
        other.close()
        return heard

    def _connect(self) -> None:
        self._sock = self._reach()
        self._since = self._word_at = os.times().elapsed
        self._sock.setblocking(False)
        self._decoder = wire.Decoder(wire.FROM_DAEMON)
        self._heard, self._unsent, self._wanted, self._swallow = b"", b"", False, ""
        if self._greeting:
            identity = _identity(self._greeting)
            if identity not in self._open:
                self._swallow = identity  # the client has had its answer from the daemon before
            self._send(self._greeting + self._ready)

    def _again(self, told: bool) -> None:
        """Go on with the next daemon, and start it if need be; `told`: the one that is gone said that it gives way.

        Where that fails, the next line from the client looks for it.
        """
        self._hasty = 0 if told or os.times().elapsed - self._since >= CALM_S else self._hasty + 1
        self._lost()
        try:
            if self._hasty > HASTY:
                raise ConnectionError("the daemon went away as soon as it was there")
            self._connect()
        except Exception as error:
            self._lost()
            for identity in list(self._open):
                self._refuse(identity, str(error))

    def _lost(self) -> None:
        """The daemon is gone, and what it was asked with it."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._unsent = b""
        greeting = _identity(self._greeting)
        for identity in [known for known in self._open if known != greeting]:
            self._refuse(identity, "the daemon went away during this call; agentic_status shows what it came to")

    def _refuse(self, identity: str, message: str) -> None:
        self._open.pop(identity, None)
        self._write(refusal(identity, UNREACHABLE, message))

    def _exchange(self, events: int) -> "int | None":
        try:
            if events & select.POLLOUT:
                data, self._unsent = self._unsent, b""
                self._push(data)
            if not events & ~select.POLLOUT:
                return None
            assert self._sock is not None
            data = self._sock.recv(262144)
            if not data:
                raise ConnectionResetError
            self._word_at = os.times().elapsed
            frames = self._decoder.feed(data)
        except (ConnectionError, wire.BadFrame):
            self._again(told=False)
            return None
        for kind, payload in frames:
            if kind == wire.OUT:
                self._take_output(payload)
            elif kind == wire.WANT:
                self._wanted = True
            elif kind == wire.EXIT:
                return int(payload)
            elif kind == wire.NOTICE and payload == wire.AGAIN:
                self._again(told=True)
                return None
            elif kind == wire.NOTICE and payload == wire.STOPPED:
                self._lost()
                self._write_refusal(b"the daemon was stopped")
                return None
            elif kind == wire.NOTICE:
                self._lost()
                self._write_refusal(payload)
                return 1
        return None

    def _write_refusal(self, payload: bytes) -> None:
        message = payload.split(b"\0")[-1].decode("utf-8", "replace")
        for identity in list(self._open):
            self._refuse(identity, message)

    def _take_input(self) -> None:
        try:
            data = os.read(self._source, PIECE)
        except OSError:
            data = b""
        self._ended = not data
        taken = [self._typed.end()] if self._ended else self._typed.feed(data)
        for _, answer in taken:
            self._write(answer)
        whole = [line + b"\n" for line, _ in taken if line]
        asked = [self._note(line) for line in whole]
        lines = b"".join(whole)
        if self._sock is None and lines:
            try:
                self._connect()
            except Exception as error:
                for identity in filter(None, asked):
                    self._refuse(identity, str(error))
                return
        if self._sock is not None:
            if lines or self._ended:
                self._word_at = os.times().elapsed
            if lines:
                self._wanted = False
                self._send(lines)
            if self._ended:
                self._push(wire.frame(wire.END))

    def _send(self, lines: bytes) -> None:
        self._push(wire.frame(wire.INPUT, lines))

    def _push(self, data: bytes) -> None:
        if self._sock is None:
            return
        data = self._unsent + data
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(data)  # nobody is there; reading tells why, and what is to be done
        self._unsent = data[sent:]

    def _note(self, line: bytes) -> str:
        """Remember what a line of the client asks for; the id that awaits an answer, or ""."""
        message = _message(line)
        method = message.get("method")
        if method == "initialize":
            self._greeting, self._ready = line, b""
        elif method == "notifications/initialized":
            self._ready = line
        elif method == "notifications/cancelled":
            parameters = message.get("params")
            if isinstance(parameters, dict):
                self._open.pop(json.dumps(parameters.get("requestId")), None)
        if method is None or "id" not in message:
            return ""
        identity = json.dumps(message["id"])
        self._open[identity] = None
        return identity

    def _take_output(self, data: bytes) -> None:
        whole, newline, self._heard = (self._heard + data).rpartition(b"\n")
        for line in (whole + newline).splitlines(keepends=True):
            message = _message(line)
            if "method" not in message and "id" in message:
                identity = json.dumps(message["id"])
                self._open.pop(identity, None)
                if self._swallow and identity == self._swallow:
                    self._swallow = ""
                    continue
            self._write(line)


def _message(line: bytes) -> "dict[str, object]":
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _identity(line: bytes) -> str:
    return json.dumps(_message(line).get("id")) if line else ""
