"""Where the parts of a workspace lie on disk. One place, so that nobody joins these paths by hand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from coreagent import config
from coreagent.config import Settings
from coreagent.git.author import Author
from coreagent.models.dispatch import Dispatch
from coreagent.plainfile import led_away

AUTHOR = Author("core-agent", "agent@core-agent.invalid")
"""Whose name an agent's commits bear."""

# What the daemon and the agents' CLIs put into the checkout; never part of a commit.
SIDECARS = ("BLOCKED.md", "ANSWER.md", ".claude/", ".codex/", ".gemini/", ".opencode/")


@dataclass(frozen=True)
class Layout:
    """`<workspace_root>/{org}/{repo}/{name}/` and what is in it."""

    root: Path
    below: Path | None = None
    """Where our own part of the way to it begins; the workspace root when that is the person's to arrange."""

    @property
    def repo(self) -> Path:
        """The checkout the agent works in."""
        return self.root / "repo"

    @property
    def meta(self) -> Path:
        return self.root / ".meta"

    @property
    def specs(self) -> Path:
        return self.root / "specs"

    @property
    def tmp(self) -> Path:
        """The agent's TMPDIR."""
        return self.root / ".tmp"

    @property
    def prompt(self) -> Path:
        return self.meta / "prompt.md"

    @property
    def prepared(self) -> Path:
        """Written last by preparation: a workspace without it never had an agent in it."""
        return self.meta / "prepared.json"

    @property
    def setup_log(self) -> Path:
        return self.meta / "setup.log"

    def config_home(self, runner: str) -> Path:
        """The runner's private configuration directory, kept as long as the workspace."""
        return self.root / ".home" / runner

    def attempt(self, n: int) -> Path:
        """Where an ended attempt's output lies."""
        return self.meta / "attempts" / str(n)

    def led_away(self) -> str:
        """What stands in place of the workspace's directory, or of one of ours above it; "" when all is ours."""
        return led_away(self.root, self.below or self.root.parents[2])


def layout(home: str, settings: Settings, dispatch: Dispatch) -> Layout:
    """Where the workspace of a dispatch is; a change of the settings moves none that is known."""
    root = root_of(home, settings, dispatch.root)
    inside = Path(home) if root.is_relative_to(home) and root != Path(home) else None
    return Layout(root / dispatch.org / dispatch.repo / dispatch.name, inside)


def root_of(home: str, settings: Settings, root: str) -> Path:
    """The directory that a dispatch's `root` means; one that an older release made has none and is where all are."""
    return Path(home, root or config.workspace_root(settings, home))


def root_now(home: str, settings: Settings) -> str:
    """What a new dispatch has for its `root`: below the home relative to it, so that a home may move."""
    root = config.workspace_root(settings, home)
    inside = os.path.commonpath([os.path.abspath(home), os.path.abspath(root)]) == os.path.abspath(home)
    return os.path.relpath(root, home) if inside else root
