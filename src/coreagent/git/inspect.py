"""What stands in the user's repository, read without leaving a trace there.

Dispatch comes in here first with whatever directory the person stands in. On the hot path: one git process, and another
beside it for a repository not seen before. It must not write anything, and must not know caches or workspaces.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from coreagent.errors import CoreAgentError
from coreagent.git import ref as refs
from coreagent.git.run import TIMEOUT_S, Done, environment, failure, git, kill, start, timed_out


@dataclass(frozen=True)
class Base:
    """A commit of the user's repository that a workspace starts from."""

    top: Path
    """Real path of the work tree's top level."""
    git_dir: Path
    ref: str
    """Short name of the branch or tag; "" when HEAD is detached."""
    kind: str
    """`branch`, `tag` or `detached`."""
    sha: str
    dirty: int
    """Changed and untracked files of the work tree."""
    shallow: bool
    default_branch: str
    object_format: str = "sha1"
    prefix: str = ""
    """The directory inside the work tree that was asked about; "" for the top."""
    counting: Future[int] | None = field(default=None, compare=False, repr=False)
    """Tells `dirty` later, when the base was described before that was known (`glance`)."""

    def counted(self) -> Base:
        """The same with `dirty` known, 0 when it cannot be; waits for it."""
        dirty = self.dirty
        if self.counting is not None:
            with contextlib.suppress(CoreAgentError, CancelledError):
                dirty = self.counting.result()
        return replace(self, dirty=dirty, counting=None)

    @property
    def common_dir(self) -> Path:
        return refs.common_dir_of(self.git_dir)


def inspect(path: Path, branch: str | None = None, tag: str | None = None) -> Base:
    """Describe the repository around a directory and the commit to start from: HEAD, or a branch, or a tag.

    Raises: not_a_repository, bare_repository, unborn_head, no_such_ref, invalid_name, git_missing, git_timeout.
    """
    if branch is not None:
        refs.require(branch)
    if tag is not None:
        refs.require(tag, "tag")
    if not path.is_dir():
        raise CoreAgentError("not_a_repository", f"{path} is not a directory")
    # Side by side: the scan of the work tree takes as long as everything else together.
    with _status(path) as scan:
        facts = _facts(path)
        status = _finish(scan)
    if status.code != 0:
        facts = _ask(path)  # it says better than a failed `git status` what is wrong there
        with _status(path, modules=False) as scan:  # one that is broken is no reason not to work on the rest
            status = _finish(scan)
    base = _base(path.resolve(), facts, status)
    if branch is None and tag is None:
        if not base.sha:
            raise CoreAgentError(
                "unborn_head",
                f"{base.top} has no commit yet",
                hint="make a first commit: git commit --allow-empty -m 'start'",
            )
        return base
    return _named(base, branch, tag)


def glance(path: Path, count: Callable[[Callable[[], int]], Future[int]]) -> Base | None:
    """What `inspect` says of HEAD, without waiting for the scan of the work tree, which `count` has somebody do.

    None for what is not the top of an ordinary work tree on a branch, and was not inspected before.
    """
    top = path.resolve()
    known = _known.get(str(path))
    if top != path or known is None or known[0] is None or known[0] != _signature(path):
        return None
    git_dir = path / ".git"
    try:
        text = refs.read_small(git_dir / "HEAD").strip()
        head = text.removeprefix("ref: refs/heads/")
        sha = refs.read(git_dir, f"refs/heads/{head}") if head != text else ""
    except OSError:
        return None
    if not refs.is_sha(sha) or not refs.valid(head):
        return None

    def dirty() -> int:
        with _status(path, "-c", "core.preloadIndex=false") as scan:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, scan.pid, ASIDE_NICE)
            done = _finish(scan)
        if done.code != 0:
            raise failure(["status"], done)
        return _read_status(done.out)[2]

    _, _, shallow, object_format, *_ = known[1]
    return Base(
        top=top,
        git_dir=git_dir,
        ref=head,
        kind="branch",
        sha=sha,
        dirty=0,
        shallow=shallow == "true",
        default_branch=_default_branch(refs.common_dir_of(git_dir), head),
        object_format=object_format,
        counting=count(dirty),
    )


ASIDE_NICE = 10
"""A scan that nothing waits for but an answer's last line gives way to the task's start."""

_Signature = tuple[tuple[int, ...], ...]
_known: dict[str, tuple[_Signature, list[str]]] = {}
"""Directory -> what `_ask` said of it, and what that depends on: many tasks start from the same one."""
_KNOWN_MOST = 64


def _facts(path: Path) -> list[str]:
    """What `_ask` says, from memory while nothing that it depends on has changed."""
    signature = _signature(path)
    known = _known.get(str(path))
    if known is not None and known[0] == signature:
        return known[1]
    facts = _ask(path)
    if signature is not None:
        if len(_known) >= _KNOWN_MOST:
            _known.clear()
        _known[str(path)] = signature, facts
    return facts


def _signature(path: Path) -> _Signature | None:
    """Identity and times of all that `_ask` depends on; None for anything but the top of an ordinary work tree.

    A `.git` file, a directory further down or a configuration that includes others depends on more than these.
    """
    seen: list[tuple[int, ...]] = []
    try:
        for place in (path, path / ".git"):
            entry = os.lstat(place)
            if not stat.S_ISDIR(entry.st_mode):
                return None
            seen.append((entry.st_dev, entry.st_ino, entry.st_uid))
        if b"include" in (path / ".git" / "config").read_bytes().lower():
            return None
    except OSError:
        return None
    for name in ("config", "config.worktree", "shallow", "commondir"):
        try:
            entry = os.lstat(path / ".git" / name)
            seen.append((entry.st_ino, entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns))
        except OSError:
            seen.append(())
    return tuple(seen)


def _named(base: Base, branch: str | None, tag: str | None) -> Base:
    if tag is not None:
        sha = resolve(base.git_dir, f"refs/tags/{tag}")
        if not sha:
            raise CoreAgentError("no_such_ref", f"there is no tag {tag!r} in {base.top}", hint="git tag lists them")
        return replace(base, ref=tag, kind="tag", sha=sha)
    assert branch is not None
    sha = resolve(base.git_dir, f"refs/heads/{branch}") or resolve(base.git_dir, f"refs/remotes/origin/{branch}")
    if not sha:
        raise CoreAgentError(
            "no_such_ref", f"there is no branch {branch!r} in {base.top}", hint="git branch --all lists them"
        )
    return replace(base, ref=branch, kind="branch", sha=sha)


def resolve(git_dir: Path, name: str) -> str:
    """The commit a full ref name stands for; "" when there is none."""
    done = git(
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        name + "^{commit}",
        cwd=git_dir,
        env=environment(git_dir=git_dir),
        ok=None,
    )
    return done.text if done.code == 0 else ""


def _status(path: Path, *before: str, modules: bool = True) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return start(
        *before,
        "status",
        "--porcelain=v2",
        "--branch",
        "--no-ahead-behind",
        "--no-renames",
        "--untracked-files=all",
        *(() if modules else ("--ignore-submodules=all",)),
        "-z",
        cwd=path,
        env=environment(user_config=True),  # what their own git ignores is no change of theirs
        stdin=subprocess.DEVNULL,
    )


def _finish(process: subprocess.Popen[bytes]) -> Done:
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        kill(process)
        raise timed_out(["status"], TIMEOUT_S) from None
    return Done(process.returncode, out, err)


def _ask(path: Path) -> list[str]:
    """bare, inside-work-tree, shallow, object format, way up, git directory (last: it may hold newlines)."""
    args = (
        "rev-parse",
        "--is-bare-repository",
        "--is-inside-work-tree",
        "--is-shallow-repository",
        "--show-object-format",
        "--show-prefix",
        "--absolute-git-dir",
    )
    done = git(*args, cwd=path, env=environment(), ok=None)
    if done.code == 0:
        return done.text.split("\n")
    said = os.fsdecode(done.err)
    if "dubious ownership" in said:
        raise CoreAgentError(
            "not_a_repository",
            f"the repository at {path} belongs to another user",
            cause=said.strip().splitlines()[0],
            hint="run core-agent as the user who owns it, or change its owner",
        )
    if "not a git repository" in said or "not a git repo" in said:
        raise CoreAgentError(
            "not_a_repository",
            f"{path} is not inside a git repository",
            hint="go to your project's directory, or run: git init",
        )
    raise failure(args, done)


def _base(path: Path, facts: list[str], status: Done) -> Base:
    bare, inside, shallow, object_format, *rest = facts
    if bare == "true":
        raise CoreAgentError(
            "bare_repository", f"{path} is a bare repository", hint="dispatch from a clone that has a work tree"
        )
    if inside != "true":
        raise CoreAgentError(
            "not_a_repository", f"{path} is inside a git directory", hint="go to the work tree of the project"
        )
    if status.code != 0:
        raise failure(["status"], status)
    top, prefix, git_dir = _places(path, rest)
    sha, head, dirty = _read_status(status.out)
    return Base(
        top=top,
        git_dir=git_dir,
        ref=head,
        kind="branch" if head else "detached",
        sha=sha,
        dirty=dirty,
        shallow=shallow == "true",
        default_branch=_default_branch(refs.common_dir_of(git_dir), head),
        object_format=object_format,
        prefix=prefix,
    )


def _places(path: Path, rest: list[str]) -> tuple[Path, str, Path]:
    """Split prefix and git directory at the one newline between them that makes sense: both names may hold newlines."""
    for cut in range(1, len(rest)):
        prefix, git_dir = "\n".join(rest[:cut]).rstrip("/"), Path("\n".join(rest[cut:]))
        top = Path(str(path).removesuffix(prefix)) if prefix else path
        if git_dir.is_absolute() and git_dir.is_dir() and str(path) == os.path.normpath(top / prefix):
            return top.resolve(), prefix, git_dir
    raise CoreAgentError("git_failed", f"cannot tell where the git directory of {path} is")


def _read_status(out: bytes) -> tuple[str, str, int]:
    sha = head = ""
    dirty = 0
    for record in out.split(b"\0"):
        if record.startswith(b"# branch.oid "):
            text = os.fsdecode(record[13:])
            sha = text if refs.is_sha(text) else ""
        elif record.startswith(b"# branch.head "):
            text = os.fsdecode(record[14:])
            head = "" if text == "(detached)" else text
        elif record[:2] in (b"1 ", b"2 ", b"u ", b"? "):
            dirty += 1
    return sha, head, dirty


def _default_branch(common: Path, head: str) -> str:
    """What the remote calls its HEAD, else the branch we stand on; read by hand, a process would cost 3 ms."""
    try:
        text = refs.read_small(common / "refs" / "remotes" / "origin" / "HEAD").strip()
    except OSError:
        return head
    return text.removeprefix("ref: refs/remotes/origin/") if text.startswith("ref: refs/remotes/origin/") else head
