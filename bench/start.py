"""Rows of a dispatch on its way to the agent's exec, against `git worktree add` of the same repository."""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.fixture import git, repository
from bench.measure import Row, interleave, timed
from bench.person import Person, person

# From the mark before to this one is the part's time.
PARTS = {
    "received": "client and its command line",
    "before-queue": "intake: repository, agent, consent, environment",
    "queued": "task durable",
    "after-claim": "claim durable",
    "cached": "cache",
    "checked-out": "checkout",
    "rendered": "prompt",
    "prepared": "context files, set-up hook, start durable",
    "planned": "plan",
    "spec-written": "spec",
    "spawned": "spawn",
}
AGENT = "shim, claim of the attempt, exec, the agent's own start"


@dataclass
class Floor:
    """`git worktree add` in the person's repository, removed again when nobody looks."""

    top: Path
    scratch: Path
    made: list[Path] = field(default_factory=list)

    def add(self) -> float:
        os.sync()  # as for ours
        tree = self.scratch / f"tree{len(self.made)}-{time.monotonic_ns()}"
        self.made.append(tree)
        return timed(lambda: git("worktree", "add", "-q", "--detach", str(tree), cwd=self.top))

    def clear(self) -> None:
        for tree in self.made:
            git("worktree", "remove", "--force", str(tree), cwd=self.top)
        self.made.clear()


def one_dispatch(me: Person, top: Path) -> dict[str, float]:
    """Dispatch with the installed command; return seconds from its start to each mark and to the agent ("agent").

    What was made and removed before is on the disk then: else the queue's fsync would wait for those 20,000 files.
    """
    os.sync()
    began = time.time()
    said = me.run("dispatch", "Do nothing.", "--repo", str(top), "--agent", "command:stamp", "--json").json()
    left = time.time() - began
    steps = {name: at - began for name, at in me.wait(1)}
    steps["agent"] = me.stamp(said["dispatch_id"]) - began
    steps["left"] = left
    return steps


def large(pairs: int) -> Row:
    """To the exec on 20,000 files: the cache has the commit, nothing is checked out."""
    took: list[dict[str, float]] = []
    with repository("large") as top, person() as me:
        me.warm()
        floor = Floor(top, me.trees)
        first = one_dispatch(me, top)["agent"]

        def ours() -> float:
            took.append(one_dispatch(me, top))
            return took[-1]["agent"]

        def clear() -> None:
            floor.clear()
            me.clean()

        clear()
        measured = interleave(pairs, ours, floor.add, clear)
    received = [(one["agent"] - one["received"]) / base for one, base in zip(took, measured.floor, strict=True)]
    return Row.of_ratio(
        "dispatch to exec, 20,000 files", 1.15, "git worktree add", measured,
        parts={
            "from the daemon's receipt, x": statistics.median(received),
            "command returns after, ms": statistics.median(one["left"] for one in took) * 1000,
            "first of the repository (fills the cache), ms": first * 1000,
        },
    )  # fmt: skip


def warm(pairs: int) -> Row:
    """To the exec on 20,000 files when a checkout lies ready: it is moved, checked, and gets its `.git`."""
    took: list[dict[str, float]] = []
    with repository("large") as top, person(warm=1) as me:
        me.warm()
        floor = Floor(top, me.trees)
        one_dispatch(me, top)

        def ours() -> float:
            me.ready()
            took.append(one_dispatch(me, top))
            return took[-1]["agent"]

        def clear() -> None:
            floor.clear()
            me.clean()

        clear()
        measured = interleave(pairs, ours, floor.add, clear)
    received = [(one["agent"] - one["received"]) / base for one, base in zip(took, measured.floor, strict=True)]
    return Row.of_ratio(
        "dispatch to exec from the warm pool, 20,000 files", 0.15, "git worktree add", measured,
        parts={"from the daemon's receipt, x": statistics.median(received), **parts(took)},
        note="the next one is made before each pair, and nothing else is under way",
    )  # fmt: skip


def small(pairs: int) -> Row:
    """On 1,000 files: what is added to `git worktree add`, part by part."""
    took: list[dict[str, float]] = []
    with repository("small") as top, person() as me:
        me.warm()
        floor = Floor(top, me.trees)
        one_dispatch(me, top)

        def ours() -> float:
            took.append(one_dispatch(me, top))
            return took[-1]["agent"]

        def clear() -> None:
            floor.clear()
            me.clean()

        clear()
        measured = interleave(pairs * 3, ours, floor.add, clear)
    added = statistics.median(a - b for a, b in zip(measured.ours, measured.floor, strict=True)) * 1000
    return Row(
        "added to worktree add, 1,000 files", added, "ms", 60, measured.ours_ms, measured.floor_ms,
        "git worktree add", None, len(took), parts=parts(took),
    )  # fmt: skip


def parts(took: list[dict[str, float]]) -> dict[str, float]:
    """Median milliseconds of each part."""
    said, before = {}, None
    for mark, what in [*PARTS.items(), ("agent", AGENT)]:
        said[f"{what}, ms"] = statistics.median(one[mark] - (one[before] if before else 0.0) for one in took) * 1000
        before = mark
    return said


def slot(pairs: int) -> Row:
    """With one slot and two tasks: from the moment the first one's slot is free to the second one's shim."""
    execs: list[float] = []
    with repository("small") as top, person(lanes=1) as me:
        me.warm()
        floor = Floor(top, me.trees)

        def ours() -> float:
            me.call("queue.freeze")
            first, second = (me.dispatch(top, "stamp") for _ in range(2))
            me.call("queue.start")
            marks = me.wait(2)
            ended = json.loads((me.attempt(first) / "exit").read_text())["at"]
            execs.append(me.stamp(second) - ended)
            spawned = [at for name, at in marks if name == "spawned"]
            return spawned[1] - next(at for name, at in marks if name == "settled")

        def clear() -> None:
            floor.clear()
            me.clean()

        ours()
        execs.clear()
        clear()
        measured = interleave(pairs, ours, floor.add, clear)
    return Row.of_time(
        "slot free to next spawn", 100, "git worktree add", measured,
        parts={"from the first agent's exit to the second one's exec, ms": statistics.median(execs) * 1000},
        note="1,000 files; the next workspace is made in this time",
    )  # fmt: skip
