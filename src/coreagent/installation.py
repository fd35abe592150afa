"""Which installation of core-agent this process is: whose it is to change, and the program that a person calls.

`daemon install` and `upgrade` come in. It looks at files beside its own and changes none.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coreagent import paths

PROGRAM = "core-agent"
RECORD = "installed.json"
"""In the directory of versions: what `upgrade` made, and what came before it."""
Kind = Literal["venv", "checkout", "pipx", "uv", "conda", "system"]


@dataclass(frozen=True)
class Installation:
    """One environment that core-agent lies in."""

    kind: Kind
    prefix: Path
    """The environment, as this process was started from it."""
    program: Path
    """What a person calls; after an upgrade it leads to another environment than the one it lies in."""
    versions: Path
    """Where `upgrade` puts new environments: beside the first one."""


def here() -> Installation:
    """The installation that this process runs from."""
    prefix = Path(sys.prefix)
    found = _record(prefix.parent)
    if found:
        program = Path(str(found["program"]))
        return Installation("venv", prefix, program, prefix.parent)
    program = Path(sys.executable).with_name(PROGRAM)
    return Installation(_kind(prefix), prefix, program, prefix.with_name(prefix.name + ".versions"))


def read_record(versions: Path) -> dict[str, Any]:
    """What `upgrade` wrote down; {} when it never did."""
    return _record(versions)


def _record(directory: Path) -> dict[str, Any]:
    try:
        loaded = json.loads((directory / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) and "program" in loaded else {}


def _kind(prefix: Path) -> Kind:
    package = Path(paths.__file__).resolve().parent
    if not package.is_relative_to(prefix.resolve()) or not any(package.parent.glob("core_agent-*.dist-info")):
        return "system" if package.is_relative_to(Path(sys.base_prefix).resolve()) else "checkout"
    if (prefix / "pipx_metadata.json").exists():
        return "pipx"
    if (prefix / "uv-receipt.toml").exists():
        return "uv"
    if (prefix / "conda-meta").is_dir():
        return "conda"
    return "system" if sys.prefix == sys.base_prefix else "venv"


def program_argv() -> list[str]:
    """How a service calls core-agent: by the program that an upgrade swaps, where there is one."""
    program = here().program
    if os.access(program, os.X_OK):
        return [str(program)]
    return [sys.executable, "-P", "-m", "coreagent"]
