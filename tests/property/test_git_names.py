"""Names and paths an agent or a person may choose: never an option, never out of the tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from coreagent.git import ref, tree
from coreagent.git.bring import escapes
from coreagent.git.diff import _parse
from coreagent.git.record import Record

NASTY = st.text(st.sampled_from("ab-./\\ ~^:?*[@{\n\x7f\0é.lock"), max_size=12)
PART = st.sampled_from(["a", "b", "..", ".", "", ".git", "c d"])


@settings(max_examples=60, deadline=None)
@given(NASTY)
@example("HEAD")
def test_a_name_we_take_is_one_git_takes(name: str) -> None:
    if ref.valid(name):
        assert not name.startswith("-")
        done = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True, check=False)
        assert done.returncode == 0


@given(st.lists(PART, max_size=6), st.lists(PART, min_size=1, max_size=6))
def test_a_link_that_passes_stays_inside(where: list[str], target: list[str]) -> None:
    path = "/".join([part for part in where if part in ("a", "b")] + ["link"])
    text = "/".join(target)
    if not escapes(path, text):
        joined = os.path.normpath("/top/" + os.path.dirname(path) + "/" + text)
        assert joined == "/top" or joined.startswith("/top/")
        assert ".git" not in joined.split("/")


@given(st.text(max_size=30))
def test_a_path_that_passes_is_plain(path: str) -> None:
    if not tree.bad(path):
        assert not path.startswith("/")
        assert not {"..", ".", ""} & set(path.split("/"))
        assert path.isprintable() or all(ord(char) > 31 for char in path)


@given(st.permutations(list(".GiT")), st.sampled_from(["", ".", " ", "::$INDEX_ALLOCATION", "\u200c", "\\x"]))
def test_git_directories_by_any_other_name(letters: list[str], tail: str) -> None:
    name = "".join(letters)
    assert tree.names_git(name + tail) == (name.lower() == ".git")


@given(st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name))
def test_any_name_survives_the_diff(name: bytes) -> None:
    out = b":100644 100644 aa bb M\0" + name + b"\x001\t2\t" + name + b"\0"
    (change,) = _parse(out)
    assert os.fsencode(change.path) == name
    assert (change.insertions, change.deletions) == (1, 2)


@given(st.sampled_from(["CLAUDE.md", ".claude/a/b", "x/BLOCKED.md", "BLOCKED.md", ".claude"]))
def test_exclusions_are_anchored(path: str) -> None:
    record = Record(top="/t", start="", exclude=["/CLAUDE.md", "/BLOCKED.md", "/.claude/"], included=[".env"])
    assert record.excluded(path) == (path in ("CLAUDE.md", "BLOCKED.md", ".claude/a/b"))
    assert record.excluded(".env")
    assert not record.excluded("sub/.env")


def test_nothing_behind_a_link_is_inside(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert tree.inside(tmp_path, "real/x")
    for path in ("link/x", "../x", "/x", "real/../x", ""):
        assert not tree.inside(tmp_path, path)
