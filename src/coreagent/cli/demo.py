"""`core-agent demo`: a small real repository with a failing test, an agent, a diff, and the choice to take it.

It runs in the person's own process and talks to the daemon as they would. Nothing that existed before is touched: the
repository is a new directory, and only one of our own making is ever removed, and only when asked to.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from coreagent.cli import ready
from coreagent.cli.commands import suggest
from coreagent.cli.commands.follow import row_of, wait
from coreagent.cli.commands.option import Json, Yes, ask, paint, say, to_json
from coreagent.cli.door import no_agent
from coreagent.cli.session import session
from coreagent.cli.terminal import terminal
from coreagent.cli.views import answer as views
from coreagent.cli.views import listing
from coreagent.cli.views.text import fit, one_line, safe_lines, wrap
from coreagent.errors import EXIT_INTERRUPTED, CoreAgentError, told
from coreagent.models.agent import Reason
from coreagent.models.dispatch import State
from coreagent.models.own import DemoReply
from coreagent.models.report import AcceptReply, DiffReply, DispatchReply, RepoRemoved

STILL_FAILS = 1
TASK = "The test in test_basket.py fails. Find the bug in basket.py, fix it, and run the test again."

FILES = {
    "basket.py": '''\
"""A shopping basket: (name, quantity, price in cents) lines."""


def total(lines, discount_percent=0):
    """Return what the basket costs in cents, rounded down."""
    cents = sum(price for name, quantity, price in lines)
    return cents * (100 - discount_percent) // 100
''',
    "test_basket.py": """\
import unittest

from basket import total


class BasketTest(unittest.TestCase):
    def test_counts_every_piece(self):
        self.assertEqual(total([("apple", 3, 50), ("pear", 1, 80)]), 230)

    def test_takes_the_discount_off(self):
        self.assertEqual(total([("apple", 2, 50)], discount_percent=10), 90)


if __name__ == "__main__":
    unittest.main()
""",
    "README.md": "# basket\n\nA repository that `core-agent demo` made. Run the test with `python3 -m unittest`.\n",
    ".gitignore": "__pycache__/\n",
}
_BUG = "sum(price for name, quantity, price in lines)"
_FIX = "sum(quantity * price for name, quantity, price in lines)"


def demo(
    agent: Annotated[
        str,
        typer.Option(
            "--agent",
            "-a",
            help="As in `codex` or `acp:NAME`. [default: the first real one that is ready, else scripted]",
            autocompletion=suggest.agents,
        ),
    ] = "",
    directory: Annotated[
        str, typer.Option("--dir", metavar="DIR", help="Make the repository here (new or empty).")
    ] = "",
    yes: Yes = False,
    keep: Annotated[bool, typer.Option("--keep/--clean", help="Keep the repository, or remove it at the end.")] = True,
    as_json: Json = False,
) -> None:
    """See the whole way once: a failing test, an agent at work, its diff, your yes.

    Exit codes are those of `dispatch --wait`; 1 when the test still fails afterwards, and then nothing is accepted.
    """
    session().own_process()
    no_agent("run the demo")
    raise typer.Exit(_Demo(agent, as_json, yes, keep).run(directory))


class _Demo:
    """One showing: what was made, and what the closing document will say."""

    def __init__(self, agent: str, as_json: bool, yes: bool, keep: bool) -> None:
        self.agent, self.why = (agent, "because you asked for it") if agent else _player()
        self.asked = bool(agent)
        self.as_json = as_json
        self.yes = yes
        self.keep = keep
        self.place = Path()
        self.told = DemoReply(agent=self.agent)
        self.env = _tool_environment(terminal().env)
        self.python = _python(terminal().env)

    def run(self, directory: str) -> int:
        parent, repo = _place(directory)
        self.place = parent or repo
        try:
            code = self._show(repo)
        except CoreAgentError:
            self.keep = self.keep and bool(self.told.workspace)  # refused at the door: there is nothing to look at
            raise
        except KeyboardInterrupt:
            if self.keep:
                say([f"the demo's repository stays in {repo}"], err=True)
            raise
        finally:
            if parent is not None and not self.keep:
                self._forget()
                shutil.rmtree(parent, ignore_errors=True)
                self._say([paint().dim(f"removed {parent}")])
        if self.as_json:
            say([to_json(self.told)])
        return code

    def _show(self, repo: Path) -> int:
        self._step(1, "a small repository with a failing test")
        self._make(repo)
        self._say([f"  {repo}"])
        self.told.repository, self.told.test_before = str(repo), self._test(repo)
        self._step(2, f"dispatch the task to {self.agent}")
        self._who()
        self._say(wrap(f'core-agent dispatch --agent {self.agent} --wait "{TASK}"', terminal().width, "  "))
        reply = self._dispatch(repo)
        self.told.workspace, self.told.branch = reply.workspace, reply.branch
        code = wait(reply.workspace, False, quiet=self.as_json)
        row = row_of(reply.workspace)
        self.told.state, self.told.reason, self.told.files = row.state, row.reason, row.files
        if code == EXIT_INTERRUPTED:
            return code  # they stopped watching, and have been told what goes on
        if row.state is not State.COMPLETED or not row.files:
            no_login = f" {self.agent} is not logged in, or its login is refused." if row.reason is Reason.AUTH else ""
            more = f"That did not end well.{no_login} core-agent why {one_line(row.workspace)} tells more."
            self._say(["", *wrap(more, terminal().width)])
            return code or STILL_FAILS
        self._step(3, f"the same test on its branch, {reply.branch}")
        self.told.test_after = self._test_branch(repo, reply.branch)
        self._step(4, "what it changed")
        change: DiffReply = session().call("diff", workspace=reply.workspace)
        self._say(views.diff_lines(change, paint()))
        if not self.told.test_after:
            more = f"Its test still fails, so it is not taken. core-agent logs {one_line(row.workspace)} tells more."
            self._say(["", *wrap(more, terminal().width)])
            return STILL_FAILS
        self._accept(repo, reply)
        return code

    # ---- the steps ----

    def _make(self, repo: Path) -> None:
        for name, text in FILES.items():
            (repo / name).write_text(text, encoding="utf-8")
        self._git(repo, "init", "--quiet", "--initial-branch=main")
        self._git(repo, "add", "--all")
        self._git(repo, "commit", "--quiet", "--message=A basket, and a test that fails")

    def _who(self) -> None:
        """Say who works, unless the person said it themselves: a real agent costs something."""
        if self.agent == "scripted":
            text = f"This is the built-in scripted runner, {self.why}. "
            text += "It plays a fixed script; everything around it is real."
        elif not self.asked:
            text = f"{self.agent} works, {self.why}: it uses a few of your tokens. `--agent scripted` plays without."
        else:
            return
        self._say([paint().yellow(f"  {line}") for line in wrap(text, terminal().width - 2)])

    def _dispatch(self, repo: Path) -> DispatchReply:
        script = (
            _script(self.python, 0.6 if terminal().live and not self.as_json else 0.0)
            if self.agent == "scripted"
            else ""
        )
        reply: DispatchReply = session().call(
            "dispatch", task=TASK, repo=str(repo), agent=self.agent, name="fix-basket", script=script
        )
        self._say(views.dispatch_lines(reply, terminal().width, paint(), next_steps=False))
        terminal().flush()
        return reply

    def _test(self, directory: Path) -> bool:
        """Run the test, show what it says, and tell whether it passes."""
        self._say([f"  $ {Path(self.python).name} -m unittest"])
        done = subprocess.run(
            [self.python, "-B", "-m", "unittest"],
            cwd=directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
        brush = paint()
        # Before 3.12 a run that finds no test at all ends well.
        passed = done.returncode == 0 and "Ran 0 tests" not in done.stderr
        colour = brush.green if passed else brush.red
        self._say(colour(fit(f"    {line}", terminal().width)) for line in safe_lines(done.stderr) if _telling(line))
        return passed

    def _test_branch(self, repo: Path, branch: str) -> bool:
        packed = self._git(repo, "archive", "--format=tar", branch)
        with tempfile.TemporaryDirectory(prefix="core-agent-demo-") as place:
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                _unpack(archive, place)
            return self._test(Path(place))

    def _forget(self) -> None:
        """Let go of the task, and of the repository that is about to be removed; what cannot be is told."""
        workspace = self.told.workspace
        if not workspace:
            return
        for verb in () if self.told.accepted else ("cancel", "reject"):
            with suppress(CoreAgentError):  # an agent that is done cannot be cancelled
                session().call(verb, workspace=workspace)
        try:
            removed: RepoRemoved = session().call("repo.remove", repo=workspace.rpartition("/")[0])
        except CoreAgentError as error:
            self._say([paint().yellow(f"! {error.message}"), *([f"  {error.hint}"] if error.hint else [])])
            return
        self.told.forgotten = True
        self._say(listing.removed_lines(removed, terminal().width, paint())[2:])

    def _accept(self, repo: Path, reply: DispatchReply) -> None:
        self._step(5, "yours to take")
        command = f"core-agent accept {one_line(reply.workspace)}"
        wanted = self.yes or (not self.as_json and terminal().interactive and ask(f"  Accept it ({command})?"))
        if not wanted and not self.keep:
            self._say(["  not taken: --clean removes it; without it, it is yours to take or to leave"])
            return
        if not wanted:
            leave = f"core-agent reject {one_line(reply.workspace)}"
            clean = f"rm -rf {shlex.quote(str(self.place))}"
            self._say([f"  take it:  {command}", f"  leave it: {leave}", f"  it waits for one of these; then: {clean}"])
            return
        accepted: AcceptReply = session().call("accept", workspace=reply.workspace)
        self.told.accepted = True
        self._say([f"  {line}" for line in views.accept_lines(accepted, terminal().width - 2, paint())])
        self._test(repo)
        self._say(
            ["", "That was the whole way. Now in a repository of your own:", '  core-agent dispatch --wait "your task"']
        )

    # ---- small things ----

    def _git(self, repo: Path, *words: str) -> bytes:
        try:
            done = subprocess.run(
                ["git", *words], cwd=repo, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
        except OSError as error:
            raise CoreAgentError(
                "git_missing", "git cannot be started", cause=told(error), hint="install git"
            ) from None
        if done.returncode:
            cause = done.stderr.decode("utf-8", "replace").strip()
            raise CoreAgentError("git_failed", f"git {words[0]} failed in {repo}", cause=cause)
        return done.stdout

    def _step(self, number: int, what: str) -> None:
        self._say(["", paint().bold(f"{number}. {what}")])

    def _say(self, lines: Iterable[str]) -> None:
        if not self.as_json:
            say(lines)
            terminal().flush()


def _place(directory: str) -> tuple[Path | None, Path]:
    """(what may be removed again, the repository): a new directory in the temporary one, or where the person said."""
    if not directory:
        parent = Path(tempfile.mkdtemp(prefix="core-agent-"))
        repo = parent / "demo"
        repo.mkdir()
        return parent, repo
    repo = Path(terminal().path(directory))
    if repo.exists() and (not repo.is_dir() or any(repo.iterdir())):
        raise CoreAgentError(
            "invalid_argument", f"{repo} is there and not empty", hint="name a new directory, or leave --dir out"
        )
    made = not repo.exists()
    repo.mkdir(parents=True, exist_ok=True)
    return (repo if made else None), repo


def _tool_environment(env: Mapping[str, str]) -> dict[str, str]:
    """For git and python: nothing of the person's own git configuration (hooks, templates, signing) takes part."""
    kept = {name: value for name, value in env.items() if not name.startswith(("GIT_", "PYTHON"))}
    who = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "core-agent demo"), ("EMAIL", "demo@core-agent.invalid"))
    }
    return {**kept, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _python(env: Mapping[str, str]) -> str:
    """`python3` of the person's PATH when there is one: that is what they would type; else our own."""
    return "python3" if shutil.which("python3", path=env.get("PATH", "")) else sys.executable


def _telling(line: str) -> bool:
    return line.startswith(("FAIL", "OK", "Ran ", "AssertionError", "ERROR"))


def _unpack(archive: tarfile.TarFile, place: str) -> None:
    if hasattr(tarfile, "data_filter"):
        archive.extractall(place, filter="data")
        return
    # Older Pythons know no filter: plain files only, by their own last name. The demo's repository is flat.
    for member in archive.getmembers():
        source = archive.extractfile(member) if member.isfile() else None
        if source is not None:
            Path(place, Path(member.name).name).write_bytes(source.read())


def _player() -> tuple[str, str]:
    """Who plays when nobody was asked for: the first real agent that is ready, else the scripted one; and why."""
    looked = ready.candidates(terminal().env, ready.settings_of(session().home, terminal().env))
    for one in looked:
        if one.ready:
            return one.name, f"the first agent that is ready here ({one.found.version})"
    return "scripted", ready.why_none(looked)


def _script(python: str, pace_s: float) -> str:
    """What the scripted runner plays: look, edit, prove. YAML is a superset of JSON, so JSON it is."""
    test = {"run": {"argv": [python, "-B", "-m", "unittest"], "env": {"PYTHONDONTWRITEBYTECODE": "1"}}}
    proof = {"run": {**test["run"], "check": True}}
    steps: list[dict[str, Any]] = [
        {"say": "I will run the test first, to see it fail."},
        test,
        {"run": {"argv": ["cat", "basket.py"]}},
        {"say": "total() adds up prices but never looks at the quantity. That is the bug."},
        {"replace": {"path": "basket.py", "old": _BUG, "new": _FIX}},
        proof,
        {"say": "Fixed: every line now counts with its quantity. Both tests pass."},
    ]
    paced = [step for each in steps for step in ([each, {"wait": pace_s}] if pace_s else [each])]
    return to_json({"steps": paced})
