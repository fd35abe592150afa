"""News from `origin`, brought into a person's repository: remote-tracking branches and their objects, nothing else.

The daemon's clock and `repo fetch` come in here. It is the one place where git reaches out of the machine, with the
person's own configuration: their URLs, their ssh, their credential helpers (docs/security.md). No hook runs, nobody is
asked for a password, and no branch, tag, index, FETCH_HEAD or configuration of theirs is written.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from coreagent.errors import CoreAgentError, shell_word
from coreagent.git import ref as refs
from coreagent.git.run import Done, environment, git

REMOTE = "origin"
TRACKING = f"refs/remotes/{REMOTE}/"

# What git, ssh and their helpers need of the person's shell to reach a remote. No key and no token is among them.
_NAMES = (
    "PATH HOME USER LOGNAME TMPDIR SSH_AUTH_SOCK SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE HTTP_PROXY HTTPS_PROXY "
    "ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy XDG_CONFIG_HOME XDG_RUNTIME_DIR XDG_DATA_HOME "
    "GIT_CONFIG_GLOBAL GIT_CONFIG_SYSTEM GIT_CONFIG_NOSYSTEM"
)
PASSED = frozenset(_NAMES.split())

_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.askPass": "",
    "credential.interactive": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    # A remote of this kind is a command line; nobody needs one every five minutes.
    "protocol.ext.allow": "never",
}
_ASKED = r"^(remote\.origin\.(url|fetch)|core\.sshcommand)$"
_SECRET = re.compile(r"([a-z][a-z0-9+.-]*://)[^/@\s]+@", re.IGNORECASE)
_LOCKED_OUT = ("could not read Username", "could not read Password", "Authentication failed", "Permission denied",
               "terminal prompts disabled", "Host key verification failed", "HTTP 401", "HTTP 403")  # fmt: skip


@dataclass(frozen=True)
class Fetched:
    """What a fetch brought."""

    remote: bool = True
    """False when there is no remote to ask."""
    moved: tuple[str, ...] = ()
    """Remote-tracking branches that are new or elsewhere now, as `origin/main`."""


def fetch(top: Path, env: Mapping[str, str], timeout_s: float) -> Fetched:
    """Ask `origin` for its branches; the refspecs are the person's own, as far as they write below refs/remotes.

    Raises: fetch_failed, git_timeout, repo_not_found, git_missing.
    """
    git_dir = refs.git_dir_of(top)
    if git_dir is None or not git_dir.is_dir():
        raise CoreAgentError("repo_not_found", f"there is no repository at {top} any more",
                             hint="was it moved? core-agent repo add")  # fmt: skip
    own = _environment(env)
    asked = _configured(top, own)
    if not asked.url:
        return Fetched(remote=False)
    own["GIT_SSH_COMMAND"] = _ssh(env.get("GIT_SSH_COMMAND") or asked.ssh)
    before = _tracked(git_dir)
    args = (
        "fetch", "--quiet", "--no-tags", "--no-prune", "--refmap=", "--no-recurse-submodules", "--no-write-fetch-head",
        "--no-auto-maintenance", "--no-write-commit-graph", "--no-show-forced-updates", REMOTE, *_specs(asked, top),
    )  # fmt: skip
    try:
        done = git(*args, cwd=top, env=own, ok=None, timeout_s=timeout_s)
    except CoreAgentError as error:
        if error.slug == "git_timeout":
            error.hint = f"is the network there? git -C {shell_word(top)} fetch, or a longer sync.timeout_s"
        raise
    if done.code != 0:
        raise _failed(top, done)
    after = _tracked(git_dir)
    return Fetched(moved=tuple(sorted(name for name, sha in after.items() if before.get(name) != sha)))


@dataclass(frozen=True)
class _Asked:
    url: str
    specs: tuple[str, ...]
    ssh: str


def _configured(top: Path, env: Mapping[str, str]) -> _Asked:
    done = git("config", "-z", "--get-regexp", _ASKED, cwd=top, env=env, ok=None)
    if done.code > 1:
        raise _failed(top, done)
    url, specs, ssh = "", [], ""
    for entry in done.text.split("\0"):
        key, _, value = entry.partition("\n")
        match key:
            case "remote.origin.url":
                url = url or value
            case "remote.origin.fetch":
                specs.append(value)
            case "core.sshcommand":
                ssh = value
    return _Asked(url, tuple(specs), ssh)


def _specs(asked: _Asked, top: Path) -> list[str]:
    """The person's refspecs that write remote-tracking branches; a mirror's would move their own."""
    if not asked.specs:
        return [f"+refs/heads/*:{TRACKING}*"]
    kept = [spec for spec in asked.specs if spec.partition(":")[2].startswith(TRACKING)]
    if not kept:
        raise CoreAgentError(
            "fetch_failed",
            f"origin of {top} would be fetched into branches that are not remote-tracking ones",
            cause=f"remote.origin.fetch = {asked.specs[0]}",
            hint="core-agent never moves your own branches; fetch this one by hand",
        )
    return kept + [spec for spec in asked.specs if spec.startswith("^")]


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """What the caller's shell has of the names that count; the daemon's own fills in the rest."""
    env = {name: found for name in PASSED if (found := given.get(name) or os.environ.get(name))}
    env.update(
        LC_ALL="C",
        GIT_TERMINAL_PROMPT="0",
        GIT_ASKPASS="",  # set and empty: neither core.askPass nor SSH_ASKPASS is tried
        SSH_ASKPASS_REQUIRE="never",
        GCM_INTERACTIVE="never",
        GIT_OPTIONAL_LOCKS="0",
        GIT_CONFIG_COUNT=str(len(_CONFIG)),
    )
    for number, (key, value) in enumerate(_CONFIG.items()):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    return env


def _ssh(own: str) -> str:
    """The person's ssh command, told to ask nothing; another program than ssh does not know these options."""
    command = own or "ssh"
    try:
        program = os.path.basename(shlex.split(command)[0])
    except (ValueError, IndexError):
        return command
    return f"{command} -oBatchMode=yes -oConnectTimeout=20" if program == "ssh" else command


def _tracked(git_dir: Path) -> dict[str, str]:
    done = git("for-each-ref", "--format=%(objectname) %(refname)", TRACKING, cwd=git_dir,
               env=environment(git_dir=git_dir))  # fmt: skip
    found = (line.partition(" ") for line in done.text.splitlines())
    return {name.removeprefix("refs/remotes/"): sha for sha, _, name in found if name != TRACKING + "HEAD"}


def _failed(top: Path, done: Done) -> CoreAgentError:
    said = [_SECRET.sub(r"\1", line.strip()) for line in os.fsdecode(done.err).strip().splitlines()]
    cause = " | ".join([line for line in said if line.startswith(("fatal:", "error:"))][:2] or said[-2:])
    by_hand = f"git -C {shell_word(top)} fetch"
    text = "\n".join(said)
    if any(words in text for words in _LOCKED_OUT):
        hint = f"nobody can be asked here: log in once by hand ({by_hand}), or use an ssh agent or a credential helper"
    elif "Could not resolve host" in text or "unable to access" in text or "Connection" in text:
        hint = f"is the network there? {by_hand}"
    else:
        hint = f"see what it says by hand: {by_hand}"
    return CoreAgentError("fetch_failed", f"origin of {top} could not be fetched",
                          cause=cause or f"exit code {done.code}", hint=hint)  # fmt: skip


def tip(git_dir: Path, branch: str) -> str:
    """Where `origin/<branch>` was at the last fetch, "" when there is none; read by hand, without a process."""
    return refs.read(refs.common_dir_of(git_dir), TRACKING + branch)


@lru_cache(maxsize=256)  # two hashes stand for the same histories for ever
def distance(git_dir: Path, mine: str, theirs: str) -> tuple[int, int]:
    """How many commits `mine` has that `theirs` lacks, and the other way round.

    Raises: git_failed, git_timeout.
    """
    done = git("rev-list", "--left-right", "--count", "--end-of-options", f"{mine}...{theirs}",
               cwd=git_dir, env=environment(git_dir=git_dir))  # fmt: skip
    ahead, behind = done.text.split()
    return int(ahead), int(behind)
