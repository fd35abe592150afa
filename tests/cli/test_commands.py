"""Every verb says what it was told to the right capability, and tells the answer or the error as it should.

The far end is a session that remembers what it was asked; everything from the typed words on is real.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_views import row

from coreagent.capability import REGISTRY, Caller
from coreagent.cli import run as runs
from coreagent.cli.session import Session, load_capabilities
from coreagent.cli.terminal import Terminal
from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Fate, State
from coreagent.models.report import (
    AcceptReply,
    CleanReply,
    DiffReply,
    DispatchReply,
    LogReply,
    MoveReply,
    PoolRow,
    QueueReport,
    RepoRemoved,
    RepoRow,
    StatusReport,
    TemplateShow,
    TrustReply,
    WatchReply,
    WhyReport,
)

REPO = RepoRow(org="core", name="app", path="/src/app")
DISPATCHED = DispatchReply(
    dispatch_id="01", workspace="core/app/x", state=State.QUEUED, branch="agent/x", agent="claude", pool="claude"
)
MOVED = MoveReply(workspace="core/app/x", state=State.PAUSED)
ANSWERS: dict[str, Any] = {
    "dispatch": DISPATCHED,
    "prep": DISPATCHED,
    "resume": DISPATCHED.model_copy(update={"resumed": True}),
    "status": StatusReport(workspaces=[row(State.COMPLETED, needs_me=True)]),
    "why": WhyReport(workspace="core/app/x", state=State.FAILED, headline="It failed."),
    "watch": WatchReply(seq=7),
    "logs": LogReply(workspace="core/app/x"),
    "diff": DiffReply(workspace="core/app/x", base="a" * 40, head="b" * 40, files=1, insertions=1, text="+x"),
    "accept": AcceptReply(workspace="core/app/x", strategy="squash", onto="main", before="a" * 40, after="b" * 40),
    "history": [],
    "agents": [],
    "rescue.list": [],
    "rescue.apply": MOVED,
    "workspace.list": [],
    "workspace.clean": CleanReply(),
    "repo.add": REPO,
    "repo.list": [REPO],
    "repo.remove": RepoRemoved(repo=REPO, cache="kept", rescued=1),
    "repo.trust": TrustReply(repo=REPO, hash="h" * 64, settings={".core/agents.yaml": "hooks: {}"}),
    "template.list": [],
    "template.show": TemplateShow(name="coding", kind="template", source="built-in", text="Do it."),
    **dict.fromkeys(("pause", "cancel", "reject", "queue.drop"), MOVED),
    **dict.fromkeys(("queue.list", "queue.freeze", "queue.start", "queue.shutdown", "poke"), QueueReport()),
}


class Far(Session):
    """Remembers the calls and answers from a table; an answer may be a function of the arguments."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__("/nowhere", Caller())
        self.answers = {**ANSWERS, **answers}
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, name: str, /, **arguments: Any) -> Any:
        self.calls.append((name, arguments))
        # What is sent must be what the capability takes, or it would only fail in front of a person.
        REGISTRY[name].inputs.model_validate(arguments)
        found = self.answers[name]
        found = found(arguments) if callable(found) else found
        if isinstance(found, BaseException):
            raise found
        return found


class Told:
    def __init__(self, code: int, out: str, err: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
        self.code, self.out, self.err, self.calls = code, out, err, calls

    @property
    def sent(self) -> dict[str, Any]:
        return self.calls[-1][1]


@pytest.fixture(scope="module", autouse=True)
def _registry() -> None:
    load_capabilities()


def say(*argv: str, stdin: str = "", interactive: bool = False, cwd: str = "/here", **answers: Any) -> Told:
    out, err = io.StringIO(), io.StringIO()
    here = Terminal(
        out=out, err=err, stdin=io.StringIO(stdin), width=100, height=24, colour=False, interactive=interactive,
        cwd=cwd, env={"HOME": "/home/me", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    far = Far({name.replace("__", "."): value for name, value in answers.items()})
    code = runs.run(list(argv), here, far)
    return Told(code, out.getvalue(), err.getvalue(), far.calls)


@pytest.mark.parametrize(
    ("words", "capability", "arguments"),
    [
        ("pause x", "pause", {"workspace": "x"}),
        ("cancel x", "cancel", {"workspace": "x"}),
        ("reject x", "reject", {"workspace": "x"}),
        ("why x", "why", {"workspace": "x"}),
        ("status", "status", {"workspace": "", "all": False}),
        ("status x --all", "status", {"workspace": "x", "all": True}),
        ("diff x --stat", "diff", {"workspace": "x", "stat": True}),
        ("history -n 3", "history", {"limit": 3}),
        ("accept x", "accept", {"workspace": "x", "strategy": "auto", "onto": ""}),
        ("accept x --squash --onto dev", "accept", {"workspace": "x", "strategy": "squash", "onto": "dev"}),
        ("accept x --rebase", "accept", {"workspace": "x", "strategy": "rebase", "onto": ""}),
        ("accept x --merge", "accept", {"workspace": "x", "strategy": "merge", "onto": ""}),
        ("resume x", "resume", {"workspace": "x", "answer": "", "prompt": "", "fresh": False}),
        ("resume x also do that", "resume", {"workspace": "x", "answer": "", "prompt": "also do that", "fresh": False}),
        ("resume x --answer yes --fresh", "resume", {"workspace": "x", "answer": "yes", "prompt": "", "fresh": True}),
        ("rescue list", "rescue.list", {"workspace": ""}),
        ("rescue apply x 2 --branch b", "rescue.apply", {"workspace": "x", "n": 2, "branch": "b"}),
        ("rescue apply x", "rescue.apply", {"workspace": "x", "n": None, "branch": ""}),
        ("queue list", "queue.list", {}),
        ("queue freeze claude", "queue.freeze", {"pool": "claude"}),
        ("queue start", "queue.start", {"pool": ""}),
        ("queue drop x", "queue.drop", {"workspace": "x"}),
        ("queue poke", "poke", {}),
        ("queue shutdown --now", "queue.shutdown", {"now": True}),
        ("workspace list", "workspace.list", {}),
        ("workspace clean x --dry-run", "workspace.clean", {"workspace": "x", "dry_run": True}),
        ("repo add sub --org o --name n", "repo.add", {"path": "/here/sub", "org": "o", "name": "n"}),
        ("repo add --own", "repo.add", {"path": "/here", "org": "", "name": "", "managed": False}),
        ("repo list", "repo.list", {}),
        ("repo remove core/app", "repo.remove", {"repo": "core/app"}),
        ("repo remove ./sub", "repo.remove", {"repo": "/here/sub"}),
        ("repo/list", "repo.list", {}),
        ("queue/freeze", "queue.freeze", {"pool": ""}),
        ("repo trust --yes", "repo.trust", {"repo": "/here", "apply": True, "bypass": False}),
        ("repo trust core/app", "repo.trust", {"repo": "core/app", "apply": False, "bypass": False}),
        ("agents", "agents", {}),
        ("template list", "template.list", {}),
        ("template show coding", "template.show", {"name": "coding"}),
    ],
)
def test_a_verb_calls_its_capability(words: str, capability: str, arguments: dict[str, Any]) -> None:
    for extra in ([], ["--json"]):
        told = say(*words.split(), *extra)
        assert (told.code, told.err) == (0, "") or words.startswith("diff")
        assert told.calls == [(capability, arguments)]
        assert told.out
        if extra:
            json.loads(told.out)


def test_dispatch_sends_everything_it_was_told() -> None:
    words = """
        dispatch fix it --agent claude:opus --repo ./r --name n --template t --plan p --persona q --var a=1 --var b=x=y
        --issue 7 --branch b --priority 3 --timeout 1h30m --idle-timeout 90s --expect none --permissions bypass
        --with-changes --ephemeral --arg=--max-turns --arg=5 --dry-run
    """
    told = say(*words.split())
    assert told.code == 0
    assert told.sent == {
        "task": "fix it", "agent": "claude:opus", "repo": "/here/r", "name": "n", "template": "t", "plan_template": "p",
        "persona": "q", "variables": {"a": "1", "b": "x=y"}, "issue": 7, "pr": None, "branch": "b", "tag": None,
        "priority": 3, "timeout_s": 5400.0, "idle_timeout_s": 90.0, "expect": "none", "permissions": "bypass",
        "with_changes": True, "ephemeral": True, "args": ["--max-turns", "5"], "script": "", "dry_run": True,
        "fetch": False, "after": [], "on_top": False, "escalate": False,
    }  # fmt: skip


def test_where_a_task_and_its_repository_come_from(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    script = tmp_path / "s.yaml"
    script.write_text("steps: []\n")
    assert say("dispatch", "-", stdin="from a pipe\n").sent["task"] == "from a pipe"
    assert say("dispatch", "t", "--repo", "sub", cwd=str(tmp_path)).sent["repo"] == str(tmp_path / "sub")
    assert say("dispatch", "t", "--repo", "core/app", cwd=str(tmp_path)).sent["repo"] == "core/app"
    assert say("dispatch", "t", "--repo", "~/r").sent["repo"] == "/home/me/r"
    assert say("dispatch", "t", "--script", "s.yaml", cwd=str(tmp_path)).sent["script"] == "steps: []\n"
    assert say("dispatch", "t", "--script", "-", stdin="steps: []").sent["script"] == "steps: []"
    assert say("dispatch", "--template", "security").sent["task"] == ""
    assert say("resume", "x", "-", stdin="more\n").sent["prompt"] == "more"


@pytest.mark.parametrize(
    ("words", "slug", "says"),
    [
        (["dispatch"], "invalid_argument", "the task is empty"),
        (["dispatch", " "], "invalid_argument", "the task is empty"),
        (["dispatch", "t", "--expect", "zz"], "invalid_argument", "dispatch: `--expect` must be 'changes' or 'none'"),
        (["dispatch", "t", "--permissions", "z"], "invalid_argument", "`--permissions` must be 'edits' or 'bypass'"),
        (["dispatch", "t", "-p", "z"], "invalid_argument", "dispatch: `--priority` must be a whole number"),
        (["dispatch", "t", "--idle-timeout", "soon"], "invalid_argument", "`--idle-timeout` must be a duration"),
        (["dispatch", "-"], "invalid_argument", "no text"),
        (["dispatch", "t", "--timeout", "soon"], "invalid_argument", "`--timeout` must be a duration"),
        (["dispatch", "t", "--timeout", "0"], "invalid_argument", "`--timeout` must be more than 0"),
        (["dispatch", "t", "--var", "x"], "invalid_argument", "NAME=VALUE"),
        (["dispatch", "t", "--script", "nowhere.yaml"], "invalid_argument", "nowhere.yaml"),
        (["accept", "x", "--squash", "--merge"], "conflicting_options", "exclude each other"),
        (["daemon", "stop", "--drain", "--now"], "conflicting_options", "exclude each other"),
        (["nonsense"], "usage", "nonsense"),
        (["repo/nonsense"], "usage", "nonsense"),
        (["pause"], "usage", "WORKSPACE"),
        (["resume", "x", "--answer", "-"], "invalid_argument", "no text"),
        (["resume", "x", "--answer", ""], "invalid_argument", "--answer"),
        *(
            (["dispatch", "t", option, ""], "invalid_argument", "it is empty")
            for option in ("--name", "--timeout", "--template", "--branch", "--tag", "--repo")
        ),
        (["dispatch", "t", "--agent="], "invalid_argument", "it is empty"),
        (["queue", "start", ""], "invalid_argument", "it is empty"),
        (["rescue", "apply", "x", "0"], "invalid_argument", "must be at least 1"),
        (["init", "--agent", ""], "invalid_argument", "it is empty"),
    ],
)
def test_wrong_words_are_told_before_anything_is_called(words: list[str], slug: str, says: str) -> None:
    told = say(*words)
    assert told.code == 2
    assert told.calls == []
    assert says in told.err
    assert told.out == ""
    error = json.loads(say(*words, "--json").out)["error"]
    assert error["slug"] == slug
    assert says in error["message"]


def test_an_error_of_a_capability_keeps_its_code_on_every_face() -> None:
    error = CoreAgentError("workspace_not_found", "there is no x", hint="look")
    told = say("why", "x", why=error)
    assert (told.code, told.out, told.err) == (1, "", "error[E2008]: there is no x\nhint: look\n")
    told = say("why", "x", "--json", why=error)
    assert (told.code, json.loads(told.out)["error"]["slug"], told.err) == (1, "workspace_not_found", "")


def consent(agreed: list[bool]) -> Callable[[dict[str, Any]], Any]:
    def answer(_: dict[str, Any]) -> Any:
        if agreed:
            return DISPATCHED
        return CoreAgentError("consent_needed", "bypass in core/app needs your consent", data={"repo": "core/app"})

    return answer


def test_consent_is_asked_once_of_a_person_and_never_of_a_pipe() -> None:
    agreed: list[bool] = []
    trust = lambda a: agreed.append(a["bypass"]) or TrustReply(repo=REPO, hash="h")  # noqa: E731
    told = say("dispatch", "t", interactive=True, stdin="y\n", dispatch=consent(agreed), repo__trust=trust)
    assert told.code == 0
    assert [name for name, _ in told.calls] == ["dispatch", "repo.trust", "dispatch"]
    assert told.calls[1][1] == {"repo": "core/app", "bypass": True}
    for answer, interactive in (("\n", True), ("", True), ("y\n", False)):
        told = say("dispatch", "t", interactive=interactive, stdin=answer, dispatch=consent([]))
        assert told.code == 1
        assert [name for name, _ in told.calls] == ["dispatch"]


def test_trust_shows_everything_before_it_asks() -> None:
    told = say("repo", "trust", interactive=True, stdin="n\n")
    assert "hooks: {}" in told.out
    assert [a["apply"] for _, a in told.calls] == [False]
    trusted = REPO.model_copy(update={"trusted": True})
    applied = lambda a: TrustReply(repo=trusted, hash="h" * 64, settings={"f": "x"}, applied=a["apply"])  # noqa: E731
    told = say("repo", "trust", interactive=True, stdin="yes\n", repo__trust=applied)
    assert [(a["apply"], a.get("hash", "")) for _, a in told.calls] == [(False, ""), (True, "h" * 64)]
    assert "trusted as they are now" in told.out
    assert "--yes trusts them" in say("repo", "trust").out


def test_what_is_asked_is_what_will_be_agreed_to() -> None:
    nothing = lambda a: TrustReply(  # noqa: E731
        repo=REPO.model_copy(update={"bypass_consent": a["bypass"]}), hash="", applied=a["bypass"]
    )
    told = say("repo", "trust", "--bypass", interactive=True, stdin="y\n", repo__trust=nothing)
    assert "there is nothing to trust" in told.out
    assert "Trust" not in told.out
    assert "Let agents run here without asking and without a sandbox? [y/N]" in told.out
    assert told.calls[-1][1] == {"repo": "/here", "bypass": True, "apply": False, "hash": ""}
    assert told.out.count("there is nothing to trust") == 1
    assert "Trust these settings, and let agents" in say("repo", "trust", "--bypass", interactive=True).out


@pytest.mark.parametrize(
    ("state", "code"),
    [(State.COMPLETED, 0), (State.FAILED, 10), (State.BLOCKED, 11), (State.PAUSED, 11), (State.CANCELLED, 12)],
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_wait_leaves_with_what_became_of_the_job(state: State, code: int, as_json: list[str]) -> None:
    rows = iter([row(State.QUEUED), row(State.RUNNING, runs=1), row(state, runs=1, needs_me=True)])
    status = lambda _: StatusReport(workspaces=[next(rows)])  # noqa: E731
    told = say("dispatch", "t", "--wait", *as_json, status=status)
    assert told.code == code
    if as_json:
        lines = [json.loads(line) for line in told.out.splitlines()]
        assert [line["state"] for line in lines] == ["queued", "queued", "running", str(state)]
    else:
        assert str(state) in told.out


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_what_is_at_rest_or_decided_is_not_waited_for(as_json: list[str]) -> None:
    for one, code in (
        (row(State.COMPLETED, runs=1, needs_me=True), 0),
        (row(State.COMPLETED, runs=1, fate=Fate.ACCEPTED), 0),
        (row(State.FAILED, runs=1, fate=Fate.REJECTED), 10),
        (row(State.PAUSED, fate=Fate.REJECTED), 11),
    ):
        told = say("wait", "x", *as_json, status=StatusReport(workspaces=[one]))
        assert told.code == code
        assert [a for name, a in told.calls if name == "watch" and a["timeout_s"]] == []
        assert "resume" not in told.out
        assert as_json or str(one.fate if one.fate is not Fate.OPEN else one.state) in told.out


def test_status_that_is_watched_is_told_at_once_and_again_whenever_it_is_another() -> None:
    running = row(State.RUNNING)
    later = running.model_copy(update={"elapsed_s": 9e9})
    first = StatusReport(workspaces=[running])
    frozen = first.model_copy(update={"pools": [PoolRow(pool="claude", frozen=True)]})
    warned = frozen.model_copy(update={"warnings": ["look out"]})
    quiet = StatusReport(workspaces=[later])
    for rows, lines in (([first], 1), ([first, quiet, frozen, frozen, warned, first], 4)):
        looked = iter(rows)

        def status(_: Any, looked: Any = looked) -> Any:
            return next(looked, KeyboardInterrupt())

        told = say("status", "--watch", "--json", status=status)
        assert told.code == 130
        assert len(told.out.splitlines()) == lines


def test_who_watches_a_task_is_told_its_end() -> None:
    decided = StatusReport(workspaces=[row(State.COMPLETED, fate=Fate.ACCEPTED)])
    over = WatchReply(seq=7, over=True)
    told = say("watch", "x", watch=over, status=decided)
    assert (told.code, told.out, told.err) == (0, f"{decided.workspaces[0].workspace} was accepted\n", "")
    assert say("watch", "x", "--json", watch=over, status=decided).out == ""
    assert say("watch", "x", "--once", watch=over, status=decided).code == 75


def test_wait_gives_up_and_says_that_the_job_goes_on() -> None:
    told = say("dispatch", "t", "--wait", "--wait-timeout", "1ms", status=StatusReport(workspaces=[row(State.RUNNING)]))
    assert told.code == 75
    assert "it goes on" in told.err


def test_ctrl_c_leaves_the_job_running_and_says_so() -> None:
    status = StatusReport(workspaces=[row(State.RUNNING)])
    told = say("dispatch", "t", "--wait", status=status, watch=KeyboardInterrupt())
    assert told.code == 130
    assert "core/app/x goes on" in told.err
    assert "cancel" not in [name for name, _ in told.calls]


def test_watch_prints_a_line_per_message() -> None:
    message = {"seq": 8, "at": "2026-03-01T12:00:00Z", "name": "AgentStarted", "workspace": "core/app/x", "data": {}}
    told = say("watch", "--since", "7", "--once", watch=WatchReply(seq=8, events=[message]))
    assert (told.code, told.sent["since"]) == (0, 7)
    assert "AgentStarted core/app/x" in told.out
    told = say("watch", "--since", "7", "--once", "--json", watch=WatchReply(seq=8, events=[message]))
    assert json.loads(told.out) == message
    assert say("watch", "--once", "--timeout", "1ms").code == 75
    assert say("watch", "--timeout", "1ms").code == 0


def test_open_prints_where_the_checkout_is(tmp_path: Path) -> None:
    from coreagent.models.report import WorkspaceShow

    show = WorkspaceShow(
        row=row(State.RUNNING),
        path=str(tmp_path),
        exists=True,
        repo_path="/r",
        base_ref="main",
        base_sha="a",
        session_id="",
    )

    class Here(Far):
        def own_process(self, argv: list[str] | None = None) -> None:
            return

    out = io.StringIO()
    here = Terminal(
        out=out, err=io.StringIO(), stdin=io.StringIO(), width=80, height=24, colour=False, interactive=False, cwd="/"
    )
    assert runs.run(["open", "x", "--path"], here, Here({"workspace.show": show})) == 0
    assert out.getvalue() == f"{tmp_path}/repo\n"


def test_every_command_has_help_and_json() -> None:
    command = runs.load()

    def walk(node: Any, path: str) -> list[str]:
        children = getattr(node, "commands", {})
        if children:
            return [line for name, child in children.items() for line in walk(child, f"{path} {name}".strip())]
        assert node.help, path
        names = {name for parameter in node.params for name in parameter.opts}
        return [] if "--json" in names else [path]

    # These two never answer: one becomes the daemon, the other speaks a protocol.
    assert walk(command, "") == ["daemon run", "mcp"] or set(walk(command, "")) == {"daemon run", "mcp"}
    assert say("--help").code == 0
