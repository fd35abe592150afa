"""Who follows something does not notice that the daemon is another one: nothing is lost, said twice or done twice."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.home import COMMAND, Home
from tests.support.screen import Screen
from tests.support.serving import connect, frames, opening
from tests.support.world import World

from coreagent import paths, wire

SOURCE = Path(__file__).resolve().parents[2] / "src" / "coreagent"


def restart(home: Home) -> None:
    home.run("daemon", "restart")


def kill(home: Home) -> None:
    """The client itself brings the next one."""
    home.kill_daemon()


def kill_and_start(home: Home) -> None:
    home.kill_daemon()
    home.run("daemon", "start")


def give_way(home: Home) -> None:
    """A newer client's daemon takes over, in the same process: the same release under a higher number."""
    package = home.dir / "new"
    shutil.copytree(SOURCE, package / "coreagent")
    ground = package / "coreagent" / "paths.py"
    ground.write_text(ground.read_text().replace(f'VERSION = "{paths.VERSION}"', 'VERSION = "99.0.0"'))
    interpreter = home.dir / "python-new"
    interpreter.write_text(f'#!/bin/sh\nexport PYTHONPATH={package}\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    with connect(home) as sock:
        claim = opening(["status"], home, version="99.0.0", executable=str(interpreter))
        sock.sendall(wire.frame(wire.OPEN, claim.pack()))
        assert frames(sock) == [(wire.NOTICE, wire.AGAIN)]
    assert home.json("daemon", "status")["version"] == "99.0.0"


WAYS = [restart, kill, kill_and_start, give_way]
Way = Callable[[Home], None]


def world_with(home: Home) -> World:
    """`command:steps` says `step N` whenever the file `stepN` is there, three times, and then works."""
    world = World(home)
    wait = f"while [ ! -e {home.dir}/step$n ]; do sleep 0.02; done; echo said $n"
    script = (
        f'echo "$CORE_AGENT_DISPATCH $CORE_AGENT_ATTEMPT" >> {world.ledger}; for n in 1 2 3; do {wait}; done; date > f'
    )
    settings = home.core / "agents.yaml"
    settings.write_text(settings.read_text() + f"  steps: {{argv: [/bin/sh, -c, {json.dumps(script)}]}}\n")
    return world


def step(home: Home, n: int) -> None:
    (home.dir / f"step{n}").touch()


def line_with(process: subprocess.Popen[bytes], text: str) -> list[str]:
    """Lines up to the one in which the text stands."""
    assert process.stdout
    lines = []
    for raw in process.stdout:
        lines.append(raw.decode())
        if text in lines[-1]:
            return lines
    assert process.stderr
    raise AssertionError(f"{text!r} does not come: {lines}\n{process.stderr.read().decode()}")


@pytest.mark.parametrize("way", WAYS)
def test_dispatch_wait(home: Home, way: Way) -> None:
    world = world_with(home)
    words = ("dispatch", "go", "--agent", "command:steps", "--name", "one", "--wait", "--json")
    process = home.start(*words, cwd=world.repo)
    with process:
        said = line_with(process, '"state":"running"')
        way(home)
        for n in (1, 2, 3):
            step(home, n)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b""), err
    lines = [json.loads(line) for line in [*said, *out.decode().splitlines()]]
    assert "branch" in lines[0]
    assert lines[-1]["state"] == "completed"
    rows = [json.dumps({**line, "elapsed_s": 0}) for line in lines]
    assert all(one != after for one, after in itertools.pairwise(rows))
    assert len(world.executions()) == 1
    assert len(world.rows()) == 1


@pytest.mark.parametrize("way", WAYS)
def test_logs_follow(home: Home, way: Way) -> None:
    world = world_with(home)
    world.dispatch("go", "--agent", "command:steps", "--name", "one")
    step(home, 1)
    process = home.start("logs", "-f", "one")
    with process:
        said = line_with(process, "said 1")
        way(home)
        step(home, 2)
        said += line_with(process, "said 2")
        step(home, 3)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b""), err
    told = [line.strip() for line in [*said, *out.decode().splitlines()]]
    assert [line for line in told if line.startswith("said")] == ["said 1", "said 2", "said 3"]
    assert len([line for line in told if "attempt 1" in line]) == 1


@pytest.mark.parametrize("way", [restart, kill])
def test_watch(home: Home, way: Way) -> None:
    world = world_with(home)
    home.run("queue", "freeze")
    world.dispatch("go", "--name", "one")
    process = home.start("watch", "--json", "--since", "0")
    with process:
        said = line_with(process, '"local/repo/one"')
        way(home)
        world.dispatch("go", "--name", "two")
        said += line_with(process, '"local/repo/two"')
        process.terminate()
    told = [json.loads(line)["seq"] for line in said]
    since = home.run("watch", "--json", "--since", "0", "--timeout", "100ms", code=None).out.splitlines()
    assert told == [json.loads(line)["seq"] for line in since][: len(told)]


def test_status_watch_on_a_screen(home: Home) -> None:
    world = world_with(home)
    home.run("queue", "freeze")
    with Screen([str(COMMAND), "status", "--watch"], home.env, home.user, rows=24, columns=100) as screen:
        screen.until("Ctrl-C leaves")
        restart(home)
        world.dispatch("go", "--name", "later")
        screen.until("local/repo/later")
        home.kill_daemon()
        world.dispatch("go", "--name", "last")
        screen.until("local/repo/last")
        screen.type("\x03")
        assert screen.end() in (0, 130)


def test_a_wait_goes_on_where_it_was(home: Home) -> None:
    """On a terminal too: no line twice, and the lines that stand below are drawn over."""
    world = world_with(home)
    words = [str(COMMAND), "dispatch", "go", "--agent", "command:steps", "--name", "one", "--wait"]
    with Screen(words, home.env, world.repo, rows=24, columns=100) as screen:
        step(home, 1)
        screen.until("said 1")
        restart(home)
        step(home, 2)
        screen.until("said 2")
        step(home, 3)
        assert screen.end() == 0
        shown = screen.shown()
        printed = [screen.raw.count(b"said %d\r\n" % n) for n in (1, 2, 3)]  # a drawn line ends with an escape
    assert printed == [1, 1, 1]
    assert shown.count("──attempt1") == 1


@pytest.mark.parametrize("words", ["wait one", "logs -f one", "watch", "status --watch --json"])
def test_a_stop_is_a_stop(home: Home, words: str) -> None:
    world = world_with(home)
    world.dispatch("go", "--agent", "command:steps", "--name", "one")
    step(home, 1)
    process = home.start(*words.split())
    with process:
        home.run("watch", "one", "--since", "1", "--once", "--timeout", "20s")
        if words != "watch":
            assert process.stdout
            process.stdout.readline()
        home.run("daemon", "stop")
        _, err = process.communicate(timeout=30)
    assert process.returncode == 69
    assert b"E6006" in err
    assert home.daemon_pid == 0
    home.run("cancel", "one")


def test_what_was_not_agreed_on_is_not_said_again(home: Home) -> None:
    """A command that changes something and lost its daemon in the middle ends with an error."""
    world = world_with(home)
    world.dispatch("go", "--agent", "command:steps", "--name", "one")
    home.run("wait", "one", "--timeout", "10ms", code=75)
    home.run("daemon", "stop", "--now")
    told: dict[str, Any] = home.json("wait", "nobody", code=1)
    assert told["error"]["slug"] == "workspace_not_found"
