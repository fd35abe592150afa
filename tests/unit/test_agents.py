"""What `agents` tells: everything that `--agent` takes, and where it is."""

from __future__ import annotations

from pathlib import Path

from tests.support.engine_room import Room, in_room

from coreagent.capability import Caller
from coreagent.cli.views.listing import agent_lines
from coreagent.cli.views.text import Paint
from coreagent.models.report import AgentRow

SETTINGS = """\
concurrency: {command: 2}
agents:
  tidy: {runner: 'command:bare'}
  lost: {runner: 'command:nothing'}
"""
COMMANDS = "  bare: {argv: [tool, --fix]}\n  gone: {argv: [no-such-tool]}\n  own: {argv: [./tool.sh]}\n"


def told(tmp_path: Path) -> dict[str, AgentRow]:
    found: dict[str, AgentRow] = {}

    async def body(room: Room) -> None:
        file = room.home / "agents.yaml"
        head, _, rest = file.read_text().partition("commands: {")
        file.write_text(head + SETTINGS + "commands:\n  " + rest.strip().removesuffix("}") + "\n" + COMMANDS)
        tool = tmp_path / "bin" / "tool"
        tool.parent.mkdir()
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
        # Found as a dispatch would find it: on the PATH of whoever asks, not of the daemon.
        asks = Caller(env={**room.env, "PATH": f"{tool.parent}:{room.env['PATH']}"})
        found.update({row.name: row for row in await room.ask("agents", asks)})

    in_room(tmp_path, body)
    return found


def test_commands_are_listed_as_they_are_asked_for(tmp_path: Path) -> None:
    rows = told(tmp_path)
    assert "command" not in rows
    work, bare, gone, own = (rows[f"command:{name}"] for name in ("work", "bare", "gone", "own"))
    assert (work.kind, work.found, work.path, work.limit) == ("command", True, "/bin/sh", 2)
    assert (bare.found, bare.path) == (True, str(tmp_path / "bin" / "tool"))
    assert (gone.found, gone.path, gone.problem) == (False, "", "no-such-tool is not on the PATH")
    assert (own.found, own.path) == (True, "./tool.sh")
    assert (rows["tidy"].found, rows["tidy"].path) == (True, bare.path)
    assert (rows["lost"].found, rows["lost"].problem) == (False, "there is no command:nothing")
    lines = agent_lines(list(rows.values()), 300, Paint(False))
    assert any(line.startswith("command:bare ") and line.endswith("bin/tool") for line in lines)
    assert any(line.startswith("command:gone ") and "not on the PATH" in line for line in lines)
