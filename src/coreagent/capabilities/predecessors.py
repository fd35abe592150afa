"""The tasks that a new one comes after: found, and fit to be waited for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coreagent.capabilities.status import find_any
from coreagent.core import Core
from coreagent.dispatch import after as order
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Dispatch


@dataclass(frozen=True)
class Before:
    """What a task comes after, and which of it it is built on."""

    found: tuple[Dispatch, ...]
    on_top: str
    branch: str | None
    """The branch that was asked for, unless it is one that is still to come."""

    @property
    def ids(self) -> list[str]:
        return [dispatch.id for dispatch in self.found]

    def check(self, made: Dispatch) -> None:
        """Raise when a task cannot be built on what it comes after."""
        order.check_top(made, next((dispatch for dispatch in self.found if dispatch.id == self.on_top), None))


async def find(core: Core, named: Sequence[str], branch: str | None, on_top: bool) -> Before:
    """Look up what a task is to come after.

    Raises: workspace_not_found, ambiguous_workspace, predecessor_ended, conflicting_options.
    """
    found = list({d.id: d for d in [await find_any(core, name) for name in named]}.values())
    for dispatch in found:
        if dispatch.workspace_gone and (why := order.ending(dispatch)):
            raise CoreAgentError(
                "predecessor_ended",
                f"{dispatch.workspace} {why}, so nothing can come after it",
                hint="leave it out of --after, or dispatch its task anew",
            )
    core.engine.after.remember(d for d in found if d.workspace_gone)
    built_on = [d.id for d in found if branch == d.branch]
    if built_on:
        return Before(tuple(found), built_on[0], None)
    if not on_top:
        return Before(tuple(found), "", branch)
    if branch is not None:
        raise CoreAgentError("conflicting_options", "--on-top and --branch exclude each other")
    if len(found) != 1:
        raise CoreAgentError(
            "conflicting_options",
            "--on-top is for a task that comes after one other" if found else "--on-top needs --after",
            hint="of several, say which: --branch agent/NAME" if found else "--after WORKSPACE --on-top",
        )
    return Before(tuple(found), found[0].id, None)
