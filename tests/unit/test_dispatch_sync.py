"""Remotes by the daemon's own clock: when each is asked, what a push moves, and what is remembered of the person."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh, write

from coreagent import events
from coreagent.capabilities import sync as faces
from coreagent.capability import Caller
from coreagent.dispatch.sync import Known, Sync
from coreagent.errors import CoreAgentError
from coreagent.git import fetch as git_fetch
from coreagent.models.dispatch import Event, Repo

FACES = faces.__name__
"""Imported for what it registers."""


def shared(room: Room, tmp: Path) -> Callable[[str], str]:
    """Give the room's repository a remote; returns how somebody else pushes a file there."""
    sh(tmp, "clone", "-q", "--bare", "project", "remote.git")
    sh(room.repo, "remote", "add", "origin", str(tmp / "remote.git"))
    sh(tmp, "clone", "-q", "remote.git", "other")
    other = tmp / "other"

    def push(name: str) -> str:
        write(other, name)
        sh(other, "add", "-A")
        sh(other, "commit", "-q", "-m", name)
        sh(other, "push", "-q", "origin", "HEAD:main")
        return sh(other, "rev-parse", "HEAD")

    return push


def pushed(room: Room, repo: str, branch: str, org: str = "core") -> None:
    message = events.WorkspacePushed(repo=repo, branch=branch, org=org)
    room.core.bus.publish(Event(at=room.core.now(), name=message.type, data=message.payload()))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def run(tmp: Path, body: Callable[[Room], Awaitable[None]], settings: str = "") -> None:
    in_room(tmp, body, running=True, settings=settings)


def test_a_push_moves_the_branch_it_names_in_a_managed_checkout_only(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        push = shared(room, tmp_path)
        await room.ask("repo.add", path=str(room.repo))
        first = push("one.txt")
        pushed(room, "project", "main")
        await until(lambda: git_fetch.tip(room.repo / ".git", "main") == first)
        assert sh(room.repo, "rev-parse", "main") != first
        await room.ask("repo.add", path=str(room.repo), managed=True)
        sh(room.repo, "branch", "side", "main")
        second = push("two.txt")
        pushed(room, "core/project", "nowhere")  # fetched; there is no such branch to move
        pushed(room, "project", "../../evil")
        pushed(room, "unknown", "main")
        await until(lambda: git_fetch.tip(room.repo / ".git", "main") == second)
        assert sh(room.repo, "rev-parse", "main") != second
        pushed(room, "project", "main")
        await until(lambda: sh(room.repo, "rev-parse", "HEAD") == second)
        assert (room.repo / "two.txt").is_file()
        assert sh(room.repo, "rev-parse", "side") != second
        # In the way of the next one: refused by git, and told by `repo list`.
        write(room.repo, "three.txt", "mine\n")
        push("three.txt")
        pushed(room, "project", "main")
        known = room.engine.upkeep.sync.known
        await until(lambda: "in the way" in known(str(room.repo)).error)
        assert (room.repo / "three.txt").read_text() == "mine\n"

    run(tmp_path, body)


def test_a_remote_is_asked_every_interval_and_the_rarer_the_more_it_fails(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.ask("repo.add", path=str(room.repo))
        sync, path, now = room.engine.upkeep.sync, str(room.repo), room.core.now()
        room.core.now = lambda: now  # type: ignore[method-assign]

        def wait(**known: Any) -> timedelta:
            sync._known[path] = Known(asked=now, **known)
            return sync.next_at(path) - now

        five = timedelta(minutes=5)
        assert timedelta() < wait() <= five
        moment = sync.next_at(path)
        sync._known[path] = Known(asked=moment - five)  # at its own moment, and then exactly one interval later
        assert abs(sync.next_at(path) - moment) < timedelta(milliseconds=2)
        sync._known[path] = Known(asked=now)
        assert [wait(failures=n) for n in (1, 2, 3)] == [five * 2, five * 4, five * 8]
        assert wait(failures=500) == timedelta(hours=6)
        ((key, repo),) = room.engine.repos.items()
        room.engine.repos[key] = repo.model_copy(update={"added_at": now - timedelta(days=200)})
        assert timedelta() < wait() <= five  # nobody works on it, and it is asked all the same
        sync._known[path] = Known(asked=now + timedelta(hours=1))  # the clock was set back
        assert sync.next_at(path) == now

    run(tmp_path, body)


def test_many_repositories_are_spread_over_the_interval(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        sync, now = room.engine.upkeep.sync, room.core.now()
        room.core.now = lambda: now  # type: ignore[method-assign]
        paths = [f"/src/{n}" for n in range(300)]
        sync._known = {path: Known(asked=now) for path in paths}
        parts = [0] * 5
        for path in paths:
            parts[min(4, int((sync.next_at(path) - now) / timedelta(minutes=1)))] += 1
        assert min(parts) > 30

    run(tmp_path, body)


def test_a_remote_that_hangs_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    go_on = threading.Event()

    def fetch(path: Path, *_: object) -> git_fetch.Fetched:
        asked.append(path.name)
        if path.name == "hangs":
            go_on.wait(20)
        return git_fetch.Fetched(remote=True)

    async def body(room: Room) -> None:
        monkeypatch.setattr(git_fetch, "fetch", fetch)
        now = room.core.now()
        for name in ("hangs", "one", "two"):
            path = str(tmp_path / name)
            room.engine.repos["core", name] = Repo(
                org="core", name=name, path=path, added_at=now - timedelta(days=90), default_branch="main"
            )
            room.engine.upkeep.sync._known[path] = Known(asked=now - timedelta(minutes=1))
        try:
            await until(lambda: min(asked.count("one"), asked.count("two")) >= 3)
        finally:
            go_on.set()
        assert asked.count("hangs") == 1

    run(tmp_path, body, "sync: {fetch_minutes: 0.003}\n")


def test_what_became_of_a_push_is_told_to_whoever_tells_of_it(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        push = shared(room, tmp_path)
        await room.ask("repo.add", path=str(room.repo))
        heard = room.core.bus.subscribe()
        first = push("one.txt")
        told = await room.ask("repo.pushed")
        assert (told.state, told.branch, told.moved) == ("fetched", "main", ["origin/main"])
        assert "your own" in told.note
        async with asyncio.timeout(20):
            async for event in heard:
                if event.name == "WorkspacePushed":
                    break
        assert event.data == {"Repo": "project", "Branch": "main", "Org": "core"}
        await room.ask("repo.add", path=str(room.repo), managed=True)
        told = await room.ask("repo.pushed", repo="core/project", branch="main")
        assert (told.state, told.after, sh(room.repo, "rev-parse", "HEAD")) == ("forwarded", first, first)
        assert (await room.ask("repo.pushed")).state == "current"
        told = await room.ask("repo.pushed", branch="nowhere")
        assert (told.state, "no branch nowhere" in told.note) == ("fetched", True)
        # Two at once tell of the same, and each is answered.
        push("two.txt")
        both = await asyncio.gather(room.ask("repo.pushed"), room.ask("repo.pushed"))
        assert {one.state for one in both} <= {"forwarded", "current"}
        write(room.repo, "three.txt", "mine\n")
        push("three.txt")
        told = await room.ask("repo.pushed")
        assert (told.state, "in the way" in told.error, bool(told.hint)) == ("failed", True, True)
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("repo.pushed", branch="../../evil")
        assert caught.value.slug == "no_such_ref"
        sh(room.repo, "checkout", "-q", "--detach")
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("repo.pushed")
        assert "is on no branch" in caught.value.message
        with pytest.raises(CoreAgentError) as caught:
            await room.ask("repo.pushed", caller=Caller(role="worker", attempt="a", cwd=str(room.repo)))
        assert caught.value.slug == "role_forbidden"
        assert room.engine.upkeep.sync._reporters == {}

    assert FACES
    run(tmp_path, body)


def test_only_how_remotes_are_reached_is_remembered_of_a_persons_shell(tmp_path: Path) -> None:
    sync = Sync(None)  # type: ignore[arg-type]
    env = {
        "SSH_AUTH_SOCK": "/run/agent",
        "HTTPS_PROXY": "http://proxy",
        "OPENAI_API_KEY": "sk-1",
        "PATH": "/bin",
    }
    sync.heard(Caller(role="worker", env=env))
    assert sync._env == {}
    sync.heard(Caller(env=env))
    assert sync._env == {key: env[key] for key in ("SSH_AUTH_SOCK", "HTTPS_PROXY", "PATH")}


def test_one_repository_is_never_fetched_twice_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(room: Room) -> None:
        shared(room, tmp_path)
        sh(room.repo, "worktree", "add", "-q", str(tmp_path / "linked"), "-b", "linked")
        at_once, most = 0, 0
        real = git_fetch.fetch

        def counted(*arguments: Any) -> git_fetch.Fetched:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            try:
                return real(*arguments)
            finally:
                at_once -= 1

        monkeypatch.setattr(git_fetch, "fetch", counted)
        sync = room.engine.upkeep.sync
        await asyncio.gather(*(sync.fetch(str(path)) for path in (room.repo, tmp_path / "linked") * 2))
        assert most == 1
        with pytest.raises(CoreAgentError) as caught:
            await sync.fetch(str(tmp_path / "nowhere"))
        assert caught.value.slug == "repo_not_found"
        row = await sync.report(str(tmp_path / "nowhere"))
        assert row.error
        assert sync.known(str(tmp_path / "nowhere")).failures == 2

    run(tmp_path, body)


def test_a_row_of_an_older_release_is_no_managed_one() -> None:
    old = {"org": "o", "name": "n", "path": "/p", "added_at": "2026-01-01T00:00:00Z"}
    assert not Repo.model_validate(old).managed
