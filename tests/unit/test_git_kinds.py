"""Repositories of other kinds: shallow, sha256, with submodules, prepared by many at once."""

from __future__ import annotations

import shutil
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


def add_module(user: Path, inner: Path, at: str = "vendor/inner") -> None:
    inner.mkdir()
    sh(inner, "init", "-q", "-b", "main")
    commit(inner, "lib.c")
    sh(user, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), at)
    sh(user, "commit", "-q", "-m", "submodule")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("edit", "changes of a submodule"),
        ("new", "changes of a submodule"),
        ("commit", "another commit of a submodule"),
    ],
)
def test_changes_in_a_submodule_are_counted_and_told_as_not_carried(
    room: Room, tmp_path: Path, change: str, said: str
) -> None:
    add_module(room.user, tmp_path / "inner")
    module = room.user / "vendor/inner"
    if change == "commit":
        commit(module, "more.c")
    else:
        write(module, "lib.c" if change == "edit" else "new.c", "edited\n")
    assert inspect(room.user).dirty == 1
    room.prepare(with_changes=True)
    assert (room.made.carried, room.made.skipped) == (0, (f"vendor/inner: {said}",))
    assert room.made.start == room.base.sha


def test_a_submodule_that_is_not_initialised_is_told(room: Room, tmp_path: Path) -> None:
    add_module(room.user, tmp_path / "inner")
    shutil.rmtree(room.user / ".git/modules")
    shutil.rmtree(room.user / "vendor/inner")
    (room.user / "vendor/inner").mkdir()
    room.prepare()
    assert list((room.repo / "vendor/inner").iterdir()) == []
    (line,) = room.made.skipped
    assert line.startswith("vendor/inner: a submodule whose commit your repository has no copy of")


def test_the_scan_runs_nothing_that_a_submodule_names(room: Room, tmp_path: Path) -> None:
    add_module(room.user, tmp_path / "inner")
    program = write(tmp_path, "run", f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    sh(room.user / "vendor/inner", "config", "core.fsmonitor", str(program))
    write(room.user, "vendor/inner/lib.c", "edited\n")
    before = fingerprint(room.user)
    assert inspect(room.user).dirty == 1
    assert (fingerprint(room.user), (tmp_path / "ran").exists()) == (before, False)


def test_a_broken_submodule_keeps_nobody_from_the_rest(room: Room, tmp_path: Path) -> None:
    add_module(room.user, tmp_path / "inner")
    write(room.user, ".git/modules/vendor/inner/HEAD", "nonsense\n")
    write(room.user, "README.md", "changed\n")
    room.prepare(with_changes=True)
    assert (room.base.dirty, room.made.carried) == (1, 1)


def test_submodules_come_from_the_local_copy_and_edits_are_seen(room: Room, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    add_module(room.user, inner)
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
