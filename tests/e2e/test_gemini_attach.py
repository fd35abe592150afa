"""A person takes over: `attach` on a terminal with the real gemini CLI, and headless again afterwards."""

from __future__ import annotations

import pytest
from tests.support.gemini import CALL, at_once, edit, environment
from tests.support.home import COMMAND, Home
from tests.support.isolated import seated
from tests.support.screen import Screen

ENTER = "\r"


@pytest.mark.real_cli
def test_attach_goes_on_in_the_session_and_resume_goes_on_after_it(home: Home) -> None:
    scripts = [edit("TASK-HEADLESS", "a.txt"), edit("said by hand", "b.txt"), edit("and then C", "c.txt")]
    at_once(home.user)
    with seated(home, "gemini", scripts, environment) as desk:
        assert desk.dispatch("TASK-HEADLESS", "talk")["state"] == "completed"
        with Screen([str(COMMAND), "attach", "talk"], home.env, home.user) as screen:
            screen.until("Do you trust the files in this folder?")
            screen.quiet()
            screen.type(ENTER)
            # It starts itself again with what the person has trusted, and shows the session.
            screen.until("is restarting")
            screen.until("TASK-HEADLESS")
            screen.until("Type your message")
            screen.quiet(1)
            screen.type("said by hand")
            screen.until("said by hand")
            screen.quiet()
            screen.type(ENTER)
            screen.until("Allow once")
            screen.quiet()
            screen.type(ENTER)
            screen.until("Done.")
            screen.quiet(1)
            screen.type("/quit")
            screen.quiet()
            screen.type(ENTER)
            assert screen.end() == 0, screen.shown()[-1000:]
        assert desk.at_branch("talk", "b.txt") == "hello\n"
        row = desk.resume("talk", "and then C")
        # What was said there is in the session, not in the count. Nor is the folder trusted in a headless turn.
        assert (row["state"], row["tokens"]) == ("completed", 4 * CALL)
        sent = desk.server.requests[-1].body.decode()
        assert "TASK-HEADLESS" in sent
        assert "said by hand" in sent
