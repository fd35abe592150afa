"""What lies between two commits of the cache: files, lines, patch text.

Review, harvest checks and reports come in here. Nothing a tree says (attributes, textconv, external drivers) is run or
believed: git looks for attributes in the directory it stands in, and here that is the bare cache.
"""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from coreagent.git.run import TIMEOUT_S, Done, environment, failure, git, kill, start

_SAFE = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")


@dataclass(frozen=True)
class Change:
    """One path that differs."""

    path: str
    old_mode: str
    new_mode: str
    """"000000" where the path is not there."""
    sha: str
    """Blob on the new side."""
    insertions: int
    deletions: int
    binary: bool


@dataclass(frozen=True)
class Numstat:
    """The size of a change."""

    files: int
    insertions: int
    deletions: int


def changes(cache: Path, a: str, b: str, extra: dict[str, str] | None = None) -> list[Change]:
    """Every path that differs between two commits, with modes, blob and line counts; one process.

    Raises: git_failed, git_timeout.
    """
    if a == b:
        return []
    out = git(
        "diff-tree", "-r", "-z", "--no-abbrev", "--raw", "--numstat", *_SAFE, "--end-of-options", a, b,
        cwd=cache, env=environment(git_dir=cache, extra=extra),
    ).out  # fmt: skip
    return _parse(out)


def _parse(out: bytes) -> list[Change]:
    raw: dict[bytes, list[str]] = {}
    counts: dict[bytes, tuple[int, int, bool]] = {}
    fields = iter(out.split(b"\0"))
    for item in fields:
        if item.startswith(b":"):
            raw[next(fields)] = item[1:].decode().split(" ")
        elif item:
            plus, minus, path = item.split(b"\t", 2)
            counts[path] = (0, 0, True) if plus == b"-" else (int(plus), int(minus), False)
    found = []
    for path, (old_mode, new_mode, _, sha, _) in raw.items():
        plus_minus = counts.get(path, (0, 0, False))
        found.append(Change(os.fsdecode(path), old_mode, new_mode, sha, *plus_minus))
    return found


def numstat(cache: Path, a: str, b: str) -> Numstat:
    """Files and lines between two commits.

    Raises: git_failed, git_timeout.
    """
    return summed(changes(cache, a, b))


def summed(found: list[Change]) -> Numstat:
    return Numstat(len(found), sum(change.insertions for change in found), sum(change.deletions for change in found))


def diff(
    cache: Path,
    a: str,
    b: str,
    stat: bool = False,
    limit: int = 1024 * 1024,
    *,
    extra: dict[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    exact: bool = False,
) -> tuple[str, bool]:
    """The patch (or its summary) between two commits, at most `limit` bytes cut at a line; and whether it was cut.

    Bytes that are no UTF-8 are replaced; with `exact` they are surrogate-escaped, and binary files are whole, so that
    the bytes are a patch for `git apply`. The text is as the agent wrote it: clean it before a terminal sees it.

    Raises: git_failed, git_timeout.
    """
    how = ["--stat=120"] if stat else ["--patch", "--binary", "--full-index"] if exact else ["--patch"]
    args = ("diff-tree", "-r", *how, "--no-commit-id", "--no-color", "--no-ext-diff", "--no-textconv", "-M",
            "--end-of-options", a, b)  # fmt: skip
    with start(*args, cwd=cache, env=environment(git_dir=cache, extra=extra), stdin=subprocess.DEVNULL) as process:
        assert process.stdout and process.stderr
        alarm = threading.Timer(timeout_s, kill, (process,))
        alarm.start()
        try:
            text = process.stdout.read(limit + 1)
            truncated = len(text) > limit
            if truncated:
                kill(process)
                said = b""
            else:
                said = process.stderr.read()
                process.wait()
        finally:
            alarm.cancel()
    if not truncated and process.returncode != 0:
        raise failure(args, Done(process.returncode, b"", said))
    if truncated:
        text = text[:limit]
        text = text[: text.rfind(b"\n") + 1] or text
    return text.decode("utf-8", "surrogateescape" if exact else "replace"), truncated
