"""Frames and openings, one rule at a time; tests/property/test_frames.py cuts them anywhere."""

from __future__ import annotations

import os
import socket

import pytest

from coreagent import wire


def test_a_long_message_is_a_run_of_frames() -> None:
    for size in (0, 1, wire.MAX - 1, wire.MAX, wire.MAX + 1, 2 * wire.MAX):
        payload = os.urandom(size)
        frames = wire.Decoder(wire.FROM_DAEMON).feed(wire.frame(wire.REPLY, payload))
        assert all(len(piece) == wire.MAX for _, piece in frames[:-1])
        joiner = wire.Joiner()
        whole = [joiner.add(kind, piece) for kind, piece in frames]
        assert whole[:-1] == [None] * (len(frames) - 1)
        assert whole[-1] == payload


def test_a_head_is_refused_before_its_payload_is_awaited() -> None:
    with pytest.raises(wire.BadFrame, match="longer"):
        wire.Decoder(wire.FROM_CLIENT).feed(b"O" + (wire.MAX + 1).to_bytes(4, "big"))
    with pytest.raises(wire.BadFrame, match="unknown"):
        wire.Decoder(wire.FROM_CLIENT).feed(b"G")
    with pytest.raises(wire.BadFrame, match="unknown"):
        wire.Decoder(wire.FROM_CLIENT).feed(wire.frame(wire.EXIT, b"0"))


def test_a_message_has_a_limit_and_is_not_cut_by_another() -> None:
    joiner = wire.Joiner(limit=wire.MAX)
    assert joiner.add(wire.OPEN, b"x" * wire.MAX) is None
    with pytest.raises(wire.BadFrame, match="longer"):
        joiner.add(wire.OPEN, b"x")
    joiner = wire.Joiner()
    joiner.add(wire.OPEN, b"x" * wire.MAX)
    with pytest.raises(wire.BadFrame, match="cut"):
        joiner.add(wire.CALL, b"")


def test_of_another_protocol_only_who_speaks_is_read() -> None:
    opening = wire.Opening.unpack(b"2\x00" + b"9.0\x00/opt/python\x00whatever\x00comes")
    assert (opening.wire, opening.version, opening.executable, opening.argv) == (2, "9.0", "/opt/python", [])


@pytest.mark.parametrize(
    "payload", [b"", b"1", b"x\0\0", b"1\0" * 8 + b"5\0a", b"1\0v\0e\0/\x000\x000\x001\x00000\x00-1", b"\xff\xfe"]
)
def test_what_is_no_opening_is_a_bad_frame(payload: bytes) -> None:
    with pytest.raises(wire.BadFrame):
        wire.Opening.unpack(payload)


@pytest.mark.parametrize(
    ("one", "other", "is_newer"),
    [
        ("0.1.0", "0.1.0", False),
        ("0.1.1", "0.1.0", True),
        ("0.10.0", "0.9.9", True),
        ("1.0", "1.0.0", False),
        ("0.9", "0.10", False),
        ("nonsense", "0.0.1", False),
        ("2.0rc1", "1.9", True),
    ],
)
def test_newer(one: str, other: str, is_newer: bool) -> None:
    assert wire.newer(one, other) is is_newer


@pytest.mark.parametrize(
    ("argv", "here"),
    [
        ([], True),
        (["--help"], True),
        (["status", "--help"], True),
        (["dispatch", "--", "--help"], False),
        (["status"], False),
        (["--json", "status"], False),
        (["version"], True),
        (["--version"], True),
        (["daemon", "stop"], True),
        (["daemon/stop"], True),
        (["repo/list"], False),
        (["attach", "x"], True),
        (["dispatch", "daemon"], False),
    ],
)
def test_which_words_stay_in_the_clients_process(argv: list[str], here: bool) -> None:
    assert wire.runs_here(argv) is here


def test_only_named_variables_travel() -> None:
    env = {"PATH": "/bin", "ANTHROPIC_API_KEY": "k", "AWS_REGION": "r", "DATABASE_URL": "secret", "MINE": "m"}
    assert wire.passed(env, ["MINE"]) == {k: v for k, v in env.items() if k != "DATABASE_URL"}


def test_a_trailing_star_stands_for_any_ending() -> None:
    env = {"MYAPP_KEY": "k", "MYAPP_": "e", "MYAPP": "no", "OTHER": "no", "LITERAL*": "l"}
    assert wire.passed(env, ["MYAPP_*", "LITERAL*"]) == {"MYAPP_KEY": "k", "MYAPP_": "e", "LITERAL*": "l"}
    assert wire.passed(env, ["*"]) == env


def test_the_kernel_names_the_peer() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert wire.peer(one) == (os.getpid(), os.getuid())
