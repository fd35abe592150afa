"""What a setup hook left in a new workspace, made into the place where the agent begins.

Preparation comes in here after the hook, so that nothing of the hook's is ever taken for the agent's work: tracked
files go back to what the start commit says, new files stay and are never committed, and the `.git` is made anew
(docs/adr/0006-setup-hook-is-the-start.md). It must not know what the hook ran.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git import tree
from coreagent.git.author import Author
from coreagent.git.bring import literal
from coreagent.git.checkout import own_git
from coreagent.git.inspect import Base
from coreagent.git.record import Module, Record, load, save
from coreagent.git.run import disk, environment, git
from coreagent.git.scan import Scan, listed
from coreagent.git.stuck import unblock

# An agent's git compares every new file with every line of `info/exclude`; past this, whole directories are named.
_MOST_LINES = 1_000
_SHOWN = 5


@dataclass(frozen=True)
class Settled:
    """What became of a hook's traces."""

    restored: tuple[str, ...]
    """Tracked files that it changed or deleted, and that are again as the start commit has them."""
    kept: int
    """New files that are there for the agent and never committed."""

    @property
    def note(self) -> str:
        """One line for people; "" when there is nothing they would miss."""
        if not self.restored:
            return ""
        more = f", and {len(self.restored) - _SHOWN} more" if len(self.restored) > _SHOWN else ""
        names = ", ".join(self.restored[:_SHOWN])
        return f"the setup hook's changes to tracked files were undone: {names}{more}"

    @property
    def lines(self) -> list[str]:
        """All of it, for a log."""
        said = [f"tracked file put back: {path}" for path in self.restored]
        if self.kept:
            said.append(f"new files that will never be committed: {self.kept:,}")
        return said


def settle(cache: Path, base: Base, repo_dir: Path, branch: str, index_copy: Path, author: Author) -> Settled:
    """Make the checkout the start again, with the hook's new files beside it.

    Raises: setup_failed when the checkout cannot be brought back, git_failed, git_timeout, no_space.
    """
    with disk():
        # Beside the checkout, so that git directories are moved and not copied.
        aside = Path(tempfile.mkdtemp(dir=repo_dir.parent, prefix=".setup."))
        try:
            return _settle(cache, base, repo_dir, branch, index_copy, author, aside)
        finally:
            tree.remove(aside)


def _settle(cache: Path, base: Base, repo_dir: Path, branch: str, index: Path, author: Author, aside: Path) -> Settled:
    record = load(index)
    _require_checkout(repo_dir, record)
    _new_git(cache, base, repo_dir, branch, record.start, author, aside)
    unblock(repo_dir)
    modules = {module.path for module in record.modules}
    restored = sorted(_restore(cache, repo_dir, index, modules))
    found = Scan()
    tags = {path: tag for path, tag in listed(cache, repo_dir, index, found).items() if path.rstrip("/") not in modules}
    stuck = [path for path, tag in tags.items() if tag != "?"] + [problem.path for problem in found.problems]
    if stuck:
        raise _failed("the setup hook left files that cannot be put back", ", ".join(stuck[:_SHOWN]))
    new = [path for path in tags if not record.excluded(path.rstrip("/"))]
    hidden = new if len(new) <= _MOST_LINES else _directories(cache, repo_dir, index)
    filled = []
    for number, module in enumerate(record.modules):
        inner = _settle_module(module, base, repo_dir, author, aside / str(number))
        restored += [f"{module.path}/{path}" for path in inner.restored]
        if inner.kept and not module.cache:
            filled.append(module.path)
    names = [path.rstrip("/") for path in new]
    lines = record.exclude + [literal(path.rstrip("/")) for path in [*record.included, *hidden] if "\n" not in path]
    git_dir = repo_dir / ".git"
    (git_dir / "info" / "exclude").write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
    shutil.copy2(index, git_dir / "index")
    save(index, replace(record, included=[*record.included, *names, *filled]))
    return Settled(tuple(restored), len(names) + len(filled))


def _require_checkout(repo_dir: Path, record: Record) -> None:
    """Whether the checkout and its `.git` are still directories of ours, and no links to somewhere else."""
    if repo_dir.is_symlink() or not repo_dir.is_dir() or str(repo_dir.resolve()) != record.top:
        raise _failed("the setup hook removed or replaced the checkout", str(repo_dir))
    git_dir = repo_dir / ".git"
    if git_dir.is_symlink() or not git_dir.is_dir():
        raise _failed("the setup hook removed or replaced the checkout's .git", str(git_dir))


def _new_git(cache: Path, base: Base, repo_dir: Path, branch: str, start: str, author: Author, aside: Path) -> None:
    """Replace `.git`: a hook's commits, branches, configuration and git hooks are not the agent's."""
    git_dir = repo_dir / ".git"
    aside.mkdir(exist_ok=True, mode=0o700)
    tree.readable(repo_dir)
    tree.readable(git_dir)
    old = aside / "git"
    git_dir.rename(old)
    own_git(cache, base, repo_dir, branch, author)
    (git_dir / "refs" / "heads" / branch).write_text(start + "\n")
    inner = old / "modules"
    if inner.is_dir() and not inner.is_symlink():
        # Submodules that the hook fetched point here; without it no git command works in the checkout any more.
        inner.rename(git_dir / "modules")


def _restore(cache: Path, repo_dir: Path, index: Path, modules: set[str]) -> set[str]:
    """Write the start commit's files over what differs from them; return their paths."""
    tags = listed(cache, repo_dir, index, Scan())
    changed = {path for path, tag in tags.items() if tag != "?"} - modules
    env = environment(git_dir=cache, work_tree=repo_dir, index=index, config=[("core.bare", "false")])
    # These say how the others are written, and git reads them from the work tree.
    first = [os.fsencode(path) + b"\0" for path in changed if path.rpartition("/")[2] == ".gitattributes"]
    how = ("checkout-index", "--force", "--index", "--quiet")
    if first:
        git(*how, "-z", "--stdin", cwd=repo_dir, env=env, stdin=b"".join(first), ok=None)
    # All, and not only what was listed: a file behind a directory that became a symlink looks unchanged to the list.
    done = git(*how, "--all", cwd=repo_dir, env=env, ok=None)
    if done.code != 0:
        said = os.fsdecode(done.err).strip().splitlines() or ["git gave no reason"]
        raise _failed("the setup hook left files that cannot be put back", said[-1])
    return changed


def _directories(cache: Path, repo_dir: Path, index: Path) -> list[str]:
    """The new files again, a directory without tracked files standing for all that is in it."""
    out = git(
        "ls-files", "-z", "--others", "--exclude-standard", "--directory", "--no-empty-directory",
        cwd=repo_dir, env=environment(git_dir=cache, work_tree=repo_dir, index=index),
    ).out  # fmt: skip
    return [os.fsdecode(path) for path in out.split(b"\0") if path]


def _settle_module(module: Module, base: Base, repo_dir: Path, author: Author, aside: Path) -> Settled:
    """A submodule is a checkout of its own; one that was empty and was filled by the hook stays as it is."""
    place = repo_dir / module.path
    if not module.cache:
        filled = tree.inside(repo_dir, module.path) and place.is_dir() and any(os.scandir(place))
        return Settled((), int(filled))
    if not tree.inside(repo_dir, module.path):
        raise _failed("the setup hook removed or replaced a submodule", module.path)
    inner = replace(base, top=place, ref="", kind="detached", sha=module.sha)
    return _settle(Path(module.cache), inner, place, "agent/work", Path(module.index), author, aside)


def _failed(message: str, cause: str) -> CoreAgentError:
    return CoreAgentError("setup_failed", message, cause=cause)
