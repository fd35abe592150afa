"""Accept: the user's branch moves, and nothing of theirs is ever lost."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from tests.support.git_room import Room, fingerprint, make_room, make_user, sh, write

from coreagent.errors import CoreAgentError
from coreagent.git.harvest import harvest
from coreagent.git.landing import _undo, land


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return make_room(tmp_path)


@pytest.fixture
def ready(room: Room, monkeypatch: pytest.MonkeyPatch) -> tuple[Room, str]:
    """A harvestable change of src/a.py, and a person git knows."""
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    sh(room.user, "config", "user.name", "Pat Person")
    sh(room.user, "config", "user.email", "pat@example.com")
    room.prepare()
    write(room.repo, "src/a.py", "a = 2\n")
    write(room.repo, "new.txt", "new\n")
    return room, room.snap().sha


def advance(room: Room, path: str = "other.txt", text: str = "theirs\n") -> str:
    write(room.user, path, text)
    sh(room.user, "add", "-A")
    sh(room.user, "commit", "-q", "-m", "theirs")
    return sh(room.user, "rev-parse", "HEAD")


def refusal(room: Room, sha: str, **options: str) -> CoreAgentError:
    before = fingerprint(room.user / ".git" / "refs"), sh(room.user, "status", "--porcelain")
    with pytest.raises(CoreAgentError) as caught:
        land(room.cache, room.user, "agent/job", options.pop("onto", "main"), sha, **options)
    assert (fingerprint(room.user / ".git" / "refs"), sh(room.user, "status", "--porcelain")) == before
    return caught.value


def test_fast_forward_and_undo(ready: tuple[Room, str]) -> None:
    room, sha = ready
    write(room.user, "untracked", "mine\n")
    write(room.user, "README.md", "dirty but elsewhere\n")
    landed = land(room.cache, room.user, "agent/job", "main", sha)
    assert (landed.before, landed.after, landed.strategy) == (room.base.sha, sha, "fast-forward")
    assert (room.user / "src/a.py").read_text() == "a = 2\n"
    assert (room.user / "README.md").read_text() == "dirty but elsewhere\n"
    subprocess.run(shlex.split(landed.undo), check=True, capture_output=True)
    assert (room.user / "src/a.py").read_text() == "a = 1\n"
    assert sh(room.user, "rev-parse", "main") == room.base.sha
    assert (room.user / "README.md").read_text() == "dirty but elsewhere\n"


@pytest.mark.parametrize(("strategy", "parents", "author"), [
    ("auto", 2, "Pat Person"), ("merge", 2, "Pat Person"), ("squash", 1, "Pat Person"), ("rebase", 1, "Agent Smith"),
])  # fmt: skip
def test_strategies_when_the_branch_moved_on(ready: tuple[Room, str], strategy: str, parents: int, author: str) -> None:
    room, sha = ready
    theirs = advance(room)
    landed = land(room.cache, room.user, "agent/job", "main", sha, strategy, "Take the job\n")
    assert landed.before == theirs
    assert landed.after == sh(room.user, "rev-parse", "HEAD")
    assert sh(room.user, "log", "-1", "--format=%P|%an|%cn").split("|")[1:] == [author, "Pat Person"]
    assert len(sh(room.user, "log", "-1", "--format=%P").split()) == parents
    assert (room.user / "src/a.py").read_text() == "a = 2\n"
    assert (room.user / "other.txt").read_text() == "theirs\n"
    assert sh(room.user, "status", "--porcelain") == ""
    assert list(room.cache.parent.glob(".land.*")) == []
    sh(room.user, "fsck", "--strict")


def test_a_branch_that_is_not_checked_out(ready: tuple[Room, str]) -> None:
    room, sha = ready
    sh(room.user, "checkout", "-q", "-b", "elsewhere")
    landed = land(room.cache, room.user, "agent/job", "main", sha, "merge", "m")
    assert sh(room.user, "rev-parse", "main") == landed.after != sha
    assert (room.user / "src/a.py").read_text() == "a = 1\n"
    subprocess.run(shlex.split(landed.undo), check=True, capture_output=True)
    assert sh(room.user, "rev-parse", "main") == room.base.sha


def test_a_branch_checked_out_in_a_linked_worktree(ready: tuple[Room, str], tmp_path: Path) -> None:
    room, sha = ready
    sh(room.user, "checkout", "-q", "-b", "elsewhere")
    sh(room.user, "worktree", "add", "-q", str(tmp_path / "linked"), "main")
    land(room.cache, room.user, "agent/job", "main", sha)
    assert (tmp_path / "linked/new.txt").read_text() == "new\n"
    assert not (room.user / "new.txt").exists()


def odd_place(tmp_path: Path, kind: str) -> Path:
    """A repository whose main worktree `git worktree list` does not tell, or tells in two lines."""
    start = make_user(tmp_path / "start")
    if kind == "newline":
        return start.rename(tmp_path / "a\nb")
    if kind == "separate git directory":
        sh(start, "init", "-q", "--separate-git-dir", str(tmp_path / "elsewhere"))
        return start
    outer = make_user(tmp_path / "outer")
    sh(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(start), "inner")
    return outer / "inner"


@pytest.mark.parametrize("kind", ["newline", "separate git directory", "submodule"])
@pytest.mark.parametrize("strategy", ["auto", "squash"])
def test_a_main_worktree_that_git_names_badly(tmp_path: Path, kind: str, strategy: str) -> None:
    room = Room(tmp_path / "home", odd_place(tmp_path, kind))
    sh(room.user, "config", "user.name", "Pat Person")
    sh(room.user, "config", "user.email", "pat@example.com")
    room.prepare()
    write(room.repo, "src/a.py", "a = 2\n")
    sha = room.snap().sha
    landed = land(room.cache, room.user, "agent/job", "main", sha, strategy, "m")
    assert (room.user / "src/a.py").read_text() == "a = 2\n"
    assert sh(room.user, "status", "--porcelain") == ""
    assert "\n" not in landed.undo  # one line to copy, whatever the directory is called
    subprocess.run(["bash", "-c", landed.undo], check=True, capture_output=True)
    assert (room.user / "src/a.py").read_text() == "a = 1\n"
    with pytest.raises(CoreAgentError) as checked_out:
        harvest(room.cache, room.user, "main", sha, room.base.sha)
    assert checked_out.value.slug == "branch_moved"


def test_who_a_merge_is_by_may_be_in_the_persons_environment_alone(ready: tuple[Room, str]) -> None:
    room, sha = ready
    sh(room.user, "config", "--unset", "user.name")
    sh(room.user, "config", "--unset", "user.email")
    advance(room)
    assert refusal(room, sha).slug == "no_identity"
    env = {"GIT_AUTHOR_NAME": "Ann", "GIT_AUTHOR_EMAIL": "a@x.org",
           "GIT_COMMITTER_NAME": "Cora", "GIT_COMMITTER_EMAIL": "c@x.org"}  # fmt: skip
    land(room.cache, room.user, "agent/job", "main", sha, "merge", "m", env=env)
    assert sh(room.user, "log", "-1", "--format=%an <%ae> %cn <%ce>") == "Ann <a@x.org> Cora <c@x.org>"


@pytest.mark.parametrize("path", ["src/a.py", "new.txt"])
def test_dirty_and_untracked_files_are_never_overwritten(ready: tuple[Room, str], path: str) -> None:
    room, sha = ready
    write(room.user, path, "precious\n")
    error = refusal(room, sha)
    assert (error.slug, "--with-changes" in error.hint) == ("dirty_checkout", True)
    assert (room.user / path).read_text() == "precious\n"
    # What the hint says works as it stands.
    subprocess.run(["bash", "-c", error.hint.split("`")[1]], check=True, capture_output=True)
    land(room.cache, room.user, "agent/job", "main", sha)
    sh(room.user, "stash", "drop")
    assert sh(room.user, "status", "--porcelain") == ""


def test_an_ignored_file_in_the_way_is_never_overwritten(ready: tuple[Room, str]) -> None:
    room, sha = ready
    write(room.user, ".git/info/exclude", "new.txt\n")
    write(room.user, "new.txt", "precious\n")
    assert refusal(room, sha).slug == "dirty_checkout"
    assert (room.user / "new.txt").read_text() == "precious\n"


@pytest.mark.parametrize("strategy", ["auto", "merge", "squash", "rebase"])
def test_conflicts_change_nothing_and_name_the_files(ready: tuple[Room, str], strategy: str) -> None:
    room, sha = ready
    advance(room, "src/a.py", "a = 3\n")
    error = refusal(room, sha, strategy=strategy)
    assert (error.slug, error.data) == ("merge_conflict", {"files": ["src/a.py"]})


def test_refusals(ready: tuple[Room, str]) -> None:
    room, sha = ready
    assert refusal(room, sha, onto="nope").slug == "no_such_ref"
    assert refusal(room, sha, onto="-f").slug == "invalid_name"
    assert refusal(room, sha, onto="HEAD").slug == "invalid_name"
    assert refusal(room, sha, strategy="octopus").slug == "invalid_argument"
    assert refusal(room, room.base.sha).slug == "nothing_to_accept"
    advance(room)
    assert refusal(room, sha, strategy="fast-forward").slug == "merge_conflict"
    sh(room.user, "config", "--unset", "user.email")
    assert refusal(room, sha).slug == "no_identity"
    room.user.rename(room.user.parent / "moved")
    with pytest.raises(CoreAgentError) as caught:
        land(room.cache, room.user, "agent/job", "main", sha)
    assert caught.value.slug == "repo_not_found"


def test_hooks_of_the_user_do_not_run(ready: tuple[Room, str], tmp_path: Path) -> None:
    room, sha = ready
    for hook in ("post-merge", "pre-merge-commit", "post-checkout", "commit-msg", "reference-transaction"):
        write(room.user, f".git/hooks/{hook}", f"#!/bin/sh\ntouch {tmp_path}/ran\n").chmod(0o755)
    land(room.cache, room.user, "agent/job", "main", sha, "merge", "m")
    assert not (tmp_path / "ran").exists()


def test_the_undo_of_a_directory_with_a_newline_is_one_line_and_one_word() -> None:
    for name in ("a\nb", "it's\t\\x", "plain", "two words", "\udcff"):
        command = _undo(Path("/tmp", name), [Path("/tmp", name)], "refs/heads/main", "1" * 40, "2" * 40)
        assert "\n" not in command
        words = subprocess.run(["bash", "-c", "printf '%s\\0' " + command], capture_output=True, check=True).stdout
        assert words.split(b"\0")[2] == b"/tmp/" + os.fsencode(name)
