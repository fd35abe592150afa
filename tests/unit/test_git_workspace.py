"""Inspect, cache and checkout against real git; harvest and rescue into the user's repository."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.support.git_room import AGENT, Room, fingerprint, make_room, sh, write

from coreagent.errors import CoreAgentError
from coreagent.git.bring import BringLimits
from coreagent.git.cache import ensure_cache
from coreagent.git.checkout import checkout
from coreagent.git.harvest import harvest
from coreagent.git.inspect import inspect
from coreagent.git.rescue import rescue_apply, rescue_list, rescue_save


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return make_room(tmp_path)


@pytest.fixture
def user(room: Room) -> Path:
    return room.user


def test_inspect_tells_where_it_stands(user: Path) -> None:
    write(user, "new.txt")
    write(user, "src/a.py", "a = 2\n")
    base = inspect(user / "src")
    assert (base.top, base.ref, base.kind, base.prefix, base.dirty) == (user, "main", "branch", "src", 2)
    assert base.sha == sh(user, "rev-parse", "HEAD")
    sh(user, "checkout", "-q", "--detach")
    assert (inspect(user).ref, inspect(user).kind) == ("", "detached")


@pytest.mark.parametrize("name", ["with space", "new\nline", "ünï", "quote'\"", "-rf"])
def test_inspect_and_checkout_in_odd_places(tmp_path: Path, user: Path, name: str) -> None:
    place = tmp_path / name
    user.rename(place)
    (place / name).mkdir()
    assert inspect(place / name).top == place
    assert inspect(place / name).prefix == name
    room = Room(tmp_path / ("home" + name), place).prepare()
    write(room.repo, name, "x\n")
    assert room.snap().files == 1


def test_inspect_refuses_what_it_cannot_start_from(tmp_path: Path, user: Path) -> None:
    def slug(path: Path, **options: str) -> str:
        with pytest.raises(CoreAgentError) as caught:
            inspect(path, **options)
        return caught.value.slug

    plain = tmp_path / "plain"
    plain.mkdir()
    assert slug(plain) == "not_a_repository"
    assert slug(tmp_path / "nowhere") == "not_a_repository"
    sh(tmp_path, "init", "-q", "--bare", "bare.git")
    assert slug(tmp_path / "bare.git") == "bare_repository"
    assert slug(user / ".git") == "not_a_repository"
    sh(tmp_path, "init", "-q", "unborn")
    assert slug(tmp_path / "unborn") == "unborn_head"
    assert slug(user, branch="nope") == "no_such_ref"
    assert slug(user, tag="nope") == "no_such_ref"
    assert slug(user, branch="--upload-pack=x") == "invalid_name"
    assert slug(user, branch="HEAD") == "invalid_name"


def test_inspect_branches_tags_and_linked_worktrees(tmp_path: Path, user: Path) -> None:
    first = sh(user, "rev-parse", "HEAD")
    sh(user, "tag", "-a", "-m", "x", "v1")
    sh(user, "update-ref", "refs/remotes/origin/far", first)
    sh(user, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")
    write(user, "c")
    sh(user, "add", "c")
    sh(user, "commit", "-q", "-m", "second")
    assert (inspect(user, tag="v1").sha, inspect(user, tag="v1").kind) == (first, "tag")
    assert inspect(user, branch="far").sha == first
    assert inspect(user).default_branch == "trunk"
    sh(user, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"), "HEAD~1")
    linked = inspect(tmp_path / "linked")
    assert (linked.ref, linked.sha, linked.common_dir) == ("side", first, user / ".git")
    room = Room(tmp_path / "h", tmp_path / "linked").prepare()
    write(room.repo, "n")
    harvest(room.cache, tmp_path / "linked", "agent/job", room.snap().sha)
    assert sh(user, "show", "agent/job:n") == "text"


def test_preparing_writes_nothing_in_the_users_repository_and_shares_no_inode(room: Room) -> None:
    sh(room.user, "config", "core.fsmonitor", "touch pwned; false")
    before = fingerprint(room.user)
    room.prepare()
    assert fingerprint(room.user) == before
    theirs = {path.stat().st_ino for path in (room.user / ".git").rglob("*") if path.is_file()}
    ours = {path.stat().st_ino for path in room.home.rglob("*") if path.is_file()}
    assert not theirs & ours
    assert not (room.cache / "objects" / "info" / "alternates").exists()
    assert sh(room.repo, "status", "--porcelain") == ""
    assert sh(room.repo, "symbolic-ref", "HEAD") == "refs/heads/agent/job"
    assert sh(room.repo, "config", "user.name") == AGENT.name
    assert sh(room.repo, "remote") == ""
    sh(room.repo, "fsck", "--strict")


def test_the_second_workspace_and_a_moved_branch_reuse_the_cache(tmp_path: Path, room: Room) -> None:
    room.prepare()
    write(room.user, "more")
    sh(room.user, "add", "more")
    sh(room.user, "commit", "-q", "-m", "more")
    base = inspect(room.user)
    ensure_cache(room.cache, base)
    other = checkout(room.cache, base, tmp_path / "w2" / "repo", "agent/two", tmp_path / "i2", AGENT)
    assert other.start == base.sha
    assert (tmp_path / "w2/repo/more").is_file()


def test_agent_side_files_are_excluded_unless_the_project_tracks_them(room: Room) -> None:
    write(room.user, "AGENTS.md", "ours\n")
    sh(room.user, "add", "AGENTS.md")
    sh(room.user, "commit", "-q", "-m", "agents")
    room.prepare()
    for path in ("CLAUDE.md", "BLOCKED.md", ".claude/settings.json", "AGENTS.md"):
        write(room.repo, path, "agent\n")
    assert sh(room.repo, "status", "--porcelain").split() == ["M", "AGENTS.md", "??", "CLAUDE.md"]
    write(room.repo, ".gitignore", "!CLAUDE.md\n!.claude\n")
    shutil.rmtree(room.repo / ".git")
    snap = room.snap()
    assert {"AGENTS.md", ".gitignore", "CLAUDE.md"} == room.names(snap.sha) & {
        "AGENTS.md", ".gitignore", "CLAUDE.md", "BLOCKED.md", ".claude/settings.json"
    }  # fmt: skip
    assert snap.left == (".claude/settings.json",)  # no commit has it, and nobody else: it is not lost


def test_agent_side_files_that_the_agent_committed_are_not_lost_either(room: Room) -> None:
    room.prepare()
    write(room.repo, ".claude/commands/x.md", "agent\n")
    write(room.repo, "BLOCKED.md", "?\n")
    sh(room.repo, "add", "-f", ".claude")
    sh(room.repo, "commit", "-q", "-m", "mine")
    snap = room.snap()
    assert ".claude/commands/x.md" not in room.names(snap.sha)
    assert snap.left == (".claude/commands/x.md",)


def test_carried_changes_are_not_the_agents(room: Room) -> None:
    write(room.user, "src/a.py", "a = 'mine'\n")
    write(room.user, "notes/new file", "new\n")
    (room.user / "src/b.py").unlink()
    (room.user / "link").symlink_to("README.md")
    write(room.user, "x.log", "ignored\n")
    before = fingerprint(room.user)
    room.prepare(with_changes=True)
    assert fingerprint(room.user) == before
    assert room.made.carried == 4
    assert (room.repo / "src/a.py").read_text() == "a = 'mine'\n"
    assert not (room.repo / "src/b.py").exists()
    assert not (room.repo / "x.log").exists()
    assert sh(room.repo, "status", "--porcelain") == ""
    assert room.snap().sha == room.made.start != room.base.sha
    write(room.repo, "agent.txt")
    snap = room.snap()
    assert (snap.files, snap.insertions) == (1, 1)


def test_carrying_is_bounded(room: Room) -> None:
    write(room.user, "one")
    write(room.user, "two")
    with pytest.raises(CoreAgentError) as caught:
        room.prepare(with_changes=True, limits=BringLimits(files=1))
    assert caught.value.slug == "too_large"
    assert not room.repo.exists()


@pytest.mark.parametrize("where", ["global", "xdg"])
def test_what_their_own_git_ignores_is_neither_counted_nor_carried(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "global":
        ignored = write(tmp_path, "my-ignores", ".secret\n")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(write(tmp_path, "gc", f"[core]\n excludesFile = {ignored}\n")))
    else:
        write(tmp_path, "xdg/git/ignore", ".secret\n")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    write(room.user, ".secret", "KEY=1\n")
    assert inspect(room.user).dirty == 0
    write(room.user, "src/a.py", "a = 2\n")
    assert inspect(room.user).dirty == 1
    room.prepare(with_changes=True)
    assert room.made.carried == 1
    assert ".secret" not in room.names(room.made.start)


def test_the_scan_runs_nothing_that_a_persons_configuration_names(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write(tmp_path, "run", f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    write(tmp_path, "hooks/post-index-change", program.read_bytes()).chmod(0o755)
    config = f"[core]\n fsmonitor = {program}\n hooksPath = {tmp_path}/hooks\n pager = {program}\n"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(write(tmp_path, "gc", config)))
    write(room.user, "src/a.py", "a = 2\n")
    room.prepare(with_changes=True)
    assert room.made.carried == 1
    assert not (tmp_path / "ran").exists()


def test_worktreeinclude_copies_only_ignored_files_and_they_never_reach_a_commit(room: Room, tmp_path: Path) -> None:
    write(tmp_path, "secret", "outside\n")
    write(room.user, ".worktreeinclude", ".env\nbuild/keep*\n/../secret\nnotignored\n*.log\n")
    write(room.user, ".env", "KEY=1\n")
    write(room.user, "build/keep [1].txt", "k\n")
    write(room.user, "build/other", "o\n")
    write(room.user, "notignored", "n\n")
    (room.user / "evil.log").symlink_to("../secret")
    room.prepare()
    assert room.made.included == 2
    assert (room.repo / ".env").read_text() == "KEY=1\n"
    assert (room.repo / "build/keep [1].txt").exists()
    assert not (room.repo / "notignored").exists()
    assert not os.path.lexists(room.repo / "evil.log")
    # The agent takes the ignore rules away, and commits the secret by force as well.
    write(room.repo, ".gitignore", "")
    assert sh(room.repo, "status", "--porcelain").split() == ["M", ".gitignore"]
    sh(room.repo, "add", "-f", ".env", ".gitignore")
    sh(room.repo, "commit", "-q", "-m", "all of it")
    write(room.repo, "good.txt")
    snap = room.snap()
    assert room.names(snap.sha) & {".env", "good.txt", "build/keep [1].txt"} == {"good.txt"}
    assert ".env" not in sh(room.cache, "log", "--name-only", "--format=", snap.sha)
    assert "agent_file_committed" in room.slugs(snap)
    assert not snap.blocking
    assert "all of it" in sh(room.cache, "log", "-1", "--format=%B", snap.sha)


def test_harvest_adds_one_ref_its_reflog_and_objects_and_nothing_else(room: Room, tmp_path: Path) -> None:
    hook = write(room.user, ".git/hooks/reference-transaction", f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    sh(room.user, "config", "gc.auto", "1")
    (tmp_path / "ran").unlink(missing_ok=True)
    room.prepare()
    write(room.repo, "new.py", "n\n")
    snap = room.snap()
    before = fingerprint(room.user)
    harvest(room.cache, room.user, "agent/job", snap.sha)
    harvest(room.cache, room.user, "agent/job", snap.sha)
    after = fingerprint(room.user)
    assert {path: after[path] for path in before} == before
    new = {path for path in after.keys() - before.keys() if not (room.user / path).is_dir()}
    assert {path for path in new if not path.startswith(".git/objects/")} == {
        ".git/refs/heads/agent/job", ".git/logs/refs/heads/agent/job"
    }  # fmt: skip
    assert len([path for path in new if path.startswith(".git/objects/")]) == 3
    assert not (tmp_path / "ran").exists()
    sh(room.user, "fsck", "--strict")


def test_harvest_sends_what_is_new_also_where_there_is_much(room: Room) -> None:
    for number in range(150):  # from a hundred objects on they are written as a pack
        write(room.user, f"f{number}", f"{number}\n")
    sh(room.user, "add", "-A")
    sh(room.user, "commit", "-q", "-m", "many")
    room.prepare()
    write(room.repo, "new.py", "n\n")
    snap = room.snap()
    before = set(sh(room.user, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split())
    harvest(room.cache, room.user, "agent/job", snap.sha)
    counted = dict(line.split(": ") for line in sh(room.user, "count-objects", "-v").splitlines())
    assert (counted["packs"], int(counted["count"])) == ("0", len(before) + 3)


def test_harvest_never_takes_a_branch_somebody_else_moved(room: Room, tmp_path: Path) -> None:
    room.prepare()
    write(room.repo, "one")
    first = room.snap().sha
    harvest(room.cache, room.user, "agent/job", first)
    write(room.repo, "two")
    second = room.snap().sha
    sh(room.user, "worktree", "add", "-q", str(tmp_path / "wt"), "agent/job")

    def slug(old: str) -> str:
        with pytest.raises(CoreAgentError) as caught:
            harvest(room.cache, room.user, "agent/job", second, old)
        return caught.value.slug

    assert slug(first) == "branch_moved"
    sh(room.user, "worktree", "remove", str(tmp_path / "wt"))
    assert slug("") == "branch_moved"
    harvest(room.cache, room.user, "agent/job", second, first)
    sh(room.user, "branch", "-f", "agent/job", "main")
    assert slug(second) == "branch_moved"
    sh(room.user, "branch", "-D", "agent/job")
    sh(room.user, "branch", "agent")
    assert slug("") == "branch_moved"
    assert sh(room.user, "rev-parse", "agent") == room.base.sha


def test_rescue_keeps_and_gives_back(room: Room) -> None:
    room.prepare()
    write(room.repo, "one")
    first = rescue_save(room.cache, "job", room.snap().sha)
    assert rescue_save(room.cache, "job", first.sha) == first
    write(room.repo, "two")
    second = rescue_save(room.cache, "job", room.snap().sha)
    assert [rescue.n for rescue in rescue_list(room.cache)] == [1, 2]
    assert rescue_list(room.cache, "other") == []
    assert rescue_apply(room.cache, room.user, "job") == second
    assert sh(room.user, "show", "rescue/job-2:two") == "text"
    rescue_apply(room.cache, room.user, "job", 1, "again")
    assert sh(room.user, "rev-parse", "again") == first.sha
    for name, n, branch, slug in (("job", 9, "", "rescue_not_found"), ("x", 0, "", "rescue_not_found"),
                                  ("job", 2, "again", "branch_moved"), ("job", 2, "-f", "invalid_name"),
                                  ("job", 2, "HEAD", "invalid_name")):  # fmt: skip
        with pytest.raises(CoreAgentError) as caught:
            rescue_apply(room.cache, room.user, name, n, branch)
        assert caught.value.slug == slug
