"""What is said of a wrong argument: in words of our own, with the nearest name, and the same whoever asks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coreagent.capability import Caller, call
from coreagent.cli.session import load_capabilities
from coreagent.errors import CoreAgentError

load_capabilities()


def refused(name: str, **arguments: Any) -> CoreAgentError:
    with pytest.raises(CoreAgentError) as caught:
        asyncio.run(call(None, name, arguments, Caller()))
    return caught.value


@pytest.mark.parametrize(
    ("name", "arguments", "message", "cause", "hint"),
    [
        ("dispatch", {"task": "x", "prioritty": 1}, "dispatch has no argument `prioritty`", "", "mean `priority`?"),
        ("dispatch", {"task": "x", "with-change": True}, "no argument `with-change`", "", "mean `with_changes`?"),
        ("dispatch", {"tsk": "x"}, "dispatch has no argument `tsk`", "", "mean `task`?"),
        ("diff", {"workspace": "x", "zzz": 1}, "diff has no argument `zzz`", "", "it has exact, stat, workspace"),
        ("poke", {"zzz": 1}, "poke has no argument `zzz`", "", "it has none"),
        ("dispatch", {}, "dispatch: `task` is needed", "", "What to do"),
        ("dispatch", {"task": "x", "priority": 10**30}, "must be at most 1000000", "it is 1000", "Higher starts"),
        ("dispatch", {"task": "x", "priority": "hi"}, "must be a whole number", "it is 'hi'", "Higher starts first"),
        ("dispatch", {"task": "x", "timeout_s": 0}, "`timeout_s` must be more than 0", "it is 0", "in seconds"),
        ("dispatch", {"task": "x", "timeout_s": 1e9}, "must be at most 2592000", "it is 1000000000.0", "in seconds"),
        ("dispatch", {"task": ["x"]}, "dispatch: `task` must be text", "it is ['x']", "What to do"),
        ("dispatch", {"task": "x", "args": [1]}, "`args.0` must be text", "it is 1", "More arguments"),
        ("dispatch", {"task": "x", "variables": {"a": 1}}, "`variables.a` must be text", "it is 1", "Values for"),
        ("dispatch", {"task": "x", "with_changes": "no way"}, "must be true or false", "it is 'no way'", "Carry"),
        ("accept", {"workspace": "x", "strategy": "merg"}, "`strategy` must be 'auto', ", "it is 'merg'", "'merge'?"),
        ("batch.siblings", {"task": {"prioritty": 1}}, "`task` has no `prioritty`", "", "mean `priority`?"),
    ],
)
def test_a_wrong_argument(name: str, arguments: dict[str, Any], message: str, cause: str, hint: str) -> None:
    error = refused(name, **arguments)
    assert (error.slug, error.row.code) == ("invalid_argument", "E1002")
    assert message in error.message
    assert cause in error.cause
    assert bool(cause) is bool(error.cause)
    assert hint in error.hint
    said = f"{error.as_dict()}"
    assert "Input should" not in said
    assert "Extra inputs" not in said


def test_a_long_value_is_cut() -> None:
    assert len(refused("diff", workspace=["x" * 1000]).cause) < 100


def test_the_nearest_capability_is_named() -> None:
    assert refused("statu").hint == "did you mean status?"
    assert refused("xyzzy").hint
