"""From a claim to what the shim executes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room
from tests.unit.test_claim import NOW

from coreagent.dispatch import environment, launch
from coreagent.dispatch.workspace import layout
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Attempt, Dispatch
from coreagent.runners.base import Plan

PLAN = Plan(argv=["/bin/agent", "a b"], env={"A": "b", "CORE_AGENT_ATTEMPT": "forged"}, stdin=b"said\n", session_id="s")


def attempt(made: Dispatch, **more: str) -> Attempt:
    return Attempt(id="a1", dispatch_id=made.id, n=1, claimed_at=NOW, **more)  # type: ignore[arg-type]


def test_the_spec_holds_what_the_shim_needs_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        directory = room.home / "attempts" / "a1"
        launch.write_spec(room.engine, made, attempt(made), PLAN, directory)
        spec = json.loads((directory / "spec.json").read_text())
        assert spec["argv"] == PLAN.argv
        assert spec["cwd"] == spec["env"]["PWD"] == str(room.checkout(made))
        assert (spec["env"]["A"], spec["env"]["CORE_AGENT_ATTEMPT"]) == ("b", "a1")
        assert spec["env"]["CORE_AGENT_WORKSPACE"] == made.workspace
        assert Path(spec["stdin"]).read_bytes() == b"said\n"
        for name in ("spec.json", "stdin"):
            assert (directory / name).stat().st_mode & 0o777 == 0o600
        assert directory.stat().st_mode & 0o777 == 0o700

    in_room(tmp_path, body)


def test_the_limits_of_the_task_come_before_the_settings(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")

        def limits(**options: float) -> tuple[float, float]:
            asked = made.model_copy(update={"options": made.options.model_copy(update=options)})
            launch.write_spec(room.engine, asked, attempt(made), PLAN, room.home / "attempts" / "a1")
            spec = json.loads((room.home / "attempts" / "a1" / "spec.json").read_text())
            return spec["idle_s"], spec["wall_s"]

        assert limits() == (33, 4 * 3600)
        assert limits(idle_timeout_s=1, timeout_s=2) == (1, 2)

    in_room(tmp_path, body, settings="runners: {command: {idle_timeout_s: 33}}\n")


def test_a_full_disk_is_said_and_a_link_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        directory = room.home / "attempts" / "a1"
        directory.mkdir()
        (tmp_path / "mine").write_text("mine")
        (directory / "spec.json").symlink_to(tmp_path / "mine")
        with pytest.raises(CoreAgentError) as caught:
            launch.write_spec(room.engine, made, attempt(made), PLAN, directory)
        assert caught.value.slug == "shim_failed"
        assert (tmp_path / "mine").read_text() == "mine"

        def full(*_: object, **__: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", full)
            with pytest.raises(CoreAgentError) as caught:
                launch.write_spec(room.engine, made, attempt(made), PLAN, directory)
        assert caught.value.slug == "no_space"

    in_room(tmp_path, body)


def test_what_each_kind_of_turn_says(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        layout(str(room.home), room.core.settings, made).prompt.write_text("the first prompt")

        async def said(**how: str) -> str:
            made_plan = launch.plan(room.engine, made, attempt(made, **how))
            return (made_plan.stdin or b"").decode()

        assert "the first prompt" in await said()
        resumed = await said(kind="resume", prompt="go on")
        assert ("go on" in resumed, "the first prompt" in resumed) == (True, False)
        fresh = await said(kind="fresh", prompt="go on")
        assert fresh.index("the first prompt") < fresh.index("An earlier session") < fresh.index("go on")
        assert "An earlier session" not in await said(prompt="and this")

    in_room(tmp_path, body)


def test_the_environment_is_its_persons_or_the_allowed_part_of_ours(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        room.core.env |= {"A_SECRET": "s3cret", "LC_TIME": "C", "CORE_AGENT_X": "y"}
        environment.forget(str(room.home), made.id)
        ours = launch.environment_of(room.core, made)
        assert ours["LC_TIME"] == "C"
        assert not {"A_SECRET", "CORE_AGENT_X"} & ours.keys()
        environment.save(str(room.home), made.id, {"LC_TIME": "theirs"})
        assert launch.environment_of(room.core, made) == {"LC_TIME": "theirs"}

    in_room(tmp_path, body)


def test_a_preview_touches_nothing(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        before = sorted(str(path) for path in room.home.rglob("*"))
        shown = launch.preview(room.core, room.person, made, "say this")
        assert shown.argv[0] == "/bin/sh"
        assert sorted(str(path) for path in room.home.rglob("*")) == before

    in_room(tmp_path, body)
