"""A session that a person began with the real claude CLI in a worktree goes on in an adopted workspace."""

from __future__ import annotations

import subprocess

import pytest
from tests.support.desk import edit, seated
from tests.support.home import Home

from coreagent.modelserver import Script, Step, Tool

pytestmark = pytest.mark.real_cli


def test_a_session_from_a_worktree_goes_on(home: Home) -> None:
    checkout = home.core / "workspace" / "local" / "repo" / "mine" / "repo"
    # Where the session says that it works: a path of the old place would be one that it remembered.
    end = Script(
        "TASK-END", [Step("I will.", [Tool("Write", {"file_path": f"{checkout}/ended.txt", "content": "hello\n"})]),
                     Step("Done.")],
    )  # fmt: skip
    with seated(home, [edit("TASK-BEGIN", "begun.txt"), end]) as desk:
        there = home.user / ".claude-squad" / "worktrees" / "fix.it_18c2"
        home.git("worktree", "add", "-q", "-b", "person/fix-it", str(there), cwd=desk.repo)
        said = subprocess.run(
            ["claude", "-p", "--permission-mode", "acceptEdits", "please do TASK-BEGIN"],
            cwd=there, env=home.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert said.returncode == 0, said
        assert (there / "begun.txt").exists()
        (row,) = home.json("adopt", "--list", cwd=desk.repo)
        assert row["session_id"]
        reply = home.json("adopt", str(there), "--name", "mine")
        assert (reply["agent"], reply["session_id"], reply["notes"]) == ("claude", row["session_id"], [])
        before = len(desk.server.requests)
        done = desk.resume("mine", "now TASK-END")
        assert (done["state"], done["stage"], done["files"]) == ("completed", "harvested", 2)
        asked = [r.body.decode() for r in desk.server.requests[before:] if r.step >= 0]
        assert all("please do TASK-BEGIN" in body for body in asked), "the model is shown what was said before"
        assert f"is now below {checkout}" in asked[0]
        assert f"irectory: {checkout}" in asked[0]
        assert desk.show("mine")["session_id"] == row["session_id"]
        assert desk.at_branch("mine", "begun.txt") == desk.at_branch("mine", "ended.txt") == "hello\n"
        assert not (there / "ended.txt").exists()
        home.git("worktree", "remove", "--force", str(there), cwd=desk.repo)
