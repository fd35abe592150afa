"""The short cut of a snapshot: it says `untouched` of a tree that is, and never of one that was changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.git_room import Room, make_room, sh, write

from coreagent.git.record import load, record_path
from coreagent.git.untouched import handed_over, untouched

FILE = "src/a.py"


@pytest.fixture
def room(tmp_path: Path) -> Room:
    room = make_room(tmp_path)
    room.prepare()
    # As if the clock had ticked since the last file was written; in the daemon it has.
    handed_over(room.index, os.stat(record_path(room.index)).st_mtime_ns + 10**9)
    return room


def seen(room: Room) -> bool:
    return untouched(room.index, room.repo, load(room.index))


def same_size(room: Room) -> None:
    """Other content of the same size, with the old modification time put back: whole seconds do not show it."""
    path = room.repo / FILE
    before = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(room: Room) -> None:
    path = room.repo / FILE
    other = room.repo / "other"
    other.write_bytes(path.read_bytes())
    other.replace(path)


CHANGES: dict[str, Callable[[Room], object]] = {
    "content of the same size and time": same_size,
    "another file in its place": replaced,
    "mode": lambda room: (room.repo / FILE).chmod(0o755),
    "deleted": lambda room: (room.repo / FILE).unlink(),
    "new file": lambda room: write(room.repo, "src/new.py", "x\n"),
    "new file in a new directory": lambda room: write(room.repo, "deep/er/new.py", "x\n"),
    "symlink": lambda room: (room.repo / "link").symlink_to("/etc"),
    "pipe": lambda room: os.mkfifo(room.repo / "pipe"),
    "directory replaced by a link": lambda room: (
        (room.repo / "src").rename(room.repo.parent / "src") or (room.repo / "src").symlink_to("../src")
    ),
    "repository inside": lambda room: sh(room.repo, "init", "-q", "src"),
}


def test_a_new_checkout_is_untouched(room: Room) -> None:
    assert seen(room)
    (room.repo / "empty").mkdir()  # git keeps no empty directories
    write(room.repo, "BLOCKED.md", "?\n")  # never committed
    assert seen(room)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tree_never_looks_untouched(room: Room, change: str) -> None:
    CHANGES[change](room)
    assert not seen(room)


def test_a_change_of_the_same_size_and_second_is_kept(room: Room) -> None:
    same_size(room)
    snap = room.snap()
    assert room.names(snap.sha)
    assert snap.files == 1


def test_what_could_have_changed_in_the_same_tick_is_left_to_git(room: Room) -> None:
    newest = max(os.lstat(path).st_ctime_ns for path in room.repo.rglob("*") if ".git" not in path.parts)
    handed_over(room.index, newest)
    assert not seen(room)


def test_an_index_that_cannot_be_read_is_left_to_git(room: Room) -> None:
    whole = room.index.read_bytes()
    for damaged in (b"", whole[:40], whole[: len(whole) // 2], b"DIRC\0\0\0\4" + whole[8:]):
        room.index.write_bytes(damaged)
        assert not seen(room)
