"""A daemon that dies before it said a word: what only reads is asked of the next one, what changes something is not,
unless the daemon surely never read it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.support.home import Home

from coreagent import paths
from coreagent.capability import Caller
from coreagent.cli.session import ask, only_reads
from coreagent.daemon import house
from coreagent.errors import CoreAgentError


@contextmanager
def dying(home: Home, calls: int = 1, *, deaf: bool = False) -> Iterator[list[bytes]]:
    """In the daemon's place: it hears so many callers and is gone without a word, its socket left behind."""
    house.prepare(str(home.core))
    path = paths.daemon_socket(str(home.core))
    heard: list[bytes] = []
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen()

    def serve() -> None:
        for left in range(calls, 0, -1):
            conn, _ = listening.accept()
            heard.append(conn.recv(1 if deaf else 65536))
            if left == 1:
                listening.close()
            conn.close()

    listening.settimeout(30)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        thread.join(30)
        listening.close()
        if not house.holder(str(home.core)):
            os.unlink(path)


@pytest.mark.parametrize("argv", [["status"], ["queue", "list"], ["history", "--json"], ["logs", "none"]])
def test_what_only_reads_is_asked_again(home: Home, argv: list[str]) -> None:
    with dying(home) as heard:
        done = home.run(*argv, code=None)
    assert len(heard) == 1
    assert (done.code, "E6001" in done.err) == (1 if "none" in argv else 0, False)


def test_what_changes_something_is_not(home: Home) -> None:
    with dying(home) as heard:
        refused = home.run("queue", "freeze", code=69).err
    assert "error[E6001]" in refused and "may or may not" in refused
    assert len(heard) == 1
    assert not home.daemon_pid


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_what_was_never_read_is_said_again(home: Home) -> None:
    with dying(home, calls=3, deaf=True) as heard:
        home.run("queue", "freeze")
    assert len(heard) == 3
    assert home.json("queue", "list")["frozen"]
    home.stop()
    with dying(home, deaf=True):
        ask(str(home.core), "queue.start", {}, Caller(cwd=str(home.user), env=home.env))
    assert not home.json("queue", "list")["frozen"]


def test_once_and_no_more(home: Home) -> None:
    with dying(home, calls=2) as heard:
        assert "error[E6001]" in home.run("status", code=69).err
    assert len(heard) == 2


def test_a_call_of_a_program_is_asked_again_as_well(home: Home) -> None:
    caller = Caller(cwd=str(home.user), env=home.env)
    with dying(home):
        assert ask(str(home.core), "queue.list", {}, caller)["rows"] == []
    home.stop()
    with dying(home), pytest.raises(CoreAgentError) as caught:
        ask(str(home.core), "queue.freeze", {}, caller)
    assert caught.value.slug == "daemon_unreachable"


def test_which_words_only_read() -> None:
    for words in ("status", "status one", "queue list", "queue/list", "workspace show x", "why x --json"):
        assert only_reads(words.split()), words
    for words in ("", "queue", "queue freeze", "dispatch status", "accept status", "--json status", "repo trust", "x"):
        assert not only_reads(words.split()), words
