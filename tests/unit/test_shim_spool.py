"""What a spool keeps of a stream, whatever the stream does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from coreagent import plainjson
from coreagent.spool import Spool


def spooled(path: Path, *chunks: bytes, head: int = 100, tail: int = 40, line: int = 60) -> bytes:
    spool = Spool(str(path / "out"), head, tail, line)
    for chunk in chunks:
        spool.feed(chunk)
    spool.close()
    return (path / "out").read_bytes()


def test_lines_pass_unchanged_nuls_and_invalid_utf8_included(tmp_path: Path) -> None:
    assert spooled(tmp_path, b"a\x00\xff\n", b"", b"{}\n") == b"a\x00\xff\n{}\n"


def test_half_a_line_at_the_end_becomes_a_line(tmp_path: Path) -> None:
    assert spooled(tmp_path, b'{"a":', b" 1") == b'{"a": 1\n'


def test_only_whole_lines_are_in_the_file_while_it_grows(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "out"), 100, 40, 60)
    spool.feed(b"one\ntw")
    assert (tmp_path / "out").read_bytes() == b"one\n"
    spool.feed(b"o\nthree")
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\n"
    spool.close()


def test_the_middle_is_dropped_and_the_last_line_kept(tmp_path: Path) -> None:
    lines = [b"%05d\n" % n for n in range(1000)]
    kept = spooled(tmp_path, *lines).splitlines(keepends=True)
    assert kept[:16] == lines[:16]
    marker = json.loads(kept[16])
    assert marker["core_agent"] == "dropped"
    assert kept[17:] == lines[-6:]
    assert marker["bytes"] == 6 * (1000 - 16 - 6)


def test_a_last_line_larger_than_the_tail_is_kept_whole(tmp_path: Path) -> None:
    last = b"x" * 55 + b"\n"
    assert spooled(tmp_path, b"y\n" * 200, last).endswith(b"\n" + last)


def test_a_line_without_end_is_cut_and_says_so(tmp_path: Path) -> None:
    kept = spooled(tmp_path, b"a\n", *[b"z" * 10] * 50, b"\nb\n").splitlines()
    assert kept[0] == b"a" and kept[1] == b"z" * 60
    assert json.loads(kept[2]) == {"core_agent": "cut", "bytes": 440}
    assert kept[3] == b"b"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_failing_write_keeps_the_end_and_names_the_problem(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "out"), 1 << 20, 40, 60)
    spool.feed(b"first\n")
    good, spool.fd = spool.fd, os.open("/dev/full", os.O_WRONLY)
    spool.feed(b"lost to the disk\n")
    os.close(spool.fd)
    spool.fd = good
    spool.feed(b"last\n")
    spool.close()
    assert spool.problem
    assert (tmp_path / "out").read_bytes() == b"first\nlost to the disk\nlast\n"


@pytest.mark.parametrize("bad", [b"", b"{", b"[1", b"nul", b'{"a":1} x', b'"a', b"[" * 100_000, b"\xff", b"{'a':1}"])
def test_broken_json_is_always_a_value_error(bad: bytes) -> None:
    with pytest.raises(ValueError):
        plainjson.loads(bad)
