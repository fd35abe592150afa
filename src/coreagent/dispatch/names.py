"""Names of workspaces: made safe, made unique, and found again from what a person typed.

A name becomes a directory, a branch and a ref, so it must never escape any of them nor be read as an option.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable

from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Dispatch
from coreagent.plural import plural

NAME_MAX = 48
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?", re.ASCII)
HOW = (
    f"at most {NAME_MAX} of a-z, 0-9, '.', '_' and '-', starting and ending with a letter or digit, without '..' and "
    "not ending in .lock or .git"
)
"""What a valid name is made of, for people."""
_STOP_WORDS = frozenset({"a", "an", "and", "in", "of", "on", "please", "that", "the", "this", "to", "with"})


def valid(name: str) -> bool:
    """True for a name that is a safe path component and a safe ref component on every file system."""
    return (
        len(name) <= NAME_MAX
        and _NAME.fullmatch(name) is not None
        and ".." not in name
        and not name.endswith((".lock", ".git"))
    )


def check(name: str, what: str = "name") -> str:
    """Return `name` or raise invalid_name."""
    if not valid(name):
        raise CoreAgentError(
            "invalid_name",
            f"{name!r} is not a valid {what}",
            hint=f"use {HOW}",
        )
    return name


def slug(text: str, fallback: str = "task") -> str:
    """A short valid name made of the first telling words of `text`."""
    words = [w for w in re.findall(r"[a-z0-9]+", text.lower()[:400]) if w not in _STOP_WORDS]
    made = ""
    for word in words:
        candidate = f"{made}-{word}" if made else word[:24]
        if len(candidate) > 28:
            break
        made = candidate
    return made if valid(made) else fallback


def directory_name(text: str, fallback: str) -> str:
    """A valid name as close to `text` as can be; for repository directories."""
    made = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:NAME_MAX].strip("-._")
    return made if valid(made) else fallback


class Either:
    """What is in one of several containers; none of them is copied."""

    def __init__(self, *parts: Container[str]) -> None:
        self._parts = parts

    def __contains__(self, name: object) -> bool:
        return any(name in part for part in self._parts)


def unique(wanted: str, taken: Iterable[str] | Either) -> str:
    """`wanted`, or `wanted-2`, `wanted-3`... when it is taken."""
    used = taken if isinstance(taken, Either) else set(taken)
    if wanted not in used:
        return wanted
    n = 2
    while f"{wanted}-{n}" in used:
        n += 1
    return f"{wanted}-{n}"


def find(text: str, dispatches: Iterable[Dispatch]) -> Dispatch:
    """Return the dispatch that `text` names: `org/repo/name`, `repo/name`, a unique name, its id or a prefix of it.

    Raises: workspace_not_found (with the nearest name), ambiguous_workspace (with the candidates).
    """
    known = list(dispatches)
    wanted = text.strip().strip("/")
    exact = [d for d in known if wanted in (d.workspace, d.id)]
    if not exact:
        exact = [d for d in known if wanted in (f"{d.repo}/{d.name}", d.name)]
    if not exact and len(wanted) >= 6:
        exact = [d for d in known if d.id.startswith(wanted.upper())]
    if len(exact) == 1:
        return exact[0]
    if len(exact) > 1:
        open_ones = [d for d in exact if not d.workspace_gone]
        if len(open_ones) == 1:
            return open_ones[0]
        candidates = sorted({d.workspace if len({e.workspace for e in exact}) > 1 else d.id for d in exact})
        raise CoreAgentError(
            "ambiguous_workspace",
            f"{text!r} names {plural(len(exact), 'workspace')}",
            hint="say which one: " + ", ".join(candidates[:6]),
            data={"candidates": candidates},
        )
    near = difflib.get_close_matches(wanted, [d.name for d in known] + [d.workspace for d in known], n=1)
    raise CoreAgentError(
        "workspace_not_found",
        f"there is no workspace {text!r}",
        hint=f"did you mean {near[0]}?"
        if near
        else "`core-agent workspace list` shows those that are there, `core-agent history` all",
    )
