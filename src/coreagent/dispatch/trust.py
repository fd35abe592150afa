"""A repository's own settings (`.core/agents.yaml`, and the agent CLI's): read from the base commit, never from the
agent's branch, and applied only as they were when a person trusted them (domain.md, "Dispatch").
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreagent.config import RepoSettings, Settings, load_repo
from coreagent.errors import CoreAgentError
from coreagent.git.harvest import user_git_dir
from coreagent.git.run import environment, git
from coreagent.models.dispatch import Repo

FILE = ".core/agents.yaml"
AGENT_FILE = ".claude/settings.json"
"""What claude reads in a repository: hooks that run commands, and variables."""
FILE_MAX = 256 << 10


@dataclass(frozen=True)
class Offer:
    """What a repository would like to have applied."""

    hash: str
    """SHA-256 of the texts; "" when the repository has no settings."""
    files: dict[str, str]

    @property
    def text(self) -> str:
        return self.files.get(FILE, "")


def offered(repo: Repo, sha: str = "") -> Offer:
    """Read the repository's settings at a commit (default: HEAD). Blocking.

    Raises: repo_not_found, git_timeout.
    """
    git_dir = user_git_dir(Path(repo.path))
    read = {name: _show(git_dir, sha or "HEAD", name) for name in (FILE, AGENT_FILE)}
    files = {name: text for name, text in read.items() if text}
    if not files:
        return Offer("", {})
    # The name of the first file is left out: what was trusted before there was a second one stays so.
    told = files.get(FILE, "") + (f"\0{AGENT_FILE}\0{files[AGENT_FILE]}" if AGENT_FILE in files else "")
    return Offer(hashlib.sha256(told.encode()).hexdigest(), files)


def _show(git_dir: Path, sha: str, name: str) -> str:
    done = git("cat-file", "blob", f"{sha}:{name}", cwd=git_dir, env=environment(git_dir=git_dir), ok=None)
    return done.out[:FILE_MAX].decode("utf-8", "replace") if done.code == 0 else ""


@dataclass(frozen=True)
class Applied:
    """The settings in force for one repository at one commit."""

    settings: Settings
    """The user's, with what of the repository's own may be applied."""
    trusted: bool = False
    """A person trusted exactly the text that the commit holds."""
    agent_settings: str = ""
    """The trusted text of AGENT_FILE."""
    made_from: tuple[int, str] = (0, "")
    """What it depends on: the user's settings, and the hash that was trusted."""


def depends_on(user: Settings, repo: Repo) -> tuple[int, str]:
    """What tells whether an Applied is still right."""
    return id(user), repo.trusted_hash


def apply(user: Settings, repo: Repo, sha: str, at_head: bool = False) -> Applied:
    """Put the repository's settings at `sha` over the user's: what runs commands only when it is trusted. Blocking.

    `at_head`: the commit is what is checked out, so that a work tree without their directories saves the look.
    """
    source = depends_on(user, repo)
    if at_head and not any(Path(repo.path, name).parent.is_dir() for name in (FILE, AGENT_FILE)):
        return Applied(user, made_from=source)
    try:
        offer = offered(repo, sha)
        own = load_repo(offer.text) if offer.text else RepoSettings()
    except CoreAgentError:
        return Applied(user, made_from=source)  # unreadable is not trusted; `repo trust` shows what is wrong with it
    trusted = bool(repo.trusted_hash) and offer.hash == repo.trusted_hash
    if not trusted:
        own = own.harmless()
    chosen = {key: value for key, value in own.dispatch.model_dump().items() if value}
    changes: dict[str, Any] = {"dispatch": user.dispatch.model_copy(update=chosen)}
    if own.harvest is not None:
        changes["harvest"] = own.harvest
    if own.hooks.setup.run:
        changes["hooks"] = own.hooks
    changes["commands"] = {**user.commands, **own.commands}
    agent_settings = offer.files.get(AGENT_FILE, "") if trusted else ""
    return Applied(user.model_copy(update=changes), trusted, agent_settings, source)
