"""Shims that their agents stop: they are woken and asked first, and killed with all below when that does not help."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.test_nursery import in_loop, prepare

from coreagent import attempts, firm, process, procfs
from coreagent.dispatch.vigil import Limits, Vigil
from coreagent.nursery import Nursery

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

STOPS_IT = "kill -STOP $PPID; "
KEEPS_IT_STOPPED = "trap '' TERM; while :; do kill -STOP $PPID; done"


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(attempts, "ANSWER_S", 0.3)
    monkeypatch.setattr(firm, "MARGIN_S", 0.3)
    with tempfile.TemporaryDirectory(prefix="ca") as folder:
        yield Path(folder)


def has_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].startswith(" T")


async def stopped(shim: attempts.Shim) -> None:
    """Wait until the agent has stopped its shim."""
    assert await shim.started() is not None
    while not has_stopped(shim.pid):
        await asyncio.sleep(0.005)


def nothing_left(folder: Path) -> bool:
    return process.by_marker(folder.name) == []


@in_loop
async def test_a_stopped_shim_is_woken_and_ends_by_its_own_word(base: Path) -> None:
    folder = prepare(base, STOPS_IT + "exec sleep 600")
    shim = attempts.spawn(folder)
    await stopped(shim)
    assert await shim.cancel("pause", 1)
    async with asyncio.timeout(20):
        ended = await shim.wait()
    assert (ended.stopped_by, ended.died, ended.forced) == ("pause", False, False)
    assert nothing_left(folder)


@in_loop
async def test_one_that_is_kept_stopped_is_killed_with_all_below(base: Path) -> None:
    folder = prepare(base, KEEPS_IT_STOPPED)
    shim = attempts.spawn(folder)
    await stopped(shim)
    await shim.cancel("cancel", 0.2)
    async with asyncio.timeout(20):
        ended = await shim.wait()
    assert ended.executed
    assert ended.stopped_by == "cancel"
    assert ended.forced == ended.died
    assert nothing_left(folder)
    assert not process.alive(shim.pid, shim.start)


@in_loop
async def test_one_that_is_stopped_after_it_took_the_wish_ends_too(base: Path) -> None:
    folder = prepare(base, "trap 'kill -STOP $PPID' TERM; echo up; while :; do sleep 0.01; done")
    shim = attempts.spawn(folder)
    up = asyncio.Event()
    shim.on_output(lambda out, _err: up.set() if out else None)
    async with asyncio.timeout(20):
        await up.wait()
        assert await shim.cancel("cancel", 0.1)
        ended = await shim.wait()
    assert ended.stopped_by == "cancel"
    assert nothing_left(folder)


@pytest.mark.parametrize(
    ("limits", "name"),
    [(Limits(wall_s=0.2, grace_s=0.1), "timeout"), (Limits(idle_s=0.2, grace_s=0.1), "idle_timeout")],
)
@in_loop
async def test_a_limit_is_held_without_the_shim(base: Path, limits: Limits, name: str) -> None:
    folder = prepare(base, KEEPS_IT_STOPPED)
    shim = attempts.spawn(folder)
    await stopped(shim)
    (folder / "s").unlink()  # nor can it be asked
    vigil = Vigil(shim, limits, time.time())
    async with asyncio.timeout(20):
        ended = await shim.wait()
    vigil.close()
    assert (ended.stopped_by, ended.forced) == (name, True)
    assert nothing_left(folder)


@in_loop
async def test_a_shim_that_answers_knows_its_limits_best(base: Path) -> None:
    os.mkfifo(base / "go")
    shim = attempts.spawn(prepare(base, "cat go; exit 3"))
    await shim.started()
    vigil = Vigil(shim, Limits(wall_s=0.01, grace_s=0), time.time() - 3600)
    await vigil._look("timeout")
    assert process.alive(shim.pid, shim.start)
    vigil.close()
    (base / "go").write_text("")
    assert (await shim.wait()).code == 3


@in_loop
async def test_a_stranger_at_its_socket_is_not_believed(base: Path) -> None:
    folder = prepare(base, KEEPS_IT_STOPPED)
    shim = attempts.spawn(folder)
    await stopped(shim)
    (folder / "s").unlink()

    async def lie(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"ok": true, "state": "running", "age_s": 0, "silent_s": 0}\n')
        writer.close()

    server = await asyncio.start_unix_server(lie, folder / "s")
    assert await shim.status() == {}
    server.close()
    await firm.insist(shim, "cancel", 0)
    assert (await shim.wait()).stopped_by == "cancel"
    assert nothing_left(folder)


async def stopped_unborn(nursery: Nursery, base: Path) -> attempts.Shim:
    """A shim that is stopped before it has claimed its attempt. Its long spec keeps it busy until then, as a rule: on a
    busy machine it can be through with it first, and the next one is tried."""
    for _ in range(50):
        folder = prepare(base, "echo ran > ran")
        spec = json.loads((folder / "spec.json").read_text())
        (folder / "spec.json").write_text(json.dumps(spec) + " " * (48 << 20))
        shim = nursery.spawn(folder)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(shim.pid, signal.SIGSTOP)
            async with asyncio.timeout(20):
                while not has_stopped(shim.pid) and process.alive(shim.pid, shim.start):
                    await asyncio.sleep(0.001)
            if process.alive(shim.pid, shim.start) and not (folder / "started").exists():
                return shim
            os.kill(shim.pid, signal.SIGCONT)
        await shim.wait()
        (base / "ran").unlink(missing_ok=True)
    raise AssertionError("no shim could be stopped in time")


@in_loop
async def test_a_shim_that_is_stopped_before_its_claim_is_not_waited_for(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "BIRTH_S", 0.2)
    nursery = Nursery(str(base))
    for _ in range(2):  # started alone, and forked
        shim = await stopped_unborn(nursery, base)
        async with asyncio.timeout(20):
            assert await shim.started() is None
            ended = await shim.wait()
        assert not ended.executed
        assert not process.alive(shim.pid, shim.start)
        assert not (base / "ran").exists()
    nursery.close()


BARE = "env -i /bin/sh -c 'while :; do /bin/date >> {0}; /bin/sleep 0.01; done'"


@pytest.mark.parametrize(
    "script",
    [
        BARE + "; true",
        BARE + " & exec sleep 600",
        "(" + BARE + " &) ; exec sleep 600",
    ],
)
@pytest.mark.parametrize("met", [True, False])
@in_loop
async def test_what_emptied_its_environment_ends_with_a_killed_shim(base: Path, script: str, met: bool) -> None:
    """Also when the daemon that finds the shim dead never saw it alive."""
    written = base / "orphan.txt"
    folder = prepare(base, script.format(written))
    shim = attempts.spawn(folder)
    assert await shim.started() is not None
    async with asyncio.timeout(20):
        while not written.exists():
            await asyncio.sleep(0.005)
        os.kill(shim.pid, signal.SIGKILL)
        if not met:
            os.waitpid(shim.pid, 0)
            shim.close()
            shim = attempts.Shim(str(folder), shim.pid, shim.start, child=False)
        ended = await shim.wait()
    assert ended.died and ended.killed
    size = written.stat().st_size
    await asyncio.sleep(0.1)
    assert written.stat().st_size == size
    assert [p for p in procfs.table().values() if p.session == shim.pid and not p.dead] == []


def test_only_the_session_that_is_meant_is_struck() -> None:
    """Neither one of an earlier boot, nor one of a process that got the number later, nor what a daemon left in it."""
    script = (
        "import subprocess as s, sys; s.Popen(['sleep', '600'], process_group=0, stdout=s.DEVNULL);"
        "print(s.Popen(['sleep', '600'], stdout=s.DEVNULL).pid, flush=True); sys.stdin.read()"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdin and leader.stdout
    own = int(leader.stdout.readline())
    start, now = process.start_time(leader.pid), time.time()
    members = [p for p in procfs.table().values() if p.session == leader.pid]
    try:
        found = process.in_session(leader.pid, start, now)
        assert len(found) == 1 and found[0].pid not in (own, leader.pid)
        assert process.in_session(leader.pid, start - 1, now) == []  # the number is somebody else's by now
        leader.stdin.close()
        leader.wait(10)
        assert [p.pid for p in process.in_session(leader.pid, start, now)] == [found[0].pid]
        assert process.in_session(leader.pid, found[0].start + 1, now) == []
        assert process.in_session(leader.pid, start, 0.0) == []
        assert process.in_session(0, 0, now) == process.in_session(leader.pid, 0, now) == []
    finally:
        leader.kill()
        for member in members:
            procfs.send(member, signal.SIGKILL)
        leader.stdout.close()
        leader.wait()


def test_only_the_process_that_is_meant_is_struck() -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        start = process.start_time(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        firm.wake(child.pid, start + 1)
        firm.kill(child.pid, start + 1)
        assert process.alive(child.pid, start)
        firm.kill(child.pid, start)
        assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
