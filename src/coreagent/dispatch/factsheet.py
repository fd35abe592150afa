"""How things stand now, as a claim is decided from it: counted again at every look, never remembered.

The engine comes in; whoever decides or tells why something waits leaves with the facts. Nothing is decided here.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING

from coreagent.dispatch import admission, claim
from coreagent.models.dispatch import Dispatch

if TYPE_CHECKING:
    from coreagent.dispatch.engine import Engine


def facts(engine: Engine) -> claim.Facts:
    """The facts of this moment, by the settings in force."""
    engine.places.follow()
    settings, pools, active = engine.core.settings, engine.pools, list(engine.board.active.values())
    limits, controls = settings.concurrency, engine.controls
    held = [(d.pool, claim.cap_of(d.counted_model, limits[d.pool])) for d in active if d.pool in limits]
    heavy, called = admission.heavy_ones(pools.sizes), admission.called
    starting = [
        name for d in active if (name := called(d.runner, d.counted_model)) in heavy and _is_starting(engine, d)
    ]
    return claim.Facts(
        now=engine.core.now(),
        limits=limits,
        rates=settings.rates,
        running=engine.running(),
        models=Counter(held),
        repos=Counter(f"{d.org}/{d.repo}" for d in active),
        starts=pools.starts,
        parks=pools.parks,
        breakers=pools.breakers,
        windows=pools.windows,
        pace_target=settings.dispatch.pace_target,
        starting=len(starting),
        starting_most=admission.starting_most(settings.dispatch.starting),
        free_memory=functools.cache(engine.free_memory),
        memory_reserve=settings.dispatch.memory_reserve_mib * admission.MEBI,
        memory_promised=sum(admission.needed(name, pools.sizes) for name in starting),
        sizes=pools.sizes,
        frozen="frozen" in controls,
        frozen_pools=frozenset(k.removeprefix("frozen:") for k in controls if k.startswith("frozen:")),
        draining=engine.draining or engine.stopping,
        held="settings" if engine.core.settings_error is not None else "",
    )


def _is_starting(engine: Engine, dispatch: Dispatch) -> bool:
    """Whether the agent that holds this slot has not said a word yet."""
    live = engine.live.get(dispatch.id)
    return live is None or not live.settled_in
