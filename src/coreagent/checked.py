"""The text of a settings file as a checked model, or the first mistake in it: line, column, key, nearest valid key.

Settings come in here with their model. This room knows YAML's marks and pydantic's errors and no key of its own.
"""

from __future__ import annotations

import difflib
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from coreagent.errors import CoreAgentError
from coreagent.yamlmarks import BadYaml, Mark, Node, decode, parse

M = TypeVar("M", bound=BaseModel)


def check(model: type[M], raw: bytes, path: str, elsewhere: type[BaseModel] | None = None) -> M:
    """Return the YAML text as a `model`.

    `elsewhere` is a model whose keys are known too, but have no place in this file. Raises: settings_invalid.
    """
    try:
        node = parse(decode(raw))
    except BadYaml as error:
        raise mistake(path, error.mark, [], error.message, error.hint) from None
    if not isinstance(node.value, dict):
        if node.value is None:
            return model()
        raise mistake(path, node.mark, [], "the file must be a mapping", "start with `version: 1`")
    try:
        return model.model_validate(node.plain())
    except ValidationError as error:
        raise _first_of(error, model, node, path, elsewhere) from None


def _first_of(
    error: ValidationError, model: type[BaseModel], node: Node, path: str, elsewhere: type[BaseModel] | None
) -> CoreAgentError:
    """The mistake that stands first in the file; the others are in `data`."""
    found: list[CoreAgentError] = []
    for one in error.errors():
        mark, keys = node.find(one["loc"])
        if one["type"] == "extra_forbidden":
            valid = valid_keys(model, one["loc"][:-1])
            found.append(_unknown_key(path, mark, keys, valid, elsewhere))
        else:
            missing = one["type"] == "missing"
            keys = [*keys, str(one["loc"][-1])] if missing else keys
            message = "this key is needed" if missing else _words(one["msg"])
            given = one["input"] if isinstance(one["input"], str) else ""
            found.append(mistake(path, mark, keys, message, "", f"it is {given!r}" if given and not missing else ""))
    found.sort(key=lambda each: (each.data["line"], each.data["column"]))
    found[0].data["others"] = [each.message for each in found[1:20]]
    return found[0]


def _unknown_key(
    path: str, mark: Mark, keys: list[str], valid: list[str], elsewhere: type[BaseModel] | None
) -> CoreAgentError:
    near = difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"valid keys here: {', '.join(valid)}"
    if elsewhere is not None and valid_keys(elsewhere, tuple(keys[:-1])).count(keys[-1]):
        hint = "a repository cannot set this; it belongs in your own agents.yaml"
    return mistake(path, mark, keys, "there is no such key", hint, data={"nearest": near[0] if near else ""})


def mistake(
    path: str, mark: Mark, keys: list[str], message: str, hint: str, cause: str = "", data: dict[str, Any] | None = None
) -> CoreAgentError:
    """What is wrong at one place of a file."""
    key = ".".join(keys)
    return CoreAgentError(
        "settings_invalid",
        f"{path}:{mark.line}:{mark.column}: {key + ': ' if key else ''}{message}",
        cause=cause,
        hint=hint or "agents.yaml.example shows every key",
        data={"path": path, "line": mark.line, "column": mark.column, "key": key, **(data or {})},
    )


def _words(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def valid_keys(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The keys of the section at `loc`; none when what stands there has no fixed keys."""
    here: Any = model
    for step in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            known = here.model_fields.get(str(step))
            here = _section(known.annotation) if known else None
        elif get_origin(here) in (dict, list):
            here = _section(get_args(here)[-1])
    return sorted(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _section(kind: Any) -> Any:
    """`kind` without what is said about it: the model or dict inside of Annotated and of an optional."""
    if get_origin(kind) in (Annotated, UnionType, Union):
        return next((found for arm in get_args(kind) if (found := _section(arm)) is not None), None)
    return kind if kind is not type(None) else None
