"""Taking an agent's branch out of the user's repository again, once its work has landed or was let go."""

from __future__ import annotations

from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git import ref as refs
from coreagent.git.harvest import user_git_dir, worktrees_on
from coreagent.git.inspect import resolve
from coreagent.git.run import environment, git
from coreagent.git.under_way import claim_on


def drop(user_top: Path, branch: str, sha: str) -> bool:
    """Delete `refs/heads/<branch>` when it still is `sha` and nobody works on it; False when it was gone.

    Raises: branch_moved, repo_not_found, git_failed, git_timeout.
    """
    refs.require(branch)
    git_dir = user_git_dir(user_top)
    name = f"refs/heads/{branch}"
    current = resolve(git_dir, name)
    if not current:
        return False
    if current != sha:
        raise CoreAgentError("branch_moved", f"branch {branch} has commits of others; it stays")
    if places := worktrees_on(user_top, name):
        raise CoreAgentError("branch_moved", f"branch {branch} is checked out in {places[0]}; it stays")
    if claim := claim_on(git_dir, name):
        raise CoreAgentError("branch_moved", f"{claim.what} of {branch} is under way in {claim.place}; it stays")
    git("update-ref", "--no-deref", "-d", "--end-of-options", name, sha, cwd=git_dir, env=environment(git_dir=git_dir))
    return True
