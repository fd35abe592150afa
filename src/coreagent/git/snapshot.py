"""The state an agent left, as one commit of the cache, however hostile the workspace.

The engine comes in here when an attempt has ended. Git runs with the cache as its git directory and the daemon's own
copy of the index, so no config, hook, filter or flag of the agent's takes part. Nothing changed costs no process.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from coreagent.git import ref as refs
from coreagent.git.author import DAEMON, Author
from coreagent.git.cache import bases, locked, note, require_own
from coreagent.git.check import Limits, Problem, check
from coreagent.git.commit import stage, write_commit, write_tree
from coreagent.git.diff import changes, diff, summed
from coreagent.git.history import History, committed_exclusions, descends, messages, read_history
from coreagent.git.pack import quoted
from coreagent.git.record import Module, Record, load
from coreagent.git.run import disk, environment, git
from coreagent.git.scan import Scan, scan
from coreagent.git.untouched import untouched

WORK = "refs/core-agent/work/"
_GITLINK = "160000"


@dataclass(frozen=True)
class Snapshot:
    """What an attempt brought about."""

    sha: str
    """Tip of the work in the cache; the start itself when nothing changed."""
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    leftover: int = 0
    """Paths the agent had not committed."""
    commits: int = 0
    """1 or more when the agent committed itself."""
    problems: tuple[Problem, ...] = ()
    others: tuple[str, ...] = ()
    """Commits on other branches and stashes of the agent, which the tip does not hold."""
    left: tuple[str, ...] = ()
    """Paths of the checkout with content that no commit holds; with a directory goes all that is below it."""

    @property
    def blocking(self) -> tuple[Problem, ...]:
        """What keeps the work out of the user's repository."""
        return tuple(problem for problem in self.problems if problem.blocking)


def snapshot(
    cache: Path,
    repo_dir: Path,
    name: str,
    base_sha: str,
    index_copy: Path,
    author: Author,
    message: str,
    limits: Limits | None = None,
) -> Snapshot:
    """Commit what is left on top of the agent's own commits and judge the whole against the start.

    `base_sha` is the checkout's `start`. Running it again over the same tree gives the same commit.

    Raises: git_failed, git_timeout, no_space, invalid_name, home_unsafe.
    """
    refs.require(name, "workspace")
    limits = limits or Limits()
    record = _record(index_copy, repo_dir, base_sha)
    if repo_dir.is_symlink() or not repo_dir.is_dir() or str(repo_dir.resolve()) != record.top:
        detail = "repo is a symlink, gone, or in another place than the daemon put it"
        return Snapshot(base_sha, problems=(Problem("workspace_replaced", str(repo_dir), detail),))
    require_own(cache)
    previous = _noted(cache, WORK + name)
    history = read_history(cache, repo_dir, base_sha, set(bases(cache)), previous)
    if (
        (history.tip, record.start) == (base_sha, base_sha)
        and not history.others
        and untouched(index_copy, repo_dir, record)
    ):
        return Snapshot(base_sha, problems=tuple(_unique(history.problems)), left=_unread(history))
    with disk(), tempfile.TemporaryDirectory(dir=index_copy.parent, prefix="snap.") as scratch:
        index = _scratch_index(cache, index_copy, Path(scratch), base_sha)
        return _snapshot(cache, repo_dir, name, base_sha, index, record, author, message, limits, history, previous)


def _snapshot(
    cache: Path,
    repo_dir: Path,
    name: str,
    start: str,
    index: Path,
    record: Record,
    author: Author,
    message: str,
    limits: Limits,
    history: History,
    previous: str,
) -> Snapshot:
    problems = list(history.problems)
    tip = history.tip
    squash = False
    links: list[str] = []
    if tip != start:
        squash, links, tip_problems = _judge_history(cache, start, tip, record)
        problems += tip_problems
        _move_index(cache, index, tip, links)
    moved = _modules(repo_dir, name, record, author, message, limits)
    problems += moved
    found = scan(cache, repo_dir, index, record, limits, sparse=history.sparse)
    problems += found.problems
    left = [*_unread(history), *(problem.path for problem in moved), *found.left]
    if tip == start and not found and (chosen := _only_other(history.others, name)):
        # Everything was committed on another branch and the agent went back to where it began.
        tip = chosen
        squash, links, tip_problems = _judge_history(cache, start, tip, record)
        problems += [*tip_problems, Problem("other_branch", detail="HEAD stood at the start", blocking=False)]
        _move_index(cache, index, tip, links)
        found = Scan()
    sha = tip
    if found or squash or links:
        dropped = _committed_side(cache, index, record) if squash else []
        left += [path for path in dropped if not record.ours(path) and os.path.lexists(repo_dir / path)]
        refused = stage(cache, repo_dir, index, [*found.removed, *dropped], found.added)
        problems += [Problem("unreadable", path, why) for path, why in refused]
        left += [path for path, _ in refused if os.path.lexists(repo_dir / path)]
        parent = start if squash else tip
        text = f"{message}\n\n{messages(cache, start, tip)}\n" if squash else message
        sha = _commit(cache, index, parent, text, author, previous)
    others = tuple(sorted(set(history.others.values()) - {sha, tip}))
    with locked(cache):
        if sha != start and sha != previous:
            note(cache, WORK + name, sha)
        for number, other in enumerate(others):
            note(cache, f"refs/core-agent/other/{name}/{number}", other)
    differences = changes(cache, start, sha)
    total = summed(differences)
    problems += check(cache, differences, limits)
    return Snapshot(sha, total.files, total.insertions, total.deletions, len(found.added) + len(found.removed),
                    int(tip != start), tuple(_unique(problems)), others, _topmost(left))  # fmt: skip


@dataclass(frozen=True)
class Now:
    """A work tree as it stands, compared with the start, and with what was brought home of it."""

    text: str = ""
    truncated: bool = False
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    since: int = 0
    """Files that differ from `known`."""


def diff_now(
    cache: Path,
    repo_dir: Path,
    base_sha: str,
    index_copy: Path,
    stat: bool = False,
    limit: int = 1024 * 1024,
    exact: bool = False,
    known: str = "",
) -> Now:
    """The difference of a work tree as it stands to the start, its text as `diff` has it.

    `known` is the commit that was brought home, or "" when nobody asks what came since. Nothing is written but to a
    scratch directory that is gone afterwards; of the tree only pipes are removed on which git would wait for ever.

    Work that was committed on another branch than the one that is checked out counts as known.

    Raises: git_failed, git_timeout, no_space.
    """
    record = _record(index_copy, repo_dir, base_sha)
    if repo_dir.is_symlink() or not repo_dir.is_dir() or str(repo_dir.resolve()) != record.top:
        return Now()
    sparse = (repo_dir / ".git" / "info" / "sparse-checkout").is_file()
    with disk(), tempfile.TemporaryDirectory(dir=index_copy.parent, prefix="live.") as scratch:
        index = _scratch_index(cache, index_copy, Path(scratch), base_sha)
        found = scan(cache, repo_dir, index, record, Limits(), sparse=sparse)
        if not found:
            elsewhere = {sha for sha in refs.heads(repo_dir / ".git")[1].values() if sha != base_sha}
            since = changes(cache, known, base_sha) if known and not elsewhere else []
            return Now(since=len(since))
        objects = Path(scratch) / "objects"
        (objects / "info").mkdir(parents=True)
        (objects / "info" / "alternates").write_text(quoted(cache / "objects") + "\n", errors="surrogateescape")
        extra = {"GIT_OBJECT_DIRECTORY": str(objects)}
        stage(cache, repo_dir, index, found.removed, found.added, extra=extra)
        tree = write_tree(cache, index, extra=extra)
        text, truncated = diff(cache, base_sha, tree, stat, limit, extra=extra, exact=exact)
        total = summed(changes(cache, base_sha, tree, extra=extra))
        since = changes(cache, known, tree, extra=extra) if known else []
        return Now(text, truncated, total.files, total.insertions, total.deletions, len(since))


def noted(cache: Path, name: str) -> str:
    """The newest commit that was made of a workspace, "" when there is none."""
    return _noted(cache, WORK + name)


def same_parent(cache: Path, one: str, other: str) -> bool:
    """Whether two commits were made by the daemon on the same commit, one instead of the other."""
    asked = ("log", "--no-walk=unsorted", "--no-show-signature", "--format=%ce %P", "--end-of-options", one, other)
    lines = git(*asked, cwd=cache, env=environment(git_dir=cache)).text.splitlines()
    return len(lines) == 2 and lines[0] == lines[1] and lines[0].startswith(f"{DAEMON.email} ")


def commit_on(cache: Path, name: str, parent: str, sha: str, author: Author, message: str) -> str:
    """The files of a commit as one on top of another, noted as the work of that workspace."""
    tree = git("rev-parse", f"{sha}^{{tree}}", cwd=cache, env=environment(git_dir=cache)).text
    made = write_commit(cache, cache / "index", [parent], message, author, DAEMON, tree)
    with locked(cache):
        note(cache, WORK + name, made)
    return made


def _record(index_copy: Path, repo_dir: Path, base_sha: str) -> Record:
    try:
        return load(index_copy)
    except (OSError, ValueError, TypeError):
        # Lost with a home that was restored in part; the parents of the directory are trusted then.
        return Record(top=str(repo_dir.parent.resolve() / repo_dir.name), start=base_sha)


def _scratch_index(cache: Path, index_copy: Path, scratch: Path, base_sha: str) -> Path:
    """A copy of the daemon's index with its time (git compares it with the files'), or one made anew."""
    index = scratch / "index"
    if index_copy.is_file():
        shutil.copy2(index_copy, index)
    else:
        git("read-tree", base_sha, cwd=cache, env=environment(git_dir=cache, index=index))
    return index


def _judge_history(cache: Path, start: str, tip: str, record: Record) -> tuple[bool, list[str], list[Problem]]:
    """Whether the agent's commits must become one commit on the start, which nested repositories they link to, why."""
    problems = []
    squash = False
    if not descends(cache, start, tip):
        squash = True
        problems.append(Problem("history_rewritten", detail="its commits do not build on the start", blocking=False))
    if carried := committed_exclusions(cache, start, tip, record):
        squash = True
        problems.append(Problem("agent_file_committed", carried[0], "taken out", blocking=False))
    modules = {module.path for module in record.modules}
    links = [
        change.path
        for change in changes(cache, start, tip)
        if change.new_mode == _GITLINK and change.path not in modules
    ]
    problems += [Problem("embedded_repository", path) for path in links]
    return squash, links, problems


def _move_index(cache: Path, index: Path, tip: str, links: list[str]) -> None:
    """Bring the index to the agent's tip, keeping what it knows of unchanged files; nested repositories go."""
    git("read-tree", "-i", "-m", tip, cwd=cache, env=environment(git_dir=cache, index=index))
    if links:
        stage(cache, cache, index, links, [])


def _only_other(others: dict[str, str], name: str) -> str:
    heads = {ref: sha for ref, sha in others.items() if ref != "refs/stash"}
    if own := heads.get(f"refs/heads/agent/{name}"):
        return own
    distinct = set(heads.values())
    return distinct.pop() if len(distinct) == 1 else ""


def _committed_side(cache: Path, index: Path, record: Record) -> list[str]:
    """Agent-side or carried files that the agent committed, and that were not there when it began."""
    staged = git("ls-files", "-z", cwd=cache, env=environment(git_dir=cache, index=index)).out
    original = git("ls-tree", "-r", "-z", "--name-only", record.start, cwd=cache, env=environment(git_dir=cache)).out
    tracked = set(original.split(b"\0"))
    names = [os.fsdecode(path) for path in staged.split(b"\0") if path and path not in tracked]
    return [path for path in names if record.excluded(path)]


def _commit(cache: Path, index: Path, parent: str, message: str, author: Author, previous: str) -> str:
    """Commit the index on the parent; the commit of an earlier run that says the same is taken again."""
    tree = write_tree(cache, index)
    asked = [f"{parent}^{{tree}}"] + ([f"{previous}^{{tree}}", f"{previous}^"] if previous else [])
    answers = git("rev-parse", *asked, cwd=cache, env=environment(git_dir=cache)).text.splitlines()
    if answers[0] == tree:
        return parent
    if answers[1:] == [tree, parent]:
        return previous
    return write_commit(cache, index, [parent], message, author, DAEMON, tree)


def _unread(history: History) -> tuple[str, ...]:
    """The agent's git directory, when commits of its own could not be taken out of it."""
    return (".git",) if any(problem.slug == "damaged_history" for problem in history.problems) else ()


def _topmost(paths: list[str]) -> tuple[str, ...]:
    """Each path once, less those that lie below another of them."""
    found: dict[str, None] = {}
    for path in sorted(set(paths), key=lambda path: path.count("/")):
        parents = (path[:at] for at, char in enumerate(path) if char == "/")
        if not any(parent in found for parent in parents):
            found[path] = None
    return tuple(found)


def _modules(repo_dir: Path, name: str, record: Record, author: Author, message: str, limits: Limits) -> list[Problem]:
    """Look into each submodule as into a workspace of its own; its work is kept in its own cache."""
    problems = []
    for module in record.modules:
        place = repo_dir / module.path
        if record.excluded(module.path):
            continue  # filled before the agent came
        if not module.cache:
            if place.is_dir() and not place.is_symlink() and any(os.scandir(place)):
                problems.append(Problem("submodule_changed", module.path, "files in a submodule that is not there"))
        elif _module_moved(module, place, name, author, message, limits):
            detail = f"its work is kept in {module.cache}"
            problems.append(Problem("submodule_changed", module.path, detail))
    return problems


def _module_moved(module: Module, place: Path, name: str, author: Author, message: str, limits: Limits) -> bool:
    inner = snapshot(Path(module.cache), place, name, module.sha, Path(module.index), author, message, limits)
    return inner.sha != module.sha or bool(inner.blocking)


def _noted(cache: Path, name: str) -> str:
    try:
        return (cache / name).read_text().strip()
    except OSError:
        return ""


def _unique(problems: list[Problem]) -> list[Problem]:
    return list({(problem.slug, problem.path): problem for problem in problems}.values())
