"""What a setup hook leaves in a workspace is the start of the agent's work and never part of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.support.git_room import AGENT, Room, make_room, sh, write

from coreagent.errors import CoreAgentError
from coreagent.git import record
from coreagent.git.setup import Settled, settle


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return make_room(tmp_path).prepare()


def settled(room: Room) -> Settled:
    made = settle(room.cache, room.base, room.repo, "agent/job", room.index, AGENT)
    assert list(room.repo.parent.glob(".setup.*")) == []
    assert sh(room.repo, "status", "--porcelain") == ""
    assert sh(room.repo, "symbolic-ref", "HEAD") == "refs/heads/agent/job"
    assert sh(room.repo, "rev-parse", "HEAD") == room.made.start
    sh(room.repo, "fsck", "--strict")
    nothing = room.snap()
    assert (nothing.sha, nothing.problems) == (room.made.start, ())
    return made


def refusal(room: Room) -> CoreAgentError:
    with pytest.raises(CoreAgentError) as caught:
        settle(room.cache, room.base, room.repo, "agent/job", room.index, AGENT)
    assert caught.value.slug == "setup_failed"
    assert caught.value.cause
    return caught.value


def test_a_hook_that_did_nothing(room: Room) -> None:
    made = settled(room)
    assert (made.restored, made.kept, made.note, made.lines) == ((), 0, "", [])


def test_new_files_stay_and_are_not_committed(room: Room) -> None:
    for name in ("made/x", "src/gen.py", "new\nline", "sp ace ", "st*r", "ünï", "build/ignored"):
        write(room.repo, name)
    made = settled_but_for_newline(room)
    assert made.kept == 6
    assert (room.repo / "made/x").exists()
    write(room.repo, "made/own")
    write(room.repo, "src/a.py", "a = 2\n")
    write(room.repo, "star")
    sh(room.repo, "add", "-A")
    sh(room.repo, "commit", "-q", "-m", "mine")
    assert room.names(room.snap().sha) - room.names(room.made.start) == {"made/own", "star"}
    assert room.snap().files == 3


def settled_but_for_newline(room: Room) -> Settled:
    """An exclude file has no way to say a newline, so a person's status shows that one file."""
    made = settle(room.cache, room.base, room.repo, "agent/job", room.index, AGENT)
    assert sh(room.repo, "status", "--porcelain", "-z").strip("\0") == "?? new\nline"
    assert room.snap().sha == room.made.start
    return made


def test_forced_commits_of_new_files_are_taken_out(room: Room) -> None:
    write(room.repo, "made/x")
    settled(room)
    sh(room.repo, "add", "-f", "made/x")
    sh(room.repo, "commit", "-q", "-m", "mine")
    assert room.names(room.snap().sha) == room.names(room.made.start)


def test_many_new_files_are_hidden_by_directory(room: Room) -> None:
    for number in range(1_001):
        write(room.repo, f"vendor/{number}")
    assert settled(room).kept == 1_001
    assert len((room.repo / ".git/info/exclude").read_text().splitlines()) < 20
    write(room.repo, "vendor/own")
    assert room.names(room.snap().sha) - room.names(room.made.start) == {"vendor/own"}


def test_tracked_files_are_put_back(room: Room) -> None:
    write(room.repo, "README.md", "HELLO\n")
    (room.repo / "src/a.py").unlink()
    (room.repo / "src/b.py").chmod(0o755)
    write(room.repo, ".gitignore", "*\n")
    write(room.repo, "hidden", "by the changed .gitignore\n")
    made = settled(room)
    assert made.restored == (".gitignore", "README.md", "src/a.py", "src/b.py")
    assert made.kept == 1
    assert made.note.endswith("undone: .gitignore, README.md, src/a.py, src/b.py")
    assert len(made.lines) == 5
    assert (room.repo / "README.md").read_text() == "hello\n"
    write(room.repo, "README.md", "agent\n")
    assert room.snap().files == 1


def test_what_the_person_brought_along_stays(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    write(room.user, "README.md", "changed\n")
    write(room.user, ".env", "SECRET=1\n")
    write(room.user, ".worktreeinclude", ".env\n")
    room.prepare(with_changes=True)
    assert room.made.start != room.base.sha
    write(room.repo, "README.md", "by the hook\n")
    assert settled(room).restored == ("README.md",)
    assert (room.repo / "README.md").read_text() == "changed\n"
    assert (room.repo / ".env").exists()


def test_files_and_directories_change_places(room: Room, tmp_path: Path) -> None:
    (room.repo / "README.md").unlink()
    write(room.repo, "README.md/inner")
    shutil.move(room.repo / "src", tmp_path / "elsewhere")
    (room.repo / "src").symlink_to(tmp_path / "elsewhere")
    write(tmp_path, "elsewhere/a.py", "by the hook\n")
    os.unlink(room.repo / ".gitignore")
    os.mkfifo(room.repo / ".gitignore")
    settled(room)
    assert not (room.repo / "src").is_symlink()
    assert (tmp_path / "elsewhere/a.py").read_text() == "by the hook\n", "written through a link"


def test_a_directory_moved_behind_a_link_unchanged(room: Room, tmp_path: Path) -> None:
    shutil.move(room.repo / "src", tmp_path / "elsewhere")
    (room.repo / "src").symlink_to(tmp_path / "elsewhere")
    settled(room)
    assert (room.repo / "src/a.py").is_file()
    assert not (room.repo / "src").is_symlink()


def test_commits_branches_and_configuration_go(room: Room, tmp_path: Path) -> None:
    pwned = tmp_path / "pwned"
    git_dir = room.repo / ".git"
    write(room.repo, "src/a.py", "a = 2\n")
    write(room.repo, "more", "x\n")
    sh(room.repo, "add", "-A")
    sh(room.repo, "commit", "-q", "-m", "of the hook")
    sh(room.repo, "branch", "other")
    sh(room.repo, "checkout", "-q", "--detach")
    sh(room.repo, "pack-refs", "--all")
    write(room.repo, ".git/hooks/post-index-change", f"#!/bin/sh\ntouch {pwned}\n").chmod(0o755)
    for key in ("core.fsmonitor", "core.sshCommand", "filter.x.clean", "filter.x.smudge", "filter.x.process"):
        sh(room.repo, "config", key, f"touch {pwned}; cat")
    write(room.repo, ".gitattributes", "* filter=x text eol=crlf\n")
    write(room.repo, "README.md", "again\n")
    write(room.repo, ".git/index.lock", "")
    pwned.unlink(missing_ok=True)
    made = settled(room)
    assert made.restored == ("README.md", "src/a.py")
    assert made.kept == 2
    assert not pwned.exists()
    assert not (git_dir / "hooks").exists()
    assert sh(room.repo, "for-each-ref", "--format=%(refname)").split() == ["refs/heads/agent/job", "refs/heads/main"]


def test_changed_attributes_do_not_bend_what_is_put_back(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    write(room.user, ".gitattributes", "*.bin -text\n")
    sh(room.user, "add", "-A")
    sh(room.user, "commit", "-q", "-m", "attributes")
    room.prepare()
    write(room.repo, ".gitattributes", "* text eol=crlf\n")
    (room.repo / "README.md").unlink()
    settled(room)
    assert (room.repo / "README.md").read_bytes() == b"hello\n"


def test_nested_repositories_stay_apart(room: Room) -> None:
    write(room.repo, "vendor/lib/x")
    sh(room.repo / "vendor/lib", "init", "-q")
    sh(room.repo / "vendor/lib", "add", "-A")
    sh(room.repo / "vendor/lib", "commit", "-q", "-m", "theirs")
    assert settled(room).kept == 1
    write(room.repo, "own")
    sh(room.repo, "add", "-A")
    taken = room.snap()
    assert (taken.files, taken.blocking) == (1, ())


def test_a_submodule_that_only_the_hook_could_fill(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    lib = tmp_path / "lib"
    lib.mkdir()
    sh(lib, "init", "-q", "-b", "main")
    write(lib, "x")
    sh(lib, "add", "-A")
    sh(lib, "commit", "-q", "-m", "lib")
    allow = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.file.allow", "GIT_CONFIG_VALUE_0": "always"}
    sh(room.user, "submodule", "--quiet", "add", str(lib), "lib", **allow)
    sh(room.user, "commit", "-q", "-m", "with lib")
    sh(room.user, "submodule", "deinit", "-q", "--all", "-f")
    shutil.rmtree(room.user / ".git/modules")
    room.prepare()
    assert list((room.repo / "lib").iterdir()) == []
    sh(room.repo, "submodule", "--quiet", "update", "--init", **allow)
    assert settled(room).kept == 1
    assert (room.repo / "lib/x").exists()
    write(room.repo, "src/a.py", "a = 3\n")
    assert (room.snap().files, room.snap().problems) == (1, ())


def test_a_submodule_of_ours_is_put_back(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    lib = tmp_path / "lib"
    lib.mkdir()
    sh(lib, "init", "-q", "-b", "main")
    write(lib, "x")
    sh(lib, "add", "-A")
    sh(lib, "commit", "-q", "-m", "lib")
    allow = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.file.allow", "GIT_CONFIG_VALUE_0": "always"}
    sh(room.user, "submodule", "--quiet", "add", str(lib), "lib", **allow)
    sh(room.user, "commit", "-q", "-m", "with lib")
    room.prepare()
    write(room.repo, "lib/x", "by the hook\n")
    write(room.repo, "lib/y")
    sh(room.repo / "lib", "commit", "-qam", "of the hook")
    made = settled(room)
    assert made.restored == ("lib/x",)
    shutil.rmtree(room.repo / "lib")
    (room.repo / "lib").mkdir()
    assert "removed or replaced" in refusal(room).message


@pytest.mark.parametrize("how", ["gone", "link", "file", "checkout gone", "checkout replaced"])
def test_a_checkout_that_is_no_more_is_refused(room: Room, tmp_path: Path, how: str) -> None:
    git_dir = room.repo / ".git"
    if how.startswith("checkout"):
        shutil.move(room.repo, tmp_path / "moved")
        if how == "checkout replaced":
            room.repo.symlink_to(room.user)
    else:
        shutil.move(git_dir, tmp_path / "moved")
        if how == "link":
            git_dir.symlink_to(room.user / ".git")
        elif how == "file":
            git_dir.write_text(f"gitdir: {room.user}/.git\n")
    assert "removed or replaced" in refusal(room).message
    assert sh(room.user, "status", "--porcelain") == ""
    assert list(room.repo.parent.glob(".setup.*")) == []


def test_the_record_keeps_what_it_knew(room: Room) -> None:
    before = record.load(room.index)
    write(room.repo, os.fsdecode(b"b\xff"))
    settled(room)
    after = record.load(room.index)
    assert (after.top, after.start, after.exclude) == (before.top, before.start, before.exclude)
    assert after.included == [os.fsdecode(b"b\xff")]
