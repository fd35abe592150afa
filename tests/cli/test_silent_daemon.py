"""A daemon that does not answer is told from one that is at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from tests.support.home import Home

IMPATIENT = {"CORE_TIMEOUT": "0.4"}


@pytest.fixture
def stopped(home: Home) -> Iterator[Home]:
    """A home whose daemon hangs."""
    home.run("daemon", "start")
    pid = home.daemon_pid
    os.kill(pid, signal.SIGSTOP)
    yield home
    os.kill(pid, signal.SIGCONT)


def test_whoever_asks_gives_up_and_says_why(stopped: Home) -> None:
    pid = stopped.daemon_pid
    for command in (["status"], ["dispatch", *["x" * 100_000] * 4], ["daemon", "status"]):
        done = stopped.run(*command, env=IMPATIENT, code=75)
        assert f"error[E6010]: the daemon (pid {pid}) does not answer" in done.err
        assert f"kill -9 {pid}" in done.err
    assert stopped.json("status", env=IMPATIENT, code=75)["error"]["slug"] == "daemon_silent"


def test_the_wait_is_said_and_ends_where_the_daemon_goes_on(stopped: Home) -> None:
    client = stopped.start("status", "--json")
    assert client.stderr is not None
    assert f"(pid {stopped.daemon_pid}) does not answer".encode() in client.stderr.readline()
    os.kill(stopped.daemon_pid, signal.SIGCONT)
    out, err = client.communicate(timeout=30)
    assert (client.returncode, err) == (0, b"")
    assert json.loads(out)["workspaces"] == []


def test_ctrl_c_ends_the_wait_at_once(stopped: Home) -> None:
    client = stopped.start("status")
    assert client.stderr is not None
    client.stderr.readline()
    client.send_signal(signal.SIGINT)
    assert client.wait(5) == 130
    client.communicate()


def test_a_daemon_at_work_is_never_taken_for_dead(home: Home) -> None:
    home.run("daemon", "start")
    began = time.monotonic()
    done = home.run("watch", "--once", "--timeout", "2500ms", env={"CORE_TIMEOUT": "1.5"}, code=75)
    assert (done.out, done.err) == ("", "")
    assert time.monotonic() - began > 2.4


def ask(process: subprocess.Popen[bytes], identity: int, method: str) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": identity, "method": method}).encode() + b"\n")
    process.stdin.flush()


def test_an_mcp_client_hears_of_it_too_and_goes_on_with_a_daemon_that_answers(home: Home) -> None:
    home.run("daemon", "start")
    with home.start("mcp", stdin=subprocess.PIPE) as process:  # its library is loaded before the clock runs
        ask(process, 1, "ping")
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["id"] == 1
        process.stdin.close()  # type: ignore[union-attr]
    with home.start("mcp", env={"CORE_TIMEOUT": "3"}, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        os.kill(home.daemon_pid, signal.SIGSTOP)
        try:
            ask(process, 7, "ping")
            answer = json.loads(process.stdout.readline())
        finally:
            os.kill(home.daemon_pid, signal.SIGCONT)
        assert (answer["id"], answer["error"]["code"]) == (7, -32000)
        assert f"the daemon (pid {home.daemon_pid}) does not answer" in answer["error"]["message"]
        ask(process, 8, "ping")
        answer = json.loads(process.stdout.readline())
        assert answer["id"] == 8
        assert "does not answer" not in json.dumps(answer)
        process.stdin.close()
        assert process.wait(30) == 0


def test_an_mcp_client_that_leaves_is_not_held_up(stopped: Home) -> None:
    with stopped.start("mcp", env=IMPATIENT, stdin=subprocess.DEVNULL) as process:
        assert process.wait(30) in (0, 75)
