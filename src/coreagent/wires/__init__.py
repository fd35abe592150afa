"""The family of model wire formats: name -> `module:Class`, resolved on use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from coreagent.wires.base import Wire

FAMILY: Final[dict[str, str]] = {
    "anthropic": "coreagent.wires.anthropic:Anthropic",
    "responses": "coreagent.wires.responses:Responses",
    "chat": "coreagent.wires.chat:Chat",
    "gemini": "coreagent.wires.gemini:Gemini",
}


def load(name: str) -> Wire:
    """Return the wire of that name."""
    module_name, _, class_name = FAMILY[name].partition(":")
    wire: Wire = getattr(importlib.import_module(module_name), class_name)()
    return wire
