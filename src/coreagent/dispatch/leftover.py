"""What a workspace holds that no commit can: kept as files in the archive before the workspace goes.

Letting go comes in here. Moved, not copied, so that it costs nothing however large it is; links are never followed.
What is more than the settings allow is not taken, and then the workspace must stay.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coreagent import paths
from coreagent.dispatch.workspace import Layout
from coreagent.errors import CoreAgentError
from coreagent.git import tree
from coreagent.models.dispatch import Dispatch, Harvest
from coreagent.plural import plural

WHOLE = "checkout"
"""Name of a checkout in the archive that git could not make a commit of."""
LEFT = "left-out"
"""Name of the directory in the archive with what of a checkout no commit holds."""
BESIDE = "beside"
"""Name of the directory in the archive with what lay in a workspace's own directory beside its checkout."""
RESERVED = (WHOLE, LEFT, BESIDE)
_OURS = ("repo", ".meta", ".home", ".tmp", "specs", "CODEX.md", "CLAUDE.md", "GEMINI.md", "AGENTS.md")
_SCRATCH = (".tmp", "specs")


@dataclass(frozen=True)
class Kept:
    """Where in the archive the files of a workspace lie that are in no commit; "" for what there is none of."""

    whole: str = ""
    left: str = ""
    beside: str = ""

    def __bool__(self) -> bool:
        return bool(self.whole or self.left or self.beside)

    @property
    def lines(self) -> list[str]:
        """What is told of them, each line with the place at its end."""
        said = []
        if self.whole:
            said.append(f"no commit could be made of its checkout; its files are kept: {self.whole}")
        if self.left:
            said.append(f"what of its checkout no commit can hold is kept: {self.left}")
        if self.beside:
            said.append(f"what lay beside its checkout is kept: {self.beside}")
        return said


def kept(home: str, dispatch_id: str) -> Kept:
    """What the archive holds of a workspace in files. Blocking."""
    archive = Path(paths.archive_dir(home, dispatch_id))

    def there(name: str) -> str:
        place = archive / name
        return str(place) if place.is_dir() and not place.is_symlink() else ""

    return Kept(there(WHOLE), there(LEFT), there(BESIDE))


def facts(home: str, place: Layout, dispatch: Dispatch) -> list[str]:
    """What is told of the files of a workspace that are in no commit: where they are now. Blocking."""
    if dispatch.workspace_gone:
        return kept(home, dispatch.id).lines
    harvest, said = dispatch.harvest, []
    if harvest.left_count:
        more = harvest.left_count - len(harvest.left)
        names = ", ".join(harvest.left) + (f" and {more} more" if more else "")
        said.append(
            f"no commit can hold {plural(harvest.left_count, 'path')} of its checkout ({names}): "
            f"in {place.repo}, kept as files when the workspace goes"
        )
    if harvest.reason == "workspace_replaced" or (harvest.status == "rejected" and not harvest.sha):
        said.append(f"no commit was made: what lies in {place.root} is kept as files when the workspace goes")
    return said


def saved(harvest: Harvest) -> str:
    """What became of the work of a turn, for who stopped it: one line, "" when there was none."""
    if harvest.status == "none":
        return ""
    if harvest.status == "complete" or harvest.rescue_ref:
        less = f", but for {plural(harvest.left_count, 'path')} that no commit can hold" if harvest.left_count else ""
        return f"its work is kept{less}"
    return f"nothing of it could be brought home: {harvest.reason}: {harvest.detail}".rstrip(": ")


def keep(place: Layout, archive: Path, left: tuple[str, ...], replaced: bool, most: int, dispatch: Dispatch) -> None:
    """Move into the archive what no commit holds. Safe to run twice. Blocking.

    `left` are paths of the checkout; `replaced` says that the checkout is not the one that was made, so that the one
    that was may lie anywhere in the workspace's own directory.

    Raises: too_large when it is more than `most` bytes, workspace_busy when it cannot be moved. Then nothing is lost.
    """
    moves = [*_of_checkout(place, archive, left), *_beside(place, archive, replaced)]
    size = 0
    for source, _ in moves:
        for found in _sizes(source):
            size += found
            if size > most:
                raise _too_large(dispatch, source, most)
    for source, target in moves:
        try:
            _move(source, _free(target))
        except OSError as error:
            raise CoreAgentError(
                "workspace_busy",
                f"a part of {dispatch.workspace} that is in no commit cannot be kept, so the workspace stays",
                cause=f"{source}: {error.strerror or error}",
                hint=f"move it to where you want it, then core-agent workspace clean {dispatch.name}",
                data={"workspace": dispatch.workspace, "path": str(source)},
            ) from error


def _too_large(dispatch: Dispatch, source: Path, most: int) -> CoreAgentError:
    return CoreAgentError(
        "too_large",
        f"{dispatch.workspace} holds more that is in no commit than the archive takes, so the workspace stays",
        cause=f"with {source} it is more than {plural(most, 'byte')} (harvest.max_kept_bytes)",
        hint=f"move or delete it, or allow more in agents.yaml; then core-agent workspace clean {dispatch.name}",
        data={"workspace": dispatch.workspace, "path": str(source)},
    )


def _of_checkout(place: Layout, archive: Path, left: tuple[str, ...]) -> list[tuple[Path, Path]]:
    if place.repo.is_symlink():
        return []
    return [
        (place.repo / path, archive / LEFT / path)
        for path in left
        if tree.inside(place.repo, path) and _has_content(place.repo / path)
    ]


def _beside(place: Layout, archive: Path, replaced: bool) -> list[tuple[Path, Path]]:
    try:
        entries = sorted(os.listdir(place.root)) if not place.root.is_symlink() else []
    except OSError:
        return []
    scratch = _SCRATCH if replaced else ()
    found = [
        (place.root / name, archive / BESIDE / name)
        for name in entries
        if (name not in _OURS or name in scratch) and _has_content(place.root / name)
    ]
    if replaced and _has_content(place.repo) and not place.repo.is_symlink():
        found.append((place.repo, archive / WHOLE))
    return found


def _has_content(path: Path) -> bool:
    """Whether there is anything to lose: pipes, sockets and empty directories hold nothing."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        tree.readable(path)
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            return next(entries, None) is not None
        return True  # nobody can tell
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _sizes(path: Path) -> Iterator[int]:
    """The bytes on disk of a file, or of all below a directory."""
    pending = [path]
    while pending:
        here = pending.pop()
        try:
            found = os.lstat(here)
            if not stat.S_ISDIR(found.st_mode):
                yield found.st_blocks * 512
                continue
            tree.readable(here)
            with os.scandir(here) as entries:
                pending += [Path(entry.path) for entry in entries]
        except OSError:
            continue  # what cannot be looked at is moved with the directory that it lies in


def _free(target: Path) -> Path:
    """The target, or one beside it when something is kept there already."""
    free, number = target, 1
    while os.path.lexists(free):
        number += 1
        free = target.with_name(f"{target.name}.{number}")
    return free


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    tree.readable(source.parent)  # gives ourselves back what an agent took: a locked directory lets nothing out
    if stat.S_ISDIR(os.lstat(source).st_mode):
        tree.readable(source)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)
        tree.remove(source)


def _copy(source: Path, target: Path) -> None:
    """To another file system: files, links and directories as they are; what has no content is passed over."""
    found = os.lstat(source)
    if stat.S_ISDIR(found.st_mode):
        tree.readable(source)
        target.mkdir(mode=0o700)
        with os.scandir(source) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            _copy(source / name, target / name)
    elif stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
        tree.readable(source)
        tree.copy(source, target)
