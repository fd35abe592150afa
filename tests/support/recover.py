"""A world whose agent works until a gate is opened, and commands that file modes count for."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from tests.support.home import Home
from tests.support.world import World

GATED = "while [ ! -e {gate} ]; do sleep 0.02; done; echo done > done-$CORE_AGENT_DISPATCH.txt"


def gated(home: Home, limit: int = 0) -> tuple[World, Path]:
    """A world whose `command:gated` works until the gate is opened."""
    gate = home.dir / "gate"
    script = json.dumps(GATED.format(gate=gate))
    world = World(home, limit=limit)
    with (home.core / "agents.yaml").open("a") as file:
        file.write(f"  gated: {{argv: [/bin/sh, -c, {script}]}}\n")
    return world, gate


def running(world: World, dispatch_id: str) -> int:
    """Wait until it runs; the pid of its shim."""
    deadline = time.monotonic() + 30
    while True:
        row = world.rows()[dispatch_id]
        if row["state"] == "running" and row["pid"]:
            return int(row["pid"])
        assert time.monotonic() < deadline, row
        world.home.run("watch", "--once", "--timeout", "200ms", "--json", code=None)


def begin(world: World, task: str, *argv: str) -> tuple[str, int]:
    """Dispatch to the gated agent and wait until it runs: (dispatch id, pid of the shim)."""
    reply = world.dispatch(task, "--agent", "command:gated", *argv)
    assert reply is not None
    return reply["dispatch_id"], running(world, reply["dispatch_id"])


def made(world: World) -> None:
    """One task that is done and not yet judged."""
    assert world.dispatch("make a file", "--name", "make-file")
    world.settle()


def narrowed(home: Home, *argv: str, code: int = 0) -> dict[str, object]:
    """Run a command where file modes count, even when these tests run as root."""
    words = [str(home.env["PATH"].split(":")[0]) + "/core-agent", *argv, "--json"]
    if os.getuid() == 0:
        words = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *words]
    done = subprocess.run(
        words, env=home.env, cwd=home.user / "repo", capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, (done, home.log()[-2000:])
    return dict(json.loads(done.stdout))
