"""Objects carried between repositories when there is nothing to carry."""

from __future__ import annotations

from pathlib import Path

from tests.support.git_room import make_room, sh

from coreagent.git.pack import carry


def test_an_empty_pack_is_read_to_its_end(tmp_path: Path) -> None:
    """The packer must not die of SIGPIPE between the header and the end of a pack without objects."""
    top = make_room(tmp_path).user
    head = sh(top, "rev-parse", "HEAD")
    for _ in range(12):
        carry(top / ".git", top / ".git", [head], [head])
