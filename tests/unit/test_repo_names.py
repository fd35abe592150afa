"""One repository has one name: what `repo add` and `dispatch` make of a path that is known already."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room

from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Fate, Repo


def named(room: Room) -> list[str]:
    return sorted(f"{org}/{name}" for org, name in room.engine.repos)


def test_the_same_path_again_changes_nothing(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        assert named(room) == ["local/project"]
        link = tmp_path / "link"
        link.symlink_to(room.repo)
        for path in (str(room.repo), str(link), ""):
            row = await room.ask("repo.add", path=path)
            assert (row.org, row.name) == ("local", "project")
        assert named(room) == ["local/project"]

    in_room(tmp_path, body)


def test_another_name_renames_it_once_its_workspaces_are_gone(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("repo.add", org="new")
        assert refused.value.slug == "workspace_busy"
        assert "local/project" in refused.value.message
        assert "one" in refused.value.message
        assert named(room) == ["local/project"]
        await room.ask("reject", workspace=made.name)
        room.engine.repos[("local", "project")] = room.engine.repos[("local", "project")].model_copy(
            update={"bypass_consent": True}
        )
        row = await room.ask("repo.add", org="new", name="day")
        assert (row.org, row.name, row.bypass_consent) == ("new", "day", True)
        assert named(room) == ["new/day"]
        assert [(r.org, r.name) for r in await room.ask("repo.list")] == [("new", "day")]
        stored = room.core.store.load().repos
        assert [(r.org, r.name) for r in stored] == [("new", "day")]
        again = await room.ask("prep", name="two", repo="new/day", ephemeral=True)
        assert again.workspace == "new/day/two"

    in_room(tmp_path, body)


def test_of_two_names_for_one_path_the_one_that_was_said_counts(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        first = room.engine.repos[("local", "project")]
        room.engine.repos[("new", "day")] = Repo(**{**first.model_dump(), "org": "new", "name": "day"})
        for called, workspace in (("new/day", "new/day/a"), ("local/project", "local/project/b")):
            made = await room.ask("prep", name=workspace[-1], repo=called, ephemeral=True)
            assert made.workspace == workspace
            assert room.engine.board[made.dispatch_id].fate is Fate.OPEN

    in_room(tmp_path, body)
