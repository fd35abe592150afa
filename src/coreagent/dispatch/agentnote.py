"""Notes that an agent leaves in its checkout for a person: BLOCKED.md. Read and removed with suspicion."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

MOST = 64 << 10


def read(directory: Path, name: str, most: int = MOST) -> str:
    """Text of a note the agent left (BLOCKED.md): a regular file only, bounded, never followed out of the tree."""
    try:
        descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return os.read(descriptor, most).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def remove(repo_dir: Path, name: str) -> None:
    """Remove a note from the checkout; what is no file stays, and is no note either."""
    if not repo_dir.is_symlink() and repo_dir.is_dir():
        with contextlib.suppress(OSError):
            (repo_dir / name).unlink(missing_ok=True)
