"""Real agents of the Agent Client Protocol under the shim's client, in a network without a way out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support import acp, gemini, opencode, real
from tests.support.isolated import Place, served

from coreagent.models.agent import EventKind, Outcome, Reason, Usage
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


AGENTS = [
    Agent("opencode", opencode.write, opencode.shell, opencode.leads),
    Agent(
        "gemini",
        gemini.write,
        gemini.shell,
        lambda url: {"GEMINI_API_KEY": gemini.KEY, "GOOGLE_GEMINI_BASE_URL": url},
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
        Script("E500", [Step(error=500, message="boom")]),
        Script("CUT", [Step("hello", cut=True)]),
        Script("BUSY", [Step(error=503, message="Try again later")]),
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
    return seat(tmp_path, *served_agent)


def seat(root: Path, agent: Agent, place: Place, url: str = "") -> Desk:
    wrapped = place.space.wrap(real.require(agent.name), root / "bin")
    made = real.bench(root, place.server, "acp", "", agent.leads(url or place.server.url))
    env = {**made.launch.env, "PATH": f"{Path(wrapped).parent}:{os.environ['PATH']}"}
    launch = {**made.launch.__dict__, "env": env, "model": agent.name, "settings": NoSettings()}
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


FAILURES = {
    "E401": Reason.AUTH,
    "E429": Reason.RATE_LIMIT,
    "E500": Reason.MODEL_ERROR,
    "CUT": Reason.NETWORK,
    "REFUSED": Reason.NETWORK,
}


def test_model_failures_are_named_within_seconds(tmp_path: Path, served_agent: tuple[Agent, Place]) -> None:
    def run(name: str) -> tuple[Outcome, float]:
        desk = seat(tmp_path / name, *served_agent, url="http://127.0.0.1:1" if name == "REFUSED" else "")
        began = time.monotonic()
        return desk.run(f"{name} now").outcome, time.monotonic() - began

    with ThreadPoolExecutor(2) as pool:  # each is a program of some weight, and what is measured is its own giving up
        found = dict(zip(FAILURES, pool.map(run, FAILURES), strict=True))
    assert {name: outcome.reason for name, (outcome, _) in found.items()} == FAILURES, found
    assert all(outcome.terminal == "error" and outcome.message for outcome, _ in found.values())
    assert max(took for _, took in found.values()) < 30, found


def test_a_turn_that_is_stopped_between_two_tries_is_no_success(desk: Desk) -> None:
    def refused() -> None:
        assert desk.place.server.wait_requests(1, 60, key="BUSY")
        time.sleep(0.5)  # the agent has read the answer, and waits for seconds

    turn = desk.run("BUSY now", stop_after=refused)
    assert (turn.end.stopped_by, turn.outcome.terminal, turn.outcome.reason) == ("pause", "error", Reason.CANCELLED), (
        turn
    )


def test_gemini_is_told_its_model(desk: Desk) -> None:
    if desk.agent.name == "gemini":
        since = len(desk.place.server.requests)
        assert desk.run("EDIT please").outcome.terminal == "success"
        asked = {request.path.partition(":")[0].rpartition("/")[2] for request in desk.place.server.requests[since:]}
        assert asked and all("-pro" in model for model in asked), asked
