"""The daemon's socket: who asks, which kind of call it is, and one thread for each command.

Clients come in. It knows capabilities only by name, commands only as a function that takes words, and nothing of what
they do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Protocol

from coreagent import paths, wire
from coreagent.capability import Caller, call, dump
from coreagent.cli.session import InDaemon, OwnProcess, Session
from coreagent.cli.terminal import LINES_UNKNOWN, WIDTH_UNKNOWN, Terminal, channel
from coreagent.daemon.input import Input
from coreagent.daemon.outlet import Outlet
from coreagent.errors import CoreAgentError, told

log = logging.getLogger(__name__)

OPENING_S = 10.0
"""How long a client may take to say what it wants."""
CONNECTIONS_MAX = 512
STOP_CALL = "daemon.stop"
BECOME_CALL = "daemon.become"

RunCommand = Callable[[list[str], Terminal, Session], int]
ServeMcp = Callable[[Any, Caller, Callable[[], Awaitable[bytes]], Callable[[bytes], Awaitable[None]]], Awaitable[None]]


class Knows(Protocol):
    """What the server itself needs of the Core."""

    def role_of(self, pid: int, uid: int) -> Caller: ...


@dataclass(frozen=True)
class Leaving:
    """Why the daemon leaves: a stop in one of its modes, or to become another release."""

    mode: str = "leave"
    executable: str = ""


class Server:
    """Accepts until told to stop. `leaving` is done when someone wants the daemon to end."""

    def __init__(
        self,
        core: Knows,
        home: str,
        listener: socket.socket,
        run: RunCommand,
        mcp: ServeMcp,
        names_changed: Callable[[], bool] = lambda: False,
        served: Callable[[], None] = lambda: None,
    ) -> None:
        self._core = core
        self._home = home
        self._listener = listener
        self._run = run
        self._mcp = mcp
        self._names_changed = names_changed
        self._served = served
        self._loop = asyncio.get_running_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._shut = False
        """Nobody is accepted any more; they wait for who comes after us."""
        self._spared: set[asyncio.Task[None]] = set()
        self.draining = False
        self._stopping = False
        self._returns = False
        """Another daemon takes over: whoever follows something goes on there."""
        self.leaving: asyncio.Future[Leaving] = self._loop.create_future()

    def start(self) -> None:
        self._listen_on(True)

    def leave(self, why: Leaving) -> None:
        """Ask the daemon to end; the first wish counts, but one that drains can be hurried by another mode."""
        if not self.leaving.done() and not (self.draining and why.mode == "drain"):
            self.leaving.set_result(why)
            if why.mode != "drain":
                self._close_door()

    def listen_anew(self, renew: Callable[[], socket.socket | None]) -> None:
        """Somebody misses us: listen where they look, unless we are about to leave."""
        if self._shut or (fresh := renew()) is None:
            return
        self._accept()  # who came through the old door is let in before it closes
        self._listen_on(False)
        self._listener.close()
        self._listener = fresh
        if len(self._connections) < CONNECTIONS_MAX:
            self._listen_on(True)

    def _close_door(self) -> None:
        self._shut = True
        self._listen_on(False)

    async def stop(self, leaving: Leaving) -> None:
        """Accept nobody any more, and end every command that still runs."""
        self._stopping = True
        self._returns = leaving.mode == "restart" or bool(leaving.executable)
        self._close_door()
        for task in self._connections - self._spared:
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=5)

    async def send_away(self) -> None:
        """Tell those who connected but were not yet accepted to ask again; then nobody listens."""
        notice = wire.frame(wire.NOTICE, wire.AGAIN)
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                break
            with conn, suppress(OSError):
                conn.send(notice)
        self._listener.close()

    def _listen_on(self, accept: bool) -> None:
        """Take part in accepting, or leave callers waiting in the kernel's queue."""
        if accept and not self._accepting and not self._shut:
            self._loop.add_reader(self._listener, self._accept)
        elif not accept and self._accepting:
            self._loop.remove_reader(self._listener)
        else:
            return
        self._accepting = accept

    def _accept(self) -> None:
        # A callback, not a coroutine: one that is cancelled can lose a connection that it has already accepted.
        try:
            conn, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("cannot accept: %s", error)
            self._listen_on(False)
            self._loop.call_later(0.1, self._listen_on, True)  # out of descriptors: let commands end first
            return
        task = asyncio.create_task(self._serve(conn))
        self._connections.add(task)
        task.add_done_callback(self._forget)
        if len(self._connections) >= CONNECTIONS_MAX:
            self._listen_on(False)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._listen_on(True)
        self._served()
        if not task.cancelled() and task.exception() is not None:
            log.error("a connection failed", exc_info=task.exception())

    async def _serve(self, conn: socket.socket) -> None:
        conn.setblocking(False)
        try:
            decoder = wire.Decoder(wire.FROM_CLIENT)
            try:
                opened = await self._open(conn, decoder)
            except asyncio.CancelledError:
                with suppress(OSError):
                    conn.send(wire.frame(wire.NOTICE, wire.AGAIN))  # nothing was begun: the next daemon does it
                raise
            except wire.BadFrame as error:
                return await self._refuse(conn, "bad_frame", str(error))
            if opened:
                await self._answer(conn, decoder, *opened)
        except (OSError, wire.BadFrame, TimeoutError) as error:
            log.debug("dropped a client: %r", error)
        finally:
            conn.close()
        return None

    async def _open(
        self, conn: socket.socket, decoder: wire.Decoder
    ) -> tuple[bytes, wire.Opening, Caller, list[tuple[bytes, bytes]]] | None:
        """Hear what a client wants and find out who it is; None when it was sent away."""
        pid, uid = wire.peer(conn)
        if uid not in (os.getuid(), 0):
            await self._refuse(conn, "foreign_user", f"this daemon belongs to user {os.getuid()}")
            return None
        async with asyncio.timeout(OPENING_S):
            kind, payload, rest = await self._first(conn, decoder)
        opening = wire.Opening.unpack(payload)
        caller = self._core.role_of(pid, uid)
        if caller.role != "worker" and wire.newer(opening.version, paths.VERSION):
            _show_life(conn)  # asking its interpreter takes a while
        if caller.role != "worker" and not self._held_back(opening) and await _is_newer_release(opening):
            await self._loop.sock_sendall(conn, wire.frame(wire.NOTICE, wire.AGAIN))
            log.info("giving way to %s of %s", opening.version, opening.executable)
            self.leave(Leaving(executable=opening.executable))
            return None
        if opening.wire != wire.VERSION:
            await self._refuse(
                conn,
                "daemon_newer",
                f"the daemon ({paths.VERSION}) and this program ({opening.version}) do not speak the same protocol",
            )
            return None
        if self._names_changed():
            # It chose what to send before it could know: it looks again.
            await self._loop.sock_sendall(conn, wire.frame(wire.NOTICE, wire.AGAIN))
            return None
        caller = replace(caller, env=opening.env, cwd=opening.cwd, interactive=opening.ttys[:2] == "11")
        return kind, opening, caller, rest

    def _held_back(self, client: wire.Opening) -> bool:
        """Whether a person went back from this client's release: what still runs of it must not bring it back."""
        if not wire.newer(client.version, paths.VERSION):
            return False
        try:
            with open(paths.held_back(self._home), encoding="utf-8") as file:
                return client.version in file.read(65536).split()
        except (OSError, UnicodeDecodeError):
            return False

    async def _answer(
        self,
        conn: socket.socket,
        decoder: wire.Decoder,
        kind: bytes,
        opening: wire.Opening,
        caller: Caller,
        rest: list[tuple[bytes, bytes]],
    ) -> None:
        if kind == wire.OPEN:
            await self._command(conn, decoder, opening, caller, rest)
        elif kind == wire.CALL:
            await self._call(conn, opening, caller)
        elif kind == wire.MCP:
            await self._session(conn, decoder, caller, rest)
        else:
            raise wire.BadFrame("no opening")

    async def _first(
        self, conn: socket.socket, decoder: wire.Decoder
    ) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
        """The opening message and the frames that came right behind it."""
        joiner = wire.Joiner()
        while data := await self._loop.sock_recv(conn, 65536):
            frames = decoder.feed(data)
            for at, (kind, payload) in enumerate(frames):
                whole = joiner.add(kind, payload)
                if whole is not None:
                    return kind, whole, frames[at + 1 :]
        raise ConnectionResetError

    async def _refuse(self, conn: socket.socket, slug: str, message: str) -> None:
        text = f"{slug}\0{message}".encode("utf-8", "backslashreplace")
        await self._loop.sock_sendall(conn, wire.frame(wire.NOTICE, wire.REFUSED + b"\0" + text))

    # -- a command in a thread -------------------------------------------------------------------------------------

    async def _command(
        self,
        conn: socket.socket,
        decoder: wire.Decoder,
        opening: wire.Opening,
        caller: Caller,
        frames: list[tuple[bytes, bytes]],
    ) -> None:
        outlet: Outlet
        terminal: Terminal

        def tell(argv: list[str]) -> None:
            with outlet.together():  # with what it says was printed
                terminal.out.flush()
                outlet.send(wire.RESUME, b"\0".join(os.fsencode(word) for word in argv))

        session = InDaemon(self._core, caller, self._loop, self._home, tell)  # type: ignore[arg-type]
        outlet = Outlet(conn, session.interruptible)
        stdin = Input(lambda: outlet.send(wire.WANT, b""), session.interruptible)
        terminal = Terminal(
            out=channel(lambda data: outlet.send(wire.OUT, data), opening.ttys[1] == "1"),
            err=channel(lambda data: outlet.send(wire.ERR, data), opening.ttys[2] == "1"),
            stdin=stdin.text(),
            width=opening.columns or WIDTH_UNKNOWN,
            height=opening.lines or LINES_UNKNOWN,
            colour=opening.colour,
            interactive=caller.interactive,
            cwd=opening.cwd,
            env=opening.env,
        )
        done = asyncio.Event()

        def work() -> None:
            try:
                kind, answer = self._outcome(opening.argv, terminal, session)
                with suppress(OSError, KeyboardInterrupt):
                    outlet.send(kind, answer)
            finally:
                with suppress(RuntimeError):  # the loop is closed: the daemon is gone, and so is the client
                    self._loop.call_soon_threadsafe(done.set)

        # A context of its own: the variables of the loop's task are none of the command's business.
        threading.Thread(target=Context().run, args=(work,), name=f"command {opening.argv[:1]}", daemon=True).start()
        reading = asyncio.create_task(self._listen(conn, decoder, frames, session, terminal, stdin))
        finished = asyncio.create_task(done.wait())
        life = self._loop.call_later(wire.ALIVE_S, outlet.show_life)
        try:
            await asyncio.wait([reading, finished], return_when=asyncio.FIRST_COMPLETED)
        finally:
            life.cancel()
            reading.cancel()
            if not done.is_set():
                session.cancel()
                # The socket stays open until the thread has let go of it: its number must not be another client's.
                await asyncio.shield(finished)
            await asyncio.gather(reading, return_exceptions=True)

    def _outcome(self, argv: list[str], terminal: Terminal, session: InDaemon) -> tuple[bytes, bytes]:
        try:
            if wire.runs_here(argv) and "_CORE_AGENT_COMPLETE" not in terminal.env:
                raise OwnProcess
            code = self._run(argv, terminal, session)
        except OwnProcess as own:
            words = argv if own.argv is None else own.argv
            return wire.LOCAL, b"\0".join(os.fsencode(word) for word in words)
        if self._returns and session.cancelled.is_set() and session.resumable:
            return wire.NOTICE, wire.AGAIN
        if self._stopping and session.cancelled.is_set():
            error = CoreAgentError("daemon_stopping", "the daemon stopped", hint="run the command again")
            with suppress(OSError, KeyboardInterrupt):
                terminal.err.write("".join(f"{line}\n" for line in error.lines()))
                terminal.err.flush()
            code = error.exit_code
        return wire.EXIT, str(code).encode()

    async def _listen(
        self,
        conn: socket.socket,
        decoder: wire.Decoder,
        frames: list[tuple[bytes, bytes]],
        session: InDaemon,
        terminal: Terminal,
        stdin: Input,
    ) -> None:
        """Hear the client until it is gone or talks nonsense."""
        while True:
            for kind, payload in frames:
                if kind == wire.INTERRUPT:
                    session.interrupt()
                elif kind == wire.STOP:
                    return
                elif kind == wire.WINDOW:
                    _resize(terminal, payload)
                elif kind not in (wire.INPUT, wire.END) or not stdin.offer(payload):
                    raise wire.BadFrame("nobody asked for this")
            data = await self._loop.sock_recv(conn, 65536)
            if not data:
                return
            frames = decoder.feed(data)

    # -- one capability --------------------------------------------------------------------------------------------

    async def _call(self, conn: socket.socket, opening: wire.Opening, caller: Caller) -> None:
        try:
            request = json.loads(opening.argv[0])
            name, arguments = str(request["call"]), dict(request.get("arguments") or {})
        except (ValueError, KeyError, TypeError, IndexError):
            raise wire.BadFrame("this is not a call") from None
        caller = replace(caller, interactive=request.get("interactive") is True)
        if name == STOP_CALL and (this := asyncio.current_task()):
            self._spared.add(this)  # whoever asks for the end still gets the answer
            this.add_done_callback(self._spared.discard)
        answering = asyncio.create_task(self._reply(name, arguments, caller))
        gone = asyncio.create_task(self._loop.sock_recv(conn, 1))
        life = self._loop.call_later(wire.ALIVE_S, _show_life, conn)
        try:
            await asyncio.wait([answering, gone], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return
            body = answering.result()
        except asyncio.CancelledError:
            stopping = CoreAgentError("daemon_stopping", "the daemon stopped", hint="run the command again")
            with suppress(OSError):
                conn.send(wire.frame(wire.REPLY, json.dumps(stopping.as_dict()).encode()))
            raise
        finally:
            life.cancel()
            for task in (answering, gone):
                task.cancel()
            await asyncio.gather(answering, gone, return_exceptions=True)
        await self._loop.sock_sendall(conn, wire.frame(wire.REPLY, json.dumps(body).encode()))
        if name == STOP_CALL and "result" in body:
            self.leave(Leaving(mode=str(arguments.get("mode", "leave"))))
        if name == BECOME_CALL and "result" in body:
            log.info("becoming %s as asked", body["result"]["version"])
            self.leave(Leaving(executable=body["result"]["executable"]))

    async def _reply(self, name: str, arguments: dict[str, Any], caller: Caller) -> dict[str, Any]:
        try:
            return {"result": dump(name, await call(self._core, name, arguments, caller))}
        except CoreAgentError as error:
            return error.as_dict()
        except Exception as error:
            log.exception("capability %s failed", name)
            return CoreAgentError("internal", f"{name} failed: {told(error)}", hint="core-agent daemon logs").as_dict()

    # -- an MCP session --------------------------------------------------------------------------------------------

    async def _session(
        self, conn: socket.socket, decoder: wire.Decoder, caller: Caller, frames: list[tuple[bytes, bytes]]
    ) -> None:
        caller = caller if caller.role == "worker" else replace(caller, role="mcp")
        waiting = list(frames)
        sending = asyncio.Lock()

        async def send(data: bytes, kind: bytes = wire.OUT) -> None:
            async with sending:
                await self._loop.sock_sendall(conn, wire.frame(kind, data))

        async def receive() -> bytes:
            """The next piece of the client's input, b"" at its end, which is also that of a client that went away."""
            try:
                await send(b"", wire.WANT)
                while True:
                    while waiting:
                        kind, payload = waiting.pop(0)
                        if kind == wire.INPUT and payload:
                            return payload
                        if kind in (wire.END, wire.STOP, wire.INTERRUPT):
                            return b""
                    data = await self._loop.sock_recv(conn, 65536)
                    if not data:
                        return b""
                    waiting.extend(decoder.feed(data))
            except ConnectionError:
                return b""

        try:
            await self._mcp(self._core, caller, receive, send)
        except asyncio.CancelledError:
            with suppress(OSError):
                conn.send(wire.frame(wire.NOTICE, wire.AGAIN if self._returns else wire.STOPPED))
            raise
        await send(b"0", wire.EXIT)


def _show_life(conn: socket.socket) -> None:
    with suppress(OSError):
        conn.send(wire.ALIVE)


def _resize(terminal: Terminal, payload: bytes) -> None:
    with suppress(ValueError):
        columns, lines = payload.split()
        if int(columns) > 0 and int(lines) > 0:
            terminal.width, terminal.height = int(columns), int(lines)


async def _is_newer_release(client: wire.Opening) -> bool:
    """Whether a client is newer and its interpreter really brings that release: the other way there is no way back."""
    executable = client.executable
    if not wire.newer(client.version, paths.VERSION):
        return False
    if not os.path.isabs(executable) or not os.access(executable, os.X_OK):
        return False
    code = "import coreagent.daemon.main; from coreagent.paths import VERSION; print(VERSION)"
    process = await asyncio.create_subprocess_exec(
        executable, "-P", "-c", code, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return False
    return process.returncode == 0 and said.decode("utf-8", "replace").strip() == client.version
