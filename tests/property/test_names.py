"""Names never escape a directory, never break a ref, are never read as an option."""

from __future__ import annotations

import subprocess
from pathlib import PurePosixPath

from hypothesis import given, settings
from hypothesis import strategies as st

from coreagent.dispatch import names

ANY_TEXT = st.text(max_size=200)


@given(ANY_TEXT)
def test_a_slug_is_always_a_valid_name(text: str) -> None:
    made = names.slug(text)
    assert names.valid(made)
    assert PurePosixPath(made).parts == (made,)
    assert not made.startswith(("-", "."))


@given(ANY_TEXT)
def test_a_directory_name_is_always_valid(text: str) -> None:
    assert names.valid(names.directory_name(text, "repo"))


@given(st.lists(ANY_TEXT, min_size=1, max_size=8))
def test_unique_names_stay_valid_and_differ(texts: list[str]) -> None:
    taken: list[str] = []
    for text in texts:
        made = names.unique(names.slug(text), taken)
        assert made not in taken
        assert names.valid(made)
        taken.append(made)


@settings(max_examples=25, deadline=None)
@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True).filter(names.valid))
def test_git_takes_every_valid_name_as_a_branch(name: str) -> None:
    assert subprocess.run(["git", "check-ref-format", "--branch", f"agent/{name}"], capture_output=True).returncode == 0


def test_hostile_names_are_refused() -> None:
    for bad in ("", ".", "..", "-x", "a/b", "a\\b", "a b", "a\n", "a..b", "x.lock", "x.git", "A", "é", "a" * 49, "a."):
        assert not names.valid(bad), bad
