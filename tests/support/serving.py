"""Start and talk to the daemon of `fake_daemon`, frame by frame where a test wants to misbehave."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coreagent import paths, wire
from coreagent.daemon import house
from tests.support import fake_daemon
from tests.support.home import Home

FAKE = fake_daemon.__file__


@contextmanager
def serving(home: Home, python: str = "", env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The fake's daemon on this home, ready."""
    house.prepare(str(home.core))
    reading, writing = os.pipe()
    with open(paths.daemon_log(str(home.core)), "ab") as log:
        process = subprocess.Popen(
            [*fake_daemon.command(str(home.core), python), "--ready-fd", str(writing)],
            env={**home.env, "PYTHONPATH": str(Path(FAKE).parents[2]), **(env or {})},
            cwd=home.core,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
        )
    os.close(writing)
    # Reap it whenever it ends: a zombie of ours would look like a daemon that does not stop.
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    try:
        said = os.read(reading, 65536)
        assert said == b"ready", (said, home.log())
        yield process
        home.stop()
    finally:
        os.close(reading)
        process.kill()
        reaper.join()


def connect(home: Home) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(30)
    sock.connect(paths.daemon_socket(str(home.core)))
    return sock


def opening(argv: list[str], home: Home, **fields: object) -> wire.Opening:
    given = {"cwd": str(home.user), "columns": 80, "lines": 24, "version": paths.VERSION, "executable": sys.executable}
    return wire.Opening(argv, **{**given, **fields})  # type: ignore[arg-type]


def frames(sock: socket.socket) -> list[tuple[bytes, bytes]]:
    """Everything that the daemon sends until it closes; that it is alive is no news."""
    decoder, heard = wire.Decoder(wire.FROM_DAEMON), []
    while True:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return heard
        if not data:
            return heard
        heard += [frame for frame in decoder.feed(data) if wire.frame(*frame) != wire.ALIVE]


def ask(home: Home, argv: list[str], **fields: object) -> tuple[int, bytes, bytes]:
    """Run a command line over the socket: exit code, stdout, stderr."""
    with connect(home) as sock:
        sock.sendall(wire.frame(wire.OPEN, opening(argv, home, **fields).pack()))
        heard = frames(sock)
    out = b"".join(payload for kind, payload in heard if kind == wire.OUT)
    err = b"".join(payload for kind, payload in heard if kind == wire.ERR)
    codes = [int(payload) for kind, payload in heard if kind == wire.EXIT]
    assert len(codes) == 1, heard
    return codes[0], out, err
