"""The environment of a task: for its person's eyes, as long as it may run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coreagent.dispatch import environment


def test_what_was_saved_is_loaded_and_forgotten(tmp_path: Path) -> None:
    home = str(tmp_path)
    env = {"PATH": "/bin", "ODD": "a=b\nc \udcff", "EMPTY": ""}
    environment.save(home, "one", env)
    environment.save(home, "one", env | {"MORE": "x"})
    assert environment.load(home, "one") == env | {"MORE": "x"}
    environment.forget(home, "one")
    environment.forget(home, "one")
    assert environment.load(home, "one") is None
    assert os.listdir(tmp_path / "pending") == []


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        environment.save(str(tmp_path), "one", {"TOKEN": "s3cret"})
    finally:
        os.umask(before)
    assert (tmp_path / "pending").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "pending" / "one.env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"text"', "\xff"])
def test_what_makes_no_sense_is_no_environment(tmp_path: Path, text: str) -> None:
    (tmp_path / "pending").mkdir()
    (tmp_path / "pending" / "one.env").write_bytes(text.encode("latin-1"))
    assert environment.load(str(tmp_path), "one") is None


def test_only_those_of_tasks_that_may_run_stay(tmp_path: Path) -> None:
    home = str(tmp_path)
    environment.forget_others(home, set())  # a home without any
    for name in ("queued", "ended"):
        environment.save(home, name, {"A": "b"})
    (tmp_path / "pending" / "queued.env.part").write_text("half")
    (tmp_path / "pending" / "queued.part").write_text("half")
    environment.forget_others(home, {"queued"})
    assert os.listdir(tmp_path / "pending") == ["queued.env"]
