"""What is wrong with the arguments of a call, in words that hold on every face.

`coreagent.capability` comes in with what the check found. This room knows the check's kinds of mistakes and no
capability.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from coreagent.checked import valid_keys
from coreagent.errors import CoreAgentError

SHOWN = 80
"""How much of a wrong value is told."""

_KINDS: Mapping[str, str] = {
    "missing": "is needed",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a number that is not endless",
    "bool": "must be true or false",
    "string": "must be text",
    "list": "must be a list",
    "dict": "must be pairs of names and values",
    "none": "must be left out",
}
"""Words by what the kind of a mistake begins with."""

_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than_equal": ("must be at least", "ge"),
    "greater_than": ("must be more than", "gt"),
    "less_than_equal": ("must be at most", "le"),
    "less_than": ("must be less than", "lt"),
    "literal_error": ("must be", "expected"),
}


def refusal(name: str, inputs: type[BaseModel], error: ValidationError) -> CoreAgentError:
    """The first mistake in the arguments of `name` as an error; all of them are in its data."""
    # Of several an unknown name comes first: it often is the needed one that is missing.
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    first = found[0]
    within = ".".join(str(part) for part in first["loc"][:-1])
    argument = str(first["loc"][-1] if first["type"] == "extra_forbidden" else first["loc"][0])
    told = [{"loc": [str(part) for part in one["loc"]], "msg": _words(one)} for one in found]
    data: dict[str, Any] = {"argument": argument, "errors": told}
    if first["type"] == "extra_forbidden":
        known = valid_keys(inputs, first["loc"][:-1])
        near = nearest(argument, known)
        return CoreAgentError(
            "invalid_argument",
            f"{name}: `{within}` has no `{argument}`" if within else f"{name} has no argument `{argument}`",
            hint=f"did you mean `{near}`?" if near else f"it has {', '.join(known)}" if known else "it has none",
            data={**data, "nearest": near},
        )
    place = ".".join(str(part) for part in first["loc"])
    described = inputs.model_fields[argument].description if argument in inputs.model_fields else ""
    return CoreAgentError(
        "invalid_argument",
        f"{name}: `{place}` {_words(first)}",
        cause="" if first["type"] == "missing" else f"it is {_shown(first['input'])}",
        hint=_near_choice(first) or (f"`{argument}`: {described}" if described else ""),
        data=data,
    )


def wrong_option(command: str, option: str, error: ValidationError, hint: str) -> CoreAgentError:
    """What `refusal` says of an argument, of an option of the command line."""
    first = error.errors()[0]
    return CoreAgentError(
        "invalid_argument",
        f"{command}: `{option}` {_words(first)}",
        cause=f"it is {_shown(first['input'])}",
        hint=hint,
        data={"argument": option},
    )


def nearest(text: str, known: list[str]) -> str:
    """The known name that was probably meant, "" when none is near."""
    plain = text.lower().replace("-", "_")
    found = difflib.get_close_matches(plain, known, n=1)
    return found[0] if found else ""


def _words(one: ErrorDetails) -> str:
    kind, context = one["type"], one.get("ctx", {})
    if kind == "extra_forbidden":
        return "is not known"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context.get(key, "")
        return f"{words} {int(bound) if isinstance(bound, float) and bound.is_integer() else bound}"
    for begin, words in _KINDS.items():
        if kind.startswith(begin):
            return words
    said = one["msg"].removeprefix("Value error, ")
    _, is_choice, choices = said.rstrip(".").partition(" is not one of ")
    if is_choice:
        *most, last = choices.split(", ")
        return f"must be {', '.join(most)} or {last}" if most else f"must be {last}"
    return said.replace("Input should be", "must be")


def _near_choice(one: ErrorDetails) -> str:
    """For a word that is none of the choices, the one it is near to."""
    if one["type"] != "literal_error" or not isinstance(one["input"], str):
        return ""
    choices = str(one.get("ctx", {}).get("expected", "")).split("'")[1::2]
    near = difflib.get_close_matches(one["input"], choices, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
