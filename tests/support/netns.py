"""A network namespace with a loopback and nothing else: what runs in it can reach our model and nobody besides.

The tests stay outside; only a listening socket of theirs is made inside, and the agent's program is started inside.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import shutil
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1


class Netns:
    """One namespace; it ends with the last process and socket in it. Close it when the test is over."""

    def __init__(self) -> None:
        self.descriptor = in_thread(_unshared)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def call(self, function: Callable[[], T]) -> T:
        """Call a function inside: the sockets that it makes stay there, wherever they are used."""
        return in_thread(lambda: (_libc("setns", self.descriptor, CLONE_NEWNET), function())[1])

    def wrap(self, program: str, directory: Path) -> str:
        """Return a program of the same name that is that one, inside."""
        directory.mkdir(parents=True, exist_ok=True)
        wrapper = directory / Path(program).name
        nsenter = shutil.which("nsenter")
        wrapper.write_text(f'#!/bin/sh\nexec {nsenter} --net={self.path} {shlex.quote(program)} "$@"\n')
        wrapper.chmod(0o755)
        return str(wrapper)

    def close(self) -> None:
        os.close(self.descriptor)


class NoNetns:
    """The same on a system that gives us no namespace: everything is as it is."""

    def call(self, function: Callable[[], T]) -> T:
        return function()

    def wrap(self, program: str, directory: Path) -> str:
        return program

    def close(self) -> None:
        pass


def make() -> Netns | NoNetns:
    """Return a namespace of its own where that is allowed."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("nsenter"):
        return NoNetns()
    try:
        return Netns()
    except OSError:
        return NoNetns()


def in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own: a namespace is a thread's, and ends with it."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _unshared() -> int:
    _libc("unshare", CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _libc(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
