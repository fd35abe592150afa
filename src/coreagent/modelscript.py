"""What a scripted model says: scripts and their steps, and how they are read from a file.

The model server comes in for the nouns, `--script FILE` for the reader. It knows no wire and no runner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from coreagent.errors import CoreAgentError, told
from coreagent.models.agent import Usage

T = TypeVar("T")


@dataclass(frozen=True)
class Tool:
    """A tool the model decides to use. `{cwd}` in any text of `input` (or `custom`) becomes the client's directory."""

    name: str
    input: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = ""
    """The group it is called in; only the Responses wire has groups."""
    custom: str | None = None
    """The whole input of a freeform tool; only OpenAI's wires have them."""


@dataclass(frozen=True)
class Step:
    """One answer of the model, or one way of failing."""

    text: str = ""
    tools: Sequence[Tool] = ()
    usage: Usage = field(default_factory=lambda: Usage(input=1000, output=50))
    stop_reason: str = ""
    error: int = 0
    """An HTTP status instead of an answer."""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """`{in N}` in a value becomes the Unix time N seconds after the answer."""
    retry_s: float = 0.0
    """With `error`: when to come back, said as each wire says it."""
    cut: bool = False
    """Drop the connection in the middle of the stream."""
    hang: bool = False
    """Accept the request and never answer."""
    delay_s: float = 0.0
    gate: str = ""
    """Hold the answer until `release(gate)`."""
    times: int = 0
    """With `then`: how many requests get this step before `then` takes its place; 0 is always."""
    then: Step | None = None


@dataclass(frozen=True)
class Script:
    """Answers to the conversation in which `key` is the last one that a user message contains; "" matches every one."""

    key: str
    steps: Sequence[Step]


def parse_scripts(text: str) -> list[Script]:
    """Read `scripts: [{key, steps: [...]}]` (YAML or JSON); the steps have the fields of Step.

    Raises: bad_script.
    """
    try:
        raw = yaml.safe_load(text)
        if not isinstance(raw, dict) or set(raw) != {"scripts"} or not raw["scripts"]:
            raise ValueError("the file must hold one key, `scripts`, with a list")
        return [_build(Script, item, {"steps": _steps}) for item in raw["scripts"]]
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise CoreAgentError("bad_script", "the model's script cannot be read", cause=told(error)) from error


def _steps(items: Any) -> list[Step]:
    if not isinstance(items, list) or not items:
        raise ValueError("`steps` must be a list that is not empty")
    return [_build_step(item) for item in items]


def _build_step(item: Any) -> Step:
    return _build(
        Step,
        item,
        {
            "tools": lambda tools: [_build(Tool, tool, {}) for tool in tools],
            "usage": Usage.model_validate,
            "then": _build_step,
            "headers": lambda headers: {str(name): str(value) for name, value in headers.items()},
        },
    )


def _build(kind: Callable[..., T], item: Any, readers: Mapping[str, Callable[[Any], Any]]) -> T:
    if not isinstance(item, dict):
        raise TypeError(f"expected a mapping, found {item!r:.80}")
    return kind(**{str(key): readers[key](value) if key in readers else value for key, value in item.items()})
