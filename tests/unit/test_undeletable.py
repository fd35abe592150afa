"""A checkout that the kernel does not let us delete: told as that, and never said to be gone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room

from coreagent.errors import CoreAgentError


def test_what_cannot_be_deleted_stays_where_it_was_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.rmtree

    def refused(path: Any, *more: Any, **how: Any) -> None:
        if ".going-one" in str(path):
            raise PermissionError(1, "Operation not permitted", str(path))
        real(path, *more, **how)

    async def body(room: Room) -> None:
        made = await room.prepare("one")
        monkeypatch.setattr(shutil, "rmtree", refused)
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("reject", workspace="one")
        assert (caught.value.slug, bool(caught.value.cause)) == ("workspace_busy", True)
        assert "chattr" in caught.value.hint
        assert room.checkout(made).is_dir()
        assert not list(room.checkout(made).parent.parent.glob(".going-*"))
        monkeypatch.setattr(shutil, "rmtree", real)
        assert (await room.ask("workspace.clean", workspace="one")).removed == [made.workspace]
        assert not room.checkout(made).exists()

    in_room(tmp_path, body)
