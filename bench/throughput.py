"""The row of many small tasks: how much the daemon costs when the agents cost nothing."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.fixture import git, repository
from bench.measure import Row, interleave, timed
from bench.person import Person, person

LANES = 2
TASKS = 500


def lanes(pairs: int, *, quick: bool = False) -> Row:
    """No-op tasks on 1,000 files in two lanes against worktree add, `true`, worktree remove in two lanes.

    Nine interleaved rounds that come to 500 tasks on either side; the workspaces of all rounds stay, as they do for a
    person. Then, unless it is a quick run, 500 at once.
    """
    each = 10 if quick else -(-TASKS // pairs)
    cleaning: list[float] = []
    with repository("small") as top, person(lanes=LANES) as me:
        me.warm()
        me.dispatch(top, "noop")
        me.wait(1)
        measured = interleave(pairs, lambda: ours(me, top, each), lambda: bare(top, me.trees, each))
        cleaning.append(timed(me.clean) / pairs)
        parts = {"with `workspace clean`, x": measured.ratio + cleaning[0] * 1000 / measured.floor_ms}
        parts["ours, ms a task"] = measured.ours_ms / each
        parts["bare loop, ms a task"] = measured.floor_ms / each
        if not quick:
            base = bare(top, me.trees, TASKS)
            parts[f"{TASKS} queued at once, x"] = ours(me, top, TASKS) / base
            me.clean()
    return Row.of_ratio(
        f"{each * pairs} no-op tasks, two lanes", 2.0, "worktree add, true, worktree remove", measured,
        parts=parts,
        note="aim 1.3; queued over the socket by one process; finished workspaces stay, the bare loop removes its own",
    )  # fmt: skip


def ours(me: Person, top: Path, count: int) -> float:
    """Seconds from the first task given to the last one settled."""
    began = time.time()
    for _ in range(count):
        me.dispatch(top, "noop")
    return max(at for name, at in me.wait(count) if name == "settled") - began


def bare(top: Path, scratch: Path, count: int) -> float:
    """Seconds that the loop takes without any daemon."""
    shares = [range(lane, count, LANES) for lane in range(LANES)]

    def loop(share: Iterator[int]) -> None:
        for number in share:
            tree = str(scratch / f"bare{number}")
            worktree(top, tree, "add", "-q", "--detach")
            subprocess.run(["true"], cwd=tree, check=True)
            worktree(top, tree, "remove")

    with ThreadPoolExecutor(LANES) as pool:
        return timed(lambda: list(pool.map(loop, map(iter, shares))))


def worktree(top: Path, tree: str, verb: str, *options: str) -> None:
    """Add or remove a tree. Git fails once in a while when the other lane is at it too; a loop would try again."""
    for last in (False, False, False, False, True):
        try:
            git("worktree", verb, *options, tree, cwd=top)
        except subprocess.CalledProcessError:
            if last:
                raise
            if verb == "add":  # it may have left half a tree
                shutil.rmtree(tree, ignore_errors=True)
                git("worktree", "prune", cwd=top)
        else:
            return
