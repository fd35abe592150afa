"""Shims that are forked from the nursery instead of started alone: the same lives, and no need of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from coreagent import process
from coreagent.attempts import read_started
from coreagent.nursery import Nursery

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ca") as folder:
        yield Path(folder)


def prepare(base: Path, script: str) -> Path:
    folder = base / f"A{os.getpid()}x{time.monotonic_ns()}"
    folder.mkdir(mode=0o700)
    spec = {
        "v": 1,
        "attempt": folder.name,
        "argv": ["sh", "-c", script],
        "cwd": str(base),
        "env": {"PATH": os.environ["PATH"]},
        "stdin": None,
        "idle_s": 60,
        "wall_s": 60,
        "out_max": 1 << 20,
        "stop_signal": "TERM",
        "grace_s": 5,
        "socket": str(folder / "s"),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@in_loop
async def test_a_burst_is_born_from_one_process(base: Path) -> None:
    nursery = Nursery(str(base))
    folders = [prepare(base, f"echo $PPID; exit {code}") for code in range(4)]
    shims = [nursery.spawn(folder) for folder in folders]
    mother = nursery._pid
    parents = [process.ancestors(shim.pid)[:1] for shim in shims[1:]]
    ended = [await shim.wait() for shim in shims]
    assert [end.code for end in ended] == [0, 1, 2, 3]
    assert [int((folder / "out").read_text()) for folder in folders] == [shim.pid for shim in shims]
    assert all(found in ([], [(mother, process.start_time(mother))]) for found in parents)
    assert os.stat(folders[3] / "shim.log").st_mode & 0o777 == 0o600
    nursery.close()
    assert not process.alive(mother, process.start_time(mother))


@in_loop
async def test_what_was_born_outlives_the_nursery_and_leads_a_session_of_its_own(base: Path) -> None:
    nursery = Nursery(str(base))
    await nursery.spawn(prepare(base, "true")).wait()
    os.mkfifo(base / "go")
    shim = nursery.spawn(prepare(base, "cat go; exit 7"))
    started = await shim.started()
    assert started is not None
    assert (started.shim_pid, started.shim_start) == (shim.pid, shim.start)
    nursery.close()
    assert os.getsid(shim.pid) == shim.pid
    assert sorted(os.listdir(f"/proc/{shim.pid}/fd"), key=int)[:3] == ["0", "1", "2"]
    assert os.readlink(f"/proc/{shim.pid}/cwd") == shim.dir
    (base / "go").write_text("")
    assert (await shim.wait()).code == 7


@in_loop
async def test_a_killed_or_stopped_nursery_is_done_without(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreagent.nursery.ANSWER_S", 0.2)
    nursery = Nursery(str(base))
    await nursery.spawn(prepare(base, "true")).wait()
    for number in (signal.SIGKILL, signal.SIGSTOP):
        os.kill(nursery._pid, number)
        folder = prepare(base, "exit 5")
        shim = nursery.spawn(folder)
        assert (await shim.wait()).code == 5
        assert read_started(folder) is not None
        assert (await nursery.spawn(prepare(base, "exit 6")).wait()).code == 6
    nursery.close()


@in_loop
async def test_a_nursery_that_ends_by_itself_is_buried(base: Path) -> None:
    nursery = Nursery(str(base))
    await nursery.spawn(prepare(base, "true")).wait()
    mother = nursery._pid
    os.kill(mother, signal.SIGKILL)
    while nursery._link is not None:
        await asyncio.sleep(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(mother, os.WNOHANG)
