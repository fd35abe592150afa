"""A checkout whose preparation did not come to its end: what a person did in it is kept whatever removes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh, write

from coreagent import paths
from coreagent.errors import CoreAgentError
from coreagent.git import rescue
from coreagent.models.dispatch import Dispatch, State

FAILS = "hooks: {setup: {run: 'exit 3'}}\n"


async def half_made(room: Room) -> Dispatch:
    """A task whose setup hook failed, with a file that its person wrote into the checkout afterwards."""
    made = await room.ask("dispatch", task="a task", name="one", ephemeral=True)
    done = await room.until(room.engine.board[made.dispatch_id], State.FAILED)
    assert str(done.reason) == "setup_failed"
    write(room.checkout(done), "mine.txt", "by hand\n")
    return done


def kept(room: Room, done: Dispatch) -> list[str]:
    cache = Path(paths.repo_cache(str(room.home), done.org, done.repo))
    return [one.sha for one in rescue.rescue_list(cache, done.name)]


def content(room: Room, done: Dispatch, sha: str) -> str:
    return sh(Path(paths.repo_cache(str(room.home), done.org, done.repo)), "show", f"{sha}:mine.txt")


@pytest.mark.parametrize("how", ["resume", "reject"])
def test_what_was_done_by_hand_is_kept_under_a_rescue_ref(tmp_path: Path, how: str) -> None:
    async def body(room: Room) -> None:
        done = await half_made(room)
        if how == "reject":
            await room.ask("reject", workspace="one")
        else:
            await room.ask("resume", workspace="one")
            again = await room.until(room.engine.board[done.id], State.FAILED)
            assert not (room.checkout(again) / "mine.txt").exists()
        (sha,) = kept(room, done)
        assert content(room, done, sha) == "by hand"
        assert [row.workspace for row in await room.ask("rescue.list")] == ["local/project/one"]

    in_room(tmp_path, body, running=True, settings=FAILS)


def test_it_is_in_diff_and_accept_takes_it(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await half_made(room)
        assert "+by hand" in (await room.ask("diff", workspace="one")).text
        await room.ask("accept", workspace="one")
        assert (room.repo / "mine.txt").read_text() == "by hand\n"

    in_room(tmp_path, body, running=True, settings=FAILS)


def test_one_that_nobody_touched_leaves_nothing_to_rescue(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        done = await half_made(room)
        (room.checkout(done) / "mine.txt").unlink()
        await room.ask("reject", workspace="one")
        assert kept(room, done) == []

    in_room(tmp_path, body, running=True, settings=FAILS)


def test_nobody_attaches_to_it(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await half_made(room)
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("attach.plan", workspace="one")
        assert refused.value.slug == "cannot_attach"
        assert "resume one prepares it again" in refused.value.hint

    in_room(tmp_path, body, running=True, settings=FAILS)


def test_what_the_hook_left_is_nobodys_work(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        done = await half_made(room)
        assert (room.checkout(done) / "made-by-hook.txt").exists()
        shown = await room.ask("diff", workspace="one")
        assert (shown.files, "+by hand" in shown.text) == (1, True)
        await room.ask("accept", workspace="one")
        assert not (room.repo / "made-by-hook.txt").exists()
        assert (room.repo / "a.txt").read_text() == "a\n"

    left = "hooks: {setup: {run: 'echo x > made-by-hook.txt; echo hooked >> a.txt; exit 3'}}\n"
    in_room(tmp_path, body, running=True, settings=left)
