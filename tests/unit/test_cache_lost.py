"""The daemon's cache was removed by hand: every verb ends, says the truth, and keeps what exists nowhere else."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh, write

from coreagent import paths
from coreagent.dispatch import cleanup
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Dispatch, Fate, Harvest, State

HOW = ("removed", "emptied", "a file", "no objects of ours")


def lose(room: Room, found: Dispatch, how: str = "removed") -> None:
    cache = Path(paths.repo_cache(str(room.home), found.org, found.repo))
    match how:
        case "removed":
            shutil.rmtree(cache)
        case "emptied":
            shutil.rmtree(cache)
            cache.mkdir()
        case "a file":
            shutil.rmtree(cache)
            cache.write_text("")
        case _:
            shutil.rmtree(cache / "objects")


async def worked(room: Room, name: str = "one") -> Dispatch:
    """A completed workspace with work on its branch, and more of it in its checkout."""
    made = await room.prepare(name)
    write(room.checkout(made), "made.txt", "made\n")
    await room.ask("attach.done", workspace=name)
    write(room.checkout(made), "later.txt", "later\n")
    queued = await room.engine.update(room.now(made), state=State.QUEUED)
    held = await room.engine.update(queued, state=State.PREPARING)
    running = await room.engine.update(held, state=State.RUNNING)
    return await room.engine.update(running, state=State.COMPLETED)


@pytest.mark.parametrize("how", HOW)
def test_reject_makes_the_cache_again_and_keeps_the_work(tmp_path: Path, how: str) -> None:
    async def body(room: Room) -> None:
        found = await worked(room)
        lose(room, found, how)
        reply = await room.ask("reject", workspace="one")
        assert reply.fate is Fate.REJECTED
        assert not room.checkout(found).exists()
        if how == "a file":
            assert (Path(reply.note.rpartition(" ")[2]) / "later.txt").read_text() == "later\n"
            assert room.branch(found) == found.branch_sha, "the only copy of its commits"
            return
        assert room.branch(found) == ""
        assert "rescue apply" in reply.note
        kept = await room.ask("rescue.list")
        for row in kept:
            await room.ask("rescue.apply", workspace="one", n=row.n, branch=f"back-{row.n}")
        names = [sh(room.repo, "ls-tree", "--name-only", row.sha).split() for row in kept]
        assert sorted(names, key=len) == [["a.txt", "made.txt"], ["a.txt", "later.txt", "made.txt"]]
        assert found.branch_sha in {row.sha for row in kept}

    in_room(tmp_path, body)


@pytest.mark.parametrize("verb", ["reject", "clean"])
def test_without_cache_and_repository_the_files_are_kept_as_they_are(tmp_path: Path, verb: str) -> None:
    async def body(room: Room) -> None:
        found = await worked(room)
        lose(room, found)
        room.repo.rename(tmp_path / "away")
        if verb == "reject":
            note = (await room.ask("reject", workspace="one")).note
        else:
            later = room.core.now() + timedelta(days=30)
            room.core.now = lambda: later  # type: ignore[method-assign]
            assert (await room.ask("workspace.clean")).removed == [found.workspace]
            note = (await room.ask("why", workspace=found.id)).facts[-1]
        assert "its files are kept" in note
        assert "rescue" not in note
        kept = Path(note.rpartition(" ")[2])
        assert (kept / "later.txt").read_text() == "later\n"
        assert (kept / "made.txt").read_text() == "made\n"
        assert not room.checkout(found).exists()
        assert room.engine.board == {}
        assert (tmp_path / "away" / ".git" / "refs" / "heads" / found.branch).is_file(), "the only copy of its commits"

    in_room(tmp_path, body)


def test_accept_lands_from_the_branch_when_the_cache_is_gone(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await worked(room)
        lose(room, found)
        reply = await room.ask("accept", workspace="one")
        assert sh(room.repo, "rev-parse", f"{reply.after}^") == found.harvest.sha
        assert (room.repo / "made.txt").read_text() == "made\n"
        assert (room.repo / "later.txt").read_text() == "later\n", "what was done since came along"
        assert await room.ask("rescue.list") == []

    in_room(tmp_path, body)


def test_accept_says_the_way_out_when_the_branch_is_gone_too(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await worked(room)
        lose(room, found)
        sh(room.repo, "branch", "-q", "-D", found.branch)
        sh(room.repo, "reflog", "expire", "--expire=now", "--all")
        sh(room.repo, "gc", "-q", "--prune=now")
        room.checkout(found).rename(tmp_path / "away")
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("accept", workspace="one")
        assert caught.value.slug == "nothing_to_accept"
        assert caught.value.cause
        assert "core-agent reject one" in caught.value.hint
        (tmp_path / "away").rename(room.checkout(found))
        await room.ask("reject", workspace="one")
        assert [row.files for row in await room.ask("rescue.list")] == [2]

    in_room(tmp_path, body)


def test_accept_lands_what_the_checkout_holds_when_all_commits_are_lost(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await worked(room)
        lose(room, found)
        sh(room.repo, "branch", "-q", "-D", found.branch)
        sh(room.repo, "reflog", "expire", "--expire=now", "--all")
        sh(room.repo, "gc", "-q", "--prune=now")
        assert (await room.ask("accept", workspace="one")).files == 2
        assert (room.repo / "made.txt").read_text() == "made\n"
        assert (room.repo / "later.txt").read_text() == "later\n"

    in_room(tmp_path, body)


def test_what_was_brought_along_counts_as_work_when_its_commit_was_lost(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        write(room.repo, "mine.txt", "mine\n")
        made = await room.ask("prep", name="one", with_changes=True, ephemeral=True)
        found = room.engine.board[made.dispatch_id]
        assert found.start_sha
        write(room.checkout(found), "made.txt", "made\n")
        lose(room, found)
        await room.ask("attach.done", workspace="one")
        now = room.now(found)
        assert (now.harvest.status, now.harvest.reason) == ("rejected", "damaged_history"), now.harvest
        assert [row.files for row in await room.ask("rescue.list")] == [2]

    in_room(tmp_path, body)


def test_a_refused_harvest_that_holds_nothing_says_so(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await worked(room)
        made = await room.engine.update(made, branch_sha="", harvest=Harvest(status="none"))
        sh(room.repo, "branch", "-q", "-D", made.branch)
        shutil.move(room.checkout(made), tmp_path / "away")
        await room.ask("attach.done", workspace="one")
        now = room.now(made)
        assert (now.harvest.status, now.harvest.reason, now.harvest.rescue_ref) == (
            "rejected",
            "workspace_replaced",
            "",
        )
        assert await room.ask("rescue.list") == []
        assert not [line for line in (await room.ask("why", workspace="one")).next if "rescue" in line]
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("accept", workspace="one")
        assert "core-agent why one` tells where it is" in caught.value.hint
        assert "is kept as files when the workspace goes" in str((await room.ask("why", workspace="one")).facts)
        (kept,) = (await room.ask("workspace.clean", workspace="one")).kept.values()
        assert "`why` tells where it is" in kept
        assert (await room.ask("reject", workspace="one")).note == ""

    in_room(tmp_path, body)


def test_one_that_cannot_be_kept_is_kept_once(tmp_path: Path) -> None:
    """A crash after the checkout went to the archive and before the row says so."""

    async def body(room: Room) -> None:
        found = await worked(room)
        lose(room, found)
        room.repo.rename(tmp_path / "away")
        archive = Path(paths.archive_dir(str(room.home), found.id))
        place = cleanup.layout(str(room.home), room.core.settings, found)
        cleanup._keep_whole(place, archive)
        await room.ask("reject", workspace="one")
        assert (archive / "checkout" / "later.txt").is_file()

    in_room(tmp_path, body)


def test_diff_and_compare_make_the_cache_again(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        one, two = await worked(room), await worked(room, "two")
        before = (await room.ask("diff", workspace="one")).text
        lose(room, one)
        await room.ask("prep", name="three", ephemeral=True)  # makes a cache that knows nothing of them
        assert (await room.ask("diff", workspace="one")).text == before
        assert "later" in before
        lose(room, one, "emptied")
        compared = await room.ask("compare", siblings=["one", "two"], diff=["one", "two"])
        assert compared.diff == ""
        landed = (await room.ask("accept", workspace="two", strategy="rebase")).after
        assert sh(room.repo, "rev-parse", f"{landed}^") == two.harvest.sha

    in_room(tmp_path, body)


def test_diff_says_that_nobody_has_the_commits(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await worked(room)
        lose(room, found)
        room.repo.rename(tmp_path / "away")
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("diff", workspace="one")
        assert (caught.value.slug, bool(caught.value.cause)) == ("workspace_gone", True)
        assert "core-agent why one" in caught.value.hint

    in_room(tmp_path, body)


def test_what_went_with_the_cache_is_not_listed_as_rescued(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await worked(room)
        await room.ask("reject", workspace="one")
        assert len(await room.ask("rescue.list")) == 2
        lose(room, found)
        assert await room.ask("rescue.list") == []
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("rescue.apply", workspace="one")
        assert caught.value.slug == "rescue_not_found"
        assert "gone" in caught.value.message

    in_room(tmp_path, body)


def test_what_was_stashed_or_left_on_another_branch_is_told_and_can_be_had(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await room.prepare("one")
        top = room.checkout(found)
        sh(top, "checkout", "-q", "-b", "side")
        write(top, "side.txt", "side\n")
        sh(top, "add", "side.txt")
        sh(top, "commit", "-q", "-m", "side")
        sh(top, "checkout", "-q", "-")
        write(top, "made.txt", "made\n")
        for _ in range(2):  # told once, however often it is brought home
            await room.ask("attach.done", workspace="one")
        (row,) = await room.ask("rescue.list", workspace="one")
        assert (row.reason, row.files) == ("other_branch", 1)
        facts = (await room.ask("why", workspace="one")).facts
        assert [line for line in facts if f"core-agent rescue apply one {row.n}" in line]
        await room.ask("rescue.apply", workspace="one", branch="side")
        assert sh(room.repo, "ls-tree", "--name-only", "side").split() == ["a.txt", "side.txt"]

    in_room(tmp_path, body)
