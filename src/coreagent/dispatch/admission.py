"""Whether another agent fits into this machine now: its memory, and how many may be starting at once.

An agent that is started where it does not fit takes the others down with it; one that waits is only late. A CLI takes
half a second of processor time to start, so sixteen at once make all of them slow (field notes, section 6). What is
learned is learned by name: of a runner, and of each `command:NAME` for itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

MEBI = 1 << 20
# Measured with one turn each; what an agent of ours really took replaces it.
FIRST_GUESS: Mapping[str, int] = {
    "claude": 400 * MEBI,
    "codex": 250 * MEBI,
    "gemini": 350 * MEBI,
    "opencode": 700 * MEBI,
    "acp": 500 * MEBI,
}
UNKNOWN_GUESS = 8 * MEBI
"""Of a command that has never run, and of whatever else we know nothing of: enough to be held to the reserve."""
HEAVY = 64 * MEBI
"""From here on an agent counts among those that start one after the other, and is promised memory until it is up."""
FADE = 0.9
"""How fast a high mark is forgotten, for each later run."""


def free_memory(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> int | None:
    """Bytes that can be taken without swapping: the machine's, or the container's when that is less; None unknown."""
    found = [_available(proc), _left_in_cgroup(cgroup)]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _available(proc: str) -> int | None:
    try:
        with open(f"{proc}/meminfo", "rb") as file:
            for line in file:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _left_in_cgroup(cgroup: str) -> int | None:
    for directory, most, used in (
        (Path(cgroup), "memory.max", "memory.current"),
        (Path(cgroup, "memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = (directory / most).read_text().strip()
            if not limit.isdigit() or int(limit) >= 1 << 60:
                continue
            taken = int((directory / used).read_text())
            return max(0, int(limit) - taken + _cache_in_cgroup(directory))
        except (OSError, ValueError):
            continue
    return None


def _cache_in_cgroup(directory: Path) -> int:
    """Bytes of file cache that count as used and would be given up at once."""
    for line in (directory / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def called(runner: str, model: str) -> str:
    """The name under which the size of an agent is known: a command has nothing in common with another one."""
    return f"command:{model}" if runner == "command" else runner


def needed(name: str, learned: Mapping[str, int]) -> int:
    """Bytes that an agent of this name is expected to take."""
    return learned.get(name) or FIRST_GUESS.get(name, UNKNOWN_GUESS)


def heavy(name: str, learned: Mapping[str, int]) -> bool:
    """Whether it takes long to start or much memory: hundreds of the others may start at once."""
    return name in FIRST_GUESS or learned.get(name, 0) >= HEAVY


def heavy_ones(learned: Mapping[str, int]) -> set[str]:
    """The names of all that are heavy, to ask it of many agents at once."""
    return {*FIRST_GUESS, *(name for name, size in learned.items() if size >= HEAVY)}


def learn(before: int, seen: int) -> int:
    """The expectation after a run whose highest resident size was `seen`."""
    return max(seen, int(before * FADE))


def starting_most(configured: int) -> int:
    """How many agents may be starting at once; 0 configured stands for one for each processor, two at least."""
    return configured or max(2, os.cpu_count() or 2)
