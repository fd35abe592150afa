"""The pool of checkouts that lie ready: made while nothing is claimed or starting, taken by the next dispatch.

Preparation comes in to take one, and tells what it used; everything else happens by the pool's own clock. An entry is
a directory below the workspace root, an index, and a record that is written last and removed first: what has no record
is half made or half taken, and is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreagent import config, paths
from coreagent.config import WarmSettings
from coreagent.dispatch import cleanup
from coreagent.errors import CoreAgentError
from coreagent.git import cache as git_cache
from coreagent.git import ref as refs
from coreagent.git import warm as git_warm
from coreagent.git.checkout import Ready
from coreagent.git.inspect import Base
from coreagent.git.stillness import Stillness
from coreagent.models.dispatch import Dispatch, State
from coreagent.plainfile import led_away, read_plain, write_plain

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

DIRECTORY = ".warm"
"""Below the workspace root; no organisation can be called so."""
QUIET_S = 2.0
"""So long nothing may have been claimed before one is made."""
LOOK_S = 0.25
CHECKED_S = 10.0
"""So long a look at an entry counts."""
EXPIRE_S = 3600.0
UNUSED_S = 7 * 86400.0
MEBI = 1 << 20

Key = tuple[str, str]


@dataclass(frozen=True)
class Entry:
    """One checkout that lies ready."""

    id: str
    org: str
    repo: str
    sha: str
    tree: str
    cache: str
    bytes: int
    made: float
    directories: dict[str, tuple[int, int]]

    @property
    def key(self) -> Key:
        return self.org, self.repo


@dataclass(frozen=True)
class Watched:
    """An entry that was looked at, and what tells without another look that it is still so."""

    still: Stillness | None
    """None where nothing can be watched."""
    identity: tuple[int, ...]


class Warm:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._dir = Path(paths.warm_dir(engine.core.home))
        self._lock = threading.Lock()
        """Over `_entries`, `_watched` and `_looks`: preparation takes one in a thread of its own."""
        self._entries: dict[str, Entry] = {}
        self._watched: dict[str, Watched] = {}
        self._spent: list[Stillness] = []
        """To be closed when there is time: the kernel waits meanwhile."""
        self._looks: dict[str, tuple[float, Future[bool]]] = {}
        self._used: dict[Key, Base] = {}
        self._sizes: dict[str, git_warm.Size] = {}
        self._tired: dict[Key, str] = {}
        """Repositories for which none could be made of that commit."""
        self._looking = ThreadPoolExecutor(1, "warm")
        self._counting = ThreadPoolExecutor(2, "count")
        self._wake = asyncio.Event()
        self._stopped = threading.Event()
        self.resting = False
        """Everything that is wished for lies ready, or cannot be made."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="warm")

    def stop(self) -> None:
        self._stopped.set()
        if self._task is not None:
            self._task.cancel()
        with self._lock:
            for identity in list(self._watched):
                self._unwatch(identity)
        self._close_spent()
        for pool in (self._looking, self._counting):
            pool.shutdown(wait=False, cancel_futures=True)

    # -- taking ----------------------------------------------------------------------------------------------------

    def expect(self, path: str) -> bool:
        """A dispatch from this work tree is on its way: look at its entry while the rest is found out.

        False when none lies ready.
        """
        if not self._entries:
            return False
        top = os.path.realpath(path)
        keys = {key for key, repo in self._engine.repos.items() if repo.path == top}
        with self._lock:
            found = next((e for e in self._entries.values() if e.key in keys), None)
            if found is None or self._stopped.is_set():
                return False
            if not self._undisturbed(found):
                self._looks[found.id] = time.monotonic(), self._looking.submit(self._intact, found)
            return True

    def count(self, work: Callable[[], int]) -> Future[int]:
        """Have a scan of somebody's work tree done beside everything else."""
        return self._counting.submit(work)

    def take(self, org: str, repo: str, sha: str, root: Path) -> Ready | None:
        """Give an entry away, of that very commit if there is one; None when there is none on that file system.

        Whoever takes it moves it away. Blocking.
        """
        while True:
            with self._lock:
                mine = [e for e in self._entries.values() if e.key == (org, repo)]
                found = next((e for e in mine if e.sha == sha), mine[0] if mine else None)
                if found is None:
                    return None
                del self._entries[found.id]
                at, look = self._looks.pop(found.id, (0.0, None))
                good = self._undisturbed(found)
                self._unwatch(found.id)
            # From here on it is nobody's: a daemon that starts now throws away what is left of it.
            self._record(found.id).unlink(missing_ok=True)
            self._engine.core.crash_point("warm-taken")
            recent = look is not None and time.monotonic() - at < CHECKED_S
            with contextlib.suppress(CancelledError):
                good = good or (look.result() if look is not None and recent else self._intact(found))
                if good and _same_device(Path(found.tree), root):
                    return self._ready(found)
            log.warning("a checkout of %s/%s that lay ready was not as it was made; it is thrown away", org, repo)
            self._throw_away(found.id, Path(found.tree))

    def used(self, dispatch: Dispatch, base: Base) -> None:
        """A workspace was made from this base: another one may be wanted soon."""
        key = (dispatch.org, dispatch.repo)
        self._used[key] = base
        self._tired.pop(key, None)
        self._wake.set()

    def _ready(self, entry: Entry) -> Ready:
        return Ready(Path(entry.tree), self._index(entry.id), entry.sha, entry.directories)

    def _intact(self, entry: Entry) -> bool:
        return git_warm.intact(Path(entry.cache), self._ready(entry))

    # -- watching --------------------------------------------------------------------------------------------------

    def _watch(self, entry: Entry) -> None:
        """Look at the whole of an entry in idle time and watch it from then on; throw it away when it is touched."""
        tree = Path(entry.tree)
        still = Stillness.over([tree / name for name in entry.directories])
        try:
            watched = Watched(still, self._identity(entry))
            good = self._intact(entry) and (still is None or still.holds(read=True))
        except OSError:
            good = False
        with self._lock:
            if good and entry.id in self._entries:
                self._watched[entry.id] = watched
                return
            self._spent += [still] if still is not None else []
            mine = self._entries.pop(entry.id, None)
        if mine is not None:
            self._throw_away(entry.id, tree)

    def _undisturbed(self, entry: Entry) -> bool:
        """Whether nobody touched it since it was looked at, told without a look at its files; under the lock."""
        watched = self._watched.get(entry.id)
        if watched is None or watched.still is None:
            return False
        with contextlib.suppress(OSError):
            if watched.identity == self._identity(entry) and watched.still.holds():
                return True
        self._unwatch(entry.id)
        return False

    def _unwatch(self, identity: str) -> None:
        watched = self._watched.pop(identity, None)
        if watched is not None and watched.still is not None:
            self._spent.append(watched.still)

    def _identity(self, entry: Entry) -> tuple[int, ...]:
        """What changes when a directory above was put in its place, or another index. Raises: OSError."""
        tree, index = os.lstat(entry.tree), os.lstat(self._index(entry.id))
        return tree.st_dev, tree.st_ino, tree.st_ctime_ns, index.st_ino, index.st_mtime_ns, index.st_size

    def _close_spent(self) -> None:
        with self._lock:
            spent, self._spent = self._spent, []
        for still in spent:
            still.close()

    # -- making ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await asyncio.to_thread(self._load)
        if self._entries:
            self._wake.set()
        while True:
            self.resting = not self._wake.is_set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), EXPIRE_S)
            self.resting = False
            self._wake.clear()
            try:
                while await self._next():
                    pass
            except (CoreAgentError, OSError) as error:
                log.warning("no checkout could be made in advance: %s", error)
            except Exception:
                log.exception("no checkout could be made in advance")

    async def _next(self) -> bool:
        """Make or renew one entry when there is time for it; False when nothing is left to do."""
        await asyncio.to_thread(self._expire)
        settings = self._engine.core.settings.warm
        wanted = [(key, base) for key, base in self._used.items() if self._lacks(key, settings)]
        with self._lock:
            unwatched = next((e for e in self._entries.values() if e.id not in self._watched), None)
        if wanted or unwatched is not None or self._spent:
            await self._idle()
        await asyncio.to_thread(self._close_spent)
        if not wanted and unwatched is not None:
            await asyncio.to_thread(self._watch, unwatched)
            return True
        if not wanted:
            return False
        key, base = wanted[-1]
        if key in self._engine.repos:
            await asyncio.to_thread(self._make, key, base, settings)
        return True

    def _lacks(self, key: Key, settings: WarmSettings) -> bool:
        tip = _tip(self._used[key])
        size = self._sizes.get(tip)
        if self._tired.get(key) == tip or (size is not None and size.files < settings.min_files):
            return False
        with self._lock:
            mine = [e for e in self._entries.values() if e.key == key]
        return len([e for e in mine if e.sha == tip]) < settings.per_repo

    async def _idle(self) -> None:
        """Return when for a while nothing was being prepared or starting up."""
        quiet_since = time.monotonic()
        while True:
            if self._is_busy():
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= QUIET_S:
                return
            await asyncio.sleep(LOOK_S)

    def _is_busy(self) -> bool:
        engine = self._engine
        return any(d.state is State.PREPARING for d in engine.busy()) or bool(engine.arriving)

    def _make(self, key: Key, base: Base, settings: WarmSettings) -> None:
        """Have one more entry at the tip, an old one brought there if there is one. Blocking."""
        core = self._engine.core
        tip = _tip(base)
        cache = Path(paths.repo_cache(core.home, *key))
        self._tired[key] = tip  # until it is made: what fails once is not tried again for the same commit
        try:
            git_cache.ensure_cache(cache, replace(base, sha=tip))
        except CoreAgentError:
            tip = base.sha  # the branch is at a commit that cannot be had any more
        if tip not in self._sizes:
            self._sizes[tip] = git_warm.measure(cache, tip)
        size = self._sizes[tip]
        root = Path(config.workspace_root(core.settings, core.home))
        old = self._outdated(key, tip)
        identity = old.id if old is not None else core.new_id()
        tree = Path(old.tree) if old is not None else root / DIRECTORY / identity
        room = size.bytes - (old.bytes if old is not None else 0)
        if size.files < settings.min_files or not self._fits(room, root, settings):
            if old is not None:
                self._throw_away(old.id, tree)
            return
        if old is not None and not self._intact(old):
            self._throw_away(old.id, tree)
        tree.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            done = git_warm.make(cache, tip, tree, self._index(identity), lambda: not self._stopped.is_set())
            core.crash_point("warm-filled")
        except BaseException:
            self._throw_away(identity, tree)
            raise
        if not done:
            self._throw_away(identity, tree)
            return
        entry = Entry(identity, *key, tip, str(tree), str(cache), size.bytes, core.now().timestamp(),
                      git_warm.directories(tree))  # fmt: skip
        write_plain(self._record(identity), json.dumps(asdict(entry)).encode())
        core.crash_point("warm-made")
        with self._lock:
            self._entries[identity] = entry
        self._tired.pop(key, None)
        self._watch(entry)
        core.mark("warm")

    def _outdated(self, key: Key, tip: str) -> Entry | None:
        """An entry of an older commit, taken out of the pool and without its record."""
        with self._lock:
            old = next((e for e in self._entries.values() if e.key == key and e.sha != tip), None)
            if old is not None:
                del self._entries[old.id]
                self._unwatch(old.id)
        if old is not None:
            self._record(old.id).unlink(missing_ok=True)
        return old

    def _fits(self, more: int, root: Path, settings: WarmSettings) -> bool:
        with self._lock:
            there = sum(e.bytes for e in self._entries.values())
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(root).free
        return there + more <= settings.max_mib * MEBI and free - more >= settings.free_mib * MEBI

    # -- letting go ------------------------------------------------------------------------------------------------

    async def forget(self, org: str, repo: str) -> None:
        """A repository was removed or is called otherwise now."""
        self._used.pop((org, repo), None)
        await asyncio.to_thread(self._expire)

    def _expire(self) -> None:
        """Throw away what nobody will take: of unknown repositories, unused ones, and more than is wished for."""
        settings = self._engine.core.settings.warm
        known, now = set(self._engine.repos), self._engine.core.now().timestamp()
        with self._lock:
            kept: dict[Key, int] = {}
            gone = []
            for entry in sorted(self._entries.values(), key=lambda e: -e.made):
                kept[entry.key] = kept.get(entry.key, 0) + 1
                old = now - entry.made > UNUSED_S
                if old or entry.key not in known or kept[entry.key] > settings.per_repo:
                    gone.append(entry)
                    del self._entries[entry.id]
                    self._unwatch(entry.id)
        for entry in gone:
            self._throw_away(entry.id, Path(entry.tree))

    def _load(self) -> None:
        """Know what the daemon before left; throw away what it had not finished."""
        root = Path(config.workspace_root(self._engine.core.settings, self._engine.core.home)) / DIRECTORY
        for path in self._dir.glob("*.json"):
            try:
                entry = _entry(json.loads(read_plain(path)))
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                path.unlink(missing_ok=True)
                continue
            if not self._is_ours(entry, path.stem):
                path.unlink(missing_ok=True)
                continue
            if Path(entry.tree).is_dir() and self._index(entry.id).is_file():
                with self._lock:
                    self._entries[entry.id] = entry
            else:
                self._throw_away(entry.id, Path(entry.tree))
        for place in root.iterdir() if root.is_dir() and not root.is_symlink() else ():
            if place.name not in self._entries:
                self._throw_away(place.name, place)
        for path in self._dir.glob("*.index*"):
            if path.name.partition(".")[0] not in self._entries:
                path.unlink(missing_ok=True)
        self._expire()

    def _is_ours(self, entry: Entry, identity: str) -> bool:
        """Whether a record names a place of the pool: what it names is removed without a further question."""
        tree, cache = Path(entry.tree), paths.repo_cache(self._engine.core.home, *entry.key)
        named = entry.id == tree.name == identity and tree.parent.name == DIRECTORY and entry.cache == cache
        return named and tree.is_absolute() and led_away(tree, tree.parents[1]) in ("", str(tree))

    def _throw_away(self, identity: str, tree: Path) -> None:
        self._record(identity).unlink(missing_ok=True)
        try:
            cleanup.remove_tree(tree)
        except OSError as error:
            log.warning("%s could not be removed: %s", tree, error)
        self._index(identity).unlink(missing_ok=True)

    def _record(self, identity: str) -> Path:
        return self._dir / f"{identity}.json"

    def _index(self, identity: str) -> Path:
        return self._dir / f"{identity}.index"


def _entry(body: dict[str, Any]) -> Entry:
    """Raises: ValueError, TypeError."""
    seen = {name: (int(inode), int(changed)) for name, (inode, changed) in body.pop("directories").items()}
    return Entry(**body, directories=seen)


def _tip(base: Base) -> str:
    """Where the branch is that was used last; the commit that was used when that cannot be told. Reads one file."""
    if base.kind == "branch" and base.ref:
        return refs.read(refs.common_dir_of(base.git_dir), f"refs/heads/{base.ref}") or base.sha
    return base.sha


def _same_device(tree: Path, root: Path) -> bool:
    try:
        return os.stat(tree).st_dev == os.stat(root).st_dev
    except OSError:
        return False
