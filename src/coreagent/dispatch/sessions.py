"""A claude session that somebody else began: found in a person's own files, copied for a workspace of ours.

A session lies under the name of the directory that it was begun in, and names that directory in every line. The
person's files are only read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coreagent.runners import program

SIZE_MAX = 512 << 20
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Session:
    id: str
    file: Path


def slug(directory: str) -> str:
    """What the CLI calls a directory's sessions."""
    return re.sub(r"[^A-Za-z0-9]", "-", directory)


def find(env: Mapping[str, str], directory: Path, wanted: str = "") -> Session | None:
    """The session of that id, else the newest one, that was begun in a directory; None when there is none."""
    root = program.user_directory(env, "CLAUDE_CONFIG_DIR", ".claude")
    if root is None:
        return None
    found: list[tuple[int, Session]] = []
    for name in {str(directory), os.path.realpath(directory)}:
        place = Path(root, "projects", slug(name))
        found += [
            (file.stat().st_mtime_ns, Session(file.stem, file))
            for file in (place.glob("*.jsonl") if place.is_dir() else ())
            if _ID.fullmatch(file.stem) and file.is_file() and wanted in ("", file.stem)
        ]
    return max(found, key=lambda one: one[0])[1] if found else None


def copy(session: Session, source: Path, config_home: Path, repo_dir: Path) -> str:
    """Put a copy where the CLI looks for the sessions of `repo_dir`, its directory rewritten; returns why not, or "".

    Blocking.
    """
    if session.file.stat().st_size > SIZE_MAX:
        return f"its session is larger than {SIZE_MAX >> 20} MiB"
    target = config_home / "projects" / slug(str(repo_dir)) / session.file.name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    old = [str(source), os.path.realpath(source)]
    with session.file.open("rb") as lines, part.open("wb") as out:
        os.fchmod(out.fileno(), 0o600)
        for line in lines:
            out.write(_rewritten(line, old, str(repo_dir)))
    part.replace(target)
    return ""


def _rewritten(line: bytes, old: list[str], new: str) -> bytes:
    try:
        entry = json.loads(line)
        cwd = entry["cwd"]
    except (ValueError, KeyError, TypeError):
        return line
    for prefix in old:
        if isinstance(cwd, str) and (cwd == prefix or cwd.startswith(prefix + os.sep)):
            return json.dumps({**entry, "cwd": new + cwd[len(prefix) :]}).encode() + b"\n"
    return line
