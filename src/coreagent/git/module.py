"""Submodules of a commit, and the local copies the user already has of them. Checkout comes in here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from coreagent.git import ref as refs
from coreagent.git.inspect import Base
from coreagent.git.run import environment, git


def modules_of(base: Base, cache: Path, repo_dir: Path, index: Path) -> Iterator[tuple[str, str, Path | None]]:
    """Every submodule: its path, the commit, and the git directory of the user's copy (None when there is none)."""
    staged = git("ls-files", "-z", "--stage", cwd=cache, env=environment(git_dir=cache, index=index)).out
    links = {}
    for record in staged.split(b"\0"):
        if record.startswith(b"160000 "):
            meta, _, path = record.partition(b"\t")
            links[os.fsdecode(path)] = meta.split()[1].decode()
    if not links:
        return
    names = _names(repo_dir)
    for place, sha in links.items():
        yield place, sha, _copy_of(base, names.get(place, place), place)


def _names(repo_dir: Path) -> dict[str, str]:
    """path -> name, out of `.gitmodules`."""
    if (repo_dir / ".gitmodules").is_symlink():
        return {}
    done = git("config", "-z", "--no-includes", "--file", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$",
               cwd=repo_dir, env=environment(), ok=None)  # fmt: skip
    names = {}
    for record in os.fsdecode(done.out).split("\0"):
        key, _, path = record.partition("\n")
        names[path] = key.removeprefix("submodule.").removesuffix(".path")
    return names


def _copy_of(base: Base, name: str, path: str) -> Path | None:
    candidates = [refs.git_dir_of(base.top / path)]
    if name and not name.startswith("/") and not {"..", ".", ""} & set(name.split("/")):
        candidates.append(base.common_dir / "modules" / name)
    return next((found for found in candidates if found is not None and (found / "HEAD").is_file()), None)
