"""Git over a work tree in which a pipe may lie under a name that git opens by itself, to wait for a writer for ever.

Whoever runs git over an agent's files comes in here. A tree is searched for such pipes only when git does not answer,
so that they cost nothing where there are none.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from coreagent.git.run import TIMEOUT_S, Done, failure, kill, start, timed_out

PATIENCE_S = 2.0
"""How long git may be silent before the tree is searched."""
_OPENED = frozenset({".gitignore", ".gitattributes", ".gitmodules"})
# One search finds all that a dead agent left; a living one may put new ones there.
_SEARCHES = 3
_GRACE_S = 5.0


def git_over(
    *args: str,
    work_tree: Path,
    env: Mapping[str, str],
    stdin: bytes = b"",
    ok: Sequence[int] | None = (0,),
    timeout_s: float = TIMEOUT_S,
) -> Done:
    """`run.git` in a work tree; when a pipe stands in its way, the pipe is removed and git runs again.

    Raises: git_missing, git_timeout, no_space, git_failed.
    """
    for _ in range(_SEARCHES):
        done = _answer(args, work_tree, env, stdin, timeout_s)
        if done is not None:
            break
    else:
        raise timed_out(args, PATIENCE_S)
    if ok is not None and done.code not in ok:
        raise failure(args, done)
    return done


def _answer(
    args: Sequence[str], work_tree: Path, env: Mapping[str, str], stdin: bytes, timeout_s: float
) -> Done | None:
    """What git said; None when it hung on pipes, which are gone now."""
    with tempfile.TemporaryFile() if stdin else open(os.devnull, "rb") as asked:
        # A file, because `communicate` does not go on with its input after a time-out.
        if stdin:
            asked.write(stdin)
            asked.seek(0)
        return _answer_to(args, work_tree, env, asked.fileno(), timeout_s)


def _answer_to(
    args: Sequence[str], work_tree: Path, env: Mapping[str, str], asked: int, timeout_s: float
) -> Done | None:
    with start(*args, cwd=work_tree, env=env, stdin=asked) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            if unblock(work_tree):
                _end(process)
                return None
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                kill(process)
                raise timed_out(args, timeout_s) from None
    return Done(process.returncode, out, err)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let git take its own lock files away; the same command is about to want them."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        kill(process)


def unblock(top: Path) -> int:
    """Remove pipes and the like under names that git opens by itself; return how many. Links are not followed."""
    removed = 0
    for directory, _, names in os.walk(top):
        for name in _OPENED.intersection(names):
            path = Path(directory, name)
            try:
                mode = os.lstat(path).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
                    path.unlink()
                    removed += 1
            except OSError:
                continue  # gone meanwhile, or not ours to remove; git will say so
    return removed
