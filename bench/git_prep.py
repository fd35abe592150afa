"""Preparing a workspace against `git worktree add`, as ratios. Run: python bench/git_prep.py [pairs]"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from coreagent.git.author import Author
from coreagent.git.cache import ensure_cache
from coreagent.git.checkout import checkout
from coreagent.git.inspect import inspect
from coreagent.git.snapshot import snapshot

AGENT = Author("Agent", "agent@example.com")


def quiet(*args: str, cwd: Path) -> None:
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "gc.auto=0", *args]
    subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True)


def fixture(top: Path, files: int) -> None:
    for number in range(files):
        path = top / f"src/p{number // 100}/f{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {number}\n" + "value = 1\n" * 80)
    quiet("init", "-b", "main", cwd=top)
    quiet("add", "-A", cwd=top)
    quiet("commit", "-m", "all", cwd=top)
    quiet("gc", cwd=top)


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


def measure(files: int, pairs: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        top = home / "user"
        top.mkdir()
        fixture(top, files)
        cache = home / "cache.git"
        first = timed(lambda: ensure_cache(cache, inspect(top)))
        floor, ours, parts, idle, busy = [], [], [], [], []
        for pair in range(pairs):
            place, tree = home / f"ws{pair}" / "repo", home / f"wt{pair}"
            index = home / f"index{pair}"
            steps: list[float] = []

            def prepare(place: Path = place, index: Path = index, steps: list[float] = steps) -> None:
                began = time.perf_counter()
                base = inspect(top)
                steps.append((time.perf_counter() - began) * 1000)
                ensure_cache(cache, base)
                checkout(cache, base, place, "agent/x", index, AGENT)

            def worktree(tree: Path = tree) -> None:
                quiet("worktree", "add", "--detach", str(tree), cwd=top)

            # Who goes first changes from pair to pair: the page cache and the disk's write-back favour neither.
            if pair % 2:
                floor.append(timed(worktree))
            ours.append(timed(prepare))
            if not pair % 2:
                floor.append(timed(worktree))
            parts.append(steps[0])
            sha = inspect(top).sha
            idle.append(timed(partial(snapshot, cache, place, f"w{pair}", sha, index, AGENT, "nothing")))
            (place / "src/p0/f0.py").write_text("changed\n")
            busy.append(timed(partial(snapshot, cache, place, f"w{pair}", sha, index, AGENT, "one")))
            quiet("worktree", "remove", "--force", str(tree), cwd=top)
            shutil.rmtree(place.parent)
        median = statistics.median
        ratios = [one / other for one, other in zip(ours, floor, strict=True)]
        print(f"{files:>6} files  worktree add {median(floor):7.1f} ms   prepare {median(ours):7.1f} ms"
              f"   ratio {median(ratios):.2f}   more {median(ours) - median(floor):+.1f} ms"
              f"   (inspect {median(parts):.1f})")  # fmt: skip
        print(f"              first cache {first:7.1f} ms   snapshot: nothing {median(idle):.1f} ms,"
              f" one file {median(busy):.1f} ms")  # fmt: skip


if __name__ == "__main__":
    for size in (1_000, 20_000):
        measure(size, int(sys.argv[1]) if len(sys.argv) > 1 else 9)
