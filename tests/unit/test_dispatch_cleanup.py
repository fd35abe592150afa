"""What goes by itself when its time is over, what goes first into the archive, and what is never touched."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import write
from tests.unit.test_claim import NOW

from coreagent import paths
from coreagent.dispatch import cleanup, upkeep
from coreagent.dispatch.workspace import Layout, layout
from coreagent.models.agent import Reason
from coreagent.models.dispatch import Attempt, Dispatch, Fate, Harvest, State


async def ended(room: Room, name: str, *, state: State = State.COMPLETED, work: bool = True) -> Dispatch:
    made = await room.prepare(name)
    if work:
        write(room.checkout(made), f"{name}.txt", "work\n")
        await room.ask("attach.done", workspace=name)
    moved = room.now(made)
    for step in (State.QUEUED, State.PREPARING, State.RUNNING, state):
        moved = await room.engine.update(moved, state=step)
    return moved


class Rounds:
    """The hourly timer, at any speed; `round` waits until it came by once more with the clock as it is now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self._came = asyncio.Event()
        self._real = cleanup.clean_expired
        for name in ("FIRST_CLEAN", "CLEAN_INTERVAL"):
            monkeypatch.setattr(upkeep, name, timedelta(milliseconds=2))
        monkeypatch.setattr(cleanup, "clean_expired", self._counted)

    async def _counted(self, engine: Any) -> list[str]:
        gone = await self._real(engine)
        self.done += 1
        self._came.set()
        self._came = asyncio.Event()
        return gone

    async def round(self) -> None:
        async with asyncio.timeout(20):
            for _ in range(2):  # the first may have begun before the clock was set
                await self._came.wait()


def test_the_timer_lets_go_what_is_past_its_time_and_nothing_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(room: Room) -> None:
        timer = Rounds(monkeypatch)
        old = await ended(room, "old")
        blocked = await ended(room, "asks", state=State.BLOCKED, work=False)
        begun = room.core.now()
        late = begun + timedelta(days=7) - timedelta(minutes=1)
        room.core.now = lambda: late  # type: ignore[method-assign]
        young = await ended(room, "young")
        await room.engine.start()
        await timer.round()
        assert set(room.engine.board) == {old.id, blocked.id, young.id}

        room.core.now = lambda: begun + timedelta(days=7, minutes=5)  # type: ignore[method-assign]
        await timer.round()
        assert set(room.engine.board) == {young.id}
        assert not room.checkout(old).exists()
        assert room.checkout(young).is_dir()
        assert Path(paths.archive_dir(str(room.home), old.id), "prompt.md").is_file()
        kept = await room.ask("rescue.list", workspace="old")
        assert [row.sha for row in kept] == [old.branch_sha], "a completed one stays reachable"
        assert room.branch(old) == old.branch_sha, "nobody decided about its branch"

    in_room(tmp_path, body)


def test_the_timer_goes_on_after_a_round_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(room: Room) -> None:
        timer = Rounds(monkeypatch)
        found = await ended(room, "one", work=False)
        real, calls = timer._real, []

        async def fails_once(engine: Any) -> list[str]:
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("once")
            return await real(engine)

        timer._real = fails_once
        future = room.core.now() + timedelta(days=8)
        room.core.now = lambda: future  # type: ignore[method-assign]
        await room.engine.start()
        await timer.round()
        assert found.id not in room.engine.board

    in_room(tmp_path, body)


@pytest.mark.parametrize(
    ("changes", "days", "why"),
    [
        ({"state": State.RUNNING}, 30, "it is running"),
        ({"state": State.QUEUED}, 30, "it is queued"),
        ({"fate": Fate.ACCEPTED}, 0, ""),
        ({"fate": Fate.REJECTED}, 0, ""),
        ({}, 0, "nobody accepted or rejected it yet"),
        ({}, 6.99, "nobody accepted or rejected it yet"),
        ({}, 7.01, ""),
        ({"reason": Reason.NO_CHANGES}, 0, "kept until"),
        ({"state": State.FAILED}, 1, "kept until"),
        ({"state": State.FAILED}, 8, ""),
        ({"harvest": Harvest(status="rejected")}, 30, "its harvest was rejected"),
    ],
)
def test_why_a_workspace_stays(tmp_path: Path, changes: dict[str, Any], days: float, why: str) -> None:
    async def body(room: Room) -> None:
        made = (await room.prepare("one")).model_copy(update={"state": State.COMPLETED, "changed_at": NOW, **changes})
        said = cleanup.why_kept(room.engine, made, NOW + timedelta(days=days))
        assert said.startswith(why)
        assert bool(said) == bool(why)

    in_room(tmp_path, body)


def test_the_archive_takes_all_but_the_mark_and_follows_no_link(tmp_path: Path) -> None:
    place, archive = Layout(tmp_path / "ws"), tmp_path / "archive"
    write(place.meta, "prompt.md", "prompt")
    write(place.meta, "attempts/1/out", "said")
    write(place.meta, "prepared.json", "{}")
    write(archive, "attempts/0/out", "of a crash in between")
    (place.meta / "link").symlink_to(tmp_path)
    cleanup.archive_meta(place, archive)
    assert sorted(os.listdir(archive)) == ["attempts", "link", "prompt.md"]
    assert (archive / "attempts/1/out").read_text() == "said"
    assert (archive / "link").is_symlink()
    cleanup.archive_meta(place, archive)  # again, after a crash
    assert (archive / "attempts/1/out").read_text() == "said"

    other = Layout(tmp_path / "other")
    other.root.mkdir()
    other.meta.symlink_to(archive)
    cleanup.archive_meta(other, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_moving_to_another_disk_does_not_write_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "source", "new")
    write(tmp_path, "mine", "mine")
    (tmp_path / "target").symlink_to(tmp_path / "mine")

    def elsewhere(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "replace", elsewhere)
    cleanup.move(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "new"
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "source").exists()


def test_the_status_file_is_the_row(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        place = layout(str(room.home), room.core.settings, made)
        cleanup.write_status(place, made, Attempt(id="a1", dispatch_id=made.id, n=3, claimed_at=NOW))
        told = json.loads((place.meta / "status.json").read_text())
        assert (told["dispatch"]["id"], told["attempt"]["n"]) == (made.id, 3)
        assert "options" not in told["dispatch"], "it may hold a secret of the person's"

    in_room(tmp_path, body)
