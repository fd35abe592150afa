"""A managed checkout follows its remote: forward by git's own means, back only with everything kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.git_room import fingerprint, sh, write
from tests.unit.test_git_fetch import Pair, commit

from coreagent.errors import CoreAgentError
from coreagent.git.forward import forward, reset
from coreagent.git.rescue import rescue_apply


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def ahead(pair: Pair, path: str = "new.txt") -> str:
    sha = pair.push(path)
    pair.fetch()
    return sha


def _work(pair: Pair) -> dict[str, str]:
    return {path: what for path, what in fingerprint(pair.user).items() if path != ".git/ORIG_HEAD"}


def refused(pair: Pair, slug: str) -> CoreAgentError:
    before = _work(pair)
    with pytest.raises(CoreAgentError) as caught:
        forward(pair.user, "main")
    assert caught.value.slug == slug
    assert _work(pair) == before
    return caught.value


def test_it_goes_forward_with_unrelated_changes_in_place(pair: Pair) -> None:
    write(pair.user, "README.md", "mine\n")
    write(pair.user, "notes")
    sha = ahead(pair)
    moved = forward(pair.user, "main")
    assert (moved.after, sh(pair.user, "rev-parse", "HEAD")) == (sha, sha)
    assert sh(pair.user, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert (pair.user / "README.md").read_text() == "mine\n"
    assert (pair.user / "new.txt").is_file()
    assert forward(pair.user, "main").before == sha


def test_a_branch_that_is_not_checked_out_moves_alone(pair: Pair) -> None:
    sh(pair.user, "switch", "-q", "-c", "side")
    sha = ahead(pair)
    assert forward(pair.user, "main").after == sha
    assert sh(pair.user, "rev-parse", "main") == sha
    assert not (pair.user / "new.txt").exists()


def test_it_refuses_rather_than_lose_anything(pair: Pair) -> None:
    ahead(pair)
    write(pair.user, "new.txt", "mine\n")
    assert "--reset" in refused(pair, "dirty_checkout").hint
    (pair.user / "new.txt").unlink()
    commit(pair.user, "own.txt")
    assert "1 commit" in refused(pair, "diverged").message
    with pytest.raises(CoreAgentError) as caught:
        forward(pair.user, "nowhere")
    assert caught.value.slug == "no_such_ref"


def test_hooks_do_not_run(pair: Pair) -> None:
    mark = pair.tmp / "ran"
    for hook in ("post-merge", "post-checkout", "reference-transaction"):
        write(pair.user, f".git/hooks/{hook}", f"#!/bin/sh\ntouch {mark}\n").chmod(0o755)
    ahead(pair)
    forward(pair.user, "main")
    ahead(pair, "more.txt")
    reset(pair.tmp / "cache.git", pair.user, "main", "x@checkout")
    assert not mark.exists()


def test_a_reset_keeps_commits_staged_and_changed_files(pair: Pair) -> None:
    sha = ahead(pair)
    own = commit(pair.user, "own.txt", "own\n")
    write(pair.user, "src/a.py", "staged\n")
    sh(pair.user, "add", "src/a.py")
    write(pair.user, "src/a.py", "changed after\n")
    (pair.user / "src/b.py").unlink()
    write(pair.user, "new.txt", "in the way\n")
    write(pair.user, "notes", "stays\n")
    cache = pair.tmp / "cache.git"
    moved = reset(cache, pair.user, "main", "main@checkout")
    assert (moved.before, moved.after, sh(pair.user, "rev-parse", "main")) == (own, sha, sha)
    assert sh(pair.user, "status", "--porcelain") == "?? notes"
    assert (pair.user / "new.txt").read_text() == "x\n"
    commits, staged, changed = (kept.sha for kept in moved.kept)
    assert commits == own
    assert [kept.files for kept in moved.kept] == [1, 1, 3]
    assert sh(cache, "show", f"{staged}:src/a.py") == "staged"
    assert sh(cache, "show", f"{changed}:src/a.py") == "changed after"
    assert sh(cache, "show", f"{changed}:new.txt") == "in the way"
    assert "src/b.py" not in sh(cache, "ls-tree", "-r", "--name-only", changed)
    sh(cache, "fsck", "--strict")
    back = rescue_apply(cache, pair.user, "main@checkout", moved.kept[-1].n)
    assert sh(pair.user, "show", f"rescue/main@checkout-{back.n}:own.txt") == "own"
    assert reset(cache, pair.user, "main", "main@checkout").kept == ()


def test_a_reset_comes_back_from_another_branch_and_from_nowhere(pair: Pair) -> None:
    sha = ahead(pair)
    cache = pair.tmp / "cache.git"
    sh(pair.user, "switch", "-q", "--detach")
    lost = commit(pair.user, "own.txt")
    assert [kept.sha for kept in reset(cache, pair.user, "main", "m@checkout").kept] == [lost]
    assert sh(pair.user, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert sh(pair.user, "rev-parse", "HEAD") == sha


def test_a_directory_where_a_file_is_to_be_is_kept(pair: Pair) -> None:
    ahead(pair, "thing")
    write(pair.user, "thing/inside", "mine\n")
    cache = pair.tmp / "cache.git"
    (kept,) = reset(cache, pair.user, "main", "m@checkout").kept
    assert sh(cache, "show", f"{kept.sha}:thing/inside") == "mine"
    assert (pair.user / "thing").is_file()


def test_nothing_is_reset_in_the_middle_of_a_merge(pair: Pair) -> None:
    ahead(pair)
    write(pair.user, ".git/MERGE_HEAD", sh(pair.user, "rev-parse", "HEAD") + "\n")
    with pytest.raises(CoreAgentError) as caught:
        reset(pair.tmp / "cache.git", pair.user, "main", "m@checkout")
    assert caught.value.slug == "dirty_checkout"
