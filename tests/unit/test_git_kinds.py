"""Repositories of other kinds: shallow, sha256, with submodules, prepared by many at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.git_room import Room, fingerprint, make_room, sh, write

from coreagent.git.cache import ensure_cache
from coreagent.git.harvest import harvest
from coreagent.git.inspect import inspect
from coreagent.git.landing import land


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return make_room(tmp_path)


def commit(top: Path, path: str) -> None:
    write(top, path)
    sh(top, "add", "-A")
    sh(top, "commit", "-q", "-m", path)


def round_trip(room: Room) -> None:
    before = fingerprint(room.user)
    room.prepare()
    assert fingerprint(room.user) == before
    assert sh(room.repo, "status", "--porcelain") == ""
    write(room.repo, "agent.txt")
    sh(room.repo, "add", "-A")
    sh(room.repo, "commit", "-q", "-m", "agent")
    snap = room.snap()
    assert (snap.files, snap.problems) == (1, ())
    harvest(room.cache, room.user, "agent/job", snap.sha)
    land(room.cache, room.user, "agent/job", "main", snap.sha)
    sh(room.user, "fsck")


def test_a_shallow_clone_that_is_deepened_later(room: Room, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        commit(room.user, name)
    sh(tmp_path, "clone", "-q", "--depth", "2", f"file://{room.user}", "shallow")
    shallow = Room(tmp_path / "h2", tmp_path / "shallow")
    round_trip(shallow)
    assert shallow.base.shallow
    sh(tmp_path / "shallow", "fetch", "-q", "--unshallow")
    commit(tmp_path / "shallow", "later")
    ensure_cache(shallow.cache, inspect(tmp_path / "shallow"))
    sh(shallow.cache, "fsck")


def test_a_sha256_repository(tmp_path: Path) -> None:
    top = tmp_path / "u256"
    top.mkdir()
    sh(top, "init", "-q", "-b", "main", "--object-format=sha256")
    commit(top, "first")
    round_trip(Room(tmp_path / "home", top))


def test_submodules_come_from_the_local_copy_and_edits_are_seen(room: Room, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    sh(inner, "init", "-q", "-b", "main")
    commit(inner, "lib.c")
    sh(room.user, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "vendor/inner")
    sh(room.user, "commit", "-q", "-m", "submodule")
    inner.rename(tmp_path / "far away")
    before = fingerprint(room.user)
    room.prepare()
    assert fingerprint(room.user) == before
    assert (room.repo / "vendor/inner/lib.c").is_file()
    assert sh(room.repo, "status", "--porcelain") == ""
    assert room.snap().problems == ()
    write(room.repo, "vendor/inner/lib.c", "edited\n")
    snap = room.snap()
    assert [(problem.slug, problem.path) for problem in snap.blocking] == [("submodule_changed", "vendor/inner")]


def test_many_prepare_at_once(room: Room) -> None:
    base = inspect(room.user)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ensure_cache(room.cache, base), range(8)))
    sh(room.cache, "fsck", "--strict")
    assert not list((room.cache / "objects/pack").glob("*.keep"))


def test_every_untracked_file_is_counted_also_in_a_new_directory(room: Room) -> None:
    write(room.user, "new/one.txt")
    write(room.user, "new/deep/two.txt")
    write(room.user, "three.txt")
    assert inspect(room.user).dirty == 3
