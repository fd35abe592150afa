"""The one door to the git program.

Every other module of this package comes in here. It knows how to run git so that nothing configured by a person's
machine, an agent or a repository gets executed (hooks, fsmonitor, maintenance, prompts, transports), and how to turn
git's failures into errors with a code. It must not know what a workspace, a cache or a harvest is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coreagent import umask
from coreagent.errors import CoreAgentError, told

TIMEOUT_S = 600.0

# Set on every call, above any repository's own config. `protocol.allow=never` is what keeps a promisor remote that an
# agent wrote into a config from running a program when an object is missing; no command here needs a transport.
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.pager": "cat",
    "core.attributesFile": "/dev/null",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    "protocol.ext.allow": "never",
    "advice.detachedHead": "false",
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "submodule.recurse": "false",
    "rerere.enabled": "false",
}
# What these keep from the machine's and the person's config is exactly what is theirs to decide: their filters (LFS),
# line endings, identity. Only used for commands in the person's own work tree.
_USER_CONFIG_KEEPS = {"core.attributesFile"}


@dataclass(frozen=True)
class Done:
    """What a finished git left behind."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Standard output without the last newline; bytes that are no UTF-8 survive as surrogates."""
        return os.fsdecode(self.out).rstrip("\n")


def environment(
    *,
    git_dir: Path | None = None,
    work_tree: Path | None = None,
    index: Path | None = None,
    user_config: bool = False,
    config: Iterable[tuple[str, str]] = (),
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Build git's whole environment from nothing; only PATH, HOME and TMPDIR come from the daemon's own."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    env.update(
        LC_ALL="C",
        GIT_TERMINAL_PROMPT="0",
        GIT_OPTIONAL_LOCKS="0",
        GIT_ALLOW_PROTOCOL="",
        GIT_NO_LAZY_FETCH="1",
        GIT_NO_REPLACE_OBJECTS="1",
        GIT_EDITOR="true",
        GIT_SEQUENCE_EDITOR="true",
        GIT_LITERAL_PATHSPECS="1",
    )
    if user_config:
        for name in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"):
            if name in os.environ:
                env[name] = os.environ[name]
    else:
        env.update(GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null", GIT_ATTR_NOSYSTEM="1")
    pairs = [(key, value) for key, value in _CONFIG.items() if not (user_config and key in _USER_CONFIG_KEEPS)]
    pairs.extend(config)
    # GIT_CONFIG_COUNT rather than -c: a value may hold anything, and it stays out of the process list.
    env["GIT_CONFIG_COUNT"] = str(len(pairs))
    for number, (key, value) in enumerate(pairs):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    if git_dir is not None:
        env["GIT_DIR"] = str(git_dir)
    if work_tree is not None:
        env["GIT_WORK_TREE"] = str(work_tree)
    if index is not None:
        env["GIT_INDEX_FILE"] = str(index)
    env.update(extra or {})
    return env


def git(
    *args: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    ok: Sequence[int] | None = (0,),
    timeout_s: float = TIMEOUT_S,
) -> Done:
    """Run git to its end and return what it said.

    `ok` lists the exit codes that are answers; None takes any.

    Raises: git_missing, git_timeout, no_space, git_failed.
    """
    with start(*args, cwd=cwd, env=env) as process:
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            kill(process)
            raise timed_out(args, timeout_s) from None
    done = Done(process.returncode, out, err)
    if ok is not None and done.code not in ok:
        raise failure(args, done)
    return done


@contextlib.contextmanager
def start(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, stdin: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start git in a process group of its own; leaving the block kills whatever still runs of it.

    Raises: git_missing, git_failed when the directory is gone.
    """
    try:
        process = subprocess.Popen(
            ["git", *args],
            cwd=cwd,
            env=dict(env if env is not None else environment()),
            stdin=subprocess.PIPE if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            umask=umask.usual(),  # a person's files keep the modes that he gives them
        )
    except FileNotFoundError as error:
        if Path(cwd).is_dir():
            raise CoreAgentError(
                "git_missing", "git was not found on PATH", hint="install git 2.34 or newer and try again"
            ) from error
        raise CoreAgentError("git_failed", f"{cwd} is gone", cause=told(error)) from error
    except OSError as error:
        raise CoreAgentError("git_failed", f"git could not be started in {cwd}", cause=told(error)) from error
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill git and its own children (index-pack, rebase), then reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def timed_out(args: Sequence[str], timeout_s: float) -> CoreAgentError:
    return CoreAgentError(
        "git_timeout",
        f"git {args[0]} did not finish within {timeout_s:g} s",
        hint="is the disk very slow, or does another git hold a lock in this repository?",
    )


def failure(args: Sequence[str], done: Done) -> CoreAgentError:
    """Turn a failed git into an error whose cause is the last lines git wrote."""
    said = os.fsdecode(done.err).strip().splitlines()
    cause = " | ".join(line.strip() for line in said[-3:]) or f"exit code {done.code}"
    if "No space left on device" in cause or "Disk quota exceeded" in cause:
        return no_space(cause)
    return CoreAgentError("git_failed", f"git {args[0]} failed", cause=cause)


def no_space(cause: str) -> CoreAgentError:
    return CoreAgentError(
        "no_space", "the disk is full", cause=cause, hint="free some space (core-agent workspace clean) and try again"
    )


@contextlib.contextmanager
def disk() -> Iterator[None]:
    """Turn a full disk met by our own file operations into the same error git's would be."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(told(error)) from error
        raise
