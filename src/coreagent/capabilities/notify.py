"""Try whether people can be told."""

from __future__ import annotations

import asyncio

from coreagent.capability import capability
from coreagent.core import Core
from coreagent.dispatch import couriers
from coreagent.dispatch.notice import Notice
from coreagent.errors import CoreAgentError
from coreagent.models.report import NoticeSent


@capability("notify.test", cli="notify test")
async def notify_test(core: Core) -> list[NoticeSent]:
    """Send a test notice by every channel that agents.yaml names, and tell how each went."""
    core.require_settings()
    settings = core.settings.notify
    channels = [name for name in couriers.CHANNELS if couriers.wanted(settings, name)]
    if not channels:
        raise CoreAgentError("nobody_to_notify", "agents.yaml names nobody to be told")
    made = Notice(id="test", event="test", text="core-agent can reach you", at=core.now(), home=core.home)
    tries = (couriers.send(name, made, settings, core.env, core.home) for name in channels)
    return [
        NoticeSent(channel=name, arrived=not sent.problem, problem=sent.problem)
        for name, sent in zip(channels, await asyncio.gather(*tries), strict=True)
    ]
