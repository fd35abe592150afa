"""One command's way out: frames from its thread straight onto the client's socket, held up by that client alone.

The thread of a command comes in. The kernel's socket buffer is the bounded queue; when it is full the thread waits
here and nobody else does. It knows no command.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from coreagent import wire


class Outlet:
    """Sends whole frames on a non-blocking socket from one or more threads."""

    def __init__(
        self, sock: socket.socket, interruptible: Callable[[Callable[[], None]], AbstractContextManager[None]]
    ) -> None:
        self._sock = sock
        self._interruptible = interruptible
        self._lock = threading.Lock()
        self._torn = False
        self._held: bytearray | None = None

    def send(self, kind: bytes, payload: bytes) -> None:
        """Send one message, waiting for the client where it must.

        Raises: BrokenPipeError when the client is gone; KeyboardInterrupt when the person will not wait. A frame cut by
        that is the last thing ever sent.
        """
        with self._lock:
            if self._torn:
                raise BrokenPipeError
            if self._held is not None:
                self._held += wire.frame(kind, payload)
                return
            self._push(wire.frame(kind, payload))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is sent meanwhile leaves in one piece: a daemon that is killed has said all of it or nothing."""
        self._held = bytearray()
        try:
            yield
        finally:
            with self._lock:
                held, self._held = bytes(self._held), None
                if self._torn:
                    raise BrokenPipeError
                self._push(held)

    def _push(self, whole: bytes) -> None:
        data = memoryview(whole)
        begun = False
        try:
            while data:
                try:
                    sent = self._sock.send(data)
                except BlockingIOError:
                    self._wait()
                    continue
                begun = True
                data = data[sent:]
        except OSError as error:
            self._torn = True
            raise BrokenPipeError from error
        except BaseException:
            self._torn = begun
            raise

    def show_life(self) -> None:
        """Say that we have heard, without waiting: who is sending now, or has filled the buffer, shows it anyway."""
        if self._lock.acquire(blocking=False):
            try:
                if not self._torn:
                    with suppress(OSError):
                        self._sock.send(wire.ALIVE)
            finally:
                self._lock.release()

    def _wait(self) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
        try:
            with self._interruptible(lambda: _poke(writing)):
                poll = select.poll()
                poll.register(self._sock, select.POLLOUT)
                poll.register(reading, select.POLLIN)
                poll.poll()
        finally:
            os.close(reading)
            os.close(writing)


def _poke(descriptor: int) -> None:
    os.write(descriptor, b"!")
