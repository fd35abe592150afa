"""Who commits are by. Everything that writes a commit comes in here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Author:
    """A name and an address, as git writes them."""

    name: str
    email: str


DAEMON = Author("core-agent", "core-agent@localhost")


def identity(author: Author, committer: Author) -> dict[str, str]:
    """The environment that makes git write these two into a commit."""
    return {
        "GIT_AUTHOR_NAME": _clean(author.name) or DAEMON.name,
        "GIT_AUTHOR_EMAIL": _clean(author.email) or DAEMON.email,
        "GIT_COMMITTER_NAME": _clean(committer.name) or DAEMON.name,
        "GIT_COMMITTER_EMAIL": _clean(committer.email) or DAEMON.email,
    }


def _clean(text: str) -> str:
    return "".join(char for char in text if char.isprintable() and char not in "<>").strip()
