"""Accept where somebody else was at work: merged by hand, on another task's branch, in the middle of a rebase."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh, write

from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Dispatch, Fate, State

WORK = "name=${CORE_AGENT_WORKSPACE##*/}; echo $name >> made-$name.txt"


async def ran(room: Room, name: str, **options: str) -> Dispatch:
    made = await room.ask("dispatch", task=name, name=name, ephemeral=True, **options)
    return await room.until(room.engine.board[made.dispatch_id], State.COMPLETED, State.FAILED)


async def again(room: Room, name: str) -> Dispatch:
    await room.ask("resume", workspace=name, prompt="more")
    return await room.until(room.engine.find(name), State.COMPLETED, State.FAILED)


async def refusal(room: Room, name: str, **options: str) -> CoreAgentError:
    before = sh(room.repo, "for-each-ref")
    with pytest.raises(CoreAgentError) as caught:
        await room.ask("accept", workspace=name, **options)
    assert sh(room.repo, "for-each-ref") == before
    return caught.value


async def fate(room: Room, found: Dispatch) -> tuple[Fate, str]:
    (row,) = [d for d in await room.core.store.history(10) if d.id == found.id]
    return row.fate, row.accepted_sha


def test_what_was_merged_by_hand_counts_as_accepted(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room, "one")
        sh(room.repo, "merge", "-q", "--no-ff", "-m", "by hand", found.branch)
        tip = sh(room.repo, "rev-parse", "main")
        reply = await room.ask("accept", workspace="one")
        assert (reply.strategy, reply.before, reply.after, reply.undo) == ("none", tip, tip, "")
        assert reply.notes == ["main already has it; nothing was left to land"]
        assert await fate(room, found) == (Fate.ACCEPTED, tip)
        assert (sh(room.repo, "rev-parse", "main"), room.branch(found)) == (tip, "")
        assert await room.ask("rescue.list") == []

    in_room(tmp_path, body, running=True, script=WORK)


@pytest.mark.parametrize("checked_out", [True, False])
def test_the_way_out_of_a_conflict_can_be_followed(tmp_path: Path, checked_out: bool) -> None:
    async def body(room: Room) -> None:
        await ran(room, "one")
        write(room.repo, "made-one.txt", "theirs\n")
        sh(room.repo, "add", "-A")
        sh(room.repo, "commit", "-q", "-m", "theirs")
        if not checked_out:
            sh(room.repo, "checkout", "-q", "-b", "elsewhere")
        error = await refusal(room, "one")
        assert error.slug == "merge_conflict"
        done = subprocess.run(["bash", "-c", error.hint.split("`")[1]], env=room.env, check=False, capture_output=True)
        assert (done.returncode, b"CONFLICT" in done.stdout) == (1, True)
        write(room.repo, "made-one.txt", "both\n")
        sh(room.repo, "commit", "-q", "-a", "--no-edit")
        reply = await room.ask("accept", workspace="one")
        assert (reply.strategy, reply.after) == ("none", sh(room.repo, "rev-parse", "main"))

    in_room(tmp_path, body, running=True, script=WORK)


def test_work_without_changes_and_ones_own_branch_count_as_nothing(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await ran(room, "none")
        assert (await refusal(room, "none")).slug == "nothing_to_accept"

    async def own(room: Room) -> None:
        found = await ran(room, "one")
        assert (await refusal(room, "one", onto=found.branch)).slug == "nothing_to_accept"
        assert room.now(found).fate is Fate.OPEN

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    in_room(tmp_path / "a", body, running=True)
    in_room(tmp_path / "b", own, running=True, script=WORK)


def test_commits_of_others_on_the_branch_merged_by_hand_with_it(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room, "one")
        theirs = sh(room.repo, "commit-tree", f"{found.branch}^{{tree}}", "-p", found.branch, "-m", "theirs")
        sh(room.repo, "update-ref", f"refs/heads/{found.branch}", theirs)
        error = await refusal(room, "one")
        assert (error.slug, "also holds commits that are not of one" in error.message) == ("branch_moved", True)
        sh(room.repo, *error.hint.split("`")[1].split()[1:])  # the hint can be followed as it stands
        assert (await room.ask("accept", workspace="one")).strategy == "none"
        assert room.branch(found) == theirs

    in_room(tmp_path, body, running=True, script=WORK)


def test_work_lands_on_another_open_tasks_branch_only_where_that_is_named(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        three = await ran(room, "w3")
        await ran(room, "w4", branch=three.branch)
        error = await refusal(room, "w4")
        assert (error.slug, "--onto agent/w3" in error.hint) == ("consent_needed", True)
        reply = await room.ask("accept", workspace="w4", onto=three.branch)
        assert any("w3" in note for note in reply.notes)

        await again(room, "w3")
        error = await refusal(room, "w3")
        kept = room.now(three).harvest.rescue_ref
        assert kept
        assert (error.slug, kept in error.hint) == ("branch_moved", True)
        assert "core-agent did not make" not in error.message
        # What the hint says leads to the end.
        await room.ask("rescue.apply", workspace="w3")
        sh(room.repo, "merge", "-q", three.branch)
        sh(room.repo, "merge", "-q", "--no-edit", "-X", "theirs", f"rescue/w3-{kept.rpartition('/')[2]}")
        reply = await room.ask("accept", workspace="w3")
        assert reply.strategy == "none"
        assert (room.repo / "made-w3.txt").read_text() == "w3\nw3\n"
        assert (room.repo / "made-w4.txt").exists()

    in_room(tmp_path, body, running=True, script=WORK)


def test_a_settled_tasks_branch_is_anybodys(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        three = await ran(room, "w3")
        await ran(room, "w4", branch=three.branch)
        sha = sh(room.repo, "rev-parse", three.branch)
        await room.ask("accept", workspace="w3")
        sh(room.repo, "branch", three.branch, sha)
        assert (await room.ask("accept", workspace="w4")).onto == three.branch

    in_room(tmp_path, body, running=True, script=WORK)


def test_a_turn_that_met_a_rebase_of_its_branch_lands_once_that_is_aborted(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room, "one")
        write(room.repo, f"made-{found.name}.txt", "theirs\n")
        sh(room.repo, "add", "-A")
        sh(room.repo, "commit", "-q", "-m", "theirs")
        sh(room.repo, "checkout", "-q", found.branch)
        sh(room.repo, "rebase", "main", ok=False)
        found = await again(room, "one")
        assert (found.harvest.status, found.harvest.reason) == ("rejected", "branch_moved")
        assert "a rebase of branch agent/one is under way" in found.harvest.detail
        sh(room.repo, "rebase", "--abort")
        sh(room.repo, "checkout", "-q", "-b", "landing", "main~1")
        assert (await room.ask("accept", workspace="one", onto="landing")).strategy == "fast-forward"
        assert (room.repo / "made-one.txt").read_text() == "one\none\n"

    in_room(tmp_path, body, running=True, script=WORK)
