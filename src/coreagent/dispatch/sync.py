"""Repositories kept up with their remotes: fetched every few minutes, and moved only where a person said so.

The engine starts it, `repo fetch` and `repo sync` come in, and so does WorkspacePushed from the bus. What a fetch said
is remembered for `repo list`; a remote that fails is asked ever more rarely. It knows no remote and no ref by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from coreagent import config, paths
from coreagent.capability import Caller
from coreagent.errors import CoreAgentError, shell_word, told
from coreagent.events import WorkspacePushed
from coreagent.git import fetch as git_fetch
from coreagent.git import forward as git_forward
from coreagent.git import ref as refs
from coreagent.git.inspect import Base, glance, inspect
from coreagent.models.dispatch import Options, Repo
from coreagent.models.report import FetchRow, PushedReply, RescueRow, SyncReply
from coreagent.plural import plural
from coreagent.store.change import SaveRescue

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

FIRST_S = 30.0
"""The first round after a start waits so long: a daemon that was started for one command has better things to do."""
LOOK_S = 30.0
"""How long the clock of a sleeping machine may be believed."""
BACKOFF_MOST = timedelta(hours=6)
ROUNDING_S = 0.001
"""What was asked so shortly before its moment was asked at it."""

Counter = Callable[[Callable[[], int]], Future[int]]
Push = tuple[str, str, str]
"""Org, repository and branch of a WorkspacePushed."""


@dataclass(frozen=True)
class Known:
    """What is known of one repository's remote, since the daemon started."""

    at: datetime | None = None
    """When it last answered."""
    asked: datetime | None = None
    failures: int = 0
    """Fetches in a row that failed."""
    error: str = ""
    hint: str = ""


class Sync:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, Known] = {}
        """By the path of the work tree."""
        self._found: set[str] = set()
        """Clones under the workspace root, as they were last looked for."""
        self._locks: dict[str, asyncio.Lock] = {}
        """By the git directory that worktrees share."""
        self._env: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._asking: dict[str, asyncio.Task[None]] = {}
        """Fetches that the clock began, by path."""
        self._looked: datetime | None = None
        """When clones were looked for."""
        self._began: datetime | None = None
        self._pushes: set[asyncio.Task[None]] = set()
        self._reporters: dict[Push, list[asyncio.Future[PushedReply]]] = {}
        """Who wants to hear what became of a push whose message has not been taken up yet."""

    def start(self) -> None:
        self._began = self._engine.core.now()
        subscription = self._engine.core.bus.subscribe()

        async def listen() -> None:
            async for event in subscription:
                if event.name == "WorkspacePushed":
                    self._take_up(event.data)

        self._tasks = [asyncio.create_task(self._rounds(), name="fetch"), asyncio.create_task(listen(), name="pushed")]

    def stop(self) -> None:
        for task in (*self._tasks, *self._asking.values(), *self._pushes):
            task.cancel()
        for waiting in self._reporters.values():
            for future in waiting:
                future.cancel()

    def heard(self, caller: Caller) -> None:
        """Remember how the person's shell reaches remotes (ssh agent, proxies), for the rounds that nobody asks for."""
        if caller.role == "person" and caller.env:
            self._env = {name: value for name, value in caller.env.items() if name in git_fetch.PASSED}

    def known(self, path: str) -> Known:
        return self._known.get(path, Known())

    # -- by the clock ----------------------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        while True:
            # A fetch that ends makes room for the next; one that hangs holds up none but itself.
            self._asking = {path: task for path, task in self._asking.items() if not task.done()}
            if self._asking:
                await asyncio.wait(
                    self._asking.values(), timeout=self._until_next(), return_when=asyncio.FIRST_COMPLETED
                )
            else:
                await asyncio.sleep(self._until_next())
            try:
                await self._round()
            except Exception:
                log.exception("a round of fetching failed")

    def _until_next(self) -> float:
        every = self._engine.core.settings.sync.fetch_minutes * 60
        if not every:
            return LOOK_S
        now = self._engine.core.now()
        if len(self._asking) >= self._engine.core.settings.sync.at_once:
            return LOOK_S
        due = [(self.next_at(path) - now).total_seconds() for path in self._paths() - self._asking.keys()]
        return max(0.05, min([LOOK_S, every, *due]))

    async def _round(self) -> None:
        settings = self._engine.core.settings.sync
        if not settings.fetch_minutes:
            return
        now = self._engine.core.now()
        if self._looked is None or not timedelta() <= now - self._looked < self._look_every():
            self._looked = now
            root = config.workspace_root(self._engine.core.settings, self._engine.core.home)
            self._found = set(await asyncio.to_thread(_under, root))
        due = [path for path in self._paths() - self._asking.keys() if self.next_at(path) <= now]
        # Those that answered the last time first: what times out must not make the others wait.
        due.sort(key=lambda path: (self.known(path).failures, self.next_at(path), path))
        for path in due[: max(0, settings.at_once - len(self._asking))]:
            self._asking[path] = asyncio.create_task(self._ask(path), name=f"fetch {path}")

    async def _ask(self, path: str) -> None:
        try:
            await self.fetch(path)
        except CoreAgentError:
            pass  # noted, and told by `repo list`
        except Exception:
            log.exception("%s could not be fetched", path)
            self._known[path] = replace(self.known(path), asked=self._engine.core.now())

    def _look_every(self) -> timedelta:
        return timedelta(seconds=min(LOOK_S, self._engine.core.settings.sync.fetch_minutes * 60))

    def _paths(self) -> set[str]:
        return {repo.path for repo in self._engine.repos.values()} | self._found

    def next_at(self, path: str) -> datetime:
        """When the clock asks this repository's remote next.

        Each has its own moment within the interval, by its path: many are spread over it, and none waits longer.
        """
        now = self._engine.core.now()
        every = timedelta(minutes=self._engine.core.settings.sync.fetch_minutes)
        known = self.known(path)
        if known.asked is None:
            return (self._began or now) + min(every, timedelta(seconds=FIRST_S))
        if known.asked > now:
            return now  # the clock was set back
        if known.failures:
            wait: timedelta = every * (1 << min(known.failures, 16))
            return known.asked + min(wait, max(BACKOFF_MOST, every))
        every_s = max(every.total_seconds(), 0.001)
        into = (known.asked.timestamp() - every_s * zlib.crc32(path.encode(errors="replace")) / 2**32) % every_s
        left = every_s - into
        return known.asked + timedelta(seconds=left if left > ROUNDING_S else left + every_s)

    # -- one repository --------------------------------------------------------------------------------------------

    async def fetch(self, path: str) -> git_fetch.Fetched:
        """Fetch one repository now, and remember how it went.

        Raises: fetch_failed, git_timeout, repo_not_found, git_missing.
        """
        core = self._engine.core
        env = {**core.env, **self._env}
        async with self._locks.setdefault(_shared(path), asyncio.Lock()):
            known = replace(self.known(path), asked=core.now())
            try:
                done = await asyncio.to_thread(git_fetch.fetch, Path(path), env, core.settings.sync.timeout_s)
            except CoreAgentError as error:
                self._known[path] = replace(known, failures=known.failures + 1, error=_one_line(error), hint=error.hint)
                if not known.failures:
                    log.warning("%s", _one_line(error))
                raise
            except OSError as error:
                self._known[path] = replace(known, failures=known.failures + 1, error=told(error))
                raise CoreAgentError(
                    "fetch_failed", f"origin of {path} could not be fetched", cause=told(error)
                ) from None
            self._known[path] = Known(at=core.now() if done.remote else None, asked=core.now())
            return done

    async def report(self, path: str) -> FetchRow:
        """Fetch, and tell of it, whatever became of it."""
        row = FetchRow(repo=self.name_of(path), path=path)
        try:
            done = await self.fetch(path)
        except CoreAgentError as error:
            return row.model_copy(update={"error": _one_line(error), "hint": error.hint})
        return row.model_copy(update={"remote": done.remote, "moved": list(done.moved)})

    async def report_all(self) -> list[FetchRow]:
        """Fetch every registered repository and those under the workspace root, now."""
        core = self._engine.core
        found = await asyncio.to_thread(_under, config.workspace_root(core.settings, core.home))
        room = asyncio.Semaphore(core.settings.sync.at_once)

        async def one(path: str) -> FetchRow:
            async with room:
                return await self.report(path)

        registered = {repo.path for repo in self._engine.repos.values()}
        return list(await asyncio.gather(*(one(path) for path in sorted(registered | set(found)))))

    def name_of(self, path: str) -> str:
        return next((f"{r.org}/{r.name}" for r in self._engine.repos.values() if r.path == path), path)

    # -- moving a managed checkout ---------------------------------------------------------------------------------

    async def sync(self, repo: Repo, branch: str = "", *, reset: bool = False) -> SyncReply:
        """Fetch, and bring a managed checkout's branch to where the remote has it.

        Raises: fetch_failed, not_managed, no_such_ref, diverged, dirty_checkout, and git's own.
        """
        if reset and not repo.managed:
            place = shell_word(repo.path)
            raise CoreAgentError(
                "not_managed",
                f"{repo.org}/{repo.name} is your own checkout, and core-agent never moves that",
                hint=f"core-agent repo add --managed {place} hands it over; else git -C {place} pull",
            )
        done = await self.fetch(repo.path)
        branch = branch or await asyncio.to_thread(_default_branch, repo)
        reply = SyncReply(
            repo=f"{repo.org}/{repo.name}", path=repo.path, managed=repo.managed, branch=branch, state="fetched",
            moved=list(done.moved),
        )  # fmt: skip
        if not done.remote:
            return reply.model_copy(update={"note": "it has no remote `origin`, so there is nothing to follow"})
        if not repo.managed:
            return reply.model_copy(update={"note": "the checkout is your own: fetched, and not moved"})
        async with self._locks[_shared(repo.path)]:
            return await (self._reset if reset else self._forward)(repo, branch, reply)

    async def _forward(self, repo: Repo, branch: str, reply: SyncReply) -> SyncReply:
        moved = await asyncio.to_thread(git_forward.forward, Path(repo.path), branch)
        state = "current" if moved.before == moved.after else "forwarded"
        return reply.model_copy(update={"state": state, "before": moved.before, "after": moved.after})

    async def _reset(self, repo: Repo, branch: str, reply: SyncReply) -> SyncReply:
        core = self._engine.core
        # No workspace can be called so: the sign is not allowed in their names.
        name = f"{branch.replace('/', '-')}@checkout"
        cache = Path(paths.repo_cache(core.home, repo.org, repo.name))
        moved = await asyncio.to_thread(git_forward.reset, cache, Path(repo.path), branch, name)
        workspace = f"{repo.org}/{repo.name}/{name}"
        rows = [
            RescueRow(
                workspace=workspace, n=one.n, ref=one.ref, sha=one.sha, reason="reset", files=one.files, at=core.now()
            )
            for one in moved.kept
        ]  # fmt: skip
        if rows:
            await core.store.commit(*(SaveRescue(row) for row in rows))
        back = f"{plural(len(rows), 'state was', 'states were')} kept: core-agent rescue apply {workspace}"
        return reply.model_copy(
            update={
                "state": "reset",
                "before": moved.before,
                "after": moved.after,
                "kept": workspace if rows else "",
                "note": back if rows else "",
            }
        )

    # -- what was pushed -------------------------------------------------------------------------------------------

    async def pushed(self, repo: Repo, branch: str = "") -> PushedReply:
        """Tell everybody that a branch was pushed to, and return what became of it here.

        Raises: no_such_ref, when no branch is named and HEAD is on none.
        """
        branch = branch or await asyncio.to_thread(_branch_of, repo)
        if not refs.valid(branch):
            raise CoreAgentError(
                "no_such_ref",
                f"{branch!r} is no name of a branch" if branch else f"HEAD of {repo.path} is on no branch",
                hint="say which was pushed to: core-agent repo pushed REPO --branch NAME",
            )
        reported: asyncio.Future[PushedReply] = asyncio.get_running_loop().create_future()
        waiting = self._reporters.setdefault((repo.org, repo.name, branch), [])
        waiting.append(reported)
        try:
            await self._engine.proclaim(WorkspacePushed(repo=repo.name, branch=branch, org=repo.org))
            return await reported
        finally:
            if reported in waiting:
                waiting.remove(reported)

    def _take_up(self, data: dict[str, object]) -> None:
        """WorkspacePushed: what it names is looked at beside all else, since a remote may take its time."""
        org, name, branch = (str(data.get(key, "")) for key in ("Org", "Repo", "Branch"))
        push = (org, name.removeprefix(f"{org}/"), branch)
        repo = self._engine.repos.get(push[:2])
        if repo is None or not refs.valid(branch):
            return
        task = asyncio.create_task(self._report(repo, branch, self._reporters.pop(push, [])), name=f"pushed {name}")
        self._pushes.add(task)
        task.add_done_callback(self._pushes.discard)

    async def _report(self, repo: Repo, branch: str, reporters: list[asyncio.Future[PushedReply]]) -> None:
        try:
            reply = await self._follow(repo, branch)
        except BaseException as error:
            for future in reporters:
                if not future.done():
                    future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            if not isinstance(error, Exception):
                raise
            log.exception("%s/%s was pushed to and could not follow", repo.org, repo.name)
            return
        for future in reporters:
            if not future.done():
                future.set_result(reply)

    async def _follow(self, repo: Repo, branch: str) -> PushedReply:
        """The branch that was pushed to, by fast-forward, in a managed checkout; any other is fetched."""
        reply = PushedReply(
            repo=f"{repo.org}/{repo.name}", path=repo.path, managed=repo.managed, branch=branch, state="fetched"
        )
        try:
            if not repo.managed or await asyncio.to_thread(_has, repo, branch):
                done = await self.sync(repo, branch)
                log.info("%s: %s is %s", reply.repo, branch, done.state)
                return reply.model_copy(update=done.model_dump(include={"state", "before", "after", "moved", "note"}))
            fetched = await self.fetch(repo.path)
        except CoreAgentError as error:
            log.warning("%s was pushed to and could not follow: %s", reply.repo, _one_line(error))
            known = self.known(repo.path)
            self._known[repo.path] = replace(known, error=_one_line(error), hint=error.hint)
            return reply.model_copy(update={"state": "failed", "error": _one_line(error), "hint": error.hint})
        note = f"the checkout has no branch {branch}: fetched, and nothing moved"
        return reply.model_copy(update={"moved": list(fetched.moved), "note": note})

    # -- dispatches ------------------------------------------------------------------------------------------------

    async def base_for(
        self, path: str, options: Options, *, asked: bool, quick: Counter | None = None
    ) -> tuple[Base, str]:
        """Where a dispatch starts, after a fetch where that is wished; and what a person should know of it.

        With `quick`, the changes of the person's work tree may be counted later, by that.

        Raises: what `inspect` does; when it was `asked` for, what a fetch does.
        """
        where, before = (Path(path), options.branch, options.tag), self._engine.core.settings.sync.before_dispatch
        if quick is not None and not asked and not before and not options.with_changes and where[1:] == (None, None):
            base = glance(Path(path), quick)
            if base is not None:
                return base, ""
        if not (asked or before):
            return await asyncio.to_thread(inspect, *where), ""
        note = ""
        top = (await asyncio.to_thread(inspect, Path(path))).top
        try:
            await self.fetch(str(top))
        except CoreAgentError as error:
            if asked:
                raise
            note = f"it starts from what is known here: {_one_line(error)}"
        base = await asyncio.to_thread(inspect, *where)
        return (base, note) if note else await asyncio.to_thread(_freshest, base, options.with_changes)


def _freshest(base: Base, carries: bool) -> tuple[Base, str]:
    """The base at `origin/<branch>` when its branch is merely behind that."""
    if base.kind != "branch" or not base.ref:
        return base, ""
    theirs = git_fetch.tip(base.git_dir, base.ref)
    if not theirs or theirs == base.sha:
        return base, ""
    ahead, behind = git_fetch.distance(base.common_dir, base.sha, theirs)
    if not behind:
        return base, ""
    if carries:
        return base, f"it starts from your own {base.ref}, because your uncommitted changes belong to it"
    if ahead:
        more = plural(ahead, "commit")
        return base, f"it starts from your own {base.ref}, which has {more} that origin/{base.ref} has not"
    return replace(base, sha=theirs), f"it starts from origin/{base.ref}; your own {base.ref} stays where it is"


def stale(base: Base) -> str:
    """One line when the base is behind its remote as of the last fetch. Blocking; no process when they are equal."""
    if base.kind != "branch" or not base.ref:
        return ""
    with contextlib.suppress(CoreAgentError, OSError):
        theirs = git_fetch.tip(base.git_dir, base.ref)
        if theirs and theirs != base.sha:
            behind = git_fetch.distance(base.common_dir, base.sha, theirs)[1]
            if behind:
                return (
                    f"it starts {plural(behind, 'commit')} behind origin/{base.ref} as of the last fetch; "
                    "dispatch --fetch starts from there"
                )
    return ""


def _under(root: str) -> list[str]:
    """Clones at `<root>/<org>/<repo>`, as the contract has them; what lies deeper is a workspace, and an agent's."""
    repos = [repo for org in _directories(root) for repo in _directories(org)]
    return [os.path.realpath(repo) for repo in repos if _is_clone(os.path.join(repo, ".git"))]


def _is_clone(git_dir: str) -> bool:
    return os.path.isdir(git_dir) and not os.path.islink(git_dir)


def _directories(path: str) -> Iterable[str]:
    try:
        with os.scandir(path) as entries:
            return [e.path for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _shared(path: str) -> str:
    git_dir = refs.git_dir_of(Path(path))
    return os.path.realpath(refs.common_dir_of(git_dir)) if git_dir else path


def _default_branch(repo: Repo) -> str:
    """What the remote calls its HEAD, else what it was when the repository was registered."""
    git_dir = refs.git_dir_of(Path(repo.path))
    head = f"ref: {git_fetch.TRACKING}"
    if git_dir is not None:
        with contextlib.suppress(OSError):
            text = refs.read_small(refs.common_dir_of(git_dir) / git_fetch.TRACKING / "HEAD").strip()
            if text.startswith(head):
                return text.removeprefix(head)
    return repo.default_branch or "main"


def _branch_of(repo: Repo) -> str:
    """The branch that HEAD of a checkout is on; "" when it is on none."""
    git_dir = refs.git_dir_of(Path(repo.path))
    with contextlib.suppress(OSError):
        if git_dir is not None:
            head = refs.read_small(git_dir / "HEAD").strip()
            return head.removeprefix("ref: refs/heads/") if head.startswith("ref: refs/heads/") else ""
    return ""


def _has(repo: Repo, branch: str) -> bool:
    git_dir = refs.git_dir_of(Path(repo.path))
    return git_dir is not None and f"refs/heads/{branch}" in refs.heads(refs.common_dir_of(git_dir))[1]


def _one_line(error: CoreAgentError) -> str:
    return error.message + (f" ({error.cause})" if error.cause else "")
