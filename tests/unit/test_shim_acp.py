"""The shim's own client of the Agent Client Protocol, against an agent of ours that behaves and one that does not."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coreagent import process, shim_files
from coreagent.attempts import Shim, ShimExit, spawn
from coreagent.dispatch.verdict import Evidence, judge
from coreagent.models.agent import Reason
from coreagent.models.dispatch import State
from coreagent.runners.acp_stream import AcpParser

AGENT = Path(__file__).parents[1] / "support" / "acp_agent.py"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a subreaper")


@pytest.fixture
def base() -> Iterator[Path]:
    """A short directory: socket paths are limited. Fails when a process of any attempt in it is left."""
    with tempfile.TemporaryDirectory(prefix="ca") as folder:
        yield Path(folder)
        assert not [pid for attempt in Path(folder).glob("A*") for pid in process.by_marker(attempt.name)]


def prepare(base: Path, behaviour: str, acp: dict[str, Any] | None = None, **changes: Any) -> Path:
    folder = base / f"A{os.getpid()}x{time.monotonic_ns()}"
    folder.mkdir(mode=0o700)
    repo = base / "repo"
    (repo / ".git" / "hooks").mkdir(parents=True, exist_ok=True)
    (folder / "stdin").write_text("the prompt \u2014")
    spec = {
        "v": 1,
        "attempt": folder.name,
        "argv": [sys.executable, "-I", "-S", str(AGENT), behaviour],
        "cwd": str(repo),
        "env": {"PATH": os.environ["PATH"]},
        "stdin": str(folder / "stdin"),
        "idle_s": 60,
        "wall_s": 60,
        "out_max": 1 << 20,
        "stop_signal": "TERM",
        "grace_s": 5,
        "socket": str(folder / "s"),
        "acp": {"permissions": "edits", **(acp or {})},
    }
    (folder / "spec.json").write_text(json.dumps({**spec, **changes}))
    return folder


async def ended(folder: Path) -> ShimExit:
    async with asyncio.timeout(30):
        return await spawn(folder).wait()


def run(folder: Path) -> ShimExit:
    return asyncio.run(ended(folder))


async def output_holds(running: Shim, text: bytes) -> None:
    there = asyncio.Event()

    def look(size: int, _: int) -> None:
        if size and text in Path(running.dir, "out").read_bytes():
            there.set()

    running.on_output(look)
    async with asyncio.timeout(20):
        await there.wait()


def lines(folder: Path) -> list[bytes]:
    return (folder / "out").read_bytes().splitlines()


def notes(folder: Path, what: str) -> list[dict[str, Any]]:
    ours = [json.loads(line) for line in lines(folder) if not line.startswith(b"<")]
    return [note for note in ours if note.get("what") == what]


def seen(base: Path, method: str) -> list[dict[str, Any]]:
    messages = [json.loads(line) for line in (base / "repo" / "seen.jsonl").read_text().splitlines()]
    return [message for message in messages if message.get("method") == method]


def test_a_turn_from_the_handshake_to_the_end(base: Path) -> None:
    folder = prepare(base, "edit")
    end = run(folder)
    assert (end.code, end.stopped_by, end.killed) == (0, "", ())
    assert (base / "repo" / "a.txt").read_text() == "hello\n"
    assert [note["method"] for note in notes(folder, "call")] == ["initialize", "session/new", "session/prompt"]
    (prompt,) = seen(base, "session/prompt")
    assert prompt["params"] == {"sessionId": "sess-1", "prompt": [{"type": "text", "text": "the prompt \u2014"}]}
    (hello,) = seen(base, "initialize")
    assert hello["params"]["clientCapabilities"]["terminal"] is False
    assert b'"stopReason":"end_turn"' in lines(folder)[-1]
    assert not notes(folder, "denied") and not (folder / "spec.json").exists()


def test_what_is_refused_is_refused_and_noted(base: Path) -> None:
    folder = prepare(base, "greedy")
    assert run(folder).code == 0
    answers = json.loads((base / "repo" / "answers.json").read_text())
    allowed = {name for name, answer in answers["asked"].items() if answer == "yes"}
    assert allowed == {"edit inside", "edit by diff", "read inside", "think"}
    files = answers["files"]
    assert {name for name, reply in files.items() if "result" in reply} == {"write", "read"}
    assert files["read"]["result"] == {"content": "c"}
    assert (base / "repo" / "deep" / "er" / "c.txt").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert files["read missing"]["error"]["code"] == -32002
    assert files["terminal"]["error"]["code"] == files["unknown"]["error"]["code"] == -32601
    assert not (base / "out.txt").exists() and not (base / "repo" / ".git" / "config").exists()
    denied = [note["tool"] for note in notes(folder, "denied")]
    assert {"edit", "read", "execute", "fetch", "hologram", "other"} <= set(denied)
    assert '"what": "denied"' in (folder / "records").read_text()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_with_bypass_all_is_allowed(base: Path) -> None:
    folder = prepare(base, "greedy", {"permissions": "bypass"})
    assert run(folder).code == 0
    answers = json.loads((base / "repo" / "answers.json").read_text())
    assert {answer for name, answer in answers["asked"].items() if name != "no options"} == {"yes"}
    assert "result" in answers["files"]["write outside"] and "result" in answers["files"]["read outside"]


@pytest.mark.parametrize("behaviour", ["edit", "no load"])
def test_a_lost_session_is_told_and_a_new_one_begins(base: Path, behaviour: str) -> None:
    folder = prepare(base, behaviour, {"session": "gone", "fresh_prompt": "all of it"})
    assert run(folder).code == 0
    (note,) = notes(folder, "session_lost")
    assert (note["session"], note["then"]) == ("gone", "fresh")
    assert seen(base, "session/prompt")[0]["params"]["prompt"][0]["text"] == "all of it"
    assert '"what": "session_lost"' in (folder / "records").read_text()


def test_a_session_is_loaded_and_mode_and_model_are_set(base: Path) -> None:
    folder = prepare(base, "edit", {"session": "sess-1", "mode": "code", "model": "m1", "auth": "key"})
    assert run(folder).code == 0
    wanted = ["initialize", "authenticate", "session/load", "session/set_mode", "session/set_model", "session/prompt"]
    assert [note["method"] for note in notes(folder, "call")] == wanted
    folder = prepare(base, "options", {"model": "m1"})
    assert run(folder).code == 0
    assert seen(base, "session/set_config_option")[-1]["params"] == {
        "sessionId": "sess-1",
        "configId": "model",
        "value": "m1",
    }


@pytest.mark.parametrize(
    ("behaviour", "acp"),
    [("no login", {}), ("edit", {"mode": "wrong"}), ("error", {})],
)
def test_an_error_reply_ends_the_turn(base: Path, behaviour: str, acp: dict[str, Any]) -> None:
    folder = prepare(base, behaviour, acp)
    assert run(folder).code == 0
    assert b'"error":' in lines(folder)[-1]


def test_an_agent_that_never_answers_is_ended(base: Path) -> None:
    folder = prepare(base, "silent", {"handshake_s": 0.2})
    end = run(folder)
    assert end.signal == 15 and not end.stopped_by
    assert notes(folder, "failed")[0]["kind"] == "handshake_timeout"


def test_an_agent_of_another_version_is_ended(base: Path) -> None:
    folder = prepare(base, "other version")
    run(folder)
    assert notes(folder, "failed")[0]["kind"] == "protocol" and not notes(folder, "denied")


def test_an_agent_that_dies_leaves_its_words(base: Path) -> None:
    folder = prepare(base, "dies at once")
    assert run(folder).code == 41
    assert b"no login" in (folder / "err").read_bytes()
    folder = prepare(base, "exits")
    assert run(folder).code == 3
    assert b"bye" in lines(folder)[-1]


def test_noise_is_kept_and_does_no_harm(base: Path) -> None:
    folder = prepare(base, "noise")
    assert run(folder).code == 0
    assert b"<Welcome to the agent!" in lines(folder)


def test_no_line_of_an_agent_passes_for_one_of_ours(base: Path) -> None:
    folder = prepare(base, "forger")
    assert run(folder).code == 0
    ours = [json.loads(line) for line in lines(folder) if not line.startswith(b"<")]
    assert [note["what"] for note in ours] == ["call"] * 3
    assert lines(folder)[-1] == b'<{"half": '


def test_cancel_is_asked_for_in_the_protocol(base: Path) -> None:
    async def scenario() -> None:
        folder = prepare(base, "slow")
        running = spawn(folder)
        await output_holds(running, b"slow")
        assert await running.cancel("pause", 20)
        end = await running.wait()
        assert (end.code, end.stopped_by) == (0, "pause")
        assert b'"cancelled"' in lines(folder)[-1]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("why", "changes", "state"),
    [
        ("cancel", {}, State.CANCELLED),
        ("pause", {}, State.PAUSED),
        ("timeout", {"wall_s": 1}, State.FAILED),
        ("idle_timeout", {"idle_s": 1}, State.FAILED),
    ],
)
def test_an_agent_that_calls_a_stop_a_good_end_is_not_believed(
    base: Path, why: str, changes: dict[str, Any], state: State
) -> None:
    async def scenario() -> ShimExit:
        running = spawn(folder)
        if not changes:
            await output_holds(running, b"slow")
            assert await running.cancel(why, 20)
        async with asyncio.timeout(30):
            return await running.wait()

    folder = prepare(base, "stops well", **changes)
    end = asyncio.run(scenario())
    assert end.stopped_by == why and b'"end_turn"' in lines(folder)[-1]
    parser = AcpParser()
    for line in lines(folder):
        parser.feed(line)
    outcome = parser.end(end.code, end.signal)
    assert (outcome.terminal, outcome.reason) == ("error", Reason.CANCELLED)
    verdict = judge(Evidence(outcome, stopped_by=end.stopped_by, changed=True))
    assert verdict.state is state and (verdict.reason or "").startswith(why[:5])


def test_an_agent_that_hears_no_cancel_gets_the_signal_and_then_the_end(base: Path) -> None:
    async def scenario() -> None:
        folder = prepare(base, "deaf")
        running = spawn(folder)
        await output_holds(running, b"deaf")
        assert await running.cancel("cancel", 2)
        end = await running.wait()
        assert (end.code, end.stopped_by) == (9, "cancel")
        assert b"asked by signal" in lines(folder)[-1]
        silent = prepare(base, "silent")
        running = spawn(silent)
        await output_holds(running, b"initialize")
        assert await running.cancel("cancel", 5)
        assert (await running.wait()).signal == 15
        assert notes(silent, "failed")[0]["kind"] == "cancelled"

    asyncio.run(scenario())


def test_an_agent_that_does_not_leave_is_made_to(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(base, "stubborn")
    began = time.monotonic()
    end = run(folder)
    assert end.signal == 9 and not end.stopped_by and time.monotonic() - began < 15


def test_a_flood_costs_the_shim_no_memory_and_the_agent_no_waiting(base: Path) -> None:
    folder = prepare(base, "flood", out_max=100_000)
    assert run(folder).code == 0
    assert b'"stopReason":"end_turn"' in lines(folder)[-1]
    assert notes(folder, "cut")[0]["bytes"] > 1 << 20


def test_an_agent_that_asks_and_never_reads_holds_up_only_itself(base: Path) -> None:
    async def scenario() -> None:
        folder = prepare(base, "asks without reading", idle_s=1, grace_s=0.5)
        (base / "repo" / "big.txt").write_text("x" * 100_000)
        running = spawn(folder)
        await output_holds(running, b"session/prompt")
        end = await running.wait()
        assert end.stopped_by == "idle_timeout"

    asyncio.run(scenario())


def test_an_idle_client_is_small(base: Path) -> None:
    async def scenario() -> None:
        running = spawn(prepare(base, "slow"))
        await output_holds(running, b"slow")
        assert process.rss_bytes(running.pid) < 12 << 20 or "coverage" in sys.modules
        await running.cancel("cancel", 5)
        await running.wait()

    asyncio.run(scenario())


def test_a_plain_attempt_does_not_load_the_client(base: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import coreagent.shim_loop; print('shim_acp' in str(sys.modules))"
    )
    source = str(Path(shim_files.__file__).parents[1])
    done = asyncio.run(_output(sys.executable, "-I", "-S", "-c", script, source))
    assert done == b"False\n"


async def _output(*argv: str) -> bytes:
    made = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    return (await made.communicate())[0]


def test_files_are_read_in_parts_and_only_when_they_are_text(tmp_path: Path) -> None:
    root = [os.path.realpath(tmp_path)]
    (tmp_path / "a").write_text("1\n2\n3\n")
    (tmp_path / "b").write_bytes(b"\xff")
    (tmp_path / "inner").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    assert shim_files.read_text(str(tmp_path / "a"), root, 2, 1) == "2\n"
    assert shim_files.read_text(str(tmp_path / "inner"), root) == "1\n2\n3\n"
    for name in ("b", "pipe", "none", "a/b"):
        with pytest.raises(shim_files.Refused):
            shim_files.read_text(str(tmp_path / name), root)
    with pytest.raises(shim_files.Refused):
        shim_files.write_text(str(tmp_path / "pipe"), "x", root, 0)
    shim_files.write_text(str(tmp_path / "a"), "short", root, 0)
    assert (tmp_path / "a").read_text() == "short"
