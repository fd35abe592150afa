"""Every way in which somebody can touch a watched tree is noticed; to look is allowed."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coreagent.git import stillness
from coreagent.git.stillness import Stillness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (top / name).write_text("as it was made\n")
    return top


def over(top: Path) -> Stillness:
    found = Stillness.over([top, top / "inner"])
    assert found is not None
    return found


def by_mapping(top: Path) -> None:
    with (top / "a").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:2] = b"IS"


def in_place(top: Path) -> None:
    with (top / "inner" / "b").open("r+b") as file:
        file.write(b"IS")


TOUCHES: dict[str, Callable[[Path], object]] = {
    "written": lambda top: (top / "a").write_text("other\n"),
    "written in place": in_place,
    "written by a mapping": by_mapping,
    "mode": lambda top: (top / "a").chmod(0o755),
    "times": lambda top: os.utime(top / "inner" / "b", (1, 1)),
    "new file": lambda top: (top / "inner" / "new").write_text(""),
    "new directory": lambda top: (top / "new").mkdir(),
    "new link": lambda top: (top / "new").symlink_to("a"),
    "removed": lambda top: (top / "a").unlink(),
    "renamed": lambda top: (top / "a").rename(top / "c"),
    "moved out": lambda top: (top / "inner" / "b").rename(top.parent / "b"),
    "directory moved out": lambda top: (top / "inner").rename(top.parent / "inner"),
    "all moved away": lambda top: top.rename(top.parent / "other"),
    "mode of the whole": lambda top: top.chmod(0o755),
}


@pytest.mark.parametrize("how", TOUCHES)
def test_a_touch_is_noticed(tree: Path, how: str) -> None:
    watch = over(tree)
    assert watch.holds()
    TOUCHES[how](tree)
    assert not watch.holds()
    watch.close()


def test_a_look_is_not(tree: Path) -> None:
    watch = over(tree)
    for place, _, names in os.walk(tree):
        assert [os.lstat(Path(place, name)) for name in names]
    assert watch.holds()
    watch.close()


def test_reading_counts_unless_it_is_our_own(tree: Path) -> None:
    for read in (True, False):
        watch = over(tree)
        (tree / "a").read_text()
        assert watch.holds(read=read) is read
        in_place(tree)
        assert not watch.holds(read=True)
        watch.close()


def test_more_than_fits_into_the_queue_is_noticed(tree: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 100_000:
        pytest.skip("this queue is too long for a test")
    watch = over(tree)
    for _ in range(most // 2 + 2):
        # Two kinds of event in turn, or the kernel would make one of them.
        os.listdir(tree)
        os.listdir(tree / "inner")
    assert not watch.holds()
    watch.close()


def test_where_it_cannot_be_done_it_says_so(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Stillness.over([tree, tree / "gone"]) is None
    assert Stillness.over([tree, tree / "a"]) is None
    monkeypatch.setattr(stillness, "MOST", 1)
    assert Stillness.over([tree, tree / "inner"]) is None
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert Stillness.over([tree]) is None
