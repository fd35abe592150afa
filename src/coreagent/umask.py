"""Who may read what is made: the daemon's own files nobody else, the person's files whom the person lets.

Ground floor. The daemon comes in once, everything that starts a program for the person asks.
"""

from __future__ import annotations

import os

_usual = -1


def keep_to_ourselves() -> None:
    """Let nobody else read what this process makes. What it starts for the person gets the `usual` one."""
    global _usual
    _usual = os.umask(0o077)


def usual() -> int:
    """The umask that this process was started with, as `Popen(umask=)` takes it; -1 when it still has that one."""
    return _usual
