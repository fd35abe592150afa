"""Pages of a log: every entry once, from either end, whatever its lines are like."""

from __future__ import annotations

from pathlib import Path

import pytest

from coreagent.dispatch import logbook
from coreagent.dispatch.logbook import Place, read_page, tail_place
from coreagent.runners import load


def page(out: Path, place: Place = Place(), limit: int = 100, *, whole: bool = False) -> logbook.Page:  # noqa: B008
    return read_page(out, load("command").parser(), 2, place, limit, whole_lines=whole)


def texts(found: logbook.Page) -> list[str]:
    return [entry.event.text for entry in found.entries]


@pytest.mark.parametrize("text", ["", "x", "-1:2", "1", "1:", ":1", "1:2:3", "9" * 40 + ":1", "²:1"])
def test_a_place_that_nobody_wrote_is_the_beginning(text: str) -> None:
    assert Place.parse(text) == Place()


def test_a_place_is_read_as_it_was_written() -> None:
    assert Place.parse(str(Place(12, 3))) == Place(12, 3)


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert page(tmp_path / "out") == logbook.Page([], Place(), False)
    assert tail_place(tmp_path / "out", 5) == (Place(), 0)
    assert logbook.stderr_tail(tmp_path / "err") == ""


def test_a_page_ends_where_the_next_begins(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"one\ntwo\nthree\n")
    first = page(out, limit=2)
    assert (texts(first), first.more, first.next) == (["one", "two"], True, Place(8, 2))
    rest = page(out, first.next)
    assert (texts(rest), rest.more) == (["three"], False)
    assert [(e.attempt, e.offset) for e in rest.entries] == [(2, 3)]
    with out.open("ab") as file:
        file.write(b"four\n")
    assert texts(page(out, rest.next)) == ["four"]


def test_an_unfinished_line_waits_while_its_agent_lives(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"one\nunfin")
    waiting = page(out, whole=True)
    assert (texts(waiting), waiting.next) == (["one"], Place(4, 1))
    assert texts(page(out)) == ["one", "unfin"]
    with out.open("ab") as file:
        file.write(b"ished\n")
    assert texts(page(out, waiting.next, whole=True)) == ["unfinished"]


def test_a_page_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logbook, "PAGE_BYTES", 10)
    out = tmp_path / "out"
    out.write_bytes(b"12345\n" * 5)
    found = page(out)
    assert (len(found.entries), found.more, found.next.offset) == (2, True, 12)


def test_a_place_past_the_end_gives_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"one\n")
    assert page(out, Place(400, 7)) == logbook.Page([], Place(400, 7), False)


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (b"", 3, b""),
        (b"one\n", 3, b"one\n"),
        (b"one\ntwo\nthree\n", 1, b"three\n"),
        (b"one\ntwo\nthree\n", 2, b"two\nthree\n"),
        (b"one\ntwo\nthr", 2, b"two\nthr"),
        (b"\n\n\n", 2, b"\n\n"),
    ],
)
def test_the_last_lines(tmp_path: Path, content: bytes, lines: int, expected: bytes) -> None:
    out = tmp_path / "out"
    out.write_bytes(content)
    place, skipped = tail_place(out, lines)
    assert content[place.offset :] == expected
    assert skipped == place.offset == len(content) - len(expected)


def test_a_tail_does_not_begin_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logbook, "TAIL_BYTES", 10)
    out = tmp_path / "out"
    out.write_bytes(b"a long first line\ntwo\nend\n")
    assert out.read_bytes()[tail_place(out, 50)[0].offset :] == b"two\nend\n"


def test_the_end_of_standard_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logbook, "STDERR_SHOWN", 5)
    (tmp_path / "err").write_bytes(b"before\xff last")
    assert logbook.stderr_tail(tmp_path / "err") == " last"
    (tmp_path / "err").write_bytes(b"\xff")
    assert logbook.stderr_tail(tmp_path / "err") == "\ufffd"
