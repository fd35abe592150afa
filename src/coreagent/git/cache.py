"""The daemon's bare cache of one repository: every object a workspace needs, none of them shared with the user's.

Dispatch comes in here once per workspace and finds the commit already there nearly always, which costs no process at
all. Objects come as a checked pack; the user's repository is only read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from coreagent.errors import CoreAgentError, displaced
from coreagent.git import ref as refs
from coreagent.git.inspect import Base
from coreagent.git.pack import carry, present
from coreagent.git.run import disk, environment, git
from coreagent.plainfile import led_away, open_own

BASES = "refs/core-agent/base/"
# Commits offered to the sender as already there; more of them only make the question longer.
_OFFERED = 24

_CONFIG = """[core]
\trepositoryformatversion = {version}
\tfilemode = true
\tbare = {bare}
{more}"""


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Hold the cache's lock: one writer at a time, also across processes.

    Raises: home_unsafe.
    """
    require_own(cache)
    cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = open_own(f"{cache}.lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def require_own(cache: Path) -> None:
    """Make sure that nothing in the place of the cache, or within it, leads to somebody else's repository.

    Whoever is about to write objects or refs comes in. Raises: home_unsafe.
    """
    laid = led_away(cache, cache.parents[1])
    laid = laid if os.path.islink(laid) else _laid_within(cache)  # a file in its place leads nowhere: it is made again
    if laid:
        raise displaced(laid)


def _laid_within(cache: Path) -> str:
    """A link in the place of the lock, or of a directory where git or we write; "" when there is none."""
    if os.path.islink(f"{cache}.lock"):
        return f"{cache}.lock"
    for place in ("objects", "refs", "refs/core-agent"):
        try:
            with os.scandir(cache / place) as entries:
                laid = [entry.path for entry in entries if entry.is_symlink()]
        except OSError:
            laid = []
        if laid or (cache / place).is_symlink():
            return laid[0] if laid else str(cache / place)
    return ""


def ensure_cache(cache: Path, base: Base) -> None:
    """Make sure the cache exists and holds the base commit with all it reaches; the user's repository is only read.

    Raises: git_failed, git_timeout, no_space.
    """
    if _holds(cache, base.sha):
        return
    with locked(cache), disk():
        if _holds(cache, base.sha):
            return
        if not (cache / "HEAD").exists():
            lay_out(cache, base.object_format, bare=True)
        import_commit(cache, base.git_dir, base.sha)
        note(cache, BASES + base.sha, base.sha)


def hold(cache: Path, sha: str) -> None:
    """Keep a commit that the cache has of somebody's work as a base, though the user's repository may not have it."""
    if (cache / "HEAD").exists() and not _holds(cache, sha) and present(cache, [sha]):
        with locked(cache), disk():
            note(cache, BASES + sha, sha)


def import_commit(cache: Path, user_git_dir: Path, sha: str) -> None:
    """Bring a commit of the user's into the cache. The caller holds the lock."""
    theirs = _shallow(refs.common_dir_of(user_git_dir))
    ours = _shallow(cache)
    # A cut in one history and not in the other: "have" would promise commits that are not there.
    have = common(cache, user_git_dir) if theirs == ours else []
    carry_shallow(cache, theirs | ours)
    try:
        carry(user_git_dir, cache, [sha], have)
    except CoreAgentError:
        if not have:
            raise
        carry(user_git_dir, cache, [sha])


def common(cache: Path, user_git_dir: Path) -> list[str]:
    """Commits that the cache holds whole and the user's repository has, newest first."""
    return present(user_git_dir, bases(cache)[:_OFFERED])


def bases(cache: Path) -> list[str]:
    """Every base commit the cache was made to hold, newest first."""
    try:
        entries = [(entry.stat().st_mtime_ns, entry.name) for entry in os.scandir(cache / BASES)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for _, name in sorted(entries, reverse=True) if refs.is_sha(name)]


def lay_out(git_dir: Path, object_format: str, *, bare: bool, more: str = "") -> None:
    """Write an empty git directory by hand; `git init` would cost a process and copy templates."""
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "info"):
        (git_dir / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    sha1 = object_format == "sha1"
    text = _CONFIG.format(version=0 if sha1 else 1, bare=str(bare).lower(), more=more)
    if not sha1:
        text += f"[extensions]\n\tobjectformat = {object_format}\n"
    (git_dir / "config").write_text(text)
    # HEAD last: a directory without it is no repository and is laid out again.
    (git_dir / "HEAD").write_text("ref: refs/heads/none\n")


def object_format(git_dir: Path) -> str:
    """What a git directory laid out here was made with."""
    return "sha256" if "objectformat = sha256" in (git_dir / "config").read_text() else "sha1"


def note(cache: Path, name: str, sha: str) -> None:
    """Point a ref of the cache at a commit whose objects were just checked; by hand, it has one writer."""
    path = cache / name
    if laid := led_away(path.parent, cache):
        raise displaced(laid)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.lock")
    with part.open("w") as file:
        file.write(sha + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _holds(cache: Path, sha: str) -> bool:
    return (cache / BASES / sha).exists()


def _shallow(common_dir: Path) -> frozenset[str]:
    try:
        return frozenset((common_dir / "shallow").read_text().split())
    except FileNotFoundError:
        return frozenset()


def carry_shallow(git_dir: Path, cuts: frozenset[str]) -> None:
    if cuts and cuts != _shallow(git_dir):
        (git_dir / "shallow").write_text("".join(f"{sha}\n" for sha in sorted(cuts)))


def cuts(git_dir: Path) -> frozenset[str]:
    """The commits below which a shallow repository's history is cut off."""
    return _shallow(git_dir)


def is_ancestor(git_dir: Path, old: str, new: str) -> bool:
    done = git(
        "merge-base", "--is-ancestor", "--end-of-options", old, new,
        cwd=git_dir, env=environment(git_dir=git_dir), ok=(0, 1),
    )  # fmt: skip
    return done.code == 0
