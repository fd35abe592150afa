"""Checkouts made in advance: whole, checked before they are given away, and equal to one that was made for the task."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.git_room import AGENT, Room, fingerprint, make_room, sh, write

from coreagent.errors import CoreAgentError
from coreagent.git import warm as git_warm
from coreagent.git.cache import ensure_cache
from coreagent.git.checkout import Ready, checkout
from coreagent.git.inspect import inspect
from coreagent.git.record import load
from coreagent.git.untouched import handed_over, untouched


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr(git_warm, "_SETTLE_S", 0.0)
    return make_room(tmp_path)


def lay(room: Room, name: str = "one") -> Ready:
    room.base = inspect(room.user)
    ensure_cache(room.cache, room.base)
    ready = Ready(room.home / "ws" / ".warm" / name, room.home / "warm" / f"{name}.index", room.base.sha)
    assert git_warm.make(room.cache, ready.sha, ready.tree, ready.index, lambda: True)
    return replace(ready, directories=git_warm.directories(ready.tree))


def take(room: Room, ready: Ready, **options: object) -> Room:
    room.base = inspect(room.user)
    ensure_cache(room.cache, room.base)
    room.made = checkout(room.cache, room.base, room.repo, "agent/job", room.index, AGENT, warm=ready, **options)  # type: ignore[arg-type]
    return room


def move_on(room: Room) -> None:
    write(room.user, "src/a.py", "a = 'newer'\n")
    (room.user / "src/b.py").unlink()
    write(room.user, "deep/er/new.txt")
    sh(room.user, "add", "-A")
    sh(room.user, "commit", "-q", "-m", "second")


@pytest.mark.parametrize("moved", [False, True])
def test_what_was_ready_is_what_would_have_been_made(tmp_path: Path, room: Room, moved: bool) -> None:
    (room.user / "run").symlink_to("README.md")
    write(room.user, "tool.sh", "#!/bin/sh\n").chmod(0o755)
    sh(room.user, "add", "-A")
    sh(room.user, "commit", "-q", "-m", "kinds")
    ready = lay(room)
    kept = (ready.tree / "README.md").stat().st_ino
    if moved:
        move_on(room)
    take(room, ready)
    cold = tmp_path / "cold" / "repo"
    checkout(room.cache, room.base, cold, "agent/job", tmp_path / "cold.index", AGENT)
    for top in (room.repo, cold):
        (top / ".git" / "index").unlink()
    assert fingerprint(room.repo) == fingerprint(cold)
    assert (room.repo / "README.md").stat().st_ino == kept  # moved, not written again
    assert not ready.tree.exists()
    assert not ready.index.exists()


def test_its_git_knows_only_where_it_is_now(room: Room) -> None:
    ready = lay(room)
    assert not (ready.tree / ".git").exists()
    take(room, ready)
    assert load(room.index).top == str(room.repo.resolve())
    assert sh(room.repo, "status", "--porcelain") == ""
    assert sh(room.repo, "rev-parse", "--show-toplevel") == str(room.repo)
    sh(room.repo, "fsck", "--strict")
    texts = [path.read_bytes() for path in (room.repo / ".git").rglob("*") if path.is_file()]
    assert not any(b".warm" in text for text in texts)
    handed_over(room.index, time.time_ns())
    assert untouched(room.index, room.repo, load(room.index))
    write(room.repo, "src/a.py", "a = 'agent'\n")
    assert room.snap().files == 1


def test_changes_and_ignored_files_come_on_top(room: Room) -> None:
    ready = lay(room)
    write(room.user, ".worktreeinclude", ".env\n")
    sh(room.user, "add", "-A")
    sh(room.user, "commit", "-q", "-m", "include")
    write(room.user, ".env", "secret\n")
    write(room.user, "src/a.py", "a = 'mine'\n")
    take(room, ready, with_changes=True)
    assert (room.repo / ".env").read_text() == "secret\n"
    assert (room.repo / "src/a.py").read_text() == "a = 'mine'\n"
    assert (room.made.carried, room.made.included) == (1, 1)
    assert room.snap().files == 0


@pytest.mark.parametrize("harm", ["changed", "same size", "gone", "new", "new git", "mode", "link", "index", "no tree"])
def test_what_was_touched_is_noticed(room: Room, harm: str) -> None:
    ready = lay(room)
    assert git_warm.intact(room.cache, ready)
    match harm:
        case "changed":
            write(ready.tree, "src/a.py", "b\n")
        case "same size":
            before = (ready.tree / "src/a.py").stat()
            write(ready.tree, "src/a.py", "a = 2\n")
            os.utime(ready.tree / "src/a.py", ns=(before.st_atime_ns, before.st_mtime_ns))
        case "gone":
            (ready.tree / "src/a.py").unlink()
        case "new":
            write(ready.tree, "src/hidden.log")
        case "new git":
            sh(ready.tree, "init", "-q")
        case "mode":
            (ready.tree / "src/a.py").chmod(0o755)
        case "link":
            ready.tree.rename(ready.tree.with_name("aside"))
            ready.tree.symlink_to("aside")
        case "index":
            ready.index.write_bytes(b"DIRC damaged")
        case "no tree":
            ready.tree.rename(ready.tree.with_name("aside"))
    assert not git_warm.intact(room.cache, ready)


def test_it_stops_when_it_is_not_wanted_any_more(room: Room) -> None:
    room.base = inspect(room.user)
    ensure_cache(room.cache, room.base)
    tree, index = room.home / "ws" / "w", room.home / "w.index"
    assert not git_warm.make(room.cache, room.base.sha, tree, index, lambda: False)
    with pytest.raises(CoreAgentError):
        git_warm.make(room.cache, "0" * 40, tree, index, lambda: True)


def test_a_commit_is_measured_in_blocks(room: Room) -> None:
    room.base = inspect(room.user)
    ensure_cache(room.cache, room.base)
    assert git_warm.measure(room.cache, room.base.sha) == git_warm.Size(files=4, bytes=4 * 4096)
