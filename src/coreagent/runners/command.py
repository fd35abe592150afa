"""`command:NAME`: any program of agents.yaml as an agent. It gets the prompt on standard input and in CORE_AGENT_TASK.

It has no protocol, so the exit status stands for the terminal event and every line of output is text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from coreagent.errors import CoreAgentError
from coreagent.models.agent import AgentEvent, Cost, EventKind, Outcome, Usage
from coreagent.runners import named
from coreagent.runners.base import (
    TEXT_LIMIT,
    Found,
    Launch,
    Login,
    Parser,
    Plan,
    Runner,
    RunnerSettings,
    bounded,
    lost_of,
)
from coreagent.spool import unquoted


class Command(Runner):
    """A program of the user's own; what it may do is what its settings say."""

    name: ClassVar[str] = "command"
    context_file: ClassVar[str] = "AGENTS.md"
    resumable: ClassVar[bool] = False

    def find(self, env: Mapping[str, str], settings: RunnerSettings) -> Found:
        # Which program runs is told by commands.NAME, so there is nothing to find for the runner as such.
        return Found(path=settings.path or "/bin/sh", version="")

    def login(self, env: Mapping[str, str], settings: RunnerSettings) -> Login:
        return Login("not_needed")

    def plan(self, launch: Launch) -> Plan:
        if launch.command is None or not launch.command.argv:
            raise CoreAgentError(
                "settings_invalid",
                "the command runner needs a command with an argv",
                hint="add `commands: {NAME: {argv: [program]}}` to agents.yaml and use `--agent command:NAME`",
            )
        program, *rest = launch.command.argv
        env = {**launch.env, "TMPDIR": launch.tmp_dir, **launch.command.env}
        path = named.require(program, env, f"commands.{launch.model}")
        return Plan(
            argv=[path, *rest, *launch.settings.args, *launch.args],
            env=env,
            session_id=launch.resume_session or launch.session_id,
            stdin=launch.prompt.encode("utf-8", "replace"),
            stop_signal="TERM",
            directories=(launch.tmp_dir,),
        )

    def parser(self, previous_usage: Usage | None = None, previous_cost: Cost | None = None) -> Parser:
        return CommandParser()


class CommandParser(Parser):
    """Lines in, text out."""

    def feed(self, line: bytes) -> list[AgentEvent]:
        lost = lost_of(line)
        if lost is not None:
            self._note([lost])
            return [lost]
        line = unquoted(line)
        # Cut before decoding: a line may have 100 MB.
        text = bounded(line[: TEXT_LIMIT + 4].decode("utf-8", "replace").rstrip("\r\n"))
        if not text.strip():
            return []
        events = [AgentEvent(kind=EventKind.TEXT, text=text)]
        self._note(events)
        return events

    def end(self, exit_code: int | None, signal: int | None, stderr_tail: bytes = b"") -> Outcome:
        return self.by_exit_status(exit_code, signal, stderr_tail)
