"""A cache that was removed or emptied by hand, made again from what the user's repository still has.

Whoever must keep or land work and finds the cache gone comes in here. Nothing that is there is taken away, except
notes of commits that are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git import ref as refs
from coreagent.git.cache import BASES, bases, import_commit, lay_out, locked, note, object_format
from coreagent.git.harvest import user_git_dir
from coreagent.git.pack import present
from coreagent.git.run import disk
from coreagent.git.snapshot import WORK

_NEEDED = ("HEAD", "config", "objects/info", "objects/pack", "refs/heads")


def restore(cache: Path, user_top: Path, base: str, name: str, tips: Iterable[str]) -> set[str]:
    """Bring the base commit and the tips that can be had; return those of them that are in the cache now.

    Raises: repo_not_found, git_failed when the cache cannot be written, git_timeout, no_space.
    """
    git_dir = user_git_dir(user_top)
    wanted = [sha for sha in dict.fromkeys([base, *tips]) if sha]
    with locked(cache), disk():
        if not all((cache / part).exists() for part in _NEEDED):
            lay_out(cache, object_format(refs.common_dir_of(git_dir)), bare=True)
        known = bases(cache)
        for lost in set(known) - set(present(cache, known)):
            (cache / BASES / lost).unlink(missing_ok=True)
        work = cache / WORK / name
        with contextlib.suppress(OSError):
            if not present(cache, [refs.read_small(work).strip()]):
                work.unlink()
        for sha in wanted:
            with contextlib.suppress(CoreAgentError):  # not there any more; what came is counted below
                import_commit(cache, git_dir, sha)
        there = set(present(cache, wanted))
        if base in there:
            note(cache, BASES + base, base)
    return there
