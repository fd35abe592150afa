"""`status` on a person's screen: the counts and the oldest stay in sight, and a pipe gets everything."""

from __future__ import annotations

import pytest
from tests.support.home import COMMAND, Home
from tests.support.screen import _ESCAPES, Screen
from tests.support.world import World

MANY = 14


def drawn(home: Home, rows: int, columns: int, *argv: str) -> list[str]:
    with Screen([str(COMMAND), "status", *argv], home.env, home.user, rows=rows, columns=columns) as screen:
        assert screen.end() == 0
        text = _ESCAPES.sub(b"", screen.raw).decode()
    return text.replace("\r", "").removesuffix("\n").split("\n")


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (12, 40)])
def test_it_fits_and_says_what_is_more(home: Home, rows: int, columns: int) -> None:
    world = World(home)
    for n in range(MANY):
        home.run("workspace", "prep", "-n", f"one-{n}", "x", cwd=world.repo)
    lines = drawn(home, rows, columns)
    assert sum(1 + (len(line) - 1) // columns for line in lines if line) + lines.count("") < rows
    assert f"{MANY} paused" in lines
    assert any("local/repo/one-0 " in line for line in lines)
    shown = sum("local/repo/one-" in line and line.startswith("=") for line in lines)
    assert f"+{MANY - shown} more: core-agent status --all" in lines
    for told in (drawn(home, rows, columns, "--all"), home.run("status").out.splitlines()):
        assert sum("local/repo/one-" in line and line.startswith("=") for line in told) == MANY
    assert len(home.json("status")["workspaces"]) == MANY
