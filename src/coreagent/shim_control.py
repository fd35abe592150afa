"""The control socket of a shim: who may speak, what can be asked, and who is told that output grew.

Ground floor, standard library only; shim.py comes in, and over the socket the daemon, with one JSON object a line:
`watch`, `status`, `cancel`, `inject`. A client may send garbage, huge lines, or never read: that ends its connection
and nothing else. It must not know how an attempt is run or ended; it asks its host.
"""

from __future__ import annotations

import _socket  # `socket` itself costs 3 ms and a megabyte
import os
import sys

from coreagent.plainjson import dumps, loads
from coreagent.procfs import is_below
from coreagent.spool import remove

TYPE_CHECKING = False  # `typing` would cost the shim more than all of its other imports
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Host(Protocol):
        """What the shim offers."""

        def on(self, fd: int, handler: Callable[[int], None]) -> None: ...
        def off(self, fd: int) -> None: ...
        def want_write(self, fd: int, want: bool) -> None: ...
        def sizes(self) -> tuple[int, int]: ...
        def status(self) -> dict[str, Any]: ...
        def cancel(self, why: str, grace_s: float | None, by: int) -> bool: ...
        def record(self, what: str, **more: Any) -> None: ...


LINUX = sys.platform.startswith("linux")
REQUEST_MAX = REPLY_MAX = 1 << 16
CLIENTS_MAX = 32
REFUSALS_MAX = 20
"""Refusals written to the records; an agent that keeps knocking must not fill the disk."""
WHYS = ("cancel", "pause", "attach", "shutdown", "timeout")


def peer_of(sock: _socket.socket) -> tuple[int, int]:
    """Pid and uid on the other end, as the kernel saw them at connect; pid 0 when it does not say."""
    if LINUX:
        raw = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        return int.from_bytes(raw[:4], sys.byteorder, signed=True), int.from_bytes(raw[4:8], sys.byteorder)
    raw = sock.getsockopt(0, 1, 76)  # LOCAL_PEERCRED: struct xucred
    return 0, int.from_bytes(raw[4:8], sys.byteorder)


class Client:
    """One connection to the control socket. It may send garbage and may never read; both end only the connection."""

    def __init__(self, sock: _socket.socket, peer: int) -> None:
        self.sock, self.peer = sock, peer
        self.inbox, self.outbox = bytearray(), bytearray()
        self.told: tuple[int, int] | None = None
        """Sizes last sent to a watcher; None for a client that does not watch."""

    def say(self, body: dict[str, Any]) -> bool:
        self.outbox += dumps(body).encode() + b"\n"
        return self.flush() and len(self.outbox) <= REPLY_MAX

    def flush(self) -> bool:
        try:
            while self.outbox:
                del self.outbox[: self.sock.send(self.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


class Control:
    """The listening socket and its clients."""

    def __init__(self, host: Host, path: str) -> None:
        self.host = host
        self.clients: dict[int, Client] = {}
        self.refused = 0
        # We hold the attempt's lock, so whoever bound this path before is dead.
        remove(path)
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self.listener.bind(path)
        os.chmod(path, 0o600)
        self.listener.listen(4 * CLIENTS_MAX)
        self.listener.setblocking(False)
        host.on(self.listener.fileno(), self.accept)

    def accept(self, _: int) -> None:
        try:
            fd, _address = self.listener._accept()  # type: ignore[attr-defined]  # what socket.accept() calls
        except BlockingIOError:
            return
        except OSError:  # out of descriptors: a listener that stays ready would make the loop spin
            self.host.off(self.listener.detach())
            return
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        if error := self.objection(sock):
            Client(sock, 0).say({"error": error})
            sock.close()
            return
        self.clients[fd] = Client(sock, peer_of(sock)[0])
        self.host.on(fd, self.serve)

    def objection(self, sock: _socket.socket) -> str:
        """Why this peer may not speak. The agent must not steer its own attempt, nor what cannot be told from it."""
        pid, uid = peer_of(sock)
        if uid not in (0, os.geteuid()) or (LINUX and (pid <= 0 or is_below(pid, os.getpid()))):
            self.refused += 1
            if self.refused <= REFUSALS_MAX:
                self.host.record("refused", pid=pid, uid=uid)
            return "forbidden"
        return "too_many" if len(self.clients) >= CLIENTS_MAX else ""

    def drop(self, fd: int) -> None:
        self.clients.pop(fd).sock.detach()
        self.host.off(fd)

    def serve(self, fd: int) -> None:
        client = self.clients[fd]
        if client.flush() and self.hear(client):
            self.host.want_write(fd, bool(client.outbox))
        else:
            self.drop(fd)

    def hear(self, client: Client) -> bool:
        """Read what came; False when the connection is to be closed."""
        try:
            data = client.sock.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            return False
        client.inbox += data
        while (end := client.inbox.find(b"\n")) >= 0:
            line = bytes(client.inbox[:end])
            del client.inbox[: end + 1]
            if not client.say(self.answer(client, line)):
                return False
        return bool(data) and len(client.inbox) <= REQUEST_MAX

    def answer(self, client: Client, line: bytes) -> dict[str, Any]:
        try:
            request = loads(line)
            op = request["op"]
            if op == "watch":
                client.told = self.host.sizes()
                return dict(zip(("out", "err"), client.told, strict=True))
            if op == "status":
                return self.host.status()
            if op == "inject":
                return {"error": "unsupported"}  # stdin is a file or closed
            if op == "cancel" and request["why"] in WHYS:
                grace = request.get("grace_s")
                done = self.host.cancel(request["why"], None if grace is None else float(grace), client.peer)
                return {"ok": True} if done else {"error": "ended"}
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        return {"error": "bad_request"}

    def behind(self) -> list[Client]:
        """Watchers that were told other sizes and have read what they were told."""
        now = self.host.sizes()
        return [client for client in self.clients.values() if client.told not in (None, now) and not client.outbox]

    def notify(self) -> None:
        for client in self.behind():
            fd = client.sock.fileno()
            client.told = self.host.sizes()
            if client.say(dict(zip(("out", "err"), client.told, strict=True))):
                self.host.want_write(fd, bool(client.outbox))
            else:
                self.drop(fd)
