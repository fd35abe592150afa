"""The pool: made in idle time, taken once, thrown away when it is stale, touched, unwanted or half made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh, write

from coreagent.dispatch import warm
from coreagent.git import warm as git_warm

ON = "warm: {min_files: 1, free_mib: 0}\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "QUIET_S", 0.0)
    monkeypatch.setattr(git_warm, "_SETTLE_S", 0.0)


def records(room: Room) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((room.home / "warm").glob("*.json"))]


def trees(room: Room) -> list[Path]:
    place = room.home / "workspace" / ".warm"
    return sorted(place.iterdir()) if place.is_dir() else []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def ready(room: Room, count: int = 1) -> list[dict[str, Any]]:
    pool = room.engine.upkeep.warm
    # And at rest: it would take one out again to bring it to a commit that is made while it still looks around.
    await until(lambda: len(records(room)) == count == len(pool._entries) and pool.resting)
    return records(room)


def run(tmp: Path, body: Callable[[Room], Awaitable[None]], settings: str = ON) -> None:
    in_room(tmp, body, running=True, settings=settings)


def test_the_next_dispatch_takes_it_and_another_is_made(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        (first,) = await ready(room)
        inode = (Path(first["tree"]) / "a.txt").stat().st_ino
        two = await room.prepare("two")
        assert (room.checkout(two) / "a.txt").stat().st_ino == inode
        assert sh(room.checkout(two), "status", "--porcelain") == ""
        await until(lambda: len(records(room)) == 1 and records(room)[0]["id"] != first["id"])
        assert [path.name for path in trees(room)] == [records(room)[0]["id"]]

    run(tmp_path, body)


def test_one_of_an_older_commit_brings_only_the_difference(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        (first,) = await ready(room)
        inode = (Path(first["tree"]) / "a.txt").stat().st_ino
        write(room.repo, "b.txt", "new\n")
        sh(room.repo, "add", "-A")
        sh(room.repo, "commit", "-q", "-m", "second")
        two = await room.prepare("two")
        top = room.checkout(two)
        assert (top / "a.txt").stat().st_ino == inode
        assert (top / "b.txt").read_text() == "new\n"
        assert sh(top, "status", "--porcelain") == ""
        # What is made now is of the branch's tip, and one that fell behind while it lay there is brought along.
        await until(lambda: [r["sha"] for r in records(room)] == [two.base_sha])

    run(tmp_path, body)


def test_what_somebody_touched_is_never_given_away(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        (first,) = await ready(room)
        write(Path(first["tree"]), "a.txt", "not what was committed\n")
        write(Path(first["tree"]), "planted.txt", "boo\n")
        two = await room.prepare("two")
        assert (room.checkout(two) / "a.txt").read_text() == "a\n"
        assert not (room.checkout(two) / "planted.txt").exists()
        assert not Path(first["tree"]).exists()

    run(tmp_path, body)


@pytest.mark.parametrize("known", ["watched", "found by a later daemon"])
def test_one_that_lay_still_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        (first,) = await ready(room)
        inode = (Path(first["tree"]) / "a.txt").stat().st_ino
        pool = room.engine.upkeep.warm
        if known != "watched":
            with pool._lock:
                pool._unwatch(first["id"])
            pool._wake.set()
            await until(lambda: pool._watched.keys() == {first["id"]})
        looks = []
        monkeypatch.setattr(git_warm, "intact", lambda *given: looks.append(given))
        two = await room.prepare("two")
        assert (room.checkout(two) / "a.txt").stat().st_ino == inode
        assert looks == []

    run(tmp_path, body)


def test_what_was_touched_while_no_daemon_watched_is_thrown_away(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        (first,) = await ready(room)
        pool = room.engine.upkeep.warm
        with pool._lock:
            pool._unwatch(first["id"])
        write(Path(first["tree"]), "a.txt", "not what was committed\n")
        pool._wake.set()
        await until(lambda: not Path(first["tree"]).exists())

    run(tmp_path, body)


@pytest.mark.parametrize(
    "settings",
    [
        "warm: {per_repo: 0, min_files: 1, free_mib: 0}\n",
        "warm: {min_files: 100, free_mib: 0}\n",
        "warm: {min_files: 1, free_mib: 0, max_mib: 0}\n",
        "warm: {min_files: 1, free_mib: 1000000}\n",
    ],
)
def test_none_is_made_where_it_is_not_wished_or_does_not_fit(tmp_path: Path, settings: str) -> None:
    async def body(room: Room) -> None:
        pool = room.engine.upkeep.warm
        await room.prepare("one")
        await until(lambda: not pool._wake.is_set())
        await asyncio.sleep(0.2)
        assert records(room) == []
        assert trees(room) == []
        await room.prepare("two")

    run(tmp_path, body, settings)


def test_more_than_one_when_wished_and_gone_with_the_repository(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        one = await room.prepare("one")
        made = await ready(room, 2)
        assert len({r["tree"] for r in made}) == 2
        await room.ask("reject", workspace="one")
        await room.ask("repo.remove", repo=f"{one.org}/{one.repo}")
        assert (records(room), trees(room)) == ([], [])
        assert list((room.home / "warm").iterdir()) == []

    run(tmp_path, body, "warm: {per_repo: 2, min_files: 1, free_mib: 0}\n")


def test_half_made_ones_and_strays_go_at_the_start_whole_ones_stay(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await room.prepare("one")
        (kept,) = await ready(room)
        place = room.home / "workspace" / ".warm"
        write(place, "half/a.txt")
        write(room.home, "warm/half.index")
        write(room.home, "warm/lost.json", json.dumps({**kept, "id": "lost", "tree": str(place / "lost")}))
        write(room.home, "warm/bad.json", "no json")
        pool = room.engine.upkeep.warm
        pool._entries.clear()
        await asyncio.to_thread(pool._load)
        assert [r["id"] for r in records(room)] == [kept["id"]]
        assert [path.name for path in trees(room)] == [kept["id"]]
        assert {path.name for path in (room.home / "warm").iterdir()} == {f"{kept['id']}.json", f"{kept['id']}.index"}
        two = await room.prepare("two")
        assert not Path(kept["tree"]).exists()
        assert (room.checkout(two) / "a.txt").exists()

    run(tmp_path, body)


def test_nothing_is_made_while_a_workspace_is_prepared(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        room.engine.arriving.add("somebody")
        await room.prepare("one")  # with somebody else on the way
        await asyncio.sleep(0.4)
        assert records(room) == []
        room.engine.arriving.discard("somebody")
        await ready(room)

    run(tmp_path, body)
