"""Clients that lie, hang, flood or talk nonsense never harm the daemon or another client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.support.home import Home
from tests.support.serving import ask, connect, frames, opening, serving

from coreagent import paths, wire


@pytest.fixture(scope="module")
def served() -> Iterator[Home]:
    """One daemon for the whole file: what one test does to it, the next would see."""
    home = Home()
    try:
        with serving(home):
            yield home
    finally:
        home.close()


BAD = {
    "huge length": b"O" + b"\xff\xff\xff\xff",
    "unknown kind": b"GET / HTTP/1.1\r\n\r\n",
    "a frame of the daemon": wire.frame(wire.EXIT, b"0"),
    "empty opening": wire.frame(wire.OPEN),
    "no opening first": wire.frame(wire.INPUT, b"x"),
    "garbage opening": wire.frame(wire.OPEN, os.urandom(5000)),
    "garbage call": wire.frame(wire.CALL, wire.Opening(["{"]).pack()),
    "a call of nothing": wire.frame(wire.CALL, wire.Opening(["[]"]).pack()),
    "endless opening": wire.frame(wire.OPEN, b"\0" * (wire.MESSAGE_MAX + 10)),
}


@pytest.mark.parametrize("what", BAD)
def test_nonsense_is_dropped(served: Home, what: str) -> None:
    with connect(served) as sock:
        try:
            sock.sendall(BAD[what])
        except (BrokenPipeError, ConnectionResetError):
            pass  # dropped while we were still sending
        for kind, payload in frames(sock):
            assert (kind, payload.split(b"\0")[:2]) == (wire.NOTICE, [wire.REFUSED, b"bad_frame"])
    assert ask(served, ["say", "still here"])[1] == b"still here\n"


def test_input_nobody_asked_for_ends_the_command(served: Home) -> None:
    with connect(served) as sock:
        sock.sendall(wire.frame(wire.OPEN, opening(["wait"], served).pack()))
        assert sock.recv(100) == wire.frame(wire.ERR, b"waiting\n")
        try:
            for _ in range(100):
                sock.sendall(wire.frame(wire.INPUT, b"x" * 65536))
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert frames(sock)[-1] == (wire.EXIT, b"130")
    assert ask(served, ["say", "still here"])[1] == b"still here\n"


def test_a_client_that_does_not_read_holds_up_only_itself(served: Home) -> None:
    with connect(served) as lazy:
        lazy.sendall(wire.frame(wire.OPEN, opening(["flood", "1000000"], served).pack()))
        assert lazy.recv(1, socket.MSG_PEEK)
        for _ in range(5):
            assert ask(served, ["say", "quick"])[1] == b"quick\n"
        lazy.sendall(wire.frame(wire.INTERRUPT))
        # The command that waits for us is told, and its frame is the last: nothing after it is out of step.
        heard = frames(lazy)
        assert wire.EXIT not in [kind for kind, _ in heard[:-1]]


def test_clients_that_say_nothing_do_not_keep_others_out(served: Home) -> None:
    silent = [connect(served) for _ in range(100)]
    try:
        assert ask(served, ["say", "hello"])[1] == b"hello\n"
    finally:
        for sock in silent:
            sock.close()


def test_an_opening_byte_by_byte_is_understood(served: Home) -> None:
    with connect(served) as sock:
        for byte in wire.frame(wire.OPEN, opening(["say", "slowly"], served).pack()):
            sock.send(bytes([byte]))
        assert (wire.OUT, b"slowly\n") in frames(sock)


def test_another_protocol_is_told_so(served: Home) -> None:
    with connect(served) as sock:
        sock.sendall(wire.frame(wire.OPEN, opening(["status"], served, wire=0, version="0.0.1").pack()))
        ((kind, payload),) = frames(sock)
    assert kind == wire.NOTICE
    assert payload.split(b"\0")[:2] == [wire.REFUSED, b"daemon_newer"]


def test_an_older_client_of_the_same_protocol_is_served(served: Home) -> None:
    assert ask(served, ["say", "old"], version="0.0.1")[1] == b"old\n"


def test_a_claim_to_be_newer_without_the_program_is_not_believed(served: Home) -> None:
    pid = served.daemon_pid
    assert ask(served, ["say", "new"], version="99.0", executable=sys.executable)[1] == b"new\n"
    assert ask(served, ["say", "new"], version="99.0", executable="/bin/false")[1] == b"new\n"
    assert ask(served, ["say", "new"], version="99.0", executable="relative")[1] == b"new\n"
    assert served.daemon_pid == pid


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user to be")
def test_another_user_is_refused_by_the_kernels_word(served: Home) -> None:
    # The directories alone keep others out; opened up here, the daemon still asks the kernel who it is.
    for path in (served.dir, served.user, served.core, served.core / "run"):
        path.chmod(0o755)
    path = paths.daemon_socket(str(served.core))
    os.chmod(path, 0o666)
    code = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "sys.stdout.buffer.write(s.makefile('rb').read())"
    )
    said = subprocess.run(["/usr/bin/env", "python3", "-c", code, path], user=65534, group=65534, capture_output=True)
    assert b"foreign_user" in said.stdout, said


def test_a_socket_pair_of_nobody_is_not_a_peer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert wire.peer(sock)[1] in (-1, 2**32 - 1)
