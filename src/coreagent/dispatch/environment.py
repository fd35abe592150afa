"""The agent's environment: an allow-listed part of the client's, kept beside the task, never in the store.

It travels in `<home>/pending/<dispatch id>.env` (mode 0600) from the dispatch until its attempt has ended, so that a
restart runs the task with the environment its person had, and not with the daemon's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from coreagent.errors import displaced
from coreagent.plainfile import led_away, read_plain, write_plain


def _file(home: str, dispatch_id: str) -> Path:
    return Path(home, "pending", dispatch_id + ".env")


def save(home: str, dispatch_id: str, env: Mapping[str, str]) -> None:
    """Write the environment of a task for its person's eyes only, atomically.

    Raises: home_unsafe, OSError.
    """
    path = _file(home, dispatch_id)
    if laid := led_away(path.parent, home):
        raise displaced(laid)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_plain(path, json.dumps(dict(env)).encode())


def load(home: str, dispatch_id: str) -> dict[str, str] | None:
    """The saved environment, or None when there is none (the task rested, or its home was restored from a copy)."""
    try:
        loaded = json.loads(read_plain(_file(home, dispatch_id)))
    except (OSError, ValueError):
        return None
    return {str(k): str(v) for k, v in loaded.items()} if isinstance(loaded, dict) else None


def forget_others(home: str, wanted: set[str]) -> None:
    """Remove what a daemon left that died between writing an environment and queuing, or settling, its task."""
    root = Path(home, "pending")
    for path in () if led_away(root, home) else root.glob("*"):
        if path.suffix != ".env" or path.stem not in wanted:
            try:
                path.unlink(missing_ok=True)
            except OSError:  # a directory: nothing of ours
                shutil.rmtree(path, ignore_errors=True)


def forget(home: str, dispatch_id: str) -> None:
    _file(home, dispatch_id).unlink(missing_ok=True)
