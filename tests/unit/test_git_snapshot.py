"""Snapshots of workspaces that fight back."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
from tests.support.git_room import Room, fingerprint, make_room, sh, write

from coreagent.git import stuck
from coreagent.git.diff import diff, numstat
from coreagent.git.harvest import harvest
from coreagent.git.landing import land
from coreagent.git.snapshot import Snapshot, diff_now


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return make_room(tmp_path)


@pytest.fixture
def user(room: Room) -> Path:
    return room.user


def test_nothing_changed_is_the_base(room: Room) -> None:
    room.prepare()
    assert room.snap() == Snapshot(room.base.sha)


def test_leftovers_go_on_top_of_the_agents_commits(room: Room) -> None:
    room.prepare()
    write(room.repo, "src/a.py", "a = 2\n")
    sh(room.repo, "commit", "-q", "-am", "mine")
    own = sh(room.repo, "rev-parse", "HEAD")
    (room.repo / "src/b.py").unlink()
    write(room.repo, "new.py", "x\n")
    snap = room.snap()
    assert sh(room.cache, "rev-parse", f"{snap.sha}^") == own
    assert sh(room.cache, "log", "-1", "--format=%an %ae %cn", snap.sha) == "Agent Smith agent@example.com core-agent"
    assert (snap.files, snap.insertions, snap.deletions, snap.leftover, snap.problems) == (3, 2, 2, 2, ())
    assert room.snap() == snap  # running it again gives the same commit
    assert numstat(room.cache, room.base.sha, snap.sha).files == 3


def test_an_emptied_and_a_replaced_git_directory(room: Room, tmp_path: Path) -> None:
    room.prepare()
    write(room.repo, "kept")
    shutil.rmtree(room.repo / ".git")
    first = room.snap()
    assert "kept" in room.names(first.sha)
    (room.repo / ".git").symlink_to(room.user / ".git")
    assert room.snap().sha == first.sha
    (room.repo / ".git").unlink()
    write(room.repo, ".git", f"gitdir: {room.user}/.git\n")
    assert room.snap().sha == first.sha
    (room.repo / ".git").unlink()
    sh(room.repo, "init", "-q")
    sh(room.repo, "add", "-A")
    sh(room.repo, "commit", "-q", "-m", "orphan")
    snap = room.snap()
    assert "kept" in room.names(snap.sha)
    assert sh(room.cache, "merge-base", room.base.sha, snap.sha) == room.base.sha
    assert "history_rewritten" in room.slugs(snap)


def test_nothing_the_agent_configured_runs(room: Room, tmp_path: Path) -> None:
    room.prepare()
    trap = f"touch {tmp_path}/pwned"
    script = write(tmp_path, "trap.sh", f"#!/bin/sh\n{trap}\n")
    script.chmod(0o755)
    git = room.repo / ".git"
    for hook in ("pre-commit", "post-commit", "reference-transaction", "post-index-change", "post-checkout"):
        shutil.copy(script, write(git, f"hooks/{hook}"))
        (git / "hooks" / hook).chmod(0o755)
    write(room.repo, ".gitattributes", "* filter=evil diff=evil merge=evil\n")
    write(room.repo, "data.txt", "data\n")
    sh(room.repo, "-c", "core.hooksPath=/dev/null", "commit", "-q", "--allow-empty", "-m", "empty")
    with (git / "config").open("a") as file:
        file.write(f"""[core]
\tfsmonitor = {script}
\tsshCommand = {script}
\talternateRefsCommand = {script}
\tworktree = /
\thooksPath = {git}/hooks
[filter "evil"]
\tclean = {script}
\tsmudge = {script}
\trequired = true
[diff "evil"]
\ttextconv = {script}
\tcommand = {script}
[include]
\tpath = {tmp_path}/more
[remote "x"]
\turl = ext::sh -c {script}
\tpromisor = true
[extensions]
\tpartialClone = x
""")
    write(room.repo, "data2.txt", "data\n")
    snap = room.snap()
    assert snap.files == 3
    text, _ = diff(room.cache, room.base.sha, snap.sha)
    assert "+data" in text
    diff_now(room.cache, room.repo, room.base.sha, room.index)
    harvest(room.cache, room.user, "agent/job", snap.sha)
    land(room.cache, room.user, "agent/job", "main", snap.sha)
    assert not (tmp_path / "pwned").exists()


def test_flags_locks_and_other_branches_hide_nothing(room: Room) -> None:
    room.prepare()
    sh(room.repo, "update-index", "--assume-unchanged", "src/a.py")
    sh(room.repo, "update-index", "--skip-worktree", "src/b.py")
    before = (room.repo / "src/a.py").stat()
    write(room.repo, "src/a.py", "a = 9\n")
    os.utime(room.repo / "src/a.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    write(room.repo, "src/b.py", "b = 9\n")
    write(room.repo, ".git/index.lock", "")
    snap = room.snap()
    assert (room.show(snap.sha, "src/a.py"), room.show(snap.sha, "src/b.py")) == ("a = 9", "b = 9")
    (room.repo / ".git/index.lock").unlink()
    sh(room.repo, "update-index", "--no-assume-unchanged", "src/a.py")
    sh(room.repo, "update-index", "--no-skip-worktree", "src/b.py")
    sh(room.repo, "checkout", "-q", "-b", "elsewhere")
    sh(room.repo, "commit", "-q", "-am", "on another branch")
    sh(room.repo, "stash", "push", "-q", "--allow-empty", ok=False)
    assert sh(room.cache, "log", "-1", "--format=%s", room.snap().sha) == "on another branch"
    sh(room.repo, "checkout", "-q", "main")
    assert sh(room.cache, "log", "-1", "--format=%s", room.snap().sha) == "on another branch"


def test_a_stash_and_a_second_branch_are_kept_in_the_cache(room: Room) -> None:
    room.prepare()
    write(room.repo, "src/a.py", "stashed\n")
    sh(room.repo, "stash")
    stash = sh(room.repo, "rev-parse", "refs/stash")
    write(room.repo, "main.txt")
    room.snap()
    assert sh(room.cache, "show", f"{stash}:src/a.py") == "stashed"
    assert stash in sh(room.cache, "for-each-ref", "--format=%(objectname)")


def test_an_amended_base_is_put_back_onto_the_base(room: Room) -> None:
    room.prepare()
    write(room.repo, "amended")
    sh(room.repo, "add", "-A")
    sh(room.repo, "commit", "-q", "--amend", "-m", "amended base")
    snap = room.snap()
    assert sh(room.cache, "rev-parse", f"{snap.sha}^") == room.base.sha
    assert snap.files == 1


def test_a_replaced_workspace_is_not_followed(room: Room) -> None:
    room.prepare()
    shutil.rmtree(room.repo)
    room.repo.symlink_to(room.user)
    snap = room.snap()
    assert (snap.sha, room.slugs(snap)) == (room.base.sha, {"workspace_replaced"})
    room.repo.unlink()
    (room.home / "ws").rename(room.home / "moved")
    (room.home / "moved" / "repo").mkdir()
    (room.home / "ws").symlink_to(room.home / "moved")
    assert room.slugs(room.snap()) == {"workspace_replaced"}


@pytest.mark.parametrize("commit", [False, True])
def test_nested_repositories_keep_their_files(room: Room, commit: bool) -> None:
    room.prepare()
    nested = room.repo / "vendor" / "lib"
    nested.mkdir(parents=True)
    sh(nested, "init", "-q")
    write(nested, "code.c", "int x;\n")
    if commit:
        sh(nested, "add", "-A")
        sh(nested, "commit", "-q", "-m", "inner")
        sh(room.repo, "add", "-A")
        sh(room.repo, "commit", "-q", "-m", "as a link")
    snap = room.snap()
    assert "embedded_repository" in {problem.slug for problem in snap.blocking}
    assert room.show(snap.sha, "vendor/lib/code.c") == "int x;"


def test_odd_files_are_reported_and_nothing_is_lost(room: Room) -> None:
    room.prepare()
    write(room.repo, "good.txt")
    write(room.repo, "new\nline", "n\n")
    Path(os.fsdecode(os.fsencode(room.repo) + b"/bad\xff")).write_text("b\n")
    write(room.repo, "-rf", "dash\n")
    write(room.repo, ".GIT/x", "x\n")
    write(room.repo, "Case", "1")
    write(room.repo, "case", "2")
    os.mkfifo(room.repo / "fifo")
    (room.repo / "src/a.py").unlink()
    os.mkfifo(room.repo / "src/a.py")
    (room.repo / "out").symlink_to("/etc/passwd")
    (room.repo / "up").symlink_to("src/../../..")
    (room.repo / "fine").symlink_to("src/b.py")
    write(room.repo, "locked/inner.txt", "inner\n")
    write(room.repo, "noread", "secret\n").chmod(0)
    (room.repo / "locked").chmod(0)
    snap = room.snap()
    by_slug: dict[str, set[str]] = {}
    for problem in snap.problems:
        by_slug.setdefault(problem.slug, set()).add(problem.path)
    assert by_slug["bad_path"] == {".GIT/x", "new\nline", "bad\udcff"}
    assert by_slug["symlink_escape"] == {"out", "up"}
    assert by_slug["special_file"] == {"src/a.py"}
    assert len(by_slug["case_collision"]) == 1
    assert {"good.txt", "new\nline", "-rf", "noread", "locked/inner.txt", "fine"} <= room.names(snap.sha)
    assert room.show(snap.sha, "noread") == "secret"


def test_directories_replaced_by_links_and_files(room: Room, tmp_path: Path) -> None:
    room.prepare()
    write(tmp_path, "elsewhere/a.py", "stolen\n")
    shutil.rmtree(room.repo / "src")
    (room.repo / "src").symlink_to(tmp_path / "elsewhere")
    (room.repo / "README.md").unlink()
    write(room.repo, "README.md/inside", "in\n")
    snap = room.snap()
    assert room.names(snap.sha) == {".gitignore", "src", "README.md/inside"}
    assert "symlink_escape" in room.slugs(snap)


def test_limits(room: Room) -> None:
    room.prepare()
    write(room.repo, "one.bin", b"\0" * 5000)
    write(room.repo, "two", "2\n")
    write(room.repo, ".gitattributes", "*.bin text diff\n")
    snap = room.snap(max_files=2, max_file_bytes=4000, max_total_bytes=4500, binaries="reject")
    found = {(problem.slug, problem.path) for problem in snap.blocking}
    assert found == {("too_many_files", ""), ("too_large", "one.bin"), ("too_large", ""), ("binary", "one.bin")}
    assert room.names(snap.sha) >= {"one.bin", "two"}
    small = room.snap(rescue_bytes=1000)
    assert ("too_large", "one.bin") in {(problem.slug, problem.path) for problem in small.blocking}


def test_a_damaged_object_store_loses_only_the_commits(room: Room) -> None:
    room.prepare()
    write(room.repo, "work.txt", "work\n")
    sh(room.repo, "add", "-A")
    sh(room.repo, "commit", "-q", "-m", "work")
    head = sh(room.repo, "rev-parse", "HEAD")
    loose = room.repo / ".git/objects" / head[:2] / head[2:]
    loose.chmod(0o644)
    loose.write_bytes(b"rubbish")
    snap = room.snap()
    assert "damaged_history" in {problem.slug for problem in snap.blocking}
    assert room.show(snap.sha, "work.txt") == "work"


def test_a_narrowed_checkout_is_no_deletion(room: Room) -> None:
    room.prepare()
    sh(room.repo, "sparse-checkout", "set", "docs")
    assert not (room.repo / "src").exists()
    write(room.repo, "docs/x")
    snap = room.snap()
    assert {"src/a.py", "docs/x"} <= room.names(snap.sha)


def test_a_lost_index_copy_costs_time_only(room: Room) -> None:
    room.prepare()
    write(room.repo, "x")
    room.index.unlink()
    snap = room.snap()
    assert snap.files == 1


def test_the_live_diff_writes_nothing(room: Room) -> None:
    room.prepare()
    write(room.repo, "src/a.py", "a = 5\n")
    cache, repo = fingerprint(room.cache), fingerprint(room.repo)
    now = diff_now(room.cache, room.repo, room.base.sha, room.index)
    text, truncated, files, plus, minus = now.text, now.truncated, now.files, now.insertions, now.deletions
    assert ("+a = 5" in text, truncated, files, plus, minus) == (True, False, 1, 1, 1)
    assert (fingerprint(room.cache), fingerprint(room.repo)) == (cache, repo)
    assert diff_now(room.cache, room.repo, room.base.sha, room.index, limit=20).truncated


@pytest.mark.parametrize("name", [".gitignore", ".gitattributes", "src/.gitignore", "deep/er/.gitattributes"])
@pytest.mark.parametrize("kind", ["pipe", "pipe in a locked directory", "socket", "link to a pipe"])
def test_a_pipe_where_git_looks_for_a_file(
    room: Room, name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck, "PATIENCE_S", 0.15)
    room.prepare()
    place = room.repo / name
    write(room.repo, f"{Path(name).parent}/work.txt", "work\n")
    place.unlink(missing_ok=True)
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(place.parent):
            listener.bind(place.name)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "outside")
        place.symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(place)
        if kind.endswith("directory") and place.parent != room.repo:
            place.parent.chmod(0)
    text = diff_now(room.cache, room.repo, room.made.start, room.index).text
    assert "work.txt" in text
    begun = time.monotonic()
    taken = room.snap()
    assert time.monotonic() - begun < 20
    assert any(path.endswith("work.txt") for path in room.names(taken.sha))
    if kind == "link to a pipe":
        assert (tmp_path / "outside").is_fifo(), "a link was followed"


def test_a_slow_git_that_waits_for_nothing_is_left_in_peace(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck, "PATIENCE_S", 0.0)
    room.prepare()
    write(room.repo, "more")
    assert "more" in room.names(room.snap().sha)
