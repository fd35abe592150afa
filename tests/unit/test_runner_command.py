"""The command runner: any program as an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from coreagent.errors import CoreAgentError
from coreagent.models.agent import EventKind, Outcome, Reason
from coreagent.runners.base import TEXT_LIMIT, Launch, NoSettings
from coreagent.runners.command import Command
from coreagent.spool import Spool


@dataclass(frozen=True)
class Own:
    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(
        prompt="Do it.",
        session_id="s",
        repo_dir=str(tmp_path),
        workspace_dir=str(tmp_path),
        tmp_dir=str(tmp_path / "tmp"),
        env={"PATH": "/usr/bin:/bin", "A": "client"},
    )


def test_argv_environment_and_prompt(launch: Launch) -> None:
    own = Own(["sh", "-c", "cat"], {"A": "own", "B": "1"})
    plan = Command().plan(replace(launch, command=own, args=["more"], settings=NoSettings(args=["set"])))
    assert plan.argv[0] in ("/bin/sh", "/usr/bin/sh")
    assert plan.argv[1:] == ["-c", "cat", "set", "more"]
    assert (plan.env["A"], plan.env["B"]) == ("own", "1")
    assert plan.stdin == b"Do it."


def test_a_relative_program_is_the_checkouts(launch: Launch) -> None:
    assert Command().plan(replace(launch, command=Own(["./agent"]))).argv == ["./agent"]


@pytest.mark.parametrize(
    ("own", "slug"),
    [(None, "settings_invalid"), (Own([]), "settings_invalid"), (Own(["no-such-program"]), "runner_missing")],
)
def test_bad_commands(launch: Launch, own: Own | None, slug: str) -> None:
    with pytest.raises(CoreAgentError) as error:
        Command().plan(replace(launch, command=own))
    assert error.value.slug == slug
    assert error.value.hint


def test_lines_become_text() -> None:
    parser = Command().parser()
    lines = [b"one\n", b"\n", b"  \n", b"bad \xff\xfe utf\n", b'{"json": 1}\n', b'{"core_agent":"mine"}\n']
    events = [event for line in lines for event in parser.feed(line)]
    assert [event.text for event in events] == [
        "one",
        "bad \ufffd\ufffd utf",
        '{"json": 1}',
        '{"core_agent":"mine"}',
    ]
    assert {event.kind for event in events} == {EventKind.TEXT}
    outcome = parser.end(0, None)
    assert (outcome.terminal, outcome.unparsed, outcome.events) == ("success", 0, 4)


@pytest.mark.parametrize(
    "own",
    [
        '{"core_agent":"cut","bytes":5}',
        '{"core_agent": "cut", "bytes": 5}',
        '{"core_agent": "dropped", "bytes": 5}',
        ' {"core_agent": "cut", "bytes": 5}',
        '{"core_agent": "cut"} and more',
        '   {"core_agent": "dropped"',
        ' {"core_agent": "acp"}',
    ],
)
def test_a_line_of_the_programs_own_is_told_as_it_was_printed(tmp_path: Path, own: str) -> None:
    printed = own.encode()
    chunks = [printed + b"\n", b"x\n" + printed + b"\ny\n", printed[:20], printed[20:] + b"\n", b"z" * 99, b"z" * 99]
    spool = Spool(str(tmp_path / "out"), 1 << 20, 1 << 20, 150)
    for chunk in chunks:
        spool.feed(chunk)
    spool.close()
    parser = Command().parser()
    lines = (tmp_path / "out").read_bytes().splitlines(keepends=True)
    said = [event for line in lines for event in parser.feed(line)]
    assert [event.text for event in said] == [own, "x", own, "y", own, "z" * 150, "[48 bytes of this line were cut]"]
    assert [event.data for event in said if event.data] == [{"cut": 48}]
    assert parser.outcome.last_text == "z" * 150


def test_a_long_line_is_bounded_at_a_whole_character() -> None:
    (event,) = Command().parser().feed("é".encode() * 1_000_000)
    assert len(event.text.encode()) <= TEXT_LIMIT
    assert "\ufffd" not in event.text
    assert event.text.endswith("…")


@pytest.mark.parametrize(
    ("code", "signal", "terminal", "reason"),
    [
        (0, None, "success", None),
        (1, None, "error", Reason.ERROR),
        (137, None, "error", Reason.ERROR),
        (None, 9, "none", Reason.DIED),
        (None, None, "none", Reason.DIED),
    ],
)
def test_exit_status_is_the_ending(code: int | None, signal: int | None, terminal: str, reason: Reason | None) -> None:
    outcome: Outcome = Command().parser().end(code, signal, b"why it failed\n")
    assert (outcome.terminal, outcome.reason) == (terminal, reason)
    assert ("why it failed" in outcome.message) is (terminal != "success")
