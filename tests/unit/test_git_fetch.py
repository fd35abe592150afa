"""Fetching into a person's repository: remote-tracking branches only, by their own refspecs, and never a question."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.git_room import fingerprint, make_user, sh, write

from coreagent.errors import CoreAgentError
from coreagent.git.fetch import distance, fetch, tip


def commit(top: Path, path: str, text: str = "x\n") -> str:
    write(top, path, text)
    sh(top, "add", "-A")
    sh(top, "commit", "-q", "-m", path)
    return sh(top, "rev-parse", "HEAD")


class Pair:
    """A person's clone, its bare remote, and somebody else who pushes there."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        make_user(tmp / "seed")
        sh(tmp, "clone", "-q", "--bare", "seed", "remote.git")
        sh(tmp, "clone", "-q", "remote.git", "user")
        sh(tmp, "clone", "-q", "remote.git", "other")
        self.user, self.other, self.remote = tmp / "user", tmp / "other", tmp / "remote.git"
        self.env = {"PATH": os.environ["PATH"], "HOME": str(tmp), "GIT_CONFIG_NOSYSTEM": "1"}

    def push(self, path: str, branch: str = "main") -> str:
        sha = commit(self.other, path)
        sh(self.other, "push", "-q", "origin", f"HEAD:refs/heads/{branch}")
        return sha

    def fetch(self) -> tuple[str, ...]:
        return fetch(self.user, self.env, 20).moved


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def theirs(top: Path) -> dict[str, str]:
    """Everything of a repository that a fetch may not touch."""
    kept = ("objects/", "refs/remotes", "logs/refs/remotes")
    return {path: what for path, what in fingerprint(top).items() if not path.removeprefix(".git/").startswith(kept)}


def test_only_tracking_branches_and_objects_are_new(pair: Pair) -> None:
    write(pair.user, "README.md", "changed by hand\n")
    sh(pair.user, "config", "fetch.prune", "true")
    sh(pair.user, "config", "gc.auto", "1")
    sh(pair.user, "config", "remote.origin.tagOpt", "--tags")
    sh(pair.user, "update-ref", "refs/remotes/origin/gone", "HEAD")
    before = theirs(pair.user)
    sha = pair.push("new.txt")
    sh(pair.other, "tag", "v1")
    sh(pair.other, "push", "-q", "origin", "v1")
    pair.push("more.txt", "feature/x")
    assert pair.fetch() == ("origin/feature/x", "origin/main")
    assert theirs(pair.user) == before
    assert tip(pair.user / ".git", "main") == sha
    assert tip(pair.user / ".git", "gone")
    assert sh(pair.user, "tag") == ""
    assert pair.fetch() == ()
    assert distance(pair.user / ".git", sh(pair.user, "rev-parse", "HEAD"), sha) == (0, 1)
    sh(pair.user, "pack-refs", "--all")
    assert tip(pair.user / ".git", "main") == sha
    assert tip(pair.user / ".git", "nowhere") == ""


def test_the_persons_narrow_refspec_is_kept_and_a_mirrors_is_refused(pair: Pair) -> None:
    sh(pair.user, "config", "--replace-all", "remote.origin.fetch", "+refs/heads/main:refs/remotes/origin/main")
    pair.push("new.txt")
    pair.push("more.txt", "other")
    assert pair.fetch() == ("origin/main",)
    sh(pair.user, "config", "--add", "remote.origin.fetch", "+refs/heads/*:refs/heads/*")
    head = sh(pair.user, "rev-parse", "main")
    pair.push("third.txt")
    assert pair.fetch() == ("origin/main",)
    assert sh(pair.user, "rev-parse", "main") == head
    sh(pair.user, "config", "--replace-all", "remote.origin.fetch", "+refs/heads/*:refs/heads/*")
    with pytest.raises(CoreAgentError) as caught:
        pair.fetch()
    assert (caught.value.slug, "never moves your own" in caught.value.hint) == ("fetch_failed", True)


def test_no_hook_of_theirs_runs_and_no_command_url(pair: Pair) -> None:
    mark = pair.tmp / "ran"
    for hook in ("reference-transaction", "post-merge", "post-checkout"):
        path = write(pair.user, f".git/hooks/{hook}", f"#!/bin/sh\ntouch {mark}\n")
        path.chmod(0o755)
    sh(pair.user, "config", "core.fsmonitor", f"touch {mark}")
    pair.push("new.txt")
    assert pair.fetch() == ("origin/main",)
    sh(pair.user, "config", "protocol.ext.allow", "always")
    sh(pair.user, "config", "remote.origin.url", f"ext::sh -c 'touch {mark}'")
    with pytest.raises(CoreAgentError) as caught:
        pair.fetch()
    assert caught.value.slug == "fetch_failed"
    assert not mark.exists()


def test_nobody_is_asked_and_ssh_is_the_persons_own(pair: Pair) -> None:
    told = pair.tmp / "told"
    ssh = write(
        pair.tmp, "bin/ssh", f"#!/bin/sh\necho \"$@\" > {told}\necho 'Permission denied (publickey).' >&2\nexit 255\n"
    )
    ssh.chmod(0o755)
    sh(pair.user, "config", "core.sshCommand", f"{ssh} -i mine")
    sh(pair.user, "config", "remote.origin.url", "git@example.invalid:me/it.git")
    asked = write(pair.tmp, "bin/askpass", f"#!/bin/sh\ntouch {told}.asked\n")
    asked.chmod(0o755)
    pair.env |= {"SSH_ASKPASS": str(asked), "GIT_ASKPASS": str(asked)}
    with pytest.raises(CoreAgentError) as caught:
        pair.fetch()
    assert "-i mine" in told.read_text()
    assert "-oBatchMode=yes" in told.read_text()
    assert "by hand" in caught.value.hint
    assert not Path(f"{told}.asked").exists()


def test_a_remote_that_is_gone_or_hangs_is_told_without_its_password(pair: Pair) -> None:
    sh(pair.user, "config", "remote.origin.url", "https://me:hunter2@127.0.0.1:9/it.git")
    with pytest.raises(CoreAgentError) as caught:
        pair.fetch()
    assert "hunter2" not in " ".join(caught.value.lines())
    slow = write(pair.tmp, "bin/ssh", "#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    sh(pair.user, "config", "core.sshCommand", str(slow))
    sh(pair.user, "config", "remote.origin.url", "ssh://example.invalid/it.git")
    with pytest.raises(CoreAgentError) as caught:
        fetch(pair.user, pair.env, 0.3)
    assert caught.value.slug == "git_timeout"
    sh(pair.user, "remote", "remove", "origin")
    assert not fetch(pair.user, pair.env, 20).remote
