"""What `agents` tells: everything that `--agent` takes, and where it is."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room

from coreagent.capability import Caller
from coreagent.cli.views.listing import agent_lines
from coreagent.cli.views.text import Paint
from coreagent.errors import CoreAgentError
from coreagent.models.report import AgentRow, ModelCap, PoolRow, WindowRow

SETTINGS = """\
concurrency: {command: 2}
agents:
  tidy: {runner: 'command:bare'}
  lost: {runner: 'command:nothing'}
"""
COMMANDS = "  bare: {argv: [tool, --fix]}\n  gone: {argv: [no-such-tool]}\n  own: {argv: [./tool.sh]}\n"


LIMITS = """\
concurrency: {claude: {total: 3, opus: 1}, codex-spark: 1, haiku: 2}
rates: {codex: {daily_limit: 9, reset_utc: '06:00'}}
acp:
  gone: {argv: [/nonexistent/x]}
  shell: {argv: [/bin/sh]}
"""


def test_limits_variants_and_programs_that_are_not_there(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "codex-acp").write_text("#!/bin/sh\necho '@agentclientprotocol/codex-acp 2.6.0'\n")
        (programs / "codex-acp").chmod(0o755)
        asks = Caller(cwd=str(room.repo), env={**room.env, "PATH": f"{programs}:{room.env['PATH']}"})
        rows = {row.name: row for row in await room.ask("agents", asks)}
        claude, codex = rows["claude"].use, rows["codex"].use
        assert claude is not None and [(cap.model, cap.limit) for cap in claude.models] == [("opus", 1)]
        assert codex is not None and codex.daily_limit == 9 and codex.resets_at is not None
        assert [(use.pool, use.limit) for use in rows["codex"].variants] == [("codex-spark", 1)]
        assert [(use.pool, use.limit) for use in rows["claude"].variants] == [("haiku", 2)]
        gone, shell, known = rows["acp:gone"], rows["acp:shell"], rows["acp:codex"]
        assert (gone.found, gone.problem) == (False, "/nonexistent/x cannot be executed")
        # What a program of the settings would do with `--version` is not known.
        assert (shell.found, shell.version, known.version) == (True, "", "2.6.0")
        lines = agent_lines(list(rows.values()), 300, Paint(False), datetime.now(UTC))
        assert next(line for line in lines if line.startswith("acp:shell ")).split()[1:5] == ["not", "asked"] * 2
        assert any(line.startswith("acp:gone ") and line.endswith("cannot be executed") for line in lines)

    in_room(tmp_path, body, settings=LIMITS)


@pytest.mark.parametrize("agent", ["acp:gone", "command:gone", "acp:copilot"])
def test_an_agent_whose_program_is_not_there_gets_no_task(tmp_path: Path, agent: str) -> None:
    settings = "acp:\n  gone: {argv: [/nonexistent/x]}\n"

    async def body(room: Room) -> None:
        file = room.home / "agents.yaml"
        file.write_text(file.read_text().replace("commands:\n", "commands:\n  gone: {argv: [no-such-tool]}\n"))
        room.core.refresh_settings()
        for dry_run in (False, True):
            with pytest.raises(CoreAgentError) as refused:
                await room.ask("dispatch", task="do", agent=agent, ephemeral=True, dry_run=dry_run)
            told = refused.value
            assert told.slug == "runner_missing"
            assert told.cause.startswith("it is the program of ") and ".argv in agents.yaml" in told.hint
        made = await room.ask("dispatch", task="do", agent=f"{agent},command:work", ephemeral=True)
        assert made.agent == "command:work"
        (skipped,) = room.engine.board[made.dispatch_id].tried
        assert (skipped.agent, skipped.reason) == (agent, "runner_missing")

    in_room(tmp_path, body, settings=settings)


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
    assert "3 wait, all 40 starts of the day are used; the next day begins at" in lines[2]
    # The reset is known before the day is used up, and so are the limits of single models.
    early = use.model_copy(update={"parked_until": None, "queued": 0, "today": 3})
    early = early.model_copy(update={"models": [ModelCap(model="opus", running=1, limit=1)]})
    spark = PoolRow(pool="claude-spark", running=0, limit=4, models=[ModelCap(model="tiny", limit=2)])
    lines = agent_lines([busy.model_copy(update={"use": early, "variants": [spark]})], 200, Paint(False), now)
    assert "pool claude: opus 1/1, 3 of 40 starts of the day are used; the next day begins at" in lines[2]
    assert lines[3].strip() == "pool claude-spark: 0/4 running, tiny 0/2"
    window = WindowRow(kind="seven_day", used=0.9, resets_at=later)
    paced = PoolRow(pool="claude", limit=2, queued=1, held_by="pace", next_start=later, windows=[window])
    line = agent_lines([busy.model_copy(update={"use": paced})], 200, Paint(False), now)[2]
    assert re.fullmatch(
        r" +pool claude: paced: the next start is at \S.*, 1 waits, 90% of the seven day window is used until \S.*",
        line,
    )
    # Where nothing counts days, nothing is said of them.
    idle = busy.model_copy(update={"use": PoolRow(pool="claude", limit=2)})
    lines = agent_lines([idle], 200, Paint(False), now)
    assert "TODAY" not in lines[0] and len(lines) == 2
