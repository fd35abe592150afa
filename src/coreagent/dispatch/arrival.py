"""Resolved dispatches on their way to the queue: one, or all of a command at once, durably or not at all.

Intake has found everything that can be wrong with them; capabilities come in with what it found. A crash leaves either
every row or none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coreagent.capability import Caller
from coreagent.dispatch import after, environment, intake, launch, names
from coreagent.errors import CoreAgentError
from coreagent.git.inspect import Base
from coreagent.models.dispatch import Dispatch, Repo, State
from coreagent.store.change import SaveRepo

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine


async def queue(engine: Engine, caller: Caller, dispatch: Dispatch, base: Base, *, held: bool = False) -> Dispatch:
    """Put a resolved dispatch on the queue, durably; with `held`, paused until it is resumed.

    Raises: store_ephemeral, store_write_failed, no_space.
    """
    return (await queue_all(engine, caller, [(dispatch, base)], held=held))[0]


async def queue_all(
    engine: Engine, caller: Caller, resolved: Sequence[tuple[Dispatch, Base]], *, held: bool = False
) -> list[Dispatch]:
    """The same for several that belong together: all of them come to the queue or none.

    Raises: store_ephemeral, store_write_failed, no_space.
    """
    core = engine.core
    if core.store.ephemeral and not all(dispatch.options.ephemeral for dispatch, _ in resolved):
        for dispatch, _ in resolved:
            engine.forget_settings(dispatch)
        raise CoreAgentError(
            "store_ephemeral",
            "the daemon's state is in memory only and would be lost when it stops",
            cause=core.store.why,
            hint="mend that and `core-agent daemon restart`, or dispatch with --ephemeral",
        )
    # Up to the first await nobody else runs: names and repositories are settled here, whoever asks at the same time.
    settled: list[tuple[Dispatch, Base]] = []
    repos: dict[tuple[str, str], Repo] = {}
    reserved: list[tuple[str, str, str]] = []
    for dispatch, base in resolved:
        dispatch, repo = _settle(engine, dispatch, base, {name for _, _, name in reserved})
        settled.append((dispatch, base))
        repos[(repo.org, repo.name)] = repo
        place = (dispatch.org, dispatch.repo, dispatch.name)
        if place not in engine.reserved:
            reserved.append(place)
            engine.reserved.add(place)
    try:
        return await _queue(engine, caller, settled, repos, held)
    finally:
        engine.reserved.difference_update(reserved)


def _settle(engine: Engine, dispatch: Dispatch, base: Base, taken: set[str]) -> tuple[Dispatch, Repo]:
    named = f"{dispatch.org}/{dispatch.repo}"
    repo = intake.register(engine, base, dispatch.org if dispatch.org != "local" else "", named)
    name = dispatch.name
    if (repo.org, repo.name) != (dispatch.org, dispatch.repo):
        # Registered by somebody else while we looked: the name was chosen among the workspaces of another one.
        name = names.unique(name, {*intake.open_names(engine, repo), *taken})
    return dispatch.model_copy(update={"org": repo.org, "repo": repo.name, "name": name}), repo


async def _queue(
    engine: Engine,
    caller: Caller,
    settled: Sequence[tuple[Dispatch, Base]],
    repos: dict[tuple[str, str], Repo],
    held: bool,
) -> list[Dispatch]:
    core = engine.core
    new_repos = {key: repo for key, repo in repos.items() if key not in engine.repos}
    for key, repo in new_repos.items():
        engine.repos.setdefault(key, repo)
    kept = [(dispatch.id, launch.kept_environment(core, caller, dispatch)) for dispatch, _ in settled]
    changes: dict[str, Any] = {"state": State.PAUSED, "detail": "not started; `resume` starts it"} if held else {}

    def save() -> None:
        for dispatch_id, env in kept:
            environment.save(core.home, dispatch_id, env)

    try:
        await asyncio.to_thread(save)
        core.crash_point("before-queue")
        now = core.now()
        # Those of the same command are told apart from what is not known: all of them arrive together.
        together = {dispatch.id: dispatch for dispatch, _ in settled}
        made = []
        for dispatch, base in settled:
            engine.bases[dispatch.id] = base
            waits = {} if held or not dispatch.options.after else _held_up(engine, dispatch, together)
            made.append(dispatch.model_copy(update={**changes, **waits, "changed_at": now, "state_since": now}))
        await engine.arrive(made, [SaveRepo(repo) for repo in new_repos.values()])
    except BaseException:
        for dispatch, _ in settled:
            engine.bases.pop(dispatch.id, None)
            engine.forget_settings(dispatch)
            environment.forget(core.home, dispatch.id)
        for key in new_repos:
            engine.repos.pop(key, None)
        raise
    core.crash_point("queued")
    await engine.after.look_again(engine, [dispatch.id for dispatch in made if dispatch.options.after])
    engine.poke()
    return [engine.board.get(dispatch.id, dispatch) for dispatch in made]


def _held_up(engine: Engine, dispatch: Dispatch, together: dict[str, Dispatch]) -> dict[str, Any]:
    fellows = [together[other] for other in dispatch.options.after if other in together]
    if not fellows:
        return engine.after.fields(dispatch)
    waits = [d.name for other in dispatch.options.after if (d := together.get(other) or engine.after.known(other))]
    return {"waiting_for": after.WAITS, "detail": f"waits for {', '.join(waits)}"}
