"""What the daemon reads from an attempt directory, also from a broken one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from coreagent import attempts
from coreagent.attempts import Started, adopt, read_exit, read_started, spawn, void
from coreagent.errors import CoreAgentError


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert read_started(tmp_path) is None and read_exit(tmp_path) is None and adopt(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\x00"])
def test_an_unreadable_claim_counts_as_made(tmp_path: Path, text: str) -> None:
    (tmp_path / "started").write_text(text)
    assert read_started(tmp_path) == Started()
    assert not void(tmp_path)


def test_void_removes_the_secrets_and_is_final(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{}")
    assert void(tmp_path) and not void(tmp_path)
    started = read_started(tmp_path)
    assert started and started.void and not (tmp_path / "spec.json").exists()


def test_an_exit_is_read_with_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "exit").write_text(json.dumps({"code": 0, "killed": ["12 node"], "usage": {"cpu_s": 1.5}}))
    end = read_exit(tmp_path)
    assert end and end.code == 0 and end.killed == ("12 node",) and end.usage.cpu_s == 1.5
    assert end.executed and not end.died
    (tmp_path / "exit").write_text(json.dumps({"spawn_error": "execute: No such file"}))
    end = read_exit(tmp_path)
    assert end and not end.executed


def test_a_python_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CoreAgentError) as caught:
        spawn(tmp_path, python="/nonexistent/python")
    assert caught.value.slug == "shim_failed"


def test_a_shim_that_fails_before_the_claim_says_why(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("not json")
    end = asyncio.run(_wait(tmp_path))
    assert end.died and not end.executed and "not JSON" in end.spawn_error
    assert void(tmp_path), "nobody started it, so it may be run again elsewhere"


def test_a_cancel_before_the_claim_is_a_stop(tmp_path: Path) -> None:
    async def scenario() -> attempts.ShimExit:
        shim = spawn(tmp_path)  # no spec at all: it ends by itself, cancelled or not
        await shim.cancel("cancel", 0)
        return await shim.wait()

    end = asyncio.run(scenario())
    assert end.stopped_by == "cancel" and not end.executed


async def _wait(folder: Path) -> attempts.ShimExit:
    async with asyncio.timeout(20):
        return await spawn(folder).wait()
