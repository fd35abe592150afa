"""opencode over the Agent Client Protocol, through the installed command and a real daemon."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tests.support import opencode
from tests.support.desk import sleeper
from tests.support.home import Home
from tests.support.isolated import seated
from tests.support.opencode import USAGE, shell, write

from coreagent.modelserver import Script, Step

pytestmark = pytest.mark.real_cli

DONE = Step("Done.", usage=USAGE)


def edit(key: str, name: str) -> Script:
    return Script(key, [Step("I will.", [write(name)], usage=USAGE), DONE])


def led(url: str) -> Mapping[str, str]:
    return opencode.leads(url)


def test_over_acp_it_edits_outlives_its_daemon_and_is_paused_in_its_own_words(home: Home) -> None:
    slow = Script("TASK-SLOW", [Step("Run.", [shell(f"touch ran; {sleeper(315)}")], usage=USAGE), DONE])
    held = Script("TASK-HELD", [Step("I will.", [write("h.txt")], usage=USAGE, gate="go"), DONE])
    with seated(home, "opencode", [edit("TASK-ONE", "a.txt"), edit("TASK-TWO", "b.txt"), slow, held], led) as desk:
        row = desk.dispatch("do TASK-ONE", "one", "--agent", "acp:opencode")
        assert (row["state"], row["reason"], row["stage"]) == ("completed", None, "harvested"), row
        assert desk.at_branch("one", "a.txt") == "hello\n"
        row = desk.resume("one", "also TASK-TWO")
        assert (row["state"], row["files"], row["runs"]) == ("completed", 2, 2)
        assert b"do TASK-ONE" in desk.server.requests[-1].body

        desk.dispatch("TASK-HELD", "held", "--agent", "acp:opencode", wait=False)
        assert desk.server.wait_requests(1, 60, key="TASK-HELD")
        home.kill_daemon()
        desk.server.release("go")
        assert desk.until("held", lambda row: row["state"] == "completed")["stage"] == "harvested"

        home.run("repo", "trust", "--bypass", "--yes", cwd=desk.repo)
        desk.dispatch("TASK-SLOW", "slow", "--agent", "acp:opencode", "--permissions", "bypass", wait=False)
        desk.wait_for_file(desk.checkout("slow") / "ran")
        home.run("pause", "slow")
        assert desk.until("slow", lambda row: row["state"] == "paused")["reason"] == "paused"
        assert desk.show("slow")["session_id"].startswith("ses_")
        rows = {row["name"]: row for row in home.json("agents")}
        assert rows["acp:opencode"]["found"] and rows["opencode"]["version"].startswith("1.")
