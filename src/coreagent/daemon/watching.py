"""agents.yaml as it changes: read again at once, so that what is claimed next follows it, and told on the bus.

The daemon's main room starts it. It sees that the file changed and knows no key of it: Core reads it, keeps the last
good settings when the new ones are wrong, and says so. Without it (no watches left, a directory that is gone) the
settings are still read again at every command.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import Callable
from typing import Any

from coreagent import paths
from coreagent.errors import CoreAgentError
from coreagent.events import SettingsReloaded

log = logging.getLogger(__name__)

LOAD_AFTER_S = 2.0
"""The library is large, and many a daemon is started for a single command."""
STEP_MS = 1000
"""How often the library looks at what the kernel told it: four times a second cost 0.04 % of a processor."""


async def follow_settings(core: Any, look: Callable[[], object], load_after_s: float = LOAD_AFTER_S) -> None:
    """Call `look` whenever agents.yaml changes, and tell of each reading that brought something new. Never raises."""
    told = core.reloads
    try:
        await asyncio.sleep(load_after_s)
        watchfiles: Any = await asyncio.to_thread(importlib.import_module, "watchfiles")
        while True:
            file = paths.settings_file(core.home)
            watched = _watched(file)
            # What changed before the watch began, or by another way in, is found by this look.
            told = await _tell(core, look, told)
            async for _ in watchfiles.awatch(
                *{os.path.dirname(path) for path in watched},
                watch_filter=lambda _change, path, names=frozenset(watched): path in names,
                step=STEP_MS,
                rust_timeout=0,  # else it wakes the daemon every five seconds to say that there is nothing
                recursive=False,
            ):
                told = await _tell(core, look, told)
                if _watched(file) != watched:
                    break  # it has become a link, or one to another place
    except asyncio.CancelledError:
        raise
    except Exception as error:
        log.warning("agents.yaml cannot be watched; it is read again at every command: %s", error)


def _watched(file: str) -> list[str]:
    """The file, and where it leads: people keep their settings in a repository and put a link here.

    The directories are watched and not the files, because editors put a new file in the old one's place.
    """
    real = os.path.join(os.path.realpath(os.path.dirname(file)), os.path.basename(file))
    return list(dict.fromkeys([file, real, os.path.realpath(file)]))


async def _tell(core: Any, look: Callable[[], object], told: int) -> int:
    look()
    count: int = core.reloads
    if count != told:
        problem = core.problems[0] if core.problems else ""
        good = core.settings_error is None and not core.settings_bad
        (log.info if good else log.warning)("agents.yaml was read again%s", f": {problem}" if problem else "")
        core.engine.poke()
        try:
            await core.engine.proclaim(
                SettingsReloaded(path=paths.settings_file(core.home), ok=good, problem=problem[:400])
            )
        except CoreAgentError as error:
            log.warning("that could not be told: %s", error.message)
    return count
