"""Which pool and model each waiting or running task counts for, by the settings in force.

The engine comes in with every task that comes to the queue, and before every claim: a saved file holds for what waits
already. What runs keeps the model that its agent was started with, and counts in the pool which that makes now.
Nothing here is a decision of its own, so that what was placed need not be written before the task is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coreagent.config import Settings
from coreagent.models.dispatch import ACTIVE, Dispatch
from coreagent.poolnames import model_of, pool_of
from coreagent.store.change import SaveDispatch

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine


def model_now(dispatch: Dispatch, settings: Settings) -> str:
    """The model that it runs with, or would if it were started now."""
    if dispatch.state in ACTIVE and dispatch.runs_with:
        return dispatch.runs_with
    return model_of(dispatch.runner, dispatch.model, settings, dispatch.own_model)


class Places:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._followed: Settings | None = None
        self._settings: Settings | None = None
        self._pools: dict[tuple[str, str], str] = {}
        """(runner, model) -> pool, by `_settings`: there are few of them, however many tasks."""
        self._unwritten: set[str] = set()

    def follow(self) -> None:
        """Place all that waits and runs anew, when the settings are others than at the last look."""
        if self._followed is self._engine.core.settings:
            return
        self._followed = self._engine.core.settings
        board = self._engine.board
        waiting = [new for old in board.queued if (new := self.placed(old)) is not old]
        running = [new for old in board.active.values() if (new := self.placed(old)) is not old]
        board.replace(waiting, running)
        self._unwritten.update(new.id for new in running)

    def placed(self, dispatch: Dispatch) -> Dispatch:
        """The dispatch as it counts by the settings in force; itself when it counts so already."""
        settings = self._engine.core.settings
        if self._settings is not settings:
            self._settings, self._pools = settings, {}
        model = model_now(dispatch, settings)
        key = (dispatch.runner, model)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = pool_of(*key, settings)
        if (dispatch.pool, dispatch.runs_with) == (pool, model):
            return dispatch
        return dispatch.model_copy(update={"pool": pool, "runs_with": model})

    def same(self, one: Dispatch, other: Dispatch) -> bool:
        """Whether two say the same of a task but for its place."""
        return one is other or one == other.model_copy(update={"pool": one.pool, "runs_with": one.runs_with})

    async def write(self) -> None:
        """Write what counts in another pool while it runs: the contract's `concurrency` group counts rows."""
        moved = [one for i, one in self._engine.board.active.items() if i in self._unwritten]
        if moved:
            await self._engine.core.store.commit(*map(SaveDispatch, moved))
        self._unwritten.difference_update(one.id for one in moved)
        self._unwritten.intersection_update(self._engine.board.active)
