"""What no commit can hold, what came after the end, and what was not carried: nothing is lost, and all is told."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh, write

from coreagent import paths
from coreagent.cli.views.status import what_now
from coreagent.dispatch import bring, leftover
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Dispatch, Fate, State

ALL = (State.COMPLETED, State.FAILED, State.CANCELLED, State.PAUSED, State.BLOCKED)
HOSTILE = (
    "mkdir -p git~1 .GIT; echo important > git~1/work.txt; echo im2 > .GIT/w2; echo ok > ok.txt;"
    " mkdir own; cd own; git init -q; echo inner > inner.txt"
)
REPLACED = "cd ..; mkdir -p ../../else; mv repo repo.old; echo mine > repo.old/mine.txt; ln -s ../../else repo"


async def ran(room: Room, name: str = "one") -> Dispatch:
    made = await room.ask("dispatch", task="t", name=name, ephemeral=True)
    return await room.until(room.engine.board[made.dispatch_id], *ALL)


async def let_go(room: Room, found: Dispatch, verb: str) -> None:
    if verb == "reject":
        await room.ask("reject", workspace=found.name)
        return
    if room.now(found).harvest.status == "rejected":
        await room.engine.update(room.now(found), fate=Fate.REJECTED)
    later = room.core.now() + timedelta(days=30)
    room.core.now = lambda: later  # type: ignore[method-assign]
    assert (await room.ask("workspace.clean")).removed == [found.workspace]


@pytest.mark.parametrize("verb", ["reject", "clean"])
def test_names_that_git_refuses_are_kept_as_files(tmp_path: Path, verb: str) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        assert found.harvest.status == "rejected"
        told = "\n".join((await room.ask("why", workspace="one")).facts)
        assert "no commit can hold 3 paths" in told and str(room.checkout(found)) in told
        listed = await room.ask("rescue.list")
        assert str(room.checkout(found)) in listed[0].also[0]
        await let_go(room, found, verb)
        kept = leftover.kept(str(room.home), found.id)
        assert (Path(kept.left) / "git~1/work.txt").read_text() == "important\n"
        assert (Path(kept.left) / ".GIT/w2").read_text() == "im2\n"
        assert (Path(kept.left) / "own/inner.txt").read_text() == "inner\n"
        assert (Path(kept.left) / "own/.git/HEAD").is_file()
        assert not (Path(kept.left) / "ok.txt").exists(), "that is in the commit"
        assert not room.checkout(found).exists()
        assert kept.left in (await room.ask("why", workspace=found.id)).facts[-1]
        assert kept.left in (await room.ask("rescue.list"))[0].also[0]

    in_room(tmp_path, body, running=True, script=HOSTILE)


def test_reject_says_where_the_files_lie(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        note = (await room.ask("reject", workspace="one")).note
        assert "rescue apply" in note
        assert leftover.kept(str(room.home), found.id).left in note

    in_room(tmp_path, body, running=True, script=HOSTILE)


def test_beyond_the_bound_the_workspace_stays(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("reject", workspace="one")
        assert caught.value.slug == "too_large"
        assert "max_kept_bytes" in caught.value.cause
        assert (room.checkout(found) / "git~1/work.txt").read_text() == "important\n"
        assert not leftover.kept(str(room.home), found.id)
        assert not room.now(found).workspace_gone

    in_room(tmp_path, body, running=True, script=HOSTILE, settings="harvest: {max_kept_bytes: 1000}\n")


@pytest.mark.parametrize("verb", ["reject", "clean"])
def test_a_replaced_checkout_is_kept_and_its_link_is_not_followed(tmp_path: Path, verb: str) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        assert (found.harvest.status, found.harvest.reason) == ("rejected", "workspace_replaced")
        other = room.checkout(found).resolve()
        write(other, "theirs.txt", "theirs\n")
        assert "kept as files" in "\n".join((await room.ask("why", workspace="one")).facts)
        await let_go(room, found, verb)
        kept = leftover.kept(str(room.home), found.id)
        assert (Path(kept.beside) / "repo.old/mine.txt").read_text() == "mine\n"
        assert (Path(kept.beside) / "repo.old/a.txt").read_text() == "a\n"
        assert not kept.whole and not kept.left
        assert (other / "theirs.txt").read_text() == "theirs\n"
        assert not list((room.home / "archive").rglob("theirs.txt"))
        assert kept.beside in (await room.ask("why", workspace=found.id)).facts[-1]

    in_room(tmp_path, body, running=True, script=REPLACED)


def test_what_an_agent_calls_as_we_do_does_not_replace_what_is_kept(tmp_path: Path) -> None:
    script = f"{HOSTILE}; mkdir -p ../../.meta/left-out ../../.meta/checkout; echo fake > ../../.meta/left-out/fake"

    async def body(room: Room) -> None:
        found = await ran(room)
        await room.ask("reject", workspace="one")
        kept = leftover.kept(str(room.home), found.id)
        assert (Path(kept.left) / "git~1/work.txt").read_text() == "important\n"
        assert not (Path(kept.left) / "fake").exists()
        assert not kept.whole

    in_room(tmp_path, body, running=True, script=script)


def test_locked_and_linked_ways_out_are_neither_followed_nor_a_hindrance(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside, "o.txt", "o\n")

    async def body(room: Room) -> None:
        found = await room.prepare("one")
        top = room.checkout(found)
        write(top, ".GIT/locked/w.txt", "w\n")
        (top / ".GIT" / "out").symlink_to(outside)
        os.mkfifo(top / ".GIT" / "pipe")
        (top / ".GIT" / "locked").chmod(0o500)
        await room.ask("attach.done", workspace="one")
        await room.ask("reject", workspace="one")
        kept = Path(leftover.kept(str(room.home), found.id).left)
        assert (kept / ".GIT/locked/w.txt").read_text() == "w\n"
        assert (kept / ".GIT/out").is_symlink()
        assert not os.path.lexists(kept / ".GIT/pipe")
        assert (outside / "o.txt").read_text() == "o\n"

    in_room(tmp_path, body)


def test_to_another_file_system_files_are_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    write(source, "x/y.txt", "y\n")
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    leftover._copy(source, target)
    assert (target / "x/y.txt").read_text() == "y\n"
    assert (target / "link").readlink() == Path("/etc/passwd")
    assert sorted(entry.name for entry in target.iterdir()) == ["link", "x"]
    assert stat.S_ISFIFO(os.lstat(source / "pipe").st_mode)


WORK = "echo made > made.txt"


def test_an_edit_after_the_end_is_shown_and_lands(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        assert (await room.ask("diff", workspace="one")).head == found.harvest.sha
        write(room.checkout(found), "made.txt", "made by hand\n")
        shown = await room.ask("diff", workspace="one")
        assert "made by hand" in shown.text
        assert (shown.since, shown.live, shown.head) == (1, False, "")
        reply = await room.ask("accept", workspace="one")
        assert (room.repo / "made.txt").read_text() == "made by hand\n"
        assert reply.since == 1
        assert reply.notes == ["1 file changed here since the agent ended, and came along"]
        assert reply.after == sh(room.repo, "rev-parse", "main")
        assert sh(room.repo, "rev-parse", "main^") == found.harvest.sha, "on top of what the agent did"
        assert await room.ask("rescue.list") == []
        assert room.branch(found) == ""

    in_room(tmp_path, body, running=True, script=WORK)


def test_nothing_since_lands_the_harvest_itself(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        reply = await room.ask("accept", workspace="one")
        assert (reply.after, reply.since, reply.notes) == (found.harvest.sha, 0, [])
        assert await room.ask("rescue.list") == []

    in_room(tmp_path, body, running=True, script=WORK)


def test_an_edit_in_a_task_that_changed_nothing_lands(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        assert found.harvest.status == "none"
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("accept", workspace="one")
        assert caught.value.slug == "nothing_to_accept"
        write(room.checkout(found), "hand.txt", "hand\n")
        assert (await room.ask("diff", workspace="one")).since == 1
        assert (await room.ask("accept", workspace="one")).since == 1
        assert (room.repo / "hand.txt").read_text() == "hand\n"

    in_room(tmp_path, body, running=True, script="true")


def test_an_edit_is_checked_as_any_harvest_is(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        (room.checkout(found) / "out").symlink_to("/etc/passwd")
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("accept", workspace="one")
        assert "symlink_escape" in caught.value.message
        assert sh(room.repo, "rev-parse", "main") == found.base_sha
        (room.checkout(found) / "out").unlink()
        assert (await room.ask("accept", workspace="one")).since in (0, 1)
        assert (room.repo / "made.txt").read_text() == "made\n"

    in_room(tmp_path, body, running=True, script=WORK)


def test_a_branch_that_somebody_moved_is_left_alone(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        write(room.checkout(found), "made.txt", "by hand\n")
        moved = sh(room.repo, "commit-tree", f"{found.harvest.sha}^{{tree}}", "-p", found.harvest.sha, "-m", "theirs")
        sh(room.repo, "update-ref", f"refs/heads/{found.branch}", moved)
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("accept", workspace="one")
        assert caught.value.slug == "branch_moved"
        assert room.branch(found) == moved
        assert room.now(found).harvest.status == "complete"

    in_room(tmp_path, body, running=True, script=WORK)


def test_an_accept_that_was_cut_off_after_it_brought_the_edit_goes_on(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        write(room.checkout(found), "made.txt", "by hand\n")
        assert await bring.bring_since(room.engine, room.now(found)) is not None
        assert room.branch(found) != found.branch_sha
        reply = await room.ask("accept", workspace="one")
        assert (reply.since, room.branch(found)) == (1, "")
        assert (room.repo / "made.txt").read_text() == "by hand\n"

    in_room(tmp_path, body, running=True, script=WORK)


def test_what_somebody_landed_meanwhile_is_not_landed_twice(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        sh(room.repo, "merge", "-q", "--ff-only", found.branch)
        write(room.checkout(found), "made.txt", "made\nby hand\n")
        reply = await room.ask("accept", workspace="one")
        assert reply.strategy == "fast-forward"
        assert sh(room.repo, "rev-list", "--count", "main") == "3"
        assert (room.repo / "made.txt").read_text() == "made\nby hand\n"

    in_room(tmp_path, body, running=True, script=WORK)


@pytest.mark.parametrize("how", ["gone", "replaced", "emptied"])
def test_a_checkout_that_does_not_stand_lands_what_was_brought_home(tmp_path: Path, how: str) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        top = room.checkout(found)
        if how == "emptied":
            for path in [top / "a.txt", top / "made.txt"]:
                path.unlink()
            (top / ".git").rename(tmp_path / "git-away")
        else:
            top.rename(tmp_path / "away")
        if how == "replaced":
            top.symlink_to(tmp_path / "away")
        assert (await room.ask("diff", workspace="one")).head == found.harvest.sha
        assert (await room.ask("accept", workspace="one")).after == found.harvest.sha

    in_room(tmp_path, body, running=True, script=WORK)


def test_a_commit_of_the_person_comes_as_it_is(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await ran(room)
        top = room.checkout(found)
        write(top, "hand.txt", "hand\n")
        sh(top, "add", "-A")
        sh(top, "commit", "-q", "-m", "by my own hand")
        await room.ask("accept", workspace="one")
        assert "by my own hand" in sh(room.repo, "log", "--format=%s", "main")
        assert await room.ask("rescue.list") == []

    in_room(tmp_path, body, running=True, script=WORK)


def test_what_is_not_carried_is_told(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        nested = room.repo / "nested"
        nested.mkdir()
        sh(nested, "init", "-q")
        write(nested, "n.txt", "n\n")
        os.mkfifo(room.repo / "pipe")
        write(room.repo, "mine.txt", "mine\n")
        made = await room.ask("prep", name="one", with_changes=True, ephemeral=True)
        told = "\n".join((await room.ask("why", workspace="one")).facts)
        row = (await room.ask("status", workspace="one")).workspaces[0]
        for said in (told, "\n".join(made.notes), row.not_carried):
            assert "nested/: a repository of its own" in said
            assert "pipe: a pipe, a socket or a device" in said
            assert "mine.txt" not in said

    in_room(tmp_path, body)


def test_entries_of_worktreeinclude_that_lead_out_are_told(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        secret = tmp_path / "secret"
        write(secret, "key", "key\n")
        (room.repo / "linked").symlink_to(secret)
        write(room.repo, ".gitignore", ".env\nlinked\n")
        write(room.repo, ".env", "x\n")
        write(room.repo, ".worktreeinclude", f".env\n/.env\n# c\n../secret/key\n{secret}/key\nlinked/key\nlinked\n")
        found = await room.prepare("one")
        told = "\n".join((await room.ask("why", workspace="one")).facts)
        assert "../secret/key: leads out of the repository" in told
        assert f"{secret}/key: lies outside of the repository" in told
        assert "linked/key: lies behind a symlink" in told
        assert "linked: a symlink that leads out of the repository" in told
        assert ".env" not in told
        assert (room.checkout(found) / ".env").read_text() == "x\n"
        assert not os.path.lexists(room.checkout(found) / "linked")

    in_room(tmp_path, body)


def test_cancel_says_what_is_true_of_a_checkout_that_was_removed(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await room.ask("dispatch", task="t", name="one", ephemeral=True)
        found = await room.until(room.engine.board[made.dispatch_id], State.RUNNING)
        ready = room.checkout(found) / "ready"
        while not ready.exists():
            await room.engine.changed(0.05, room.engine.turns)
        room.checkout(found).rename(tmp_path / "away")
        note = (await room.ask("cancel", workspace="one")).note
        assert "kept" not in note
        assert "workspace_replaced" in note
        assert Path(paths.archive_dir(str(room.home), found.id)).exists() is False

    in_room(tmp_path, body, running=True, script="echo > ready; sleep 60")


def test_work_in_a_submodule_alone_is_kept_and_it_is_said_where(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        inner = tmp_path / "inner"
        inner.mkdir()
        sh(inner, "init", "-q", "-b", "main")
        write(inner, "lib.c")
        sh(inner, "add", "-A")
        sh(inner, "commit", "-q", "-m", "lib")
        sh(room.repo, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "lib")
        sh(room.repo, "commit", "-q", "-m", "submodule")
        write(room.repo, "lib/lib.c", "of the person\n")
        made = await room.ask("dispatch", task="t", name="one", ephemeral=True)
        assert "1 changed or untracked file of your work tree is left out" in made.notes[0]
        assert made.notes[0].endswith("but for submodules")
        found = await room.until(room.engine.board[made.dispatch_id], *ALL)
        assert (found.harvest.reason, found.harvest.rescue_ref) == ("submodule_changed", "")
        (row,) = (await room.ask("status")).workspaces
        assert what_now(row, room.core.now()).endswith("`why` tells where it is")
        said = (await room.ask("why", workspace="one")).headline
        cache = said.partition("its work is kept in ")[2].rstrip(").")
        assert sh(Path(cache), "log", "--all", "--format=%H")

    in_room(tmp_path, body, running=True, script="echo edited > lib/lib.c")
