"""What the daemon notes about a checkout, beside its copy of the index and out of the agent's reach.

The checkout writes it, the snapshot reads it: nothing a snapshot trusts may come from the workspace.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from coreagent.plainfile import read_plain


@dataclass(frozen=True)
class Module:
    """A submodule of the base commit."""

    path: str
    sha: str
    cache: str
    """Its own cache; "" when the user's repository has no local copy, so its directory was left empty."""
    index: str


@dataclass(frozen=True)
class Record:
    """One checkout."""

    top: str
    """Real path of the work tree when it was made; another one later means that somebody replaced it."""
    start: str
    """The commit the agent began from."""
    exclude: list[str] = field(default_factory=list)
    """Patterns of agent-side files that must never be committed (see `excluded`)."""
    included: list[str] = field(default_factory=list)
    """Ignored files of the user's that were copied in: never committed either, whatever the agent did to .gitignore."""
    modules: list[Module] = field(default_factory=list)

    def excluded(self, path: str) -> bool:
        """Whether a path is agent-side or carried; decided here, because an agent's `.gitignore` can undo a pattern."""
        return path in self._included or any(_matches(pattern, path) for pattern in self.exclude)

    def ours(self, path: str) -> bool:
        """Whether an excluded path is a file that the daemon itself put there or reads: nobody's work."""
        return path in self._included or f"/{path}" in self.exclude

    @cached_property
    def _included(self) -> frozenset[str]:
        return frozenset(self.included)


def _matches(pattern: str, path: str) -> bool:
    """The part of the gitignore syntax the daemon itself uses: anchored or bare names, wildcards within a name."""
    wanted = pattern.strip("/").split("/")
    parts = path.split("/")
    if pattern.startswith("/") or len(wanted) > 1:
        if len(parts) < len(wanted) or (pattern.endswith("/") and len(parts) == len(wanted)):
            return False
        return all(fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=False))
    if pattern.endswith("/"):
        parts = parts[:-1]
    return any(fnmatchcase(part, wanted[0]) for part in parts)


def record_path(index_copy: Path) -> Path:
    return index_copy.with_name(index_copy.name + ".json")


def save(index_copy: Path, record: Record) -> None:
    record_path(index_copy).write_text(json.dumps(asdict(record)))


def forget(index_copy: Path) -> None:
    """The checkout is about to be removed: from now on there is none, until another one is made."""
    record_path(index_copy).unlink(missing_ok=True)


def load(index_copy: Path) -> Record:
    """Read the record back.

    Raises: OSError, ValueError when it is gone or damaged.
    """
    body = json.loads(read_plain(record_path(index_copy)))
    modules = [Module(**module) for module in body.pop("modules", [])]
    return Record(**body, modules=modules)
