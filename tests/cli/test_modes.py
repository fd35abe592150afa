"""Who may read what: the daemon's own files nobody else, a person's files whom the person lets."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from tests.support.home import Home
from tests.support.world import World

SETTINGS = """\
  shy: {argv: [sh, -c, 'umask > umask.txt; stat -c %a README.md . > modes.txt; echo more >> README.md']}
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def wish() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_persons_files_get_the_modes_that_his_own_git_would_give_them(home: Home, wish: int) -> None:
    world = World(home, settings=SETTINGS)
    home.run("dispatch", "work", "--name", "one", "--agent", "command:shy", "--wait", cwd=world.repo)
    git_dir = world.repo / ".git"
    assert mode(git_dir / "refs/heads/agent") == 0o777 & ~wish
    home.run("accept", "one", cwd=world.repo)
    assert int((world.repo / "umask.txt").read_text(), 8) == wish
    assert (world.repo / "modes.txt").read_text().split()[0] == f"{0o666 & ~wish:o}"
    for path in (world.repo / "README.md", world.repo / "umask.txt", git_dir / "index", git_dir / "refs/heads/main"):
        assert mode(path) == 0o666 & ~wish, path
    assert {mode(place) for place in (git_dir / "objects").iterdir() if place.is_dir()} == {0o777 & ~wish}
    for path in (home.core, home.core / "run", home.core / "workspace", home.core / "archive"):
        assert mode(path) == 0o700, path


def test_they_stay_so_when_the_daemon_becomes_another_release(home: Home, wish: int) -> None:
    world = World(home, settings=SETTINGS)
    home.run("daemon", "restart")
    home.run("dispatch", "work", "--name", "one", "--agent", "command:shy", "--wait", cwd=world.repo)
    home.run("accept", "one", cwd=world.repo)
    assert mode(world.repo / "README.md") == 0o666 & ~wish
