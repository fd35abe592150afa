"""The contract's tables of capabilities and MCP tools, row by row, against the registry.

The fixtures are the tables as the contract has them. What is not built is named here; a row that gets built must leave
its set in the same change, and nothing else may be missing.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

import coreagent.capabilities
from coreagent.capability import REGISTRY
from coreagent.cli.app import app

FIXTURES = Path(__file__).parent / "fixtures"

# Reason for every row: a later part.
CAPABILITIES_LATER = {
    "auto-pr",
    "brain.forget",
    "brain.list",
    "brain.recall",
    "brain.remember",
    "epic",
    "ingest",
    "issue.create",
    "issue.get",
    "issue.list",
    "message.conversation",
    "message.inbox",
    "message.send",
    "mirror",
    "plan.create",
    "plan.delete",
    "plan.list",
    "plan.read",
    "plan.update",
    "pr.get",
    "pr.list",
    "pr.merge",
    "qa",
    "review-queue",
    "scan",
    "session.continue",
    "session.end",
    "session.start",
    "verify",
}
TOOLS_LATER = {
    "agent_conversation",
    "agent_inbox",
    "agent_send",
    "agentic_create_epic",
    "agentic_create_pr",
    "agentic_list_prs",
    "agentic_mirror",
    "agentic_plan_create",
    "agentic_plan_delete",
    "agentic_plan_list",
    "agentic_plan_read",
    "agentic_plan_update",
    "agentic_review_queue",
    "agentic_scan",
    "brain_forget",
    "brain_list",
    "brain_recall",
    "brain_remember",
    "content_batch",
    "content_brief_create",
    "content_generate",
}
# The names are irregular, so which capability stands behind which tool is written out.
PAIRS = {
    "agentic_dispatch": "dispatch",
    "agentic_status": "status",
    "agentic_watch": "watch",
    "agentic_resume": "resume",
    "agentic_prep_workspace": "prep",
    "agentic_dispatch_start": "queue.start",
    "agentic_dispatch_shutdown": "queue.shutdown",
}


def rows(name: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", (FIXTURES / name).read_text(), re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def every_capability() -> None:
    for module in pkgutil.iter_modules(coreagent.capabilities.__path__):
        importlib.import_module(f"coreagent.capabilities.{module.name}")


def test_the_fixtures_are_the_whole_tables() -> None:
    assert len(rows("capabilities.md")) == len(set(rows("capabilities.md"))) == 35
    assert len(rows("mcp_tools.md")) == len(set(rows("mcp_tools.md"))) == 28


def test_every_capability_is_registered_or_named_as_later() -> None:
    table = set(rows("capabilities.md"))
    assert table - set(REGISTRY) == CAPABILITIES_LATER


def test_every_tool_is_registered_or_named_as_later() -> None:
    table = set(rows("mcp_tools.md"))
    tools = {found.tool for found in REGISTRY.values() if found.tool}
    assert table - tools == TOOLS_LATER
    assert tools <= table, "a tool under a name that the contract does not have"


def test_tools_stand_before_the_right_capabilities() -> None:
    assert {found.tool: found.name for found in REGISTRY.values() if found.tool} == PAIRS


def test_everything_registered_has_a_help_text_and_plain_inputs() -> None:
    for found in REGISTRY.values():
        assert found.help, found.name
        assert found.inputs.model_json_schema()["additionalProperties"] is False
        assert found.result.json_schema(mode="serialization")
        assert not (found.read_only and found.destructive), found.name


def test_every_capability_has_its_command_and_every_group_its_help() -> None:
    found: dict[str, Any] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        found[" ".join(path)] = command
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*path, name))

    walk(typer.main.get_command(app), ())
    assert not [capability.name for capability in REGISTRY.values() if capability.cli and capability.cli not in found]
    assert not [path for path, command in found.items() if not command.help]
    without = {
        path
        for path, command in found.items()
        if not getattr(command, "commands", None) and not any("--json" in option.opts for option in command.params)
    }
    assert without == {"mcp", "daemon run"}, "docs/json.md says that every other command takes --json"
