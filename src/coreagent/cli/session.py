"""How a command reaches capabilities: directly in the daemon, over the socket from the person's own process.

Commands come in and cannot tell which. This room knows the bridge to the daemon's loop and the J frame; it knows no
capability and renders nothing.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import json
import os
import pkgutil
import queue
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from coreagent import paths, wire
from coreagent.capability import REGISTRY, Caller, call
from coreagent.errors import CoreAgentError, gone, silent

if TYPE_CHECKING:
    from coreagent.core import Core
    from coreagent.models.dispatch import Event

T = TypeVar("T")


class ClientGone(KeyboardInterrupt):
    """The person's end of the connection is closed, or was told to stop: leave without a word."""


class OwnProcess(BaseException):
    """This command line must run in the person's own process. Not an error, so `except Exception` lets it pass."""

    def __init__(self, argv: list[str] | None = None) -> None:
        super().__init__()
        self.argv = argv


class Session:
    """One command's way to the capabilities."""

    core: Core | None = None
    """None outside the daemon."""

    def __init__(self, home: str, caller: Caller) -> None:
        self.home = home
        self.caller = caller
        self.cancelled = threading.Event()
        """Set when the client is lost or was told to stop; long loops of their own look at it."""

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Call a capability and return its result model.

        Raises: CoreAgentError; KeyboardInterrupt when the person presses Ctrl-C meanwhile.
        """
        raise NotImplementedError

    def follow(self, workspace: str = "", tick: float | None = None) -> Iterator[Event | None]:
        """Yield what happens from now on (to one workspace); with `tick`, None whenever that many seconds pass quietly.

        In the daemon only. Raises KeyboardInterrupt on Ctrl-C.
        """
        raise NotImplementedError

    def resume_with(self, argv: list[str]) -> None:
        """Should the daemon go away from now on, its client says these words to the next one.

        They must be safe to say at any time, and what was printed so far must not be printed by them again.
        """

    def own_process(self, argv: list[str] | None = None) -> None:
        """Go on only in the person's own process: in the daemon this ends the command and starts it there."""


class InDaemon(Session):
    """A command in a thread of the daemon."""

    def __init__(
        self,
        core: Core,
        caller: Caller,
        loop: asyncio.AbstractEventLoop,
        home: str,
        tell: Callable[[list[str]], None] = lambda argv: None,
    ) -> None:
        super().__init__(home, caller)
        self._tell = tell
        self._told: list[str] = []
        self.core = core
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: Callable[[], None] | None = None
        self._interrupted = False

    def call(self, name: str, /, **arguments: Any) -> Any:
        return self._await(call(self.core, name, arguments, self.caller))

    def follow(self, workspace: str = "", tick: float | None = None) -> Iterator[Event | None]:
        assert self.core is not None
        core = self.core
        if self.caller.role == "worker":
            workspace = self.caller.workspace or "none"  # an agent hears of its own workspace only
        arrived: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

        async def subscribe() -> Any:
            return core.bus.subscribe()

        subscription = self._await(subscribe())

        async def pump() -> None:
            async for event in subscription:
                if not workspace or event.workspace == workspace:
                    arrived.put(event)
            arrived.put(ClientGone())

        pumping = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while True:
                with self._interruptible(lambda: arrived.put(None)):
                    try:
                        item = arrived.get(timeout=tick)
                    except queue.Empty:
                        item = None
                if isinstance(item, BaseException):
                    raise item
                if item is not None or tick is not None:
                    yield item
        finally:
            pumping.cancel()
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(subscription.close)

    def own_process(self, argv: list[str] | None = None) -> None:
        raise OwnProcess(argv)

    def resume_with(self, argv: list[str]) -> None:
        if argv != self._told:
            self._tell(argv)
            self._told = argv

    @property
    def resumable(self) -> bool:
        """Whether the client knows how to go on with another daemon."""
        return bool(self._told)

    def interrupt(self) -> None:
        """Ctrl-C: what waits now, or waits next, raises KeyboardInterrupt once. Called on the loop."""
        self._wake(cancelled=False)

    def cancel(self) -> None:
        """The client is lost or stops: every wait raises ClientGone from now on. Called on the loop."""
        self._wake(cancelled=True)

    def _wake(self, *, cancelled: bool) -> None:
        with self._lock:
            self._interrupted = True
            if cancelled:
                self.cancelled.set()
            waiting = self._waiting
        if waiting:
            waiting()

    @contextmanager
    def interruptible(self, wake: Callable[[], None]) -> Iterator[None]:
        """Around a wait of one's own that `wake` ends; raises KeyboardInterrupt or ClientGone where it was ended."""
        with self._interruptible(wake):
            yield

    @contextmanager
    def _interruptible(self, wake: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            self._check()
            self._waiting = wake
        try:
            yield
        finally:
            with self._lock:
                self._waiting = None
                self._check()

    def _check(self) -> None:
        if self.cancelled.is_set():
            raise ClientGone
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        with self._interruptible(lambda: _cancel(future)):
            try:
                return future.result()
            except CancelledError:
                # By us: the check on the way out says why. By the daemon's stop: that check is silent.
                stopping = CoreAgentError("daemon_stopping", "the daemon is stopping", hint="run the command again")
        raise stopping


def _cancel(future: Future[Any]) -> None:
    future.cancel()


class Outside(Session):
    """A command in the person's own process: speaks J frames to the daemon, which it starts when it is not there."""

    def __init__(self, home: str, caller: Caller) -> None:
        super().__init__(home, caller)

    def call(self, name: str, /, **arguments: Any) -> Any:
        reply = ask(self.home, name, arguments, self.caller)
        if name not in REGISTRY:
            load_capabilities()
        return REGISTRY[name].result.validate_python(reply)


def load_capabilities() -> None:
    """Fill the registry, as the daemon does at its start."""
    package = importlib.import_module("coreagent.capabilities")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"coreagent.capabilities.{module.name}")


def _changes_nothing(name: str) -> bool:
    load_capabilities()
    return name in REGISTRY and REGISTRY[name].read_only


def only_reads(argv: list[str]) -> bool:
    """Whether a command line changes nothing, so that it may be said twice."""
    load_capabilities()
    words = [word for typed in argv[:2] for word in typed.split("/")]
    typed = {" ".join(words[:1]), " ".join(words[:2])} - {""}
    meant = [known for known in REGISTRY.values() if known.cli in typed]
    return bool(meant) and all(known.read_only for known in meant)


def unread(error: OSError) -> bool:
    """Whether the other end of a socket never read all of the one frame that it was sent, so that it did nothing.

    Linux tells by the error: a reset is of a connection that nobody accepted or that was closed with bytes unread,
    where one that had read everything ends without an error.
    """
    return sys.platform.startswith("linux") and error.errno in (errno.ECONNRESET, errno.EPIPE)


def ask(home: str, name: str, arguments: dict[str, Any], caller: Caller, *, start: bool = True) -> Any:
    """Call a capability of the daemon and return its result as plain data.

    Raises: CoreAgentError as the daemon raised it; daemon_unreachable.
    """
    from coreagent.daemon.launch import reach

    if not home:
        raise CoreAgentError("no_home", paths.homeless())
    request = {"call": name, "arguments": arguments, "interactive": caller.interactive}
    lost = False
    for _ in range(3):
        try:
            with reach(home, start=start) as sock:
                body = exchange(sock, request, caller)
        except CoreAgentError as error:
            if error.data.get("heard") is not False:
                raise
            if not error.data["unread"]:
                if lost or not _changes_nothing(name):
                    raise
                lost = True
            body = None
        if body is not None:
            break
    else:
        raise CoreAgentError("daemon_unreachable", "the daemon keeps giving way to another one")
    if "error" in body:
        raise CoreAgentError.from_dict(body)
    return body["result"]


def exchange(sock: socket.socket, request: dict[str, Any], caller: Caller) -> dict[str, Any] | None:
    """One call over one connection; None when the daemon gives way to another one.

    Raises: daemon_unreachable when it goes away meanwhile; its data say whether it was `heard` before, and whether
    it left the request `unread`.
    """
    opening = wire.Opening(
        [json.dumps(request)],
        cwd=caller.cwd,
        env=caller.env,
        version=paths.VERSION,
        executable=sys.executable,
    )
    decoder, joiner = wire.Decoder(wire.FROM_DAEMON), wire.Joiner(limit=1 << 30)
    heard = False
    try:
        sock.settimeout(wire.patience(os.environ))
        sock.sendall(wire.frame(wire.CALL, opening.pack()))
        while data := sock.recv(262144):
            heard = True
            sock.settimeout(None)  # it has heard; what was asked may take its time
            for kind, payload in decoder.feed(data):
                if kind == wire.NOTICE:
                    what, _, text = payload.partition(b"\0")
                    if what == wire.AGAIN:
                        return None
                    slug, _, message = os.fsdecode(text).partition("\0")
                    raise CoreAgentError(slug, message)
                if kind == wire.REPLY and (whole := joiner.add(kind, payload)) is not None:
                    return dict(json.loads(whole))
    except TimeoutError:
        raise silent(wire.peer(sock)[0]) from None
    except (OSError, wire.BadFrame) as error:
        raise gone(str(error), heard=heard, unread=isinstance(error, OSError) and unread(error)) from None
    raise gone("the connection was closed", heard=heard, unread=False)


_CURRENT: ContextVar[Session] = ContextVar("session")


def session() -> Session:
    """The session of the command that runs in this context."""
    return _CURRENT.get()


@contextmanager
def using(chosen: Session) -> Iterator[Session]:
    token = _CURRENT.set(chosen)
    try:
        yield chosen
    finally:
        _CURRENT.reset(token)
