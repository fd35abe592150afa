"""A branch moved forward where it is checked out, by git's own fast-forward.

Landing and sync come in here. Git itself refuses rather than overwrite anything of the person's; why it refused is told
from what stands there, each with the way out of that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from coreagent.errors import CoreAgentError, shell_word
from coreagent.git import ref as refs
from coreagent.git.inspect import resolve
from coreagent.git.run import environment, failure, git
from coreagent.git.under_way import under_way

_LOCK = re.compile(r"Unable to create '(.+\.lock)': File exists")
_UNWRITABLE = ("Permission denied", "Operation not permitted", "Read-only file system")


def advance(
    place: Path,
    branch: str,
    before: str,
    after: str,
    overwritten: tuple[str, str],
    again: str,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Fast-forward the branch that is checked out in `place`; their own filters and line endings count there.

    `overwritten` is message and hint where changes of theirs are in the way, `again` says what to do once a way is
    clear, `extra` goes into git's environment.

    Raises: branch_moved, dirty_checkout, no_space, git_failed, git_timeout.
    """
    env = environment(user_config=True, extra={"GIT_OPTIONAL_LOCKS": "1", **(extra or {})})
    args = ("merge", "--ff-only", "--no-autostash", "--no-overwrite-ignore", "--no-stat", "--quiet", after)
    done = git(*args, cwd=place, env=env, ok=None)
    if done.code == 0:
        return
    if (error := failure(args, done)).slug == "no_space":
        raise error
    git_dir = refs.git_dir_of(place) or place
    if resolve(git_dir, f"refs/heads/{branch}") != before:
        raise CoreAgentError("branch_moved", f"{branch} moved meanwhile", hint="try again")
    said = os.fsdecode(done.err).strip()
    message, hint = _reason(place, git_dir, said, overwritten, again)
    cause = " | ".join(line.strip() for line in said.splitlines()[:6])
    raise CoreAgentError("dirty_checkout", message, cause=cause, hint=hint)


def _reason(place: Path, git_dir: Path, said: str, overwritten: tuple[str, str], again: str) -> tuple[str, str]:
    """What was in the way, and the way out of it."""
    here = shell_word(place)
    begun = f"`git -C {here} status` shows what git had written by then"
    if lock := _LOCK.search(said):
        return (
            f"another git is at work in {place}, or died there",
            f"wait until it has ended, then {again}; when none runs: rm {shell_word(Path(lock[1]))}",
        )
    if "overwritten" in said:
        return overwritten
    if found := under_way(git_dir):
        return f"{found.what} is under way in {place}", f"{found.hint} {again}"
    if "unmerged" in said:
        return f"{place} has files with conflicts", f"settle them (`git -C {here} status` lists them), then {again}"
    if any(words in said for words in _UNWRITABLE):
        return f"git may not write in {place}", f"make what it names writable for you, then {again}; {begun}"
    return f"git could not move the branch in {place}", f"mend what it says, then {again}; {begun}"
