"""What `agents` tells: everything that `--agent` takes, and where it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.support.engine_room import Room, in_room

from coreagent.capability import Caller
from coreagent.cli.views.listing import agent_lines
from coreagent.cli.views.text import Paint
from coreagent.models.report import AgentRow, PoolRow

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
        head, _, rest = file.read_text().partition("commands:\n")
        file.write_text(f"{head}{SETTINGS}commands:\n{COMMANDS}{rest}")
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
    assert work.use is not None and (work.use.pool, work.use.limit, work.use.running) == ("command", 2, 0)
    assert (bare.found, bare.path) == (True, str(tmp_path / "bin" / "tool"))
    assert (gone.found, gone.path, gone.problem) == (False, "", "no-such-tool is not on the PATH")
    assert (own.found, own.path) == (True, "./tool.sh")
    assert (rows["tidy"].found, rows["tidy"].path) == (True, bare.path)
    assert (rows["lost"].found, rows["lost"].problem) == (False, "there is no command:nothing")
    lines = agent_lines(list(rows.values()), 300, Paint(False), datetime.now(UTC))
    assert any(line.startswith("command:bare ") and line.endswith("bin/tool") for line in lines)
    assert any(line.startswith("command:gone ") and "not on the PATH" in line for line in lines)


def test_what_is_used_of_a_pool_stands_beside_its_agents() -> None:
    now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    later = now + timedelta(hours=2)
    use = PoolRow(
        pool="claude", running=1, limit=2, queued=3, parked_until=later, parked_for="rate_limit", today=40,
        daily_limit=40, resets_at=later,
    )  # fmt: skip
    told = {"found": True, "path": "/bin/claude", "version": "2.1.0", "minimum": "2.0.0", "login": "yes", "limit": 2}
    busy = AgentRow(name="claude", kind="runner", runner="claude", pool="claude", running=1, use=use, **told)
    lines = agent_lines([busy], 200, Paint(False), now)
    assert lines[0].split() == ["AGENT", "VERSION", "LOGIN", "POOL", "RUNNING", "TODAY", "WHERE"]
    assert lines[1].split() == ["claude", "2.1.0", "(≥2.0.0)", "yes", "claude", "1/2", "40/40", "/bin/claude"]
    assert "pool claude: parked until" in lines[2] and "(rate limit)" in lines[2]
    assert "all 40 of the day are used" in lines[2] and lines[2].endswith("3 wait")
    # Where nothing counts days, nothing is said of them.
    idle = busy.model_copy(update={"use": PoolRow(pool="claude", limit=2)})
    lines = agent_lines([idle], 200, Paint(False), now)
    assert "TODAY" not in lines[0] and len(lines) == 2
