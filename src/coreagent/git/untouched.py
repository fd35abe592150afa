"""Whether a work tree is still exactly as the checkout left it, told from the index and the kernel's times alone.

The snapshot comes in here first: most of what git would do for an answer is to read every file again, because it
compares whole seconds and a checkout takes less than one. Here nanoseconds are compared, of the change time that no
agent can set. A `False` only means that git has to look; a `True` is never a guess. No process is started.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from coreagent.git.record import Record, record_path

_ENTRY = struct.Struct(">IIIIIIIIII")
"""ctime (s, ns), mtime (s, ns), device, inode, mode, uid, gid, size; then the hash, two bytes of flags, the name."""
_SECOND = 1_000_000_000
_FINE = 1_000_000
_PLAIN_FLAGS = 0xF000
"""Assume-valid, extended, and the stage of a merge: a checkout sets none of them."""

Known = tuple[int, int, int, int]
"""inode, ctime, mtime, size as an index has them; the times in nanoseconds."""


def untouched(index: Path, repo_dir: Path, record: Record) -> bool:
    """True when every tracked file is there as the checkout wrote it, and beside them only what is never committed."""
    try:
        known = _entries(index.read_bytes(), len(record.start) // 2)
        since = os.stat(record_path(index)).st_mtime_ns
    except (OSError, struct.error, ValueError):
        return False
    if not known or record.modules:
        return False
    # A change in the same tick of the kernel's clock as the checkout would not show; nor on a file system that
    # keeps coarse times only.
    if max(entry[1] for entry in known.values()) >= since or not any(entry[1] % _FINE for entry in known.values()):
        return False
    try:
        return _matches(os.fsencode(repo_dir), known, record)
    except OSError:
        return False


def handed_over(index: Path, now_ns: int) -> None:
    """Note when the checkout was finished, by the clock of its file system: nobody but us changed it before."""
    os.utime(record_path(index), ns=(now_ns, now_ns))


def _entries(data: bytes, hash_size: int) -> dict[bytes, Known]:
    """Path -> what git saw of the file it wrote; nothing for an index that is not of the plainest kind."""
    magic, version, count = struct.unpack_from(">4sII", data)
    if magic != b"DIRC" or version != 2:
        return {}
    found: dict[bytes, Known] = {}
    unpack, at, fixed = _ENTRY.unpack_from, 12, _ENTRY.size + hash_size + 2
    for _ in range(count):
        c_s, c_ns, m_s, m_ns, _device, inode, _mode, _uid, _gid, size = unpack(data, at)
        if data[at + fixed - 2] << 8 & _PLAIN_FLAGS:
            return {}
        end = data.index(b"\0", at + fixed)
        found[data[at + fixed : end]] = (inode, c_s * _SECOND + c_ns, m_s * _SECOND + m_ns, size)
        at += (end - at + 8) & ~7
    return found


def _matches(top: bytes, known: Mapping[bytes, Known], record: Record) -> bool:
    seen = 0
    pending = [b""]
    while pending:
        prefix = pending.pop()
        with os.scandir(top + b"/" + prefix) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != b".git":
                        pending.append(path + b"/")
                    elif prefix:
                        return False
                    continue
                expected = known.get(path)
                if expected is None:
                    if not record.excluded(os.fsdecode(path)):
                        return False
                    continue
                now = entry.stat(follow_symlinks=False)
                if (now.st_ino & 0xFFFFFFFF, now.st_ctime_ns, now.st_mtime_ns, now.st_size & 0xFFFFFFFF) != expected:
                    return False
                seen += 1
    return seen == len(known)
