"""Nothing that an agent of the same user lays into the home keeps the daemon waiting, or leads it elsewhere."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest
from tests.support.engine_room import Room, in_room
from tests.unit.test_claim import NOW

from coreagent import attempts, config
from coreagent.dispatch import cleanup, environment, hook, launch, logbook
from coreagent.dispatch.live import OutputReader
from coreagent.dispatch.workspace import Layout, layout
from coreagent.errors import CoreAgentError
from coreagent.git import record
from coreagent.models.dispatch import Attempt
from coreagent.plainfile import append_plain, open_plain, read_plain, write_plain
from coreagent.procfs import slurp
from coreagent.runners import load

pytestmark = pytest.mark.timeout(20)

KINDS = ("pipe", "socket", "link", "link to a pipe", "directory")


def lay(path: Path, kind: str) -> Path:
    """Put something that is no file where one is expected."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    secret = path.parent / "secret"
    secret.write_text('{"secret": "s3cret", "at": 1}\n')
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
                one.bind(path.name)
        case "link":
            path.symlink_to(secret)
        case "link to a pipe":
            path.with_name("elsewhere").unlink(missing_ok=True)
            os.mkfifo(path.with_name("elsewhere"))
            path.symlink_to("elsewhere")
        case _:
            path.mkdir()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = lay(tmp_path / "it", kind)
    with pytest.raises(OSError):
        open_plain(path)
    with pytest.raises(OSError):
        append_plain(path)
    if kind == "link":
        assert b"s3cret" in read_plain(path, follow=True)
    else:
        with pytest.raises(OSError):
            read_plain(path, follow=True)


@pytest.mark.parametrize("kind", ["pipe", "link", "link to a pipe"])
def test_a_file_takes_the_place_of_what_is_there(tmp_path: Path, kind: str) -> None:
    path = lay(tmp_path / "it", kind)
    os.mkfifo(tmp_path / "it.part")
    write_plain(path, b"new")
    assert not path.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "it.part").exists()
    assert "s3cret" in (tmp_path / "secret").read_text()


def test_a_file_is_read_appended_and_bounded(tmp_path: Path) -> None:
    for text in (b"one", b"two"):
        with append_plain(tmp_path / "log") as file:
            file.write(text)
    assert read_plain(tmp_path / "log") == b"onetwo"
    assert read_plain(tmp_path / "log", 4) == b"onet"


@pytest.mark.parametrize("kind", KINDS)
def test_an_attempt_whose_record_is_no_file(tmp_path: Path, kind: str) -> None:
    for name in ("started", "exit", "lock", "spec.json"):
        lay(tmp_path / name / name, kind)
    started = attempts.read_started(tmp_path / "started")
    assert started == attempts.Started(), "what cannot be read may have run"
    assert attempts.read_exit(tmp_path / "exit") is None
    assert attempts.adopt(tmp_path / "lock") is None
    shim = attempts.Shim(str(tmp_path / "spec.json"), 2**22 - 1, 1, child=False)
    assert shim.dir
    shim.close()


def test_a_pipe_in_an_attempt_does_not_hold_its_shim(tmp_path: Path) -> None:
    assert slurp(str(lay(tmp_path / "spec.json", "pipe"))) == b""


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_that_is_no_file(tmp_path: Path, kind: str) -> None:
    out = lay(tmp_path / "out", kind)
    parser = load("command").parser()
    assert logbook.read_page(out, parser, 1, logbook.Place(), 10, whole_lines=False).entries == []
    assert logbook.tail_place(out, 3) == (logbook.Place(), 0)
    assert logbook.stderr_tail(out) == ""
    assert OutputReader(out, parser).read(final=True) == []


@pytest.mark.parametrize("kind", KINDS)
def test_logs_answers_over_an_attempt_that_was_replaced(tmp_path: Path, kind: str) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        await room.engine.update(made, attempts=1)
        place = layout(str(room.home), room.core.settings, made).attempt(1)
        for name in ("out", "err"):
            lay(place / name, kind if name == "out" or "link" not in kind else "pipe")
        for more in ({}, {"tail": 5}):
            reply = await room.ask("logs", workspace="one", **more)
            assert (reply.entries, reply.stderr) == ([], "")

    in_room(tmp_path, body)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_beside_a_checkout_is_replaced(tmp_path: Path, kind: str) -> None:
    async def body(room: Room) -> None:
        made = await room.prepare("one")
        place = layout(str(room.home), room.core.settings, made)
        lay(place.prompt, kind)
        attempt = Attempt(id="a", dispatch_id=made.id, n=1, claimed_at=NOW)
        with pytest.raises(CoreAgentError) as caught:
            launch.plan(room.engine, made, attempt)
        assert caught.value.slug == "workspace_gone"
        if kind != "directory":
            lay(place.meta / "status.json", kind)
            cleanup.write_status(place, made, attempt)
            assert made.id in (place.meta / "status.json").read_text()

    in_room(tmp_path, body)


@pytest.mark.parametrize("kind", KINDS)
def test_the_daemons_own_notes_are_no_files(tmp_path: Path, kind: str) -> None:
    lay(tmp_path / "pending" / "d.env", kind)
    loaded = environment.load(str(tmp_path), "d")
    assert loaded is None
    with pytest.raises(OSError):
        record.load(lay(tmp_path / "a" / "index.json", kind).with_name("index"))
    place = Layout(tmp_path / "ws")
    lay(place.setup_log, kind)
    hook._say(place, "a line")
    assert hook._tail(place.setup_log) == ""


def test_a_pipe_for_settings_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "agents.yaml")
    with pytest.raises(CoreAgentError) as caught:
        config.load(str(tmp_path), {})
    assert caught.value.slug == "settings_unreadable"
