"""What people are told: which events, in which words, and never an agent's escapes; and how each channel sends it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.engine_room import Room, in_room

import coreagent.capabilities.notify  # noqa: F401 - for what it registers
from coreagent import process
from coreagent.dispatch import couriers, notice, notify
from coreagent.dispatch.notice import Notice, plain
from coreagent.errors import CoreAgentError
from coreagent.models.agent import Reason
from coreagent.models.dispatch import Dispatch, Event, Harvest, Options, State
from coreagent.sections import NotifySettings, WebhookSettings

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
EVIL = "a\x1b[31mred\x1b[0m \u202egnol\n\x00 $(touch x) <b>bold</b> " + "y" * 5000


def row(**changes: Any) -> Dispatch:
    known: dict[str, Any] = {
        "id": "01J", "org": "acme", "repo": "app", "name": "fix", "repo_path": "/x", "task": "t",
        "agent": "claude:opus", "runner": "claude", "pool": "claude",
        "created_at": NOW, "queued_at": NOW, "changed_at": NOW,
    }  # fmt: skip
    return Dispatch(**(known | changes))


def moved(d: Dispatch, **changes: Any) -> Event:
    data = {"Workspace": d.workspace, "State": str(d.state), "Reason": str(d.reason or ""), "Moved": True} | changes
    return Event(seq=7, at=NOW, name="DispatchChanged", dispatch_id=d.id, workspace=d.workspace, data=data)


def told(d: Dispatch, **settings: Any) -> Notice | None:
    return notice.of_task(moved(d), d, NotifySettings(**settings))


COMPLETE = Harvest(status="complete", branch="agent/fix", files=3)


@pytest.mark.parametrize(
    ("changes", "event", "words"),
    [
        ({"state": State.BLOCKED, "question": "which one?"}, "blocked", "asks: which one?"),
        ({"state": State.FAILED, "reason": Reason.AUTH, "detail": "no key"}, "failed", "failed, auth: no key"),
        ({"state": State.COMPLETED, "harvest": COMPLETE}, "needs_review", "ready for review: 3 changed files"),
        ({"state": State.COMPLETED, "reason": Reason.NO_CHANGES}, "needs_review", "changes were expected"),
        (
            {"state": State.COMPLETED, "reason": Reason.NO_CHANGES, "options": Options(expect="none")},
            "completed",
            "ended well and changed nothing",
        ),
        ({"state": State.COMPLETED, "harvest": Harvest(status="rejected", reason="binary")}, "needs_review", "binary"),
        ({"state": State.PAUSED, "reason": Reason.TURNS_ALONE, "detail": "20 turns"}, "needs_review", "is paused"),
        ({"state": State.PAUSED, "reason": Reason.PAUSED}, "", ""),
        ({"state": State.CANCELLED}, "", ""),
        ({"state": State.RUNNING}, "", ""),
    ],
)
def test_each_ending_is_told_once_and_in_its_own_words(changes: dict[str, Any], event: str, words: str) -> None:
    made = told(row(**changes))
    assert (made.event if made else "") == event
    assert words in (made.text if made else "")


def test_who_wants_completed_only_is_told_of_every_good_end() -> None:
    made = told(row(state=State.COMPLETED, harvest=COMPLETE), on=["completed"])
    assert made is not None and made.event == "completed"
    assert told(row(state=State.BLOCKED), on=["completed"]) is None


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"repos": ["acme/*"]}, True),
        ({"repos": ["other/*"]}, False),
        ({"agents": ["claude*"]}, True),
        ({"agents": ["codex"]}, False),
        ({"repos": ["acme/app"], "agents": ["codex", "claude:opus"]}, True),
    ],
)
def test_filters(settings: dict[str, Any], fits: bool) -> None:
    assert (told(row(state=State.BLOCKED), **settings) is not None) is fits


def test_what_an_agent_wrote_is_plain_and_short() -> None:
    made = told(row(state=State.BLOCKED, question=EVIL, detail=EVIL))
    assert made is not None
    assert len(made.text) <= notice.TEXT_MAX and len(made.question) <= notice.FIELD_MAX
    assert len(made.model_dump_json()) < 3000
    shown = made.text + made.question + made.detail
    assert not [c for c in shown if ord(c) < 32 or c in "\u202e\x7f"]
    assert plain("a\u0000b\u200fc \t d", 80) == "a b c d"


def test_a_task_that_went_on_since_is_told_of_without_today_s_words() -> None:
    gone_on = row(state=State.RUNNING, detail="something else")
    event = moved(row(state=State.BLOCKED))
    made = notice.of_task(event, gone_on, NotifySettings())
    assert made is not None and made.event == "blocked"
    assert "something else" not in made.model_dump_json()


def test_a_parked_pool_is_told_with_its_end() -> None:
    event = Event(
        seq=9, at=NOW, name="PoolParked", data={"Pool": "claude", "Until": NOW.isoformat(), "Why": "rate_limit"}
    )
    made = notice.of_pool(event, NotifySettings(repos=["none/*"]))
    assert (
        made is not None and made.text == "pool claude is parked until 2026-03-04 05:06 UTC: its provider's rate limit"
    )
    assert notice.of_pool(event, NotifySettings(on=["failed"])) is None


# -- channels ----------------------------------------------------------------------------------------------------------


class Hook:
    """A webhook that answers as it is told to, one answer after the other."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.heard: list[tuple[dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.heard.append((dict(self.headers), body))
                code = outer.answers.pop(0) if outer.answers else 200
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


def sent(channel: couriers.Channel, settings: NotifySettings, env: dict[str, str], cwd: Path) -> couriers.Sent:
    made = Notice(id="1", event="test", text="hello", at=NOW)
    return asyncio.run(couriers.send(channel, made, settings, env, str(cwd)))


def posting(url: str, **more: Any) -> NotifySettings:
    return NotifySettings(webhook=WebhookSettings(url=url, **more))


def test_a_webhook_gets_json_and_a_secret_from_the_environment(hook: Hook, tmp_path: Path) -> None:
    settings = posting(hook.url, headers={"Authorization": "HOOK_TOKEN"})
    assert sent("webhook", settings, {"HOOK_TOKEN": "Bearer s3cret"}, tmp_path).problem == ""
    headers, body = hook.heard[0]
    assert headers["Authorization"] == "Bearer s3cret"
    assert (body["event"], body["text"], body["v"]) == ("test", "hello", 1)


@pytest.mark.parametrize(("code", "passing"), [(500, True), (429, True), (404, False), (302, False)])
def test_which_answers_are_worth_another_try(hook: Hook, tmp_path: Path, code: int, passing: bool) -> None:
    hook.answers = [code]
    assert sent("webhook", posting(hook.url), {}, tmp_path) == couriers.Sent(f"{hook.url} answered {code}", passing)


def test_a_secret_stands_in_no_error(hook: Hook, tmp_path: Path) -> None:
    settings = posting(hook.url, headers={"Authorization": "HOOK_TOKEN"})
    missing = sent("webhook", settings, {}, tmp_path)
    assert "HOOK_TOKEN is not set" in missing.problem and not missing.passing
    broken = sent("webhook", settings, {"HOOK_TOKEN": "s3cret\nX: y"}, tmp_path)
    assert broken.problem and "s3cret" not in broken.problem
    assert hook.heard == []
    with pytest.raises(ValidationError):
        WebhookSettings(headers={"Authorization": "Bearer s3cret"})


def test_nobody_there_and_nobody_who_answers(tmp_path: Path) -> None:
    assert sent("webhook", posting("http://127.0.0.1:1/"), {}, tmp_path).passing
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:
        url = f"http://127.0.0.1:{silent.server_address[1]}/"
        assert "did not answer" in sent("webhook", posting(url, timeout_s=0.2), {}, tmp_path).problem


def test_a_command_reads_json_and_its_failure_is_told(tmp_path: Path) -> None:
    settings = NotifySettings(command=["/bin/sh", "-c", "cat > said"])
    assert sent("command", settings, {"PATH": "/bin:/usr/bin"}, tmp_path).problem == ""
    said = (tmp_path / "said").read_text()
    assert json.loads(said)["text"] == "hello"
    assert said.endswith("}\n") and said.count("\n") == 1  # what a shell's `read` takes for a line
    bad = NotifySettings(command=["/bin/sh", "-c", "echo too bad >&2; exit 4"])
    assert sent("command", bad, {}, tmp_path).problem == "/bin/sh ended with exit code 4: too bad"
    assert not sent("command", NotifySettings(command=["/nonexistent"]), {}, tmp_path).passing


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(couriers, "PROGRAM_S", 0.2)
    settings = NotifySettings(command=["/bin/sh", "-c", "sleep 61 & echo $! > pid; wait"])
    assert "did not end" in sent("command", settings, {"PATH": "/bin:/usr/bin"}, tmp_path).problem
    pid = int((tmp_path / "pid").read_text())
    while (found := process.look(pid)) is not None and not found.dead:  # struck, and on a full machine not gone at once
        time.sleep(0.01)


def program(place: Path, name: str) -> None:
    file = place / name
    file.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/said"\n')
    file.chmod(0o755)


@pytest.mark.parametrize("name", ["notify-send", "osascript"])
def test_the_desktop_never_takes_words_for_markup_or_a_script(tmp_path: Path, name: str) -> None:
    program(tmp_path, name)
    argv = couriers.desktop_argv(Notice(id="1", event="blocked", text="-x <b>&</b>", at=NOW), str(tmp_path))
    if name == "notify-send":
        assert argv[-3:] == ["--", "core-agent", "-x &lt;b&gt;&amp;&lt;/b&gt;"]
        assert "--urgency=critical" in argv
    else:
        assert argv[-2:] == ["core-agent", "-x <b>&</b>"]
        assert "<b>" not in " ".join(argv[:-2])
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert sent("desktop", NotifySettings(desktop=True), env, tmp_path).problem == ""
    assert "hello" in (tmp_path / "said").read_text()
    assert not sent("desktop", NotifySettings(desktop=True), {"PATH": "/nonexistent"}, tmp_path).passing


# -- the place in the events --


def heard(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def until(room: Room, path: Path, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        while len(heard(path)) < count:
            await asyncio.sleep(0.01)
    return heard(path)


def test_from_a_run_to_a_notice_and_each_once(tmp_path: Path) -> None:
    said = tmp_path / "said"

    async def body(room: Room) -> None:
        first = await room.ask("dispatch", task="a task", ephemeral=True)
        assert [n["event"] for n in await until(room, said, 1)] == ["needs_review"]
        second = await room.ask("dispatch", task="a task", ephemeral=True, expect="none")
        notices = await until(room, said, 2)
        assert [n["dispatch_id"] for n in notices] == [first.dispatch_id, second.dispatch_id]
        assert notices[0]["files"] == 1
        # Nothing but the ending is told: accepting and letting go are the person's own doing.
        await room.ask("reject", workspace=first.dispatch_id)
        await room.ask("reject", workspace=second.dispatch_id)
        await asyncio.sleep(0.05)
        assert len(heard(said)) == 2
        assert room.engine.controls["notify:command"] <= room.engine.seq
        assert "notify:webhook" not in room.engine.controls

    command = json.dumps(["/bin/sh", "-c", f"cat >> {said}"])
    script = '[ -e done ] || echo x > b.txt; touch "$TMPDIR/x"'
    in_room(tmp_path, body, running=True, script=script, settings=f"notify: {{command: {command}}}\n")


def test_what_was_not_told_is_told_by_the_next_one_and_what_was_is_not(tmp_path: Path) -> None:
    said = tmp_path / "said"

    async def body(room: Room) -> None:
        await room.engine.notifier.stop()
        before = room.engine.seq
        made = await room.ask("dispatch", task="a task", ephemeral=True)
        await room.until(room.engine.board[made.dispatch_id], State.COMPLETED)
        assert heard(said) == []
        assert room.engine.controls["notify:command"] <= before
        for _ in range(3):
            again = notify.Notifier(room.engine)
            again.start()
            assert len(await until(room, said, 1)) == 1
            async with asyncio.timeout(10):
                while room.engine.controls["notify:command"] <= before:
                    await asyncio.sleep(0.01)
            await again.stop()

    command = json.dumps(["/bin/sh", "-c", f"cat >> {said}"])
    settings = f"notify: {{command: {command}}}\n"

    async def begun(room: Room) -> None:
        async with asyncio.timeout(10):
            while "notify:command" not in room.engine.controls:
                await asyncio.sleep(0.01)
        await body(room)

    in_room(tmp_path, begun, running=True, script="echo x > b.txt", settings=settings)


def test_a_dead_channel_is_passed_over_told_of_and_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "PAUSES_S", (0.01, 0.01))
    hook = Hook(500, 500, 500, 500)

    async def body(room: Room) -> None:
        await room.ask("dispatch", task="a task", ephemeral=True)
        async with asyncio.timeout(20):
            while len(hook.heard) < 3 or "notify:webhook" not in room.engine.troubles:
                await asyncio.sleep(0.01)
        assert any("notices by webhook do not arrive" in w for w in (await room.ask("status")).warnings)
        # It is nothing of the task's: told where a person looks after the house.
        assert any("notices by webhook" in w for w in (await room.ask("daemon.status")).warnings)
        made = await room.ask("dispatch", task="a task", ephemeral=True)  # one try, which fails too
        assert not any("notices" in note for note in made.notes)
        await room.ask("dispatch", task="a task", ephemeral=True)
        async with asyncio.timeout(20):
            while "notify:webhook" in room.engine.troubles:
                await asyncio.sleep(0.01)
        assert len(hook.heard) == 5

    try:
        settings = f"notify: {{webhook: {{url: '{hook.url}'}}}}\n"
        in_room(tmp_path, body, running=True, script="echo x > b.txt", settings=settings)
    finally:
        hook.close()


def test_a_test_notice_needs_somebody(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        with pytest.raises(CoreAgentError) as refused:
            await room.ask("notify.test")
        assert refused.value.slug == "nobody_to_notify" and refused.value.hint

    in_room(tmp_path, body)
