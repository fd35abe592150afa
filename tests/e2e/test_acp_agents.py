"""Real agents of the Agent Client Protocol under the shim's client, in a network without a way out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support import acp, gemini, opencode, real
from tests.support.isolated import Place, served

from coreagent.models.agent import EventKind, Reason, Usage
from coreagent.modelserver import Script, Step, Tool
from coreagent.runners.base import Launch, NoSettings

pytestmark = [
    pytest.mark.real_cli,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a subreaper"),
]

SLEEP = f"{sys.executable} -c 'import time; time.sleep(316)'"
SOON = {"retry-after-ms": "1"}
USAGE = Usage(input=1000, output=50, cache_read=30)
DONE = Step("Done.", usage=USAGE)


@dataclass(frozen=True)
class Agent:
    """What differs between them."""

    name: str
    write: Callable[[str], Tool]
    shell: Callable[[str], Tool]
    leads: Callable[[str], dict[str, str]]
    model: str = ""


AGENTS = [
    Agent("opencode", opencode.write, opencode.shell, opencode.leads),
    Agent(
        "gemini",
        gemini.write,
        gemini.shell,
        lambda url: {"GEMINI_API_KEY": gemini.KEY, "GOOGLE_GEMINI_BASE_URL": url},
        gemini.MODEL,
    ),
]


def scripts(agent: Agent) -> list[Script]:
    forbidden = [agent.shell("touch made.txt"), agent.write("../outside.txt")]
    return [
        Script("EDIT", [Step("I will.", [agent.write("a.txt")], usage=USAGE), DONE]),
        Script("MORE", [Step("Again.", [agent.write("b.txt")], usage=USAGE), DONE]),
        Script("SLOW", [Step("Slow.", [agent.shell(SLEEP)], usage=USAGE), DONE]),
        Script("RUN", [Step("x", [agent.shell("env > env.txt")]), Step("Done.")]),
        Script("FORBIDDEN", [Step("x", forbidden), Step("Done.")]),
        Script("E401", [Step(error=401, message="Request had invalid authentication credentials.")]),
        Script("E429", [Step(error=429, message="Too many requests: slow down", headers=SOON)]),
    ]


@dataclass(frozen=True)
class Desk:
    agent: Agent
    place: Place
    launch: Launch

    @property
    def repo(self) -> Path:
        return Path(self.launch.repo_dir)

    def run(self, prompt: str, **more: object) -> acp.Turn:
        return acp.run(self.launch, prompt, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=AGENTS, ids=lambda agent: agent.name)
def served_agent(request: pytest.FixtureRequest) -> Iterator[tuple[Agent, Place]]:
    agent: Agent = request.param
    real.require(agent.name)
    with served(scripts(agent)) as place:
        yield agent, place


@pytest.fixture
def desk(tmp_path: Path, served_agent: tuple[Agent, Place]) -> Desk:
    agent, place = served_agent
    wrapped = place.space.wrap(real.require(agent.name), tmp_path / "bin")
    made = real.bench(tmp_path, place.server, "acp", "", agent.leads(place.server.url))
    env = {**made.launch.env, "PATH": f"{Path(wrapped).parent}:{os.environ['PATH']}"}
    model = f"{agent.name}:{agent.model}" if agent.model else agent.name
    launch = {**made.launch.__dict__, "env": env, "model": model, "settings": NoSettings()}
    return Desk(agent, place, Launch(**launch))


def test_edit_then_go_on(desk: Desk) -> None:
    first = desk.run("EDIT please")
    assert (first.outcome.terminal, first.outcome.reason) == ("success", None), first
    assert (desk.repo / "a.txt").read_text() == "hello\n"
    assert not first.outcome.denied_tools and first.outcome.usage.total > 0 and first.outcome.unparsed == 0
    texts = [event.text for event in first.events if event.kind is EventKind.TEXT]
    assert texts == ["I will.", "Done."]
    tools = [event.kind for event in first.events if event.tool]
    assert tools == [EventKind.TOOL_USE, EventKind.TOOL_RESULT]
    assert not first.end.killed and first.end.signal is None
    assert sorted(path.name for path in Path(desk.launch.env["HOME"]).iterdir()) == []

    again = desk.run("MORE please", resume=first.outcome.session_id, fresh_prompt="MORE please, anew")
    assert again.outcome.terminal == "success", again
    assert (desk.repo / "b.txt").read_text() == "hello\n"
    texts = [event.text for event in again.events if event.kind is EventKind.TEXT and not event.data]
    assert texts == ["Again.", "Done."]  # what was said before is not said again
    lost = [note for note in again.notes if note["what"] == "session_lost"]
    if lost:  # it could not be loaded: a new session, told what a new one must be told
        assert again.outcome.session_id != first.outcome.session_id
    else:
        assert again.outcome.session_id == first.outcome.session_id
        assert b"EDIT please" in desk.place.server.requests[-1].body
    # Of sessions that are loaded in the minute of their beginning, gemini overwrites the file first.
    assert not lost or desk.agent.name == "gemini"


def test_cancel_in_mid_tool_is_clean_and_quick(desk: Desk) -> None:
    turn = desk.run("SLOW", permissions="bypass", stop_at=lambda event: event.kind is EventKind.TOOL_USE)
    assert turn.end.stopped_by == "pause"
    assert (turn.outcome.terminal, turn.outcome.reason) == ("error", Reason.CANCELLED), turn
    assert turn.outcome.session_id
    assert not any("sleep" in name for name in turn.end.killed)


def test_what_edits_forbid_is_refused_and_told(desk: Desk) -> None:
    turn = desk.run("FORBIDDEN")
    assert turn.outcome.terminal == "success", turn
    assert not (desk.repo / "made.txt").exists()
    assert not (desk.repo.parent / "outside.txt").exists()


def test_bypass_runs_what_it_likes_and_sees_no_foreign_key(desk: Desk) -> None:
    turn = desk.run("RUN", permissions="bypass", env={"GROQ_API_KEY": "foreign", "ANTHROPIC_API_KEY": "foreign"})
    assert turn.outcome.terminal == "success" and not turn.outcome.denied_tools, turn
    seen = (desk.repo / "env.txt").read_text()
    assert "CORE_AGENT_ATTEMPT=" in seen
    assert desk.agent.name == "opencode" or "foreign" not in seen


def test_model_failures_are_named(desk: Desk) -> None:
    for prompt, reason in (("E401", Reason.AUTH), ("E429", Reason.RATE_LIMIT)):
        turn = desk.run(prompt)
        assert (turn.outcome.terminal, turn.outcome.reason) == ("error", reason), turn
        assert turn.outcome.message
