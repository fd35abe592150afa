"""`core-agent mcp`: carry an MCP client's lines to the daemon and back, across restarts of the daemon.

The terminal client comes in with a way to connect. An MCP client speaks to this process for hours and cannot begin
anew, so when the daemon goes away its greeting is said again to the next one, and calls that were lost with it are
answered with an error. It knows of MCP only what that takes: the greeting, ids, and lines.
"""

import _socket
import json
import os
import select
from collections.abc import Callable

from coreagent import wire

PIECE = 65536
UNREACHABLE = -32000
"""The JSON-RPC code of an error of ours."""


class Pump:
    """One MCP client for as long as it lives. `reach` connects and says who asks, or raises."""

    def __init__(
        self, reach: "Callable[[], _socket.socket]", write: "Callable[[bytes], None]", source: int = 0
    ) -> None:
        self._reach = reach
        self._write = write
        self._source = source
        self._sock: _socket.socket | None = None
        self._decoder = wire.Decoder(wire.FROM_DAEMON)
        self._unsent = b""
        self._wanted = False
        self._ended = False
        self._typed = b""
        self._heard = b""
        self._greeting = b""
        self._ready = b""
        self._open: dict[str, bytes] = {}
        self._swallow = ""

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
            ready = dict(poll.poll())
            if self._source in ready:
                self._take_input()
            if self._sock is not None and self._sock.fileno() in ready:
                code = self._exchange(ready[self._sock.fileno()])
                if code is not None:
                    return code

    def _connect(self) -> None:
        self._sock = self._reach()
        self._sock.setblocking(False)
        self._decoder = wire.Decoder(wire.FROM_DAEMON)
        self._heard, self._unsent, self._wanted, self._swallow = b"", b"", False, ""
        if self._greeting:
            identity = _identity(self._greeting)
            if identity not in self._open:
                self._swallow = identity  # the client has had its answer from the daemon before
            self._send(self._greeting + self._ready)

    def _lost(self) -> None:
        """The daemon is gone, and what it was asked with it; the next line from the client looks for another one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._unsent = b""
        greeting = _identity(self._greeting)
        for identity in [known for known in self._open if known != greeting]:
            self._refuse(identity, "the daemon went away during this call; agentic_status shows what it came to")

    def _refuse(self, identity: str, message: str) -> None:
        self._open.pop(identity, None)
        error = {"code": UNREACHABLE, "message": message}
        self._write(json.dumps({"jsonrpc": "2.0", "id": json.loads(identity), "error": error}).encode() + b"\n")

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
            frames = self._decoder.feed(data)
        except (ConnectionError, wire.BadFrame):
            self._lost()
            return None
        for kind, payload in frames:
            if kind == wire.OUT:
                self._take_output(payload)
            elif kind == wire.WANT:
                self._wanted = True
            elif kind == wire.EXIT:
                return int(payload)
            elif kind == wire.NOTICE:
                self._lost()
                if payload != wire.AGAIN:
                    self._write_refusal(payload)
                    return 1
                self._connect()
                return None
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
        whole, newline, rest = (self._typed + data).rpartition(b"\n")
        self._typed = rest
        lines = whole + newline
        if self._ended:
            lines += self._typed
        asked = [self._note(line) for line in lines.splitlines(keepends=True)]
        if self._sock is None and lines:
            try:
                self._connect()
            except Exception as error:
                for identity in filter(None, asked):
                    self._refuse(identity, str(error))
                return
        if self._sock is not None:
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
            self._lost()
            return
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
        self._open[identity] = line
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
