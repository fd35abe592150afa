"""Commands through the daemon: what the person sees, Ctrl-C, pipes, input, and many at once."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.support.home import COMMAND, Home
from tests.support.serving import FAKE, ask, connect, opening, serving

from coreagent import wire
from coreagent.capability import Caller
from coreagent.cli import session
from coreagent.errors import CoreAgentError


@pytest.fixture(scope="module")
def served() -> Iterator[Home]:
    """One daemon for the whole file: what one test does to it, the next would see."""
    home = Home()
    try:
        with serving(home):
            yield home
    finally:
        home.close()


def test_a_command_and_its_errors(served: Home) -> None:
    assert served.run("say", "hi", "--times", "3").out == "hihihi\n"
    assert served.run("say", "hi", "--to-err").err == "hi\n"
    assert served.run("say", "refuse", code=1).err == "error[E3002]: no\ncaused by: because\nhint: another way\n"
    usage = served.run("noun", "do", code=2)
    assert usage.err == "error[E1001]: Missing argument 'what'.\nhint: core-agent noun do --help\n"
    assert served.json("nope", code=2)["error"]["slug"] == "usage"


def test_a_fault_is_one_line_and_a_report(served: Home) -> None:
    done = served.run("crash", code=70)
    assert done.err.startswith("error[E9001]: RuntimeError: a fault\u241b[31m\n")
    assert "\x1b" not in done.err
    (report,) = [path for path in served.core.glob("reports/*.txt") if str(path) in done.err]
    assert "Traceback" in report.read_text()
    assert report.stat().st_mode & 0o077 == 0


def test_much_output_arrives_whole(served: Home) -> None:
    out = served.run("flood", "50000").out
    assert out == "".join(f"line {n} of a long text that fills pipes\n" for n in range(50000))


def test_a_reader_that_goes_away_ends_the_client_as_any_program(served: Home) -> None:
    client = served.start("flood", "1000000")
    assert client.stdout and client.stderr
    client.stdout.read(100)
    client.stdout.close()
    assert client.wait(30) == -signal.SIGPIPE
    assert client.stderr.read() == b""
    client.stderr.close()


def test_input_goes_through_both_ways_without_filling_up(served: Home) -> None:
    text = "".join(f"{n} of a longer line of input\n" for n in range(40000))
    assert served.run("cat", stdin=text).out == text


def test_input_is_only_taken_by_who_reads_it(served: Home) -> None:
    script = "while read line; do core-agent say $line; done; echo end"
    done = subprocess.run(
        ["bash", "-c", script], input="a\nb\nc\n", env=served.env, cwd=served.user, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("a\nb\nc\nend\n", "")


def test_interrupt_reaches_the_command(served: Home) -> None:
    client = served.start("wait")
    assert client.stderr and client.stderr.readline() == b"waiting\n"
    until_seen(served, "hangs")
    client.send_signal(signal.SIGINT)
    out, _ = client.communicate(timeout=30)
    assert (client.returncode, out) == (130, b"detached\n")
    assert call(served, "seen")[-2:] == ["hangs", "cancelled"]


def test_a_second_interrupt_leaves_and_frees_the_command(served: Home) -> None:
    client = served.start("stubborn")
    assert client.stderr and client.stderr.readline() == b"waiting\n"
    client.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(0.2)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=30)
    assert client.returncode == 130


def test_a_client_told_to_stop_is_gone_and_its_call_is_cancelled(served: Home) -> None:
    client = served.start("wait")
    assert client.stderr and client.stderr.readline() == b"waiting\n"
    until_seen(served, "hangs")
    client.terminate()
    client.communicate(timeout=30)
    assert client.returncode == 128 + signal.SIGTERM
    until_seen(served, "cancelled")


def test_the_window_can_change(served: Home) -> None:
    leader, follower = pty.openpty()
    with open(leader, "rb", 0), open(follower, "wb", 0):
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
        client = served.start("size", stdin=follower)
        assert client.stderr and client.stderr.readline() == b"90\n"
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 70, 0, 0))
        client.send_signal(signal.SIGWINCH)
        out, _ = client.communicate(timeout=30)
    assert out == b"70\n"


def test_what_needs_the_persons_process_runs_there(served: Home) -> None:
    with connect(served) as sock:
        sock.sendall(wire.frame(wire.OPEN, opening(["own"], served).pack()))
        assert wire.Decoder(wire.FROM_DAEMON).feed(sock.recv(4096)) == [(wire.LOCAL, b"own")]
    with connect(served) as sock:
        sock.sendall(wire.frame(wire.OPEN, opening(["say", "--help"], served).pack()))
        assert wire.Decoder(wire.FROM_DAEMON).feed(sock.recv(4096)) == [(wire.LOCAL, b"say\0--help")]


def test_fifty_at_once_are_as_one_after_another(served: Home) -> None:
    places = [served.user / f"place{n % 7}" for n in range(50)]
    for place in set(places):
        place.mkdir(exist_ok=True)
    kinds = [
        {"argv": ["status"], "cwd": str(places[n]), "columns": 60 + n, "colour": n % 2 == 0, "env": {"TERM": "xterm"}}
        if n % 3
        else {"argv": ["say", f"text {n}", "--times", str(n)], "columns": 80}
        for n in range(50)
    ]
    serial = [ask(served, **kind) for kind in kinds]  # type: ignore[arg-type]
    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(lambda kind: ask(served, **kind), kinds))
    assert together == serial
    assert len({out for _, out, _ in serial}) == 50
    assert any(b"\x1b[" in out for _, out, _ in serial)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["say", "--help"],
        ["noun", "--help"],
        ["noun"],
        ["nope"],
        ["say"],
        ["say", "--nope"],
        ["say", "x", "--times", "many"],
        ["noun", "do", "x", "--json", "--how", "x"],
        ["noun", "do", "x", "--how", "7"],
    ],
)
@pytest.mark.parametrize("colour", [False, True])
def test_here_and_there_are_equal(served: Home, argv: list[str], colour: bool) -> None:
    env = {"COLUMNS": "77", "TERM": "xterm", **({"FORCE_COLOR": "1"} if colour else {})}
    here = subprocess.run(
        [sys.executable, "-P", FAKE, "--run", *argv], env={**_imports(), **served.env, **env}, capture_output=True
    )
    if "--help" in argv:  # the client keeps these, so only a run in the daemon's thread can be compared
        there = _in_a_thread(argv, colour)
    else:
        there = ask(served, argv, columns=77, colour=colour, env=env)
    assert there == (here.returncode, here.stdout, here.stderr)


def _imports() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(FAKE.rsplit("/", 3)[:1])}


def _in_a_thread(argv: list[str], colour: bool) -> tuple[int, bytes, bytes]:
    import io

    from tests.support import fake_daemon

    from coreagent.cli.session import InDaemon
    from coreagent.cli.terminal import Terminal, channel

    out, err = bytearray(), bytearray()
    on = Terminal(channel(out.extend, False), channel(err.extend, False), io.StringIO(), 77, 24, colour, False, "/")
    loop = asyncio.new_event_loop()
    inside = InDaemon(fake_daemon.FakeCore("/nowhere"), Caller(), loop, "/nowhere")  # type: ignore[arg-type]
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(fake_daemon.run(argv, on, inside)))
    thread.start()
    thread.join()
    loop.close()
    return codes[0], bytes(out), bytes(err)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["core-agent", "s"], ["status", "say", "stubborn", "size"]), (["core-agent", "noun", "do", "--"], None)],
)
def test_completion_is_answered_here_and_there(served: Home, words: list[str], expected: list[str] | None) -> None:
    env = {"_CORE_AGENT_COMPLETE": "bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    there = served.run(env=env)
    here = subprocess.run(
        [sys.executable, "-P", FAKE, "--run"], env={**_imports(), **served.env, **env}, capture_output=True, text=True
    )
    assert (there.code, there.out) == (here.returncode, here.stdout)
    assert there.out.split() == (expected or ["--how", "--help"])


def until_seen(home: Home, last: str) -> None:
    """The daemon's loop comes to things on its own time: wait on its word, not on the clock."""
    for _ in range(2000):
        if call(home, "seen")[-1:] == [last]:
            return
    raise AssertionError(f"{last} does not come")


def call(home: Home, name: str, **arguments: object) -> Any:
    return session.ask(str(home.core), name, arguments, Caller())


def test_a_session_outside_calls_over_the_socket(served: Home) -> None:
    assert call(served, "echo", text="x" * 3_000_000)["text"] == "x" * 3_000_000
    with pytest.raises(CoreAgentError) as refused:
        call(served, "echo", text="refuse")
    assert (refused.value.slug, refused.value.hint) == ("illegal_move", "another way")
    with pytest.raises(CoreAgentError) as failed:
        call(served, "echo", text="break")
    assert failed.value.slug == "internal"
    with pytest.raises(CoreAgentError) as unknown:
        call(served, "echo", test="x")
    assert unknown.value.slug == "invalid_argument"


def test_the_client_imports_next_to_nothing(served: Home) -> None:
    def imported(*argv: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *argv], env=served.env, capture_output=True, text=True, check=True
        )
        lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        return {line.rpartition("|")[2].strip() for line in lines}

    warm = imported(str(COMMAND), "status") - imported("-c", "pass")
    assert warm == {"_socket", "coreagent", "coreagent.paths", "coreagent.wire", "coreagent.__main__"}
