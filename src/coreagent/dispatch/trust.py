"""A repository's own settings (`.core/agents.yaml`, and the agent CLI's): read from the base commit, never from the
agent's branch, and applied only as they were when a person trusted them (domain.md, "Dispatch").
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreagent.config import RepoSettings, Settings, load_repo, only_harmless
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
    skipped: str = ""
    """What of the repository's settings is not applied, why, and what to do: one line for people."""
    commands_skipped: frozenset[str] = frozenset()
    problem: CoreAgentError | None = None
    """The repository's settings are wrong, and to go on without them could do something else than they say."""


def depends_on(user: Settings, repo: Repo) -> tuple[int, str]:
    """What tells whether an Applied is still right."""
    return id(user), repo.trusted_hash


def check(offer: Offer, repo: Repo, sha: str = "") -> RepoSettings:
    """Return the repository's settings when everything that it offers is valid.

    Raises: settings_invalid, with file, line and key.
    """
    own = _parsed(offer, repo, sha)
    try:
        json.loads(offer.files.get(AGENT_FILE, "{}"))
    except ValueError as error:
        raise CoreAgentError(
            "settings_invalid", f"{repo.path}/{AGENT_FILE}: {error}", cause=_read_at(sha), hint="it must be JSON"
        ) from None
    return own


def _parsed(offer: Offer, repo: Repo, sha: str) -> RepoSettings:
    try:
        return load_repo(offer.text, f"{repo.path}/{FILE}") if offer.text else RepoSettings()
    except CoreAgentError as error:
        cause = "; ".join(filter(None, [error.cause, _read_at(sha)]))
        raise CoreAgentError(error.slug, error.message, cause=cause, hint=error.hint, data=error.data) from None


def _read_at(sha: str) -> str:
    return f"it is read from commit {sha[:10] or 'HEAD'}: a correction counts when it is committed"


def apply(user: Settings, repo: Repo, sha: str, at_head: bool = False) -> Applied:
    """Put the repository's settings at `sha` over the user's: what runs commands only when it is trusted. Blocking.

    `at_head`: the commit is what is checked out, so that a work tree without their directories saves the look.
    """
    source = depends_on(user, repo)
    if at_head and not any(Path(repo.path, name).parent.is_dir() for name in (FILE, AGENT_FILE)):
        return Applied(user, made_from=source)
    try:
        offer = offered(repo, sha)
    except CoreAgentError:
        return Applied(user, made_from=source)  # whoever needs the repository says so
    try:
        own = _parsed(offer, repo, sha)
    except CoreAgentError as error:
        if repo.trusted_hash or not only_harmless(offer.text):
            return Applied(user, made_from=source, problem=error)
        return Applied(user, made_from=source, skipped=f"the repository's settings are ignored: {error.message}")
    trusted = bool(repo.trusted_hash) and offer.hash == repo.trusted_hash
    skipped, commands = "", frozenset[str]()
    if not trusted and own.runs_commands:
        skipped, commands = _skipped(own, repo), frozenset(own.commands)
        own = own.harmless()
    chosen = {key: value for key, value in own.dispatch.model_dump().items() if value}
    changes: dict[str, Any] = {"dispatch": user.dispatch.model_copy(update=chosen)}
    if own.harvest is not None:
        changes["harvest"] = own.harvest
    hooks = {name: hook for name, hook in own.hooks if hook.run}
    if hooks:
        changes["hooks"] = user.hooks.model_copy(update=hooks)
    changes["commands"] = {**user.commands, **own.commands}
    agent_settings = offer.files.get(AGENT_FILE, "") if trusted else ""
    return Applied(user.model_copy(update=changes), trusted, agent_settings, source, skipped, commands)


def _skipped(own: RepoSettings, repo: Repo) -> str:
    parts = [f"{name} hook" for name, hook in own.hooks if hook.run]
    if own.commands:
        word = "command" if len(own.commands) == 1 else "commands"
        parts.append(f"{word} {', '.join(sorted(own.commands))}")
    why = "its settings changed since they were trusted" if repo.trusted_hash else "its settings are not trusted"
    what = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    hint = f"`core-agent repo trust {repo.org}/{repo.name}` shows what it would run"
    return f"without the {what} of {repo.org}/{repo.name}: {why}; {hint}"
