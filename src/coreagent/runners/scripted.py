"""`scripted`: a YAML script played by a real process. The built-in agent of the demo and of most tests.

The daemon turns the YAML into JSON, so the agent's process needs the standard library only. A script is either
`steps: [...]` (one turn) or `turns: [{steps: [...]}, ...]`: each resume goes on with the next turn.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from coreagent.errors import CoreAgentError
from coreagent.models.agent import AgentEvent, Cost, EventKind, Outcome, Reason, Usage
from coreagent.paths import VERSION
from coreagent.runners.base import Found, Launch, Login, Parser, Plan, Runner, RunnerSettings, bounded, word

SCRIPT_LIMIT: Final = 4 * 1024 * 1024
AGENT_FILE: Final = "scripted_agent.py"


class Scripted(Runner):
    """An agent whose every decision stands in a file."""

    name: ClassVar[str] = "scripted"
    context_file: ClassVar[str] = "AGENTS.md"

    def find(self, env: Mapping[str, str], settings: RunnerSettings) -> Found:
        return Found(path=sys.executable, version=VERSION)

    def login(self, env: Mapping[str, str], settings: RunnerSettings) -> Login:
        return Login("not_needed")

    def plan(self, launch: Launch) -> Plan:
        turns, session = parse_script(launch.script)
        session_id = launch.resume_session or session or launch.session_id
        home = Path(launch.config_home or f"{launch.workspace_dir}/.meta")
        job = {
            "turns": turns,
            "session": session_id,
            "resume": bool(launch.resume_session),
            "model": launch.model or "scripted",
            "prompt": launch.prompt,
            "state": str(home / f"scripted-{word(session_id, 'session').replace('/', '_')}.json"),
        }
        return Plan(
            # -I: neither the checkout nor the user's site directory may shadow the standard library.
            argv=[sys.executable, "-I", str(Path(__file__).with_name(AGENT_FILE))],
            env={**launch.env, "TMPDIR": launch.tmp_dir},
            session_id=session_id,
            stdin=json.dumps(job).encode(),
            stop_signal="TERM",
            directories=(launch.tmp_dir, str(home)),
        )

    def parser(self, previous_usage: Usage | None = None, previous_cost: Cost | None = None) -> Parser:
        return ScriptedParser()


class ScriptedParser(Parser):
    """Reads the agent's own event lines."""

    def read(self, record: dict[str, Any]) -> list[AgentEvent]:
        record["text"] = bounded(record.get("text"))
        event = AgentEvent.model_validate(record)
        out = self.outcome
        if event.usage is not None:
            out.usage = out.usage.plus(event.usage)
        if event.cost is not None and event.cost.usd is not None:
            out.cost = Cost(usd=round((out.cost.usd or 0.0) + event.cost.usd, 9), source="reported")
        if event.terminal and event.kind is EventKind.ERROR:
            out.reason, out.message, out.resets_at = event.reason or Reason.ERROR, event.text, event.resets_at
        return [event]

    def end(self, exit_code: int | None, signal: int | None, stderr_tail: bytes = b"") -> Outcome:
        out = self.outcome
        said, message = out.reason, out.message
        self.by_exit_status(exit_code, signal, stderr_tail)
        if said is not None and out.terminal != "none":
            out.terminal, out.reason, out.message = "error", said, message
        return out


# ---- the script's grammar -------------------------------------------------------------------------------------------


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types) and not (isinstance(value, bool) and bool not in types)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _env(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(x, str) for pair in value.items() for x in pair)


def _path(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _amount(value: Any) -> bool:
    return _is(int, float)(value) and 0 <= value <= 10**9


def _reason(value: Any) -> bool:
    return value in set(Reason)


def _signal(value: Any) -> bool:
    return value in ("KILL", "TERM", "INT", "HUP", "SEGV", "ABRT")


def _exit(value: Any) -> bool:
    return _is(int)(value) and 0 <= value <= 255


Field = tuple[Callable[[Any], bool], bool]
"""(is the value right, must it be there)"""

_MAPPINGS: Final[dict[str, dict[str, Field]]] = {
    "write": {"path": (_path, True), "content": (_is(str), True), "executable": (_is(bool), False)},
    "append": {"path": (_path, True), "content": (_is(str), True)},
    "replace": {"path": (_path, True), "old": (_is(str), True), "new": (_is(str), True)},
    "delete": {"path": (_path, True)},
    "run": {
        "argv": (_texts, True),
        "env": (_env, False),
        "check": (_is(bool), False),
        "timeout_s": (_amount, False),
    },
    "tool": {
        "name": (_is(str), True),
        "input": (_is(str), False),
        "result": (_is(str), False),
        "is_error": (_is(bool), False),
    },
    "usage": dict.fromkeys(("input", "output", "cache_read", "cache_write", "cost_usd"), (_amount, False)),
    "wait_for": {"path": (_path, True), "timeout_s": (_amount, False)},
    "fail": {"reason": (_reason, True), "message": (_is(str), False), "exit": (_exit, False)},
    "rate_limit": {"resets_in": (_amount, False), "message": (_is(str), False)},
}
_SCALARS: Final[dict[str, Callable[[Any], bool]]] = {
    "say": _is(str),
    "block": _is(str),
    "wait": _amount,
    "exit": _exit,
    "die": _signal,
}
# What a bare value of a mapping step stands for: `delete: a.txt`, `run: [make, test]`, `fail: auth`.
_SHORT: Final = {"delete": "path", "run": "argv", "wait_for": "path", "fail": "reason"}
VERBS: Final = frozenset(_MAPPINGS) | frozenset(_SCALARS)


def parse_script(text: str) -> tuple[list[list[tuple[str, Any]]], str]:
    """Return the turns of a script, each a list of (verb, value), and the session id it asks for.

    Raises: bad_script, with the line.
    """
    if len(text) > SCRIPT_LIMIT:
        raise _bad(0, f"the script has more than {SCRIPT_LIMIT} characters")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise _bad(line, error.problem or "not YAML") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise _bad(0, str(error)) from error
    if root is None:
        raise _bad(0, "the script is empty", hint="begin with `steps:` and a list of steps")
    if isinstance(root, yaml.ScalarNode):
        hint = (
            "a file's name is for `--script FILE`; everywhere else give the text itself, in a file of tasks `script: |`"
        )
        raise _bad(1, "a script is YAML text with `steps`, not the name of a file", hint=hint)
    top = _mapping(root, "a script", ("steps", "turns", "session"))
    if ("steps" in top) == ("turns" in top):
        raise _bad(root.start_mark.line + 1, "a script has either `steps` or `turns`")
    session = _value(top["session"]) if "session" in top else ""
    if not isinstance(session, str) or "/" in session or "\0" in session or len(session) > 100:
        raise _bad(top["session"].start_mark.line + 1, "`session` must be a text without slashes")
    if "steps" in top:
        return [_steps(top["steps"])], session
    turns = []
    for node in _items(top["turns"], "turns"):
        if isinstance(node, yaml.SequenceNode):
            turns.append(_steps(node))
        else:
            turns.append(_steps(_mapping(node, "a turn", ("steps",), ("steps",))["steps"]))
    return turns, session


def _steps(node: yaml.Node) -> list[tuple[str, Any]]:
    return [_step(item) for item in _items(node, "steps")]


def _step(node: yaml.Node) -> tuple[str, Any]:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
        raise _bad(line, "a step is one verb with its value, like `say: hello`")
    verb = str(_value(node.value[0][0]))
    value = _value(node.value[0][1])
    if verb not in VERBS:
        raise _bad(line, f"no step is called {verb!r}", near=(verb, VERBS))
    if verb in _SCALARS:
        if not _SCALARS[verb](value):
            raise _bad(line, f"`{verb}` cannot take {value!r:.80}")
        return verb, value
    fields = _MAPPINGS[verb]
    if verb in _SHORT and not isinstance(value, dict):
        value = {_SHORT[verb]: value}
    if verb == "rate_limit" and value is None:
        value = {}
    if verb == "run" and isinstance(value, dict) and isinstance(value.get("argv"), str):
        value = {**value, "argv": ["/bin/sh", "-c", value["argv"]]}
    if not isinstance(value, dict):
        raise _bad(line, f"`{verb}` takes {', '.join(fields)}")
    for key, item in value.items():
        if key not in fields:
            raise _bad(line, f"`{verb}` has no {key!r}", near=(str(key), fields))
        if not fields[key][0](item):
            raise _bad(line, f"`{verb}`: {key!r} cannot be {item!r:.80}")
    for key, (_, needed) in fields.items():
        if needed and key not in value:
            raise _bad(line, f"`{verb}` needs {key!r}")
    return verb, _usage(value) if verb == "usage" else value


def _usage(value: dict[str, Any]) -> dict[str, Any]:
    tokens = {key: int(amount) for key, amount in value.items() if key != "cost_usd"}
    cost = {"usd": float(value["cost_usd"]), "source": "reported"} if "cost_usd" in value else None
    return {"usage": tokens, "cost": cost}


def _mapping(node: yaml.Node, what: str, known: tuple[str, ...], needed: tuple[str, ...] = ()) -> dict[str, yaml.Node]:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise _bad(line, f"{what} must be a mapping")
    found: dict[str, yaml.Node] = {}
    for key_node, value_node in node.value:
        key = str(_value(key_node))
        if key not in known:
            raise _bad(key_node.start_mark.line + 1, f"{what} has no {key!r}", near=(key, known))
        found[key] = value_node
    for key in needed:
        if key not in found:
            raise _bad(line, f"{what} needs {key!r}")
    return found


def _items(node: yaml.Node, what: str) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise _bad(node.start_mark.line + 1, f"`{what}` must be a list that is not empty")
    return list(node.value)


def _value(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad(node.start_mark.line + 1, f"cannot be read: {error}"[:200]) from error
    finally:
        loader.dispose()


def _bad(line: int, problem: str, *, hint: str = "", near: tuple[str, Any] | None = None) -> CoreAgentError:
    if near:
        matches = difflib.get_close_matches(near[0], list(near[1]), n=1)
        hint = f"did you mean {matches[0]!r}?" if matches else f"known: {', '.join(sorted(near[1]))}"
    where = f"script line {line}: " if line else "script: "
    return CoreAgentError("bad_script", where + problem, hint=hint, data={"line": line})
