"""A full disk: a clear error with a code, nothing lost, and everything goes on when there is space again."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.home import Home
from tests.support.world import World


@pytest.fixture
def small(home: Home) -> Iterator[Home]:
    """A home whose `.core` is a tmpfs of 48 MB."""
    home.core.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs", str(home.core)], capture_output=True, text=True
    )
    if mounted.returncode:
        if os.environ.get("CI"):
            raise AssertionError(f"no tmpfs can be mounted: {mounted.stderr}")
        pytest.skip(f"SKIPPED LOUDLY: a tmpfs cannot be mounted here ({mounted.stderr.strip()})")
    try:
        yield home
    finally:
        home.stop("now")
        subprocess.run(["umount", "-l", str(home.core)], check=True)


def fill(place: Path) -> Path:
    """Take all the space that is left; return the file that holds it."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return ballast


def test_a_full_disk_loses_nothing(small: Home) -> None:
    world = World(small)
    before = world.dispatch("task before")
    assert before is not None
    world.settle()
    ballast = fill(small.core)
    refused = small.run("dispatch", "task refused", "--json", cwd=world.repo, code=None)
    if refused.code == 0:
        # Room for the row was found; then it is kept, and fails or waits with a reason.
        row = world.settle()[refused.json()["dispatch_id"]]
        assert row["state"] in ("failed", "completed", "queued"), row
        if row["state"] == "failed":
            assert row["detail"]
    else:
        error = refused.json()["error"]
        assert error["slug"] in ("no_space", "store_write_failed"), error
        assert error["hint"]
    assert world.rows()[before["dispatch_id"]]["state"] == "completed"
    ballast.unlink()
    after = world.dispatch("task after")
    assert after is not None
    rows = world.settle()
    assert rows[after["dispatch_id"]]["state"] == "completed"
    assert world.file_at(rows[before["dispatch_id"]]["branch"], f"made-{before['dispatch_id']}.txt") == "task before\n"
    small.kill_daemon()
    assert set(world.rows()) >= {before["dispatch_id"], after["dispatch_id"]}


@pytest.mark.parametrize("die", [False, True])
def test_the_disk_fills_while_an_agent_works(small: Home, die: bool) -> None:
    world = World(small, seconds=1.0)
    reply = world.dispatch("task during")
    assert reply is not None
    while not world.executions():
        small.run("watch", "--timeout", "1", "--json", code=None)
    ballast = fill(small.core)
    if die:
        small.kill_daemon()
    else:
        deadline = time.monotonic() + 30
        while not small.json("status")["warnings"] and time.monotonic() < deadline:
            small.run("watch", "--timeout", "1", "--json", code=None)
    ballast.unlink()
    row = world.settle()[reply["dispatch_id"]]
    # What the agent could not write it did not write; what it said and did before is there, and the state is true.
    assert row["state"] in ("completed", "failed")
    assert row["runs"] == 1
    after = world.dispatch("task after")
    assert after is not None
    assert world.settle()[after["dispatch_id"]]["state"] == "completed"
