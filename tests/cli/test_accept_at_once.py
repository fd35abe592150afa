"""Several results that are accepted in the same moment all land."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.support.home import Home
from tests.support.world import World


def test_accepts_at_once_take_turns(home: Home) -> None:
    world = World(home, limit=4)
    names = [f"made{n}" for n in range(5)]
    for name in names:
        assert world.dispatch(f"make {name}", "--name", name)
    rows = world.settle()
    assert {row["state"] for row in rows.values()} == {"completed"}
    with ThreadPoolExecutor(len(names)) as pool:
        replies = list(pool.map(lambda name: home.json("accept", name, cwd=world.repo), names))
    assert {reply["strategy"] for reply in replies} <= {"fast-forward", "merge"}
    assert world.branches() == {"main"}
    tracked = home.git("ls-tree", "-r", "--name-only", "main", cwd=world.repo).split()
    assert all(any(dispatch_id in path for path in tracked) for dispatch_id in rows)
    assert home.git("status", "--porcelain", cwd=world.repo) == ""
