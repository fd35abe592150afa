"""`.worktreeinclude`: ignored files that a checkout needs travel along; nothing else does, and none comes back."""

from __future__ import annotations

from tests.support.home import Home
from tests.support.world import World


def test_named_ignored_files_are_in_the_workspace_and_stay_there(home: Home) -> None:
    world = World(home)
    repo = world.repo
    (repo / ".gitignore").write_text(".env\n*.local\nlink\nsecret\n")
    (repo / ".worktreeinclude").write_text(".env\nconf/*.local\nlink\nREADME.md\nplain\n")
    home.git("add", "-A", cwd=repo)
    home.git("commit", "-qm", "settings", cwd=repo)
    (repo / ".env").write_text("TOKEN=of-the-person\n")
    (repo / "conf").mkdir()
    (repo / "conf" / "a.local").write_text("a\n")
    (repo / "secret").write_text("not named\n")
    (repo / "plain").write_text("named, but not ignored\n")
    (home.user / "outside").write_text("outside\n")
    (repo / "link").symlink_to(home.user / "outside")
    (repo / "README.md").write_text("changed since\n")

    reply = world.dispatch("work", "--name", "one")
    assert reply is not None
    row = world.settle()[reply["dispatch_id"]]
    place = home.core / "workspace" / "local" / "repo" / "one" / "repo"
    assert (place / ".env").read_text() == "TOKEN=of-the-person\n"
    assert (place / "conf" / "a.local").read_text() == "a\n"
    assert (place / "README.md").read_text() == "hello\n"  # tracked: as in the commit, not as in the work tree
    for name in ("link", "secret", "plain"):
        assert not (place / name).exists()
        assert not (place / name).is_symlink()

    assert (row["state"], row["files"]) == ("completed", 1), row
    changed = home.git("diff", "--name-only", "main", "agent/one", cwd=repo).split()
    assert changed == [f"made-{reply['dispatch_id']}.txt"]
