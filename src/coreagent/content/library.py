"""The shelf of prompt texts: templates, personas and plan templates, shipped or the user's own.

A text is a file: `templates/NAME.md` and `personas/NAME.md` (Markdown below a YAML head), `plans/NAME.yaml`. A file of
the same name below the home directory goes before the shipped one. Whoever assembles a prompt or lists texts comes in;
this room knows nothing of dispatches, repositories or agents.
"""

from __future__ import annotations

import difflib
import functools
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from coreagent.errors import CoreAgentError, told

Kind = Literal["template", "persona", "plan"]

_FOLDERS: dict[Kind, tuple[str, str]] = {
    "template": ("templates", ".md"),
    "persona": ("personas", ".md"),
    "plan": ("plans", ".yaml"),
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
BUILT_IN = "built-in"


@dataclass(frozen=True)
class Text:
    """One text of the shelf; `variables` maps a name to its default, None where a value must be given."""

    name: str
    kind: Kind
    source: str
    summary: str
    body: str
    variables: dict[str, str | None]

    def fill(self, values: dict[str, str]) -> str:
        """Return the body with its variables replaced, in one pass: a value that looks like a variable stays text.

        Raises: missing_variable.
        """
        known = {name: values.get(name, default) for name, default in self.variables.items()}
        if missing := [name for name, value in known.items() if value is None]:
            raise CoreAgentError(
                "missing_variable",
                f"{self.kind} {self.name} needs a value for: {', '.join(missing)}",
                hint=" ".join(f"--var {name}=..." for name in missing),
                data={"missing": missing},
            )
        return _PLACEHOLDER.sub(lambda match: known[match[1]] or "", self.body)


def replaced(text: str, values: Mapping[str, str]) -> tuple[str, list[str]]:
    """A text of a person's with its placeholders replaced, and the names of those without a value."""
    missing = [name for name in dict.fromkeys(_PLACEHOLDER.findall(text)) if name not in values]
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text), missing


def load(kind: Kind, name: str, home: str = "") -> Text:
    """Return one text by name.

    Raises: template_not_found, persona_not_found (with the nearest name), settings_invalid (a file of the user's own).
    """
    folder, suffix = _FOLDERS[kind]
    if _NAME.fullmatch(name):
        for root, source in _roots(home):
            path = root / folder / (name + suffix)
            if version := _version(path):
                return _parse(kind, name, source, path, version)
    names = _names(kind, home)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    raise CoreAgentError(
        "persona_not_found" if kind == "persona" else "template_not_found",
        f"there is no {_noun(kind)} named {name!r}",
        hint=(f"did you mean {near[0]!r}? " if near else "") + f"there are: {', '.join(names)}",
        data={"nearest": near},
    )


def everything(home: str = "") -> list[Text]:
    """Return every text, by kind and name."""
    return [load(kind, name, home) for kind in _FOLDERS for name in _names(kind, home)]


def _noun(kind: Kind) -> str:
    return "plan template" if kind == "plan" else kind


def _roots(home: str) -> list[tuple[Path, str]]:
    shipped = [(Path(__file__).parent, BUILT_IN)]
    return [(Path(home), home), *shipped] if home else shipped


def _names(kind: Kind, home: str) -> list[str]:
    folder, suffix = _FOLDERS[kind]
    found = {path.stem for root, _ in _roots(home) for path in (root / folder).glob("*" + suffix)}
    return sorted(name for name in found if _NAME.fullmatch(name))


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written to or replaced; None when there is no such file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return (facts.st_mtime_ns, facts.st_size, facts.st_ino) if stat.S_ISREG(facts.st_mode) else None


@functools.lru_cache(64)
def _parse(kind: Kind, name: str, source: str, path: Path, version: tuple[int, int, int]) -> Text:
    """Read one text; every task asks for the same few, so each `version` of a file is parsed once."""
    try:
        text = path.read_text("utf-8")
        if kind == "plan":
            head = yaml.safe_load(text)
            body = _plan(head["phases"])
        else:
            before, yaml_head, body = text.split("---\n", 2)
            if before:
                raise ValueError("the first line is not ---")
            head = yaml.safe_load(yaml_head)
        summary = str(head["summary"])
        declared = head.get("variables") or {}
        variables = {str(key): None if value is None else str(value) for key, value in declared.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise CoreAgentError(
            "settings_invalid",
            f"{path} is not a {_noun(kind)}",
            cause=told(error).splitlines()[0],
            hint="`core-agent template show coding` shows the format: a head with `summary`, then the text",
        ) from None
    for used in _PLACEHOLDER.findall(body):
        variables.setdefault(used, None)
    return Text(name, kind, source if source == BUILT_IN else str(path), summary, body.strip(), variables)


def _plan(phases: list[dict[str, Any]]) -> str:
    lines = []
    for number, phase in enumerate(phases, 1):
        lines.append(f"{number}. {phase['name']}")
        lines += [f"   - {task}" for task in phase.get("tasks", [])]
        lines += [f"   - done when: {criterion}" for criterion in phase.get("criteria", [])]
    return "\n".join(lines)
