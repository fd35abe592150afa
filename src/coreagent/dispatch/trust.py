"""A repository's own settings (`.core/agents.yaml`): read from the base commit, never from the agent's branch, and
applied only as they were when a person trusted them (domain.md, "Dispatch").
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from coreagent.config import RepoSettings, load_repo
from coreagent.errors import CoreAgentError
from coreagent.git.inspect import inspect
from coreagent.git.run import environment, git
from coreagent.models.dispatch import Repo

FILE = ".core/agents.yaml"
FILE_MAX = 256 << 10


@dataclass(frozen=True)
class Offer:
    """What a repository would like to have applied."""

    hash: str
    """SHA-256 of the text; "" when the repository has no settings."""
    files: dict[str, str]
    text: str = ""


def offered(repo: Repo, sha: str = "") -> Offer:
    """Read the repository's settings at a commit (default: HEAD). Blocking."""
    base = inspect(Path(repo.path))
    text = _show(base.git_dir, sha or base.sha)
    if not text:
        return Offer("", {})
    return Offer(hashlib.sha256(text.encode()).hexdigest(), {FILE: text}, text)


def _show(git_dir: Path, sha: str) -> str:
    done = git("cat-file", "blob", f"{sha}:{FILE}", cwd=git_dir, env=environment(git_dir=git_dir), ok=None)
    return done.out[:FILE_MAX].decode("utf-8", "replace") if done.code == 0 else ""


def trusted_settings(repo: Repo, sha: str) -> RepoSettings | None:
    """The repository's settings at `sha` when a person trusted exactly this text, else None. Blocking."""
    if not repo.trusted_hash:
        return None
    try:
        offer = offered(repo, sha)
    except CoreAgentError:
        return None
    if offer.hash != repo.trusted_hash:
        return None
    return load_repo(offer.text)
