"""From what was asked for to the queue: names, issues, and two who ask at the same time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh

from coreagent.dispatch import rows
from coreagent.errors import CoreAgentError
from coreagent.models.agent import Reason
from coreagent.models.dispatch import Fate, State


def test_the_same_issue_twice_at_once(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        both = (room.ask("dispatch", task="mend it", issue=7, ephemeral=True) for _ in range(2))
        replies = await asyncio.gather(*both)
        assert sorted(r.workspace for r in replies) == ["local/project/task-7", "local/project/task-7-2"]
        assert len(room.engine.repos) == 1
        assert not room.engine.reserved
        assert not room.engine.arriving

    in_room(tmp_path, body)


def test_a_second_dispatch_of_an_issue_resumes_what_rests_and_only_that(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        first = await room.ask("dispatch", task="mend it", issue=7, ephemeral=True)
        await room.ask("cancel", workspace="task-7")
        own = await room.ask("dispatch", task="mine", issue=7, name="mine", ephemeral=True)
        assert (own.workspace, own.resumed) == ("local/project/mine", False)
        again = await room.ask("dispatch", task="mend more", issue=7, ephemeral=True)
        assert (again.workspace, again.resumed) == (first.workspace, True)
        resumed = room.engine.board[first.dispatch_id]
        assert (resumed.state, resumed.next_kind, resumed.next_prompt) == (State.QUEUED, "dispatch", "mend more")
        await room.ask("cancel", workspace="task-7")
        await room.engine.update(resumed, fate=Fate.REJECTED)
        third = await room.ask("dispatch", task="mend it", issue=7, ephemeral=True)
        assert third.workspace == "local/project/task-7-2"

    in_room(tmp_path, body)


def test_nothing_is_kept_of_a_dry_run_or_of_what_could_not_be_queued(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        shown = await room.ask("dispatch", task="mend it", dry_run=True)
        assert shown.dry_run
        assert "mend it" in shown.prompt
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("dispatch", task="mend it")
        assert refused.value.slug == "store_ephemeral"
        engine = room.engine
        assert not engine.board
        assert not engine.repos
        assert not engine.bases
        assert not engine.reserved
        assert not engine._applied
        assert not list((room.home / "pending").iterdir())

    in_room(tmp_path, body)


@pytest.mark.parametrize("name", ["../x", "-x", "x.lock", "A", "x" * 60, "a..b", "a/b", "x\n"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    async def body(room: Room) -> None:
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("dispatch", task="t", name=name, ephemeral=True)
        assert refused.value.slug == "invalid_name"

    in_room(tmp_path, body)


def test_a_name_is_given_once_and_a_branch_left_over_is_no_name(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        sh(room.repo, "branch", "agent/mend")
        made = await room.ask("dispatch", task="mend", ephemeral=True)
        assert made.workspace == "local/project/mend-2"
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("dispatch", task="t", name="mend-2", ephemeral=True)
        assert refused.value.slug == "workspace_busy"

    in_room(tmp_path, body)


def test_a_prepared_one_that_could_not_be_says_so_and_can_be_resumed(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        with pytest.raises(CoreAgentError, match="setup hook"):
            await room.prepare("one")
        (found,) = room.engine.board.values()
        assert (found.state, found.reason) == (State.PAUSED, Reason.PREP_FAILED)
        assert found.detail.startswith("not prepared: the setup hook")
        assert rows.row(room.engine, found).needs_me
        await room.ask("resume", workspace="one")
        assert room.now(found).state is State.QUEUED

    in_room(tmp_path, body, settings="hooks: {setup: {run: 'exit 3'}}\n")


def test_a_name_whose_branch_is_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        sh(room.repo, "branch", "agent/mine")
        sh(room.repo, "branch", "agent/deep/er")
        sh(room.repo, "pack-refs", "--all")
        for name, branch in (("mine", "agent/mine"), ("deep", "agent/deep/er")):
            with pytest.raises(CoreAgentError) as refused:
                await room.ask("dispatch", task="t", name=name, ephemeral=True)
            assert refused.value.slug == "branch_exists"
            assert f"git branch -m {branch} " in refused.value.hint
        assert not room.engine.board
        sh(room.repo, "branch", "-m", "agent/mine", "elsewhere")
        assert (await room.ask("dispatch", task="t", name="mine", ephemeral=True)).branch == "agent/mine"

    in_room(tmp_path, body)


def test_a_branch_that_leaves_no_room_for_any_other(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        sh(room.repo, "branch", "agent")
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("dispatch", task="t", ephemeral=True)
        assert (refused.value.slug, "git branch -m agent" in refused.value.hint) == ("branch_exists", True)

    in_room(tmp_path, body)


@pytest.mark.parametrize("registered", [True, False])
def test_worktrees_of_one_repository_share_no_name(tmp_path: Path, registered: bool) -> None:
    async def body(room: Room) -> None:
        second = tmp_path / "second"
        sh(room.repo, "worktree", "add", "-q", str(second), "-b", "other")
        if registered:
            await room.ask("repo.add", path=str(second))
        # At the same time and one after the other: neither sees a branch of the other's.
        both = [room.ask("dispatch", task="mend", repo=str(top), ephemeral=True) for top in (room.repo, second)]
        replies = await asyncio.gather(*both)
        assert sorted(r.branch for r in replies) == ["agent/mend", "agent/mend-2"]
        assert {r.workspace.split("/")[1] for r in replies} == {"project", "second"}
        third = await room.ask("dispatch", task="mend", repo=str(second), ephemeral=True)
        assert third.branch == "agent/mend-3"
        await room.ask("dispatch", task="t", name="mine", ephemeral=True)
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("dispatch", task="t", name="mine", repo=str(second), ephemeral=True)
        assert (refused.value.slug, "local/project/mine" in refused.value.message) == ("workspace_busy", True)

    in_room(tmp_path, body)


def test_an_answer_needs_a_question(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        found = await room.prepare("one")
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("resume", workspace="one", answer="yes")
        assert refused.value.slug == "nothing_to_resume"
        assert 'core-agent resume one "also do ..."' in refused.value.hint
        assert room.now(found).state is State.PAUSED

    in_room(tmp_path, body)


@pytest.mark.parametrize("name", ["ANSWER.md", "BLOCKED.md"])
def test_an_answer_sets_a_directory_aside_that_is_in_its_place(tmp_path: Path, name: str) -> None:
    async def body(room: Room) -> None:
        found = await room.engine.update(await room.prepare("one"), question="which?")
        repo = room.checkout(found)
        (repo / name).mkdir()
        (repo / name / "x").write_text("of the agent")
        await room.ask("resume", workspace="one", answer="this one")
        assert "this one" in (repo / "ANSWER.md").read_text()
        assert not (repo / "BLOCKED.md").exists()
        (kept,) = (repo.parent / ".meta").glob(f"aside-*/{name}/x")
        assert kept.read_text() == "of the agent"
        assert str(kept.parent) in room.now(found).detail

    in_room(tmp_path, body)


def test_an_answer_that_cannot_be_written_is_refused_and_the_question_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    async def body(room: Room) -> None:
        found = await room.engine.update(await room.prepare("one"), question="which?")
        (room.checkout(found) / "ANSWER.md").mkdir()
        monkeypatch.setattr("coreagent.dispatch.prep.os.rename", refuse)
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("resume", workspace="one", answer="this one")
        monkeypatch.undo()
        assert (refused.value.slug, refused.value.cause) == ("dirty_checkout", "Permission denied")
        assert (room.now(found).state, room.now(found).question) == (State.PAUSED, "which?")

    in_room(tmp_path, body)


def test_a_script_that_the_agent_would_not_read_is_refused(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("dispatch", task="t", script="steps: []", ephemeral=True)
        assert (refused.value.slug, "command:work" in refused.value.message) == ("conflicting_options", True)

    in_room(tmp_path, body)
