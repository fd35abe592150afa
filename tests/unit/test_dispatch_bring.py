"""What comes home over several turns of one workspace, and what becomes of `agent/<name>` meanwhile."""

from __future__ import annotations

from pathlib import Path

from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh

from coreagent.models.dispatch import Fate

SMALL = "harvest: {max_file_bytes: 1000}\n"


def test_a_refused_harvest_does_not_bar_the_next_one(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        tree = room.checkout(made)
        (tree / "b.txt").write_text("b\n")
        await room.ask("attach.done", workspace="one")
        first = room.branch(made)
        assert first
        (tree / "big.txt").write_text("x" * 5000)
        await room.ask("attach.done", workspace="one")
        refused = room.now(made)
        assert (refused.harvest.status, refused.branch_sha) == ("rejected", first)
        assert room.branch(made) == first
        (tree / "big.txt").unlink()
        (tree / "c.txt").write_text("c\n")
        await room.ask("attach.done", workspace="one")
        mended = room.now(made)
        assert mended.harvest.status == "complete"
        assert room.branch(made) == mended.harvest.sha == mended.branch_sha != first

    in_room(tmp_path, body, settings=SMALL)


def test_work_that_was_taken_back_leaves_no_branch_and_is_kept(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        (room.checkout(made) / "b.txt").write_text("b\n")
        await room.ask("attach.done", workspace="one")
        first = room.branch(made)
        (room.checkout(made) / "b.txt").unlink()
        await room.ask("attach.done", workspace="one")
        assert room.branch(made) == ""
        assert room.now(made).harvest.status == "none"
        assert [(r.sha, r.reason) for r in await room.ask("rescue.list")] == [(first, "undone")]
        (room.checkout(made) / "c.txt").write_text("c\n")
        await room.ask("attach.done", workspace="one")
        assert room.branch(made) == room.now(made).harvest.sha != ""

    in_room(tmp_path, body)


def test_a_branch_that_its_person_deleted_may_come_again_one_that_moved_may_not(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        (room.checkout(made) / "b.txt").write_text("b\n")
        await room.ask("attach.done", workspace="one")
        sh(room.repo, "branch", "-q", "-D", made.branch)
        (room.checkout(made) / "c.txt").write_text("c\n")
        await room.ask("attach.done", workspace="one")
        assert room.now(made).harvest.status == "complete"
        sh(room.repo, "update-ref", f"refs/heads/{made.branch}", "HEAD")
        (room.checkout(made) / "d.txt").write_text("d\n")
        await room.ask("attach.done", workspace="one")
        assert room.now(made).harvest.reason == "branch_moved"
        assert room.branch(made) == sh(room.repo, "rev-parse", "HEAD")

    in_room(tmp_path, body)


def test_reject_takes_away_the_branch_of_an_earlier_turn_and_keeps_every_tip(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        (room.checkout(made) / "b.txt").write_text("b\n")
        await room.ask("attach.done", workspace="one")
        first = room.branch(made)
        (room.checkout(made) / "big.txt").write_text("x" * 5000)
        await room.ask("attach.done", workspace="one")
        second = room.now(made).harvest.sha
        reply = await room.ask("reject", workspace="one")
        assert reply.fate is Fate.REJECTED
        assert room.branch(made) == ""
        assert {r.sha for r in await room.ask("rescue.list")} == {first, second}
        assert not room.checkout(made).exists()

    in_room(tmp_path, body, settings=SMALL)


def test_a_checkout_deleted_by_hand_takes_nothing_back(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        (room.checkout(made) / "b.txt").write_text("b\n")
        await room.ask("attach.done", workspace="one")
        first = room.now(made).harvest
        room.checkout(made).parent.rename(tmp_path / "away")
        reply = await room.ask("attach.done", workspace="one")
        assert reply.note == "there is no checkout to bring anything from"
        assert room.now(made).harvest == first
        assert room.branch(made) == first.sha

    in_room(tmp_path, body)
