"""The daemon comes once, goes when told, gives way to a newer one, and refuses an unsafe home."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.home import Home
from tests.support.serving import FAKE, ask, connect, frames, opening, serving

from coreagent import paths, wire
from coreagent.capability import Caller
from coreagent.cli.session import ask as call
from coreagent.daemon import control, house, launch
from coreagent.errors import CoreAgentError

LAUNCH = """
import os, sys
sys.path.insert(0, {root!r})
from tests.support import fake_daemon
from coreagent.daemon import launch, house
from coreagent.errors import CoreAgentError
launch.command = fake_daemon.command
if {broken!r}:
    held = "open(sys.argv[1]).read(); print('no such thing')"
    launch.command = lambda home, python="": [sys.executable, "-c", "import sys; " + held, {broken!r}, "--home", home]
    lock = launch._start_lock
    def asking(home):
        print("asks", flush=True)
        return lock(home)
    launch._start_lock = asking
try:
    launch.launch({home!r})
    print(house.holder({home!r}))
except CoreAgentError as error:
    print("|".join(error.lines()))
"""


def racing(home: Home, count: int, broken: str = "", env: dict[str, str] | None = None) -> list[subprocess.Popen[str]]:
    """Clients that start the daemon at once; `broken` is a pipe whose end a daemon that cannot start waits for."""
    root = str(Path(FAKE).parents[2])
    code = LAUNCH.format(root=root, home=str(home.core), broken=broken)
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**home.env, "PYTHONPATH": root, **(env or {})},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]


def racers(home: Home, count: int, env: dict[str, str] | None = None) -> list[str]:
    return [process.communicate(timeout=60)[0].strip() for process in racing(home, count, env=env)]


def test_whoever_races_one_daemon_comes(home: Home) -> None:
    said = racers(home, 8)
    assert set(said) == {str(home.daemon_pid)}
    assert home.log().count(" serves ") == 1
    # In a session of its own, without the environment of the first caller, and with nothing of theirs open.
    assert os.getsid(home.daemon_pid) not in (os.getsid(0), 0)
    mode = os.stat(paths.daemon_socket(str(home.core))).st_mode
    assert mode & 0o777 == 0o600
    assert home.core.stat().st_mode & 0o777 == 0o700
    home.stop()
    assert home.daemon_pid == 0
    assert not Path(paths.daemon_socket(str(home.core))).exists()


def test_a_daemon_that_cannot_start_is_started_once_and_says_why(home: Home, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    os.mkfifo(hold)
    running = racing(home, 4, broken=str(hold))
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "asks\n"
    hold.write_text("")  # only now, when everyone has asked, may the first daemon fail
    said = {process.communicate(timeout=60)[0].strip() for process in running}
    assert len(said) == 1
    (words,) = said
    assert "E6002" in words
    assert "no such thing" in words
    assert home.log().count("no such thing") == 1


def test_an_agent_does_not_start_the_daemon(home: Home) -> None:
    (said,) = racers(home, 1, env={"CORE_AGENT_ATTEMPT": "01X"})
    assert "E8001" in said
    assert home.daemon_pid == 0


def test_the_first_callers_environment_stays_behind(home: Home) -> None:
    racers(home, 1, env={"ANTHROPIC_API_KEY": "secret", "CLAUDECODE": "1"})
    environment = Path(f"/proc/{home.daemon_pid}/environ").read_text()
    assert "secret" not in environment
    assert "CLAUDECODE" not in environment


def test_a_second_daemon_names_the_first(home: Home) -> None:
    with serving(home) as first:
        done = subprocess.run(
            [sys.executable, "-P", FAKE, "--home", str(home.core)],
            env={**home.env, "PYTHONPATH": str(Path(FAKE).parents[2])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert f"pid {first.pid}" in done.stderr
        assert ask(home, ["say", "x"])[1] == b"x\n"


def test_a_killed_daemon_leaves_nothing_in_the_way(home: Home) -> None:
    with serving(home):
        home.kill_daemon()
    assert Path(paths.daemon_socket(str(home.core))).exists()
    with serving(home):
        assert ask(home, ["say", "back"])[1] == b"back\n"


def test_sigterm_ends_commands_with_a_word(home: Home) -> None:
    with serving(home) as daemon:
        client = home.start("wait")
        assert client.stderr
        assert client.stderr.readline() == b"waiting\n"
        daemon.send_signal(signal.SIGTERM)
        _, err = client.communicate(timeout=30)
        assert client.returncode == 69
        assert b"E6006" in err
        launch.ended(daemon.pid, 30)
        assert "stopped (leave)" in home.log()


def test_stop_returns_when_it_is_gone(home: Home) -> None:
    assert control.stop(str(home.core)) is None
    with serving(home) as daemon:
        status = control.status(str(home.core))
        assert status is not None
        assert status.pid == daemon.pid
        reply = control.stop(str(home.core))
        assert reply is not None
        assert reply.mode == "leave"
        assert home.daemon_pid == 0
        assert control.status(str(home.core)) is None


def test_who_connects_while_it_stops_is_sent_on(home: Home) -> None:
    # Many callers at the moment of the stop: each is served or told to ask again, none is left hanging.
    with serving(home):
        waiting = [connect(home) for _ in range(20)]
        call(str(home.core), "daemon.stop", {}, Caller())
        for sock in waiting:
            with sock:
                try:
                    sock.sendall(wire.frame(wire.OPEN, opening(["say", "x"], home).pack()))
                    heard = frames(sock)
                except (BrokenPipeError, ConnectionResetError):
                    continue
                assert not heard or heard[-1][0] in (wire.EXIT, wire.NOTICE)


@pytest.fixture
def newer(home: Home) -> Iterator[Path]:
    """An interpreter that brings a newer release of the program: the same one under a higher number."""
    package = home.dir / "new"
    root = Path(FAKE).parents[2]
    shutil.copytree(root / "src" / "coreagent", package / "coreagent")
    ground = package / "coreagent" / "paths.py"
    ground.write_text(ground.read_text().replace(f'VERSION = "{paths.VERSION}"', 'VERSION = "99.0.0"'))
    interpreter = home.dir / "python-new"
    interpreter.write_text(
        "#!/bin/sh\n"
        f"export PYTHONPATH={package}:{root}\n"
        'case "$*" in\n'
        f'*"-m coreagent.daemon "*) shift 3; exec {sys.executable} -P {FAKE} "$@";;\n'
        f'*) exec {sys.executable} "$@";;\n'
        "esac\n"
    )
    interpreter.chmod(0o755)
    yield interpreter


def test_a_newer_client_replaces_the_daemon_in_place(home: Home, newer: Path) -> None:
    with serving(home) as daemon:
        with connect(home) as sock:
            claim = opening(["say", "new"], home, version="99.0.0", executable=str(newer))
            sock.sendall(wire.frame(wire.OPEN, claim.pack()))
            assert frames(sock) == [(wire.NOTICE, wire.AGAIN)]
        # The socket was never closed: whoever connects now waits for the new one.
        assert ask(home, ["say", "new"], version="99.0.0", executable=str(newer))[1] == b"new\n"
        assert home.daemon_pid == daemon.pid  # the same process, another program
        status = control.status(str(home.core))
        assert status is not None
        assert status.version == "99.0.0"
        assert ask(home, ["say", "old"])[1] == b"old\n"


def test_an_unsafe_home_is_refused(home: Home) -> None:
    home.core.mkdir(mode=0o700)
    home.core.chmod(0o777)
    with pytest.raises(CoreAgentError) as refused:
        house.prepare(str(home.core))
    assert refused.value.slug == "home_unsafe"
    assert refused.value.hint.startswith("chmod")
    home.core.chmod(0o755)
    house.prepare(str(home.core))
    (home.core / "run").chmod(0o755)
    house.prepare(str(home.core))
    assert (home.core / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="needs a directory of another user")
def test_a_home_of_another_user_is_refused(home: Home) -> None:
    home.core.mkdir(mode=0o700)
    os.chown(home.core, 65534, 65534)
    with pytest.raises(CoreAgentError) as refused:
        house.prepare(str(home.core))
    assert refused.value.slug == "home_unsafe"


def test_a_home_with_a_long_name_is_refused_by_the_client(home: Home) -> None:
    env = {"CORE_HOME": "/tmp/" + "x" * 120}
    done = home.run("status", env=env, code=2)
    assert done.err.startswith("error[E6003]:")
    assert "CORE_HOME" in done.err
    assert home.json("status", env=env, code=2)["error"]["slug"] == "socket_path_too_long"


def test_without_a_home_there_is_nowhere_to_go(home: Home) -> None:
    del home.env["HOME"]
    assert home.run("status", code=2).err.startswith("error[E6004]:")
