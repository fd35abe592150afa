"""An accepted piece of work put onto a branch of the user's.

Accept comes in here. The result is computed in the cache and a scratch work tree; only then the user's branch moves,
through git's own fast-forward where it is checked out, so that no dirty or untracked file of theirs is ever lost.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coreagent.errors import CoreAgentError, shell_word
from coreagent.git import ref as refs
from coreagent.git.advance import advance
from coreagent.git.author import Author, identity
from coreagent.git.cache import import_commit, is_ancestor, lay_out, locked, object_format
from coreagent.git.checkout import fill
from coreagent.git.harvest import deliver, move, user_git_dir, worktrees_on
from coreagent.git.inspect import resolve
from coreagent.git.pack import carry, present, quoted
from coreagent.git.run import Done, disk, environment, git
from coreagent.git.under_way import claim_on
from coreagent.plural import plural

Strategy = Literal["fast-forward", "merge", "squash", "rebase", "none"]
"""How a piece of work got onto a branch; `none`: it was there already."""
STRATEGIES = ("auto", "fast-forward", "merge", "squash", "rebase")


@dataclass(frozen=True)
class Landing:
    """Where a branch of the user's stood, where it stands now, and the way back."""

    before: str
    after: str
    strategy: Strategy
    undo: str
    """The shell command that takes it back, for as long as nothing else was committed on top."""


def land(
    cache: Path,
    user_top: Path,
    branch: str,
    onto: str,
    sha: str,
    strategy: str = "auto",
    message: str = "",
    *,
    about_to_move: Callable[[str, str], None] = lambda before, after: None,
    env: Mapping[str, str] = os.environ,
) -> Landing:
    """Put the work `sha` (called `branch`) onto the user's branch `onto`. On any error that has not moved.

    Files are as they were too, unless git was kept from writing in the middle of it; the error tells that.

    `about_to_move(before, after)` is called when the commit exists and the branch has not moved yet, so that the
    caller can note what is going to be there. `env` is the person's own: git may know them by it alone.

    Raises: no_such_ref, nothing_to_accept, merge_conflict (data: files), dirty_checkout, branch_moved, no_identity,
    invalid_argument, invalid_name, repo_not_found, git_failed, git_timeout, no_space.
    """
    refs.require(onto)
    if strategy not in STRATEGIES:
        raise CoreAgentError("invalid_argument", f"there is no strategy {strategy!r}", hint=", ".join(STRATEGIES))
    git_dir = user_git_dir(user_top)
    name = f"refs/heads/{onto}"
    before = resolve(git_dir, name)
    if not before:
        raise CoreAgentError("no_such_ref", f"there is no branch {onto!r} in {user_top}", hint="choose one with --onto")
    places = worktrees_on(user_top, name)
    if claim := claim_on(git_dir, name):
        # Its end would put the branch where it wants it, and what had landed meanwhile would be on none.
        raise CoreAgentError(
            "dirty_checkout",
            f"{claim.what} of {onto} is under way in {claim.place}",
            hint=f"{claim.hint} accept again",
            data={"branch": onto},
        )
    with disk():
        if not present(cache, [before]):
            with locked(cache):
                import_commit(cache, git_dir, before)
        chosen = _choose(cache, before, sha, onto, strategy)
        message = message or f"Merge {branch}"
        if chosen == "fast-forward":
            after = sha
        else:
            by_hand = _by_hand(user_top, places, branch, onto)
            after = _compute(cache, user_identity(user_top, env), before, sha, onto, chosen, message, by_hand)
        deliver(cache, git_dir, after)
        about_to_move(before, after)
        if places:
            advance(places[0], onto, before, after, _in_the_way(places[0]), "accept again")
        else:
            move(git_dir, name, after, before, f"core-agent: accept {branch} ({chosen})")
    return Landing(before, after, chosen, _undo(user_top, places, name, before, after))


def _choose(cache: Path, before: str, sha: str, onto: str, strategy: str) -> Strategy:
    if is_ancestor(cache, sha, before):
        raise CoreAgentError("nothing_to_accept", f"{onto} already has this work")
    forward = is_ancestor(cache, before, sha)
    if strategy == "fast-forward" and not forward:
        raise CoreAgentError(
            "merge_conflict",
            f"{onto} has moved on, so it cannot be fast-forwarded",
            hint="use --strategy merge or rebase",
        )
    if forward and strategy in ("auto", "fast-forward", "rebase"):
        return "fast-forward"
    if strategy == "squash":
        return "squash"
    return "rebase" if strategy == "rebase" else "merge"


def _compute(
    cache: Path,
    person: tuple[Author, Author],
    before: str,
    sha: str,
    onto: str,
    strategy: Strategy,
    message: str,
    by_hand: str,
) -> str:
    """Make the commit that `onto` will stand at, in a scratch repository whose objects then go into the cache.

    `by_hand` is the command with which a person merges where that cannot be done alone.
    """
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".land.") as scratch:
        tree, git_dir = Path(scratch) / "tree", Path(scratch) / "git"
        tree.mkdir()
        lay_out(git_dir, object_format(cache), bare=False)
        (git_dir / "objects" / "info" / "alternates").write_text(quoted(cache / "objects") + "\n",
                                                                 errors="surrogateescape")  # fmt: skip
        if (cache / "shallow").exists():
            (git_dir / "shallow").write_bytes((cache / "shallow").read_bytes())
        (git_dir / "HEAD").write_text(before + "\n")
        fill(git_dir, before, tree, git_dir / "index")
        env = environment(git_dir=git_dir, work_tree=tree, extra=identity(*person))
        if strategy == "rebase":
            done = _replay(tree, env, before, sha)
        elif strategy == "squash":
            done = git("merge", "--squash", "--no-edit", sha, cwd=tree, env=env, ok=None)
            if done.code == 0:
                done = git("commit", "--quiet", "--no-verify", "--allow-empty", "--cleanup=verbatim", "-F", "-",
                           cwd=tree, env=env, stdin=message.encode("utf-8", "replace"), ok=None)  # fmt: skip
        else:
            done = git("merge", "--no-ff", "--no-edit", "--no-verify", "-m", message, sha, cwd=tree, env=env, ok=None)
        if done.code != 0:
            raise _conflict(tree, env, onto, done, by_hand)
        after = refs.read_small(git_dir / "HEAD").strip()
        with locked(cache):
            carry(git_dir, cache, [after], [before, sha])
    return after


def _replay(tree: Path, env: dict[str, str], before: str, sha: str) -> Done:
    """Rebase the work onto the branch: HEAD to the work first, then git's own rebase."""
    done = git("checkout", "--quiet", "--detach", sha, cwd=tree, env=env, ok=None)
    if done.code != 0:
        return done
    return git("rebase", "--quiet", "--no-autosquash", "--no-autostash", "--no-verify", before, cwd=tree, env=env,
               ok=None)  # fmt: skip


def _by_hand(user_top: Path, places: list[Path], branch: str, onto: str) -> str:
    """The command that merges the work where git asks a person about each conflict."""
    merge = f"git -C {shell_word(places[0] if places else user_top)} merge {shlex.quote(branch)}"
    return merge if places else f"git -C {shell_word(user_top)} switch {shlex.quote(onto)} && {merge}"


def _conflict(tree: Path, env: dict[str, str], onto: str, done: Done, by_hand: str) -> CoreAgentError:
    out = git("diff", "--name-only", "--diff-filter=U", "-z", "--no-ext-diff", cwd=tree, env=env, ok=None).out
    files = [os.fsdecode(path) for path in out.split(b"\0") if path]
    said = os.fsdecode(done.out + b"\n" + done.err).strip().splitlines()
    if not files:
        return CoreAgentError("git_failed", f"the work could not be put onto {onto}", cause=" | ".join(said[-3:]))
    return CoreAgentError(
        "merge_conflict",
        f"the work conflicts with {onto} in {plural(len(files), 'file')}: {', '.join(files[:5])}",
        hint=f"merge by hand (`{by_hand}`), settle those files and commit; accept again then counts it as accepted",
        data={"files": files},
    )


def _in_the_way(place: Path) -> tuple[str, str]:
    """Message and hint where the person's own changes would be overwritten."""
    return (
        f"{place} has changes in files the work touches",
        f"nothing was changed; put yours aside with `git -C {shell_word(place)} stash push --include-untracked`, "
        "accept again, then `git stash pop`; what --with-changes took along is in the work already: "
        "`git stash drop` instead",
    )


def undo(user_top: Path, onto: str, before: str, after: str) -> str:
    """The command that takes an earlier landing back; "" when something was committed on top of it since. Blocking."""
    name = f"refs/heads/{onto}"
    try:
        if resolve(user_git_dir(user_top), name) != after:
            return ""
        return _undo(user_top, worktrees_on(user_top, name), name, before, after)
    except CoreAgentError:
        return ""  # the repository is not there any more


def _undo(user_top: Path, places: list[Path], name: str, before: str, after: str) -> str:
    if places:
        return f"git -C {shell_word(places[0])} reset --keep {before}"
    return f"git -C {shell_word(user_top)} update-ref {shlex.quote(name)} {before} {after}"


def user_identity(user_top: Path, env: Mapping[str, str]) -> tuple[Author, Author]:
    """Who a commit of the person's is by, author and committer, by their environment and their own git config.

    Never a name that git made up from the host's. Raises: no_identity.
    """
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL")
    env = environment(
        user_config=True,
        config=[("user.useConfigOnly", "true")],
        extra={name: env[name] for name in names if name in env},
    )
    author, committer = (_ident(user_top, env, role) for role in ("AUTHOR", "COMMITTER"))
    if author is None or committer is None:
        raise CoreAgentError(
            "no_identity",
            "git does not know who you are, so no merge commit can be made in your name",
            hint="git config --global user.name 'Your Name'; git config --global user.email you@example.com",
        )
    return author, committer


def _ident(user_top: Path, env: Mapping[str, str], role: str) -> Author | None:
    done = git("var", f"GIT_{role}_IDENT", cwd=user_top, env=env, ok=None)
    name, _, rest = done.text.partition(" <")
    return Author(name, rest.partition(">")[0]) if done.code == 0 and name else None
