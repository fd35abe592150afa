"""A checkout made before anybody wants it: the files of a commit and the daemon's index of them, without a `.git`.

The pool of dispatch comes in here while nothing else is to be done. The `.git`, with its absolute paths, is laid out
when a workspace takes the files over (git.checkout), so that nothing in here knows where it will be. Whether it is
still as it was made is asked of the index and the kernel's times, in idle time where it can be watched from then on
(git.stillness), else right before it is given away.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git.checkout import Ready, filling
from coreagent.git.run import Done, disk, environment, failure, git, kill, start

NICE = 15
_LOOK_S = 0.1
_SETTLE_S = 1.1
"""Git compares whole seconds: a file that was written in the second of its index would be read again each time."""
_BLOCK = 4096


@dataclass(frozen=True)
class Size:
    files: int
    bytes: int
    """On disk, about."""


def measure(cache: Path, sha: str) -> Size:
    """How much a checkout of a commit takes.

    Raises: git_failed, git_timeout.
    """
    out = git("ls-tree", "-r", "-l", "-z", "--full-tree", "--end-of-options", sha, cwd=cache,
              env=environment(git_dir=cache)).out  # fmt: skip
    files = total = 0
    for line in out.split(b"\0"):
        kind, _, rest = line.partition(b" blob ")
        if rest:
            files += 1
            size = int(rest.split(None, 2)[1])
            total += -(-size // _BLOCK) * _BLOCK if kind != b"120000" else 0
    return Size(files, total)


def make(cache: Path, sha: str, tree: Path, index: Path, wanted: Callable[[], bool]) -> bool:
    """Write the files of a commit, with little claim to the processor; False when it was not `wanted` to its end.

    An index and files that are there already are brought to the commit. What is half made is the caller's to remove.

    Raises: git_failed, git_timeout, no_space.
    """
    with disk():
        tree.mkdir(parents=True, exist_ok=True, mode=0o700)
        index.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        args, env = filling(cache, sha, tree, index)
        if not _run(args, tree, env, wanted):
            return False
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            if not wanted():
                return False
            time.sleep(_LOOK_S)
        return _run(("update-index", "-q", "--refresh"), tree, env, wanted)


def _run(args: tuple[str, ...], tree: Path, env: dict[str, str], wanted: Callable[[], bool]) -> bool:
    if not wanted():
        return False
    with start(*args, cwd=tree, env=env, stdin=subprocess.DEVNULL) as process:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        while True:
            try:
                out, err = process.communicate(timeout=_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                if not wanted():
                    kill(process)
                    return False
    if process.returncode != 0:
        raise failure(args, Done(process.returncode, out, err))
    return True


def directories(tree: Path) -> dict[str, tuple[int, int]]:
    """Every directory of a tree that was just made, as `Ready` has them."""
    found = {}
    for place, _, _ in os.walk(tree):
        now = os.lstat(place)
        found[os.path.relpath(place, tree)] = (now.st_ino, now.st_ctime_ns)
    return found


def intact(cache: Path, ready: Ready) -> bool:
    """Whether every file is there as it was written, and nothing beside them."""
    if ready.tree.is_symlink() or not ready.tree.is_dir() or not ready.index.is_file() or not ready.directories:
        return False
    try:
        for name, known in ready.directories.items():
            now = os.lstat(ready.tree / name if name != "." else ready.tree)
            if (now.st_ino, now.st_ctime_ns) != known:
                return False
        env = environment(git_dir=cache, work_tree=ready.tree, index=ready.index, config=[("core.bare", "false")])
        return git("diff-files", "--quiet", "--ignore-submodules=all", cwd=ready.tree, env=env, ok=None).code == 0
    except (CoreAgentError, OSError):
        return False
