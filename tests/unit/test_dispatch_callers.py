"""Who may see and say what: an agent's own workspace, and inputs with bounds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room

from coreagent.capability import Caller
from coreagent.dispatch.intake import WORD_MAX, check_task
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Options


def test_an_agent_sees_its_own_workspace_alone(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        one, two = await room.prepare("one"), await room.prepare("two")
        room.engine.troubles[two.id] = "the state of two cannot be written"
        agent = Caller(role="worker", attempt="A", workspace=one.workspace)
        report = await room.ask("status", agent)
        assert [r.workspace for r in report.workspaces] == [one.workspace]
        assert report.warnings == []
        assert len((await room.ask("status", all=True)).workspaces) == 2
        assert (await room.ask("watch", agent, timeout_s=0)).timed_out
        assert (await room.ask("why", agent, workspace="one")).workspace == one.workspace
        for name in ("status", "why", "watch", "diff", "logs"):
            for asked in ("two", two.id, "none"):
                with pytest.raises(CoreAgentError) as refused:
                    await room.ask(name, agent, workspace=asked)
                assert refused.value.slug == "role_forbidden"
                assert "two" not in refused.value.message
            with pytest.raises(CoreAgentError, match="its own"):
                await room.ask(name, Caller(role="worker", attempt="gone"), workspace="one")

    in_room(tmp_path, body)


@pytest.mark.parametrize(
    "options",
    [
        {"issue": 0},
        {"pr": -3},
        {"issue": 1 << 40},
        {"args": ["a\0b"]},
        {"variables": {"a": "\0"}},
        {"variables": {"a": "x" * 300_000}},
        {"args": ["x"] * 300_000},
        {"issue": 1, "pr": 2},
        {"branch": "a", "tag": "b"},
    ],
)
def test_what_no_task_may_ask_for(options: dict[str, Any]) -> None:
    with pytest.raises(CoreAgentError) as refused:
        check_task("do it", Options(**options))
    assert refused.value.slug in ("invalid_argument", "too_large", "conflicting_options")


def test_a_task_is_never_longer_than_what_a_program_can_be_started_with() -> None:
    most = "é" * (WORD_MAX // 2)
    check_task(most, Options(args=[most]))
    true = shutil.which("true")
    assert true
    assert subprocess.run([true, most], env={"CORE_AGENT_TASK": most}, check=False).returncode == 0
    for task, options in ((most + "x", Options()), ("do it", Options(args=[most, "x"]))):
        with pytest.raises(CoreAgentError) as refused:
            check_task(task, options)
        assert (refused.value.row.code, refused.value.cause[:27]) == ("E2017", "it is 122,881 bytes long, a")
        assert "a file of the repository" in refused.value.hint


@pytest.mark.parametrize("task", ["", "a\0b", "x" * 300_000])
def test_what_is_no_task(task: str) -> None:
    with pytest.raises(CoreAgentError):
        check_task(task, Options())


@pytest.mark.parametrize("arguments", [{}, {"task": 3}, {"task": "a\ud800"}, {"task": "a", "no": 1}])
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict[str, Any]) -> None:
    async def body(room: Room) -> None:
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("dispatch", **arguments)
        assert refused.value.slug == "invalid_argument"

    in_room(tmp_path, body)
