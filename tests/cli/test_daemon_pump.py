"""`core-agent mcp`: a small process that stays while daemons come and go."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.home import Home
from tests.support.serving import serving

from coreagent import pump


class McpClient:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdin
        assert process.stdout
        self.stdin, self.stdout = process.stdin, process.stdout

    def say(self, method: str, identity: Any = None, **more: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, **({} if identity is None else {"id": identity}), **more}
        self.stdin.write(json.dumps(message).encode() + b"\n")
        self.stdin.flush()

    def hear(self) -> Any:
        return json.loads(self.stdout.readline())

    def greet(self) -> Any:
        self.say("initialize", 0)
        answer = self.hear()
        self.say("notifications/initialized")
        return answer


@contextmanager
def pumping(home: Home, **options: Any) -> Iterator[McpClient]:
    process = home.start("mcp", stdin=subprocess.PIPE, **options)
    with process:
        client = McpClient(process)
        try:
            yield client
        finally:
            if not client.stdin.closed:
                client.stdin.close()
            process.wait(30)


def test_it_carries_and_stays_small(home: Home) -> None:
    with serving(home), pumping(home) as client:
        assert client.greet()["result"]["role"] == "mcp"
        for n in range(3):
            client.say("x" * 200_000, f"n{n}")
            assert client.hear()["id"] == f"n{n}"
        pages = int(Path(f"/proc/{client.process.pid}/statm").read_text().split()[1])
        assert pages * os.sysconf("SC_PAGE_SIZE") < 12 << 20
        client.stdin.close()
        assert client.process.wait(30) == 0


def test_it_outlives_the_daemon(home: Home) -> None:
    with serving(home) as first, pumping(home) as client:
        assert client.greet()["result"]["pid"] == first.pid
        client.say("hang", 1)
        client.say("tools/list", 2)
        assert client.hear()["id"] == 2
        home.stop()
        lost = client.hear()
        assert (lost["id"], lost["error"]["code"]) == (1, -32000)
        with serving(home) as second:
            client.say("tools/list", 3)
            answer = client.hear()
            assert (answer["id"], answer["result"]["pid"]) == (3, second.pid)
            client.stdin.close()
            assert client.process.wait(30) == 0


def test_without_a_daemon_it_answers_with_an_error_and_stays(home: Home) -> None:
    # As below an agent, which may not start a daemon.
    with serving(home), pumping(home, env={"CORE_AGENT_ATTEMPT": "01X"}) as client:
        client.greet()
        home.stop()
        for identity in (1, 2):
            client.say("tools/list", identity)
            answer = client.hear()
            assert (answer["id"], answer["error"]["code"]) == (identity, -32000)
        assert client.process.poll() is None


def test_it_goes_to_the_next_daemon_before_anybody_asks(home: Home) -> None:
    """Killed in the middle of a greeting: the client has its answer though it says nothing more."""
    home.env["CORE_HOME"] = str(home.core)
    with serving(home) as first, pumping(home) as client:
        assert client.greet()["result"]["pid"] == first.pid
        client.say("hang", 1)
        client.say("tools/list", 2)
        assert client.hear()["id"] == 2
        client.say("initialize", 3, params={"hang": True})
        assert client.hear()["id"] == 3
        home.kill_daemon()
        lost = client.hear()
        assert (lost["id"], lost["error"]["code"]) == (1, -32000)
        for _ in range(3000):
            if home.daemon_pid:
                break
            select.select([], [], [], 0.02)
        assert home.daemon_pid not in (0, first.pid)


def test_a_message_that_is_too_long_is_answered_and_the_session_goes_on(home: Home) -> None:
    long = "x" * (pump.MESSAGE_MAX + 1)
    with serving(home), pumping(home) as client:
        client.greet()
        client.say("tools/call", 7, params={"text": long})
        answer = client.hear()
        assert (answer["id"], answer["error"]["code"]) == (7, -32600)
        assert "8388608 bytes" in answer["error"]["message"]
        client.stdin.write(b'{"jsonrpc": "2.0", "id": "a", "method": "x", "params": "' + long.encode() + b'"}\n')
        client.stdin.flush()
        assert client.hear()["id"] == "a"
        client.stdin.write(b'{"x": {"id": 5}, "y": "' + long.encode() + b'", "z": {"id": 6}}\n')
        client.stdin.flush()
        assert client.hear()["id"] is None
        client.say("tools/list", 8)
        assert client.hear()["id"] == 8
