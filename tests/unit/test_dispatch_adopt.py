"""Worktrees of other tools, taken over: what comes along, and that nothing of them is changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh

from coreagent.capabilities import adopt
from coreagent.capability import Caller
from coreagent.cli.views.compare import adopt_lines
from coreagent.cli.views.text import Paint
from coreagent.dispatch import sessions
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import State

ID = "0f0e0d0c-1111-4222-8333-444455556666"
CLAUDE = """#!/bin/sh
case "$*" in *--version*) echo '2.1.328 (Claude Code)'; exit;; esac
echo "$@" > "$CLAUDE_CONFIG_DIR/argv"
cat > "$CLAUDE_CONFIG_DIR/said"
echo more >> by-claude.txt
printf '%s\\n' '{"type":"system","subtype":"init","session_id":"ID","model":"m"}'
printf '%s\\n' '{"type":"result","subtype":"success","is_error":false,"result":"done","session_id":"ID"}'
""".replace("ID", ID)


def worktree(room: Room, path: Path, branch: str = "user/fix-it") -> Path:
    """One with a commit, a changed file, a new one and a deleted one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (room.repo / "gone.txt").write_text("x\n")
    sh(room.repo, "add", "gone.txt")
    sh(room.repo, "commit", "-q", "-m", "second")
    sh(room.repo, "worktree", "add", "-q", "-b", branch, str(path))
    (path / "done.txt").write_text("done\n")
    sh(path, "add", "done.txt")
    sh(path, "commit", "-q", "-m", "half of it")
    (path / "a.txt").write_text("changed\n")
    (path / "new.txt").write_text("new\n")
    (path / "gone.txt").unlink()
    return path


def fingerprint(*roots: Path) -> dict[str, str]:
    """Every file below, with what is in it."""
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for root in roots
        for file in sorted(root.rglob("*"))
        if file.is_file() and "/objects/" not in str(file) and "/agent/" not in str(file) and file.name != "index"
    }


async def take(room: Room, path: Path, caller: Caller | None = None, **more: Any) -> Any:
    return await room.ask("adopt", caller, path=str(path), ephemeral=True, **more)


def test_commits_and_uncommitted_changes_come_along_and_nothing_there_changes(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        there = worktree(room, tmp_path / "elsewhere" / "fix-it")
        before = fingerprint(there, room.repo / ".git" / "worktrees", room.repo)
        began = sh(room.repo, "rev-parse", "main")
        (room.repo / "later.txt").write_text("on main\n")
        sh(room.repo, "add", "later.txt")
        sh(room.repo, "commit", "-q", "-m", "third")
        before = fingerprint(there, room.repo)
        reply = await take(room, there)
        assert (reply.workspace, reply.state, reply.branch) == ("local/project/fix-it", State.PAUSED, "agent/fix-it")
        assert (reply.base_ref, reply.base_sha, reply.commits) == ("main", began, 1)
        assert (reply.files, reply.agent, reply.session_id) == (4, "command:work", "")
        assert "no session of claude was found" in reply.notes[0]
        after = {name: text for name, text in fingerprint(there, room.repo).items() if name in before}
        assert after == before
        assert sh(there, "status", "--porcelain").splitlines() == ["M a.txt", " D gone.txt", "?? new.txt"]
        checkout = room.home / "workspace" / "local" / "project" / "fix-it" / "repo"
        assert (checkout / ".git").is_dir()
        assert {p.name for p in checkout.iterdir()} == {".git", "a.txt", "done.txt", "new.txt"}
        assert sh(room.repo, "log", "--format=%s", "main..agent/fix-it").splitlines()[-1] == "half of it"
        shown = await room.ask("diff", workspace="fix-it", stat=True)
        assert (shown.files, shown.base) == (4, began)
        again = await take(room, there)
        assert (again.again, again.dispatch_id) == (True, reply.dispatch_id)
        assert "git log and git diff" in room.engine.board[reply.dispatch_id].task
        await room.ask("resume", workspace="fix-it")
        done = await room.until(room.engine.board[reply.dispatch_id], State.COMPLETED, State.FAILED)
        assert (done.state, done.harvest.files) == (State.COMPLETED, 5)
        landed = await room.ask("accept", workspace="fix-it")
        assert (landed.onto, landed.strategy) == ("main", "merge")
        assert (room.repo / "done.txt").read_text() == "done\n"
        assert (room.repo / "later.txt").exists()
        assert not (room.repo / "gone.txt").exists()
        assert there.is_dir()
        assert sh(room.repo, "rev-parse", "user/fix-it")

    in_room(tmp_path, body, running=True, script="echo more > more.txt")


def session(tmp_path: Path, directory: Path, name: str = ID, age: int = 0) -> Path:
    place = tmp_path / ".claude" / "projects" / sessions.slug(str(directory))
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{name}.jsonl"
    lines = [{"type": "user", "cwd": str(directory), "sessionId": name, "n": 1}, {"type": "summary"},
             {"type": "user", "cwd": f"{directory}/sub", "n": 2}, {"type": "user", "cwd": "/else", "n": 3}]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    os.utime(file, (1_700_000_000 - age, 1_700_000_000 - age))
    return file


def test_the_session_of_claude_goes_on(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        program = tmp_path / "bin" / "claude"
        program.parent.mkdir()
        program.write_text(CLAUDE)
        program.chmod(0o755)
        env = {**room.env, "PATH": f"{program.parent}:{room.env['PATH']}", "ANTHROPIC_API_KEY": "k"}
        caller = Caller(cwd=str(room.repo), env=env)
        there = worktree(room, tmp_path / ".claude-squad" / "worktrees" / "fix_18c2")
        kept = session(tmp_path, there).read_bytes()
        session(tmp_path, there, "aaaaaaaa-1111-4222-8333-444455556666", age=100)
        session(tmp_path, tmp_path)
        state = {"instances": [{"title": "fix-it", "worktree": {"worktree_path": str(there), "base_commit_sha": "x"}}]}
        (tmp_path / ".claude-squad" / "state.json").write_text(json.dumps(state))
        (listed,) = await room.ask("adopt.list", caller)
        assert (listed.source, listed.title, listed.session_id) == ("claude-squad", "fix-it", ID)
        assert (listed.commits, listed.dirty, listed.branch, listed.adopted_as) == (1, 3, "user/fix-it", "")
        reply = await take(room, there, caller)
        assert (reply.agent, reply.session_id) == ("claude", ID)
        place = Path(reply.path)
        copied = place / ".home" / "claude" / "projects" / sessions.slug(str(place / "repo")) / f"{ID}.jsonl"
        lines = copied.read_text().splitlines()
        told = [json.loads(line).get("cwd") for line in lines[:4]]
        assert told == [str(place / "repo"), None, f"{place}/repo/sub", "/else"]
        assert lines[4] == "no json"
        assert copied.stat().st_mode & 0o777 == 0o600
        assert session(tmp_path, there).read_bytes() == kept
        await room.ask("resume", caller, workspace="fix-it", prompt="and the rest")
        done = await room.until(room.engine.board[reply.dispatch_id], State.COMPLETED, State.FAILED)
        assert done.state is State.COMPLETED, done.detail
        argv = (place / ".home" / "claude" / "argv").read_text()
        assert f"--resume {ID}" in argv
        said = (place / ".home" / "claude" / "said").read_text()
        assert said.index(f"from {there} to {place}/repo") < said.index("and the rest")
        assert (await room.ask("adopt.list", caller))[0].adopted_as == "local/project/fix-it"

    in_room(tmp_path, body, running=True)


def test_a_session_that_another_agent_cannot_go_on_with_is_told_of(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        there = worktree(room, tmp_path / ".vibe-kanban" / "worktrees" / "1a2b-fix")
        session(tmp_path, there)
        reply = await take(room, there, agent="command:work", name="mine")
        assert (reply.workspace, reply.session_id) == ("local/project/mine", "")
        assert "command:work cannot go on with it" in reply.notes[0]
        assert [row.source for row in await room.ask("adopt.list")] == ["vibe-kanban"]

    in_room(tmp_path, body)


def test_what_is_no_worktree_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        there = worktree(room, tmp_path / "fix")
        own = await room.prepare("own")
        for path, message in (
            (room.repo, "the repository's own checkout"),
            (tmp_path / "nothing", "is not a directory"),
            (room.checkout(own), "own checkout"),
        ):
            with pytest.raises(CoreAgentError, match=message):
                await take(room, path)
        with pytest.raises(CoreAgentError, match="there is no session"):
            await take(room, there, session=ID)
        with pytest.raises(CoreAgentError, match="no branch 'nope'"):
            await take(room, there, base="nope")
        assert len(room.engine.board) == 1

    in_room(tmp_path, body)


def test_cut_off_in_between_it_is_finished(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        there = worktree(room, tmp_path / "fix")
        (there / ".git").rename(there / "hidden")
        with pytest.raises(CoreAgentError):
            await take(room, there)
        (there / "hidden").rename(there / ".git")
        brought = adopt._brought
        adopt._brought = _dies  # type: ignore[assignment]
        try:
            with pytest.raises(RuntimeError):
                await take(room, there)
        finally:
            adopt._brought = brought
        reply = await take(room, there)
        assert (reply.again, reply.files, reply.state) == (True, 4, State.PAUSED)
        assert len(room.engine.board) == 1

    in_room(tmp_path, body)


async def _dies(*_: Any) -> Any:
    raise RuntimeError("killed")


def test_nothing_but_a_session_can_be_adopted_too(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        path = tmp_path / "same"
        sh(room.repo, "worktree", "add", "-q", "--detach", str(path))
        reply = await take(room, path)
        assert (reply.files, reply.commits, reply.state) == (0, 0, State.PAUSED)
        assert room.engine.board[reply.dispatch_id].name == "same"

    in_room(tmp_path, body)


@pytest.mark.parametrize("agent", ["", "claude", "scripted"])
def test_no_agent_is_needed_to_copy(tmp_path: Path, agent: str) -> None:
    async def body(room: Room) -> None:
        file = room.home / "agents.yaml"
        file.write_text(file.read_text().replace("'command:work'", "claude"))
        room.core.refresh_settings()
        there = worktree(room, tmp_path / "fix")
        reply = await take(room, there, agent=agent)
        assert (reply.agent, reply.files, reply.state) == (agent or "claude", 4, State.PAUSED)
        with pytest.raises(CoreAgentError):
            await room.ask("dispatch", task="do", agent=agent, ephemeral=True)

    in_room(tmp_path, body)


def test_what_cannot_be_brought_home_is_on_no_branch(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        there = worktree(room, tmp_path / "fix")
        (there / "out").symlink_to("/etc/passwd")
        reply = await take(room, there)
        assert reply.branch == "" and any("symlink_escape" in note for note in reply.notes)
        assert not sh(room.repo, "branch", "--list", "agent/*")
        text = " ".join(adopt_lines(reply, 200, Paint(False)))
        assert "1 commit" in text and "on agent/" not in text
        # As it says when it is asked again.
        assert (await take(room, there)).branch == ""

    in_room(tmp_path, body)
