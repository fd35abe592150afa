"""What a person has begun and not ended: no branch is moved that git is going to set, and each hindrance is named."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.git_room import Room, fingerprint, make_room, sh, write

from coreagent.errors import CoreAgentError
from coreagent.git.drop import drop
from coreagent.git.forward import forward, reset
from coreagent.git.harvest import harvest
from coreagent.git.landing import land

REBASES = {
    "merge": ("rebase", "other"),
    "apply": ("rebase", "--apply", "other"),
    "update-refs": ("rebase", "--update-refs", "other", "top"),
}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """A harvestable change, and a branch `other` that conflicts with the work of `main`."""
    room = make_room(tmp_path)
    sh(room.user, "config", "user.name", "Pat Person")
    sh(room.user, "config", "user.email", "pat@example.com")
    sh(room.user, "checkout", "-q", "-b", "other")
    change(room.user, "README.md", "other\n")
    sh(room.user, "checkout", "-q", "main")
    change(room.user, "README.md", "mine\n")
    room.prepare()
    write(room.repo, "new.txt", "new\n")
    return room


def change(top: Path, path: str, text: str) -> None:
    write(top, path, text)
    sh(top, "add", "-A")
    sh(top, "commit", "-q", "-m", text)


def rebase(top: Path, kind: str) -> None:
    """Stop in the conflict of a rebase that will set `main`."""
    if kind == "update-refs":
        sh(top, "checkout", "-q", "-b", "top")
        sh(top, "commit", "-q", "--allow-empty", "-m", "top")
    sh(top, *REBASES[kind], ok=False)
    assert sh(top, "rev-parse", "--symbolic-full-name", "HEAD") == "HEAD"


def bisect(top: Path) -> None:
    for n in range(3):
        sh(top, "commit", "-q", "--allow-empty", "-m", str(n))
    sh(top, "bisect", "start", "HEAD", "HEAD~3")
    assert sh(top, "rev-parse", "--symbolic-full-name", "HEAD") == "HEAD"


def refused(room: Room, act: Callable[[], object]) -> CoreAgentError:
    before = fingerprint(room.user / ".git" / "refs")
    with pytest.raises(CoreAgentError) as caught:
        act()
    assert fingerprint(room.user / ".git" / "refs") == before
    return caught.value


@pytest.mark.parametrize("kind", REBASES)
def test_nothing_lands_on_a_branch_that_is_being_rebased(room: Room, kind: str) -> None:
    sha = room.snap().sha
    rebase(room.user, kind)
    error = refused(room, lambda: land(room.cache, room.user, "agent/job", "main", sha))
    assert (error.slug, str(room.user) in error.message) == ("dirty_checkout", True)
    assert error.hint == "finish or abort it there (`git rebase --abort`), then accept again"
    sh(room.user, "rebase", "--abort")
    land(room.cache, room.user, "agent/job", "main", sha)
    assert sh(room.user, "rev-parse", "main") == sha


def test_a_rebase_in_a_linked_worktree_counts_too(room: Room, tmp_path: Path) -> None:
    sha, linked = room.snap().sha, tmp_path / "linked"
    sh(room.user, "checkout", "-q", "--detach")
    sh(room.user, "worktree", "add", "-q", str(linked), "main")
    rebase(linked, "merge")
    error = refused(room, lambda: land(room.cache, room.user, "agent/job", "main", sha))
    assert error.message == f"a rebase of main is under way in {linked}"


def test_nothing_lands_on_a_branch_that_a_bisect_will_go_back_to(room: Room) -> None:
    sha = room.snap().sha
    bisect(room.user)
    error = refused(room, lambda: land(room.cache, room.user, "agent/job", "main", sha, "merge"))
    assert (error.slug, "git bisect reset" in error.hint) == ("dirty_checkout", True)
    sh(room.user, "bisect", "reset")
    land(room.cache, room.user, "agent/job", "main", sha, "merge")


@pytest.mark.parametrize("linked", [False, True])
def test_nothing_lands_on_a_branch_that_patches_are_applied_to(room: Room, tmp_path: Path, linked: bool) -> None:
    sha, top = room.snap().sha, room.user
    if linked:
        top = tmp_path / "linked"
        sh(room.user, "checkout", "-q", "--detach")
        sh(room.user, "worktree", "add", "-q", str(top), "main")
    git_dir = Path(sh(top, "rev-parse", "--absolute-git-dir"))
    (git_dir / "rebase-apply").mkdir()
    (git_dir / "rebase-apply" / "applying").touch()
    error = refused(room, lambda: land(room.cache, room.user, "agent/job", "main", sha))
    assert (error.slug, "git am --abort" in error.hint) == ("dirty_checkout", True)


def test_a_rebase_of_another_branch_hinders_nobody(room: Room) -> None:
    sha = room.snap().sha
    sh(room.user, "checkout", "-q", "-b", "side")
    rebase(room.user, "merge")
    land(room.cache, room.user, "agent/job", "main", sha)
    assert sh(room.user, "rev-parse", "main") == sha


def test_an_agents_branch_is_neither_moved_nor_dropped_while_a_person_rebases_it(room: Room) -> None:
    first = room.snap().sha
    harvest(room.cache, room.user, "agent/job", first)
    write(room.repo, "more.txt", "more\n")
    second = room.snap().sha
    sh(room.user, "checkout", "-q", "agent/job")
    rebase(room.user, "merge")
    error = refused(room, lambda: harvest(room.cache, room.user, "agent/job", second, first))
    assert (error.slug, "rebase" in error.message) == ("branch_moved", True)
    assert "rebase" in refused(room, lambda: drop(room.user, "agent/job", first)).message
    sh(room.user, "rebase", "--abort")
    sh(room.user, "checkout", "-q", "main")
    harvest(room.cache, room.user, "agent/job", second, first)
    assert drop(room.user, "agent/job", second)


def test_a_sync_waits_for_a_rebase(room: Room, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    sh(tmp_path, "clone", "-q", str(room.user), str(clone))
    sh(clone, "branch", "-q", "other", "origin/other")
    sh(clone, "checkout", "-q", "-b", "work", "main~0")
    sh(clone, "checkout", "-q", "main")
    change(room.user, "later.txt", "later\n")
    sh(clone, "fetch", "-q")
    rebase(clone, "merge")
    for act in (lambda: forward(clone, "main"), lambda: reset(room.cache, clone, "main", "kept")):
        error = refused(room, act)
        assert (error.slug, error.message) == ("dirty_checkout", f"a rebase is under way in {clone}")


def merging(room: Room) -> None:
    sh(room.user, "checkout", "-q", "-b", "side", "main~1")
    change(room.user, "side.txt", "side\n")
    sh(room.user, "checkout", "-q", "main")
    sh(room.user, "merge", "-q", "--no-commit", "side")


def picking(room: Room) -> None:
    write(room.user, ".git/CHERRY_PICK_HEAD", sh(room.user, "rev-parse", "other") + "\n")


def conflicting(room: Room) -> None:
    sh(room.user, "cherry-pick", "-n", "other", ok=False)


def locked(room: Room) -> None:
    write(room.user, ".git/index.lock", "")


@pytest.mark.parametrize(
    ("begin", "message", "hint"),
    [
        (merging, "a merge is under way in {}", "finish or abort it there (`git merge --abort`), then accept again"),
        (picking, "a cherry-pick is under way in {}",
         "finish or abort it there (`git cherry-pick --abort`), then accept again"),
        (conflicting, "{} has files with conflicts", "settle them (`git -C {} status` lists them), then accept again"),
        (locked, "another git is at work in {}, or died there",
         "wait until it has ended, then accept again; when none runs: rm {}/.git/index.lock"),
    ],
)  # fmt: skip
def test_each_hindrance_has_its_own_way_out(room: Room, begin: Callable[[Room], None], message: str, hint: str) -> None:
    sha = room.snap().sha
    begin(room)
    error = refused(room, lambda: land(room.cache, room.user, "agent/job", "main", sha))
    assert error.slug == "dirty_checkout"
    assert (error.message, error.hint) == (message.format(room.user), hint.format(room.user))


def test_a_work_tree_that_git_may_not_write_in(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so a filter of the person's says what git would."""
    sha = room.snap().sha
    sh(room.user, "config", "filter.f.smudge", "echo \"error: unable to unlink old 'x': Permission denied\" >&2; false")
    sh(room.user, "config", "filter.f.required", "true")
    write(room.user, ".git/info/attributes", "new.txt filter=f\n")
    error = refused(room, lambda: land(room.cache, room.user, "agent/job", "main", sha))
    assert (error.slug, error.message) == ("dirty_checkout", f"git may not write in {room.user}")
    command = error.hint.split("`")[1]
    assert subprocess.run(["bash", "-c", command], check=False, capture_output=True).returncode == 0
