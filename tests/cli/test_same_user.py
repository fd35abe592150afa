"""What an agent of the same user can still do without a sandbox, and what it comes to: the limits in docs/security.md.

Each is shown as it is, so that the page promises neither more nor less. When one of these tests fails because the door
is closed now, the page gets better.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.home import Home
from tests.support.world import World, kill


def given(home: Home, script: str) -> World:
    world = World(home)
    (home.user / "private.txt").write_text("secret of the person\n")
    settings = home.core / "agents.yaml"
    env = json.dumps({"PERSON": str(home.user), "CORE": str(home.core)})
    settings.write_text(settings.read_text() + f"  bad: {{argv: [/bin/sh, -c, {json.dumps(script)}], env: {env}}}\n")
    return world


def after(world: World) -> dict[str, Any]:
    reply = world.dispatch("be bad", "--agent", "command:bad", "--name", "bad")
    assert reply is not None
    return world.settle()[reply["dispatch_id"]]


def test_it_reads_and_writes_what_the_person_can(home: Home) -> None:
    row = after(given(home, 'cat "$PERSON/private.txt" > copy.txt; echo mine > "$PERSON/written.txt"'))
    assert row["state"] == "completed"
    assert home.git("show", "agent/bad:copy.txt", cwd=home.user / "repo") == "secret of the person\n"
    assert (home.user / "written.txt").read_text() == "mine\n"


def test_it_can_kill_the_daemon_and_gains_nothing(home: Home) -> None:
    """The next command starts another one, which adopts the agent; the work is brought home and nothing runs twice."""
    world = given(home, 'echo work > work.txt; kill -9 "$(cat "$CORE/run/daemon.lock")"; sleep 0.3')
    reply = world.dispatch("be bad", "--agent", "command:bad", "--name", "bad")
    assert reply is not None
    row = world.settle()[reply["dispatch_id"]]
    assert (row["state"], row["runs"], row["stage"]) == ("completed", 1, "harvested")
    assert home.log().count(" serves ") == 2
    world.check_nothing_left(world.rows())


def test_it_can_leave_its_shim_and_is_then_nobody_special(home: Home) -> None:
    """Out of its shim's tree and with an emptied environment, nothing tells a process from the person's own."""
    escape = (
        "(setsid env -i HOME=$PERSON CORE_HOME=$CORE PATH=$PATH sh -c "
        "': > $HOME/ready; while kill -0 '$PPID' 2> /dev/null; do sleep 0.02; done; "
        "core-agent queue freeze ; sleep 600' > /dev/null 2>&1 &); "
        "while [ ! -e $PERSON/ready ]; do sleep 0.02; done; kill -9 $PPID; sleep 600"
    )
    world = given(home, escape)
    row = after(world)
    assert (row["state"], row["reason"]) == ("failed", "died")
    for _ in range(50):
        if "the queue is frozen" in home.run("status").out:
            break
        home.run("watch", "--once", "--timeout", "200ms", code=None)
    else:
        raise AssertionError("it did not get away; docs/security.md may say so")
    for pid in home.processes():
        if pid != home.daemon_pid:
            kill(pid)
