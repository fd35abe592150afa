"""Verbs of the person's own terminal and machine: attach, open, init, version, completion, mcp."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from coreagent import paths, process
from coreagent.cli import completion as scripts
from coreagent.cli.commands.option import Json, Workspace, answer, paint, say, to_json
from coreagent.cli.session import session
from coreagent.cli.terminal import terminal
from coreagent.cli.views.text import one_line
from coreagent.errors import CoreAgentError, told
from coreagent.models.own import AttachCommand, CompletionReply, InitReply, OpenReply, VersionReply
from coreagent.models.report import AttachReply, MoveReply, WorkspaceShow

# What the person's terminal needs to be drawn on; an agent's own environment does not have it.
_TERMINAL_NAMES = ("TERM", "COLORTERM", "TERM_PROGRAM", "LANG", "LC_ALL", "LC_CTYPE", "COLUMNS", "LINES", "NO_COLOR")
_SECRET = re.compile(r"(^|_)(KEY(_ID)?|TOKEN|SECRET\w*|PASS\w*|CREDENTIALS?|HEADERS|AUTH\w*)$", re.IGNORECASE)
_EDITORS = ("code", "nvim", "vim", "vi", "nano", "emacs")

STARTER = """\
# Settings of core-agent. Everything has a default: keep only what you want to be different.
# The whole list with its meaning is agents.yaml.example, in the documentation.
version: 1

dispatch:
  # Who works when no --agent is given: a runner (`core-agent agents`), runner:model, or an identity.
  default_agent: {agent}

# How many agents may run at once, by pool (0 = unlimited).
concurrency:
  claude: 2

# Your own programs as agents: `--agent command:NAME`. The task is in CORE_AGENT_TASK.
# commands:
#   mine:
#     argv: [./my-agent, --fix]
"""


def attach(
    workspace: Workspace,
    dry_run: Annotated[
        bool, typer.Option("--print", help="Only print the command line, to be pasted; ends no turn.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take over: ends the headless turn and opens the agent's own interactive session in the workspace.

    `core-agent resume` goes on headless afterwards, with everything that was said.
    """
    session().own_process()
    here = terminal()
    if not (dry_run or as_json or here.interactive):
        session().call("workspace.show", workspace=workspace)  # that there is none such is the first thing to know
        raise CoreAgentError("no_terminal", "attach needs a terminal", hint="core-agent logs -f follows without one")
    plan: AttachReply = session().call("attach.plan", workspace=workspace, dry_run=dry_run or as_json)
    if dry_run or as_json:
        made, own = _shown_environment(plan.env, here.env)
        words = AttachCommand(argv=plan.argv, cwd=plan.cwd, env=made, from_your_shell=own)
        setting = ["env", *(f"{name}={value}" for name, value in made.items())] if made else []
        answer(words, as_json, lambda t: [f"cd {shlex.quote(plan.cwd)} && {shlex.join([*setting, *plan.argv])}"])
        return
    here.flush()
    code = _in_foreground(plan.argv, plan.cwd, _with_terminal(plan.env, here.env), tied=True)
    done: MoveReply = session().call("attach.done", workspace=workspace)
    if done.note:
        say([done.note])
    say([paint().dim(f"go on headless: core-agent resume {one_line(workspace)}")])
    raise typer.Exit(code)


def _shown_environment(env: Mapping[str, str], own: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """What of an agent's environment a person must set, and the names that their shell gives: no secret is printed."""
    made = {name: value for name, value in env.items() if own.get(name) != value and not _SECRET.search(name)}
    return made, sorted(env.keys() - made.keys())


def _with_terminal(env: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    return {**{name: own[name] for name in _TERMINAL_NAMES if name in own}, **env}


def _in_foreground(argv: list[str], cwd: str, env: Mapping[str, str], tied: bool = False) -> int:
    """Run a program on this very terminal and return its exit code. Ctrl-C is the program's, not ours.

    A `tied` one is hung up (Linux) when this process is killed: nobody would know any more that it is there.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    hung_up = process.tied(signal.SIGHUP)

    def in_child() -> None:
        # The child must not inherit the deafness: SIG_IGN survives an exec.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if tied:
            hung_up()

    try:
        child = subprocess.Popen(argv, cwd=cwd, env=dict(env), preexec_fn=in_child)
        code = child.wait()
    except OSError as error:
        raise CoreAgentError("runner_missing", f"cannot start {argv[0]}", cause=told(error)) from None
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def open_workspace(
    workspace: Workspace,
    editor: Annotated[str, typer.Option("--editor", "-e", help="Command. [default: $VISUAL, $EDITOR]")] = "",
    path_only: Annotated[
        bool, typer.Option("--path", help="Only print the directory: cd $(core-agent open --path W).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Open the agent's checkout in your editor."""
    session().own_process()
    show: WorkspaceShow = session().call("workspace.show", workspace=workspace)
    directory = show.path + "/repo"
    if not show.exists:
        raise CoreAgentError("workspace_gone", f"{show.row.workspace} is not on disk any more", cause=show.path)
    if path_only or as_json:
        answer(OpenReply(workspace=show.row.workspace, path=directory), as_json, lambda t: [directory])
        return
    here = terminal()
    chosen = editor or here.env.get("VISUAL") or here.env.get("EDITOR") or _found_editor(here.env)
    if chosen and not editor and not here.interactive:
        raise CoreAgentError(
            "no_terminal",
            f"an editor needs a terminal; the checkout is {directory}",
            hint="core-agent open --path prints it alone; --editor COMMAND starts one that brings its own window",
        )
    if not chosen:
        raise CoreAgentError("no_terminal", "no editor is set", hint="set VISUAL or EDITOR, or give --editor COMMAND")
    here.flush()
    raise typer.Exit(_in_foreground([*shlex.split(chosen), directory], directory, here.env))


def _found_editor(env: Mapping[str, str]) -> str:
    return next((name for name in _EDITORS if shutil.which(name, path=env.get("PATH", ""))), "")


def init(
    agent: Annotated[
        str, typer.Option("--agent", "-a", help="Who works by default. [default: the best one found]")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Write agents.yaml again; the old one is kept beside it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the home directory with a first agents.yaml, and say what comes next. Running it again changes nothing."""
    session().own_process()
    home = session().home
    if not home:
        raise CoreAgentError("no_home", paths.homeless())
    from coreagent.cli import ready
    from coreagent.cli.door import no_agent
    from coreagent.config import Settings, resolve_agent
    from coreagent.daemon import house
    from coreagent.dispatch.choice import agents_of

    no_agent("write the person's settings")
    house.prepare(home)
    path = Path(paths.settings_file(home))
    wrote, kept = force or not path.exists(), ""
    if agent and wrote:
        for name in agents_of(agent) or [agent]:
            resolve_agent(name, Settings())  # by the file that will be there
    chosen, why = (agent, "you said so") if agent else ready.best(ready.candidates(terminal().env))
    if wrote:
        kept = _keep(path)
        fresh = path.with_name(f".agents.yaml.{os.getpid()}")
        fresh.write_text(STARTER.format(agent=json.dumps(chosen)), encoding="utf-8")
        fresh.chmod(0o600)
        fresh.replace(path)
    told = InitReply(home=home, settings=str(path), written=wrote, kept=kept, default_agent=chosen if wrote else None)
    answer(told, as_json, lambda t: _init_lines(told, why))


def _keep(path: Path) -> str:
    """Copy a settings file beside itself, never over an earlier copy; "" when there is none."""
    if not path.exists():
        return ""
    names = itertools.chain([".before"], (f".before.{n}" for n in itertools.count(2)))
    for name in names:
        beside = path.with_name(path.name + name)
        with suppress(FileExistsError), beside.open("xb") as copy:
            copy.write(path.read_bytes())
            shutil.copystat(path, beside)
            return str(beside)
    raise AssertionError("numbers do not end")


def _init_lines(told: InitReply, why: str) -> list[str]:
    brush = paint()
    lines = [f"{brush.green('✓')} home      {told.home}"]
    if told.written:
        lines.append(f"{brush.green('✓')} settings  {told.settings}")
        lines += [f"{brush.dim('·')} before    {told.kept}"] if told.kept else []
        lines.append(f"{brush.green('✓')} agent     {told.default_agent} ({why})")
    else:
        lines.append(f"{brush.dim('·')} settings  {told.settings} was there and stays as it is")
    return [
        *lines,
        "",
        brush.bold("next"),
        "  core-agent demo                     see it work, in a repository of its own",
        '  core-agent dispatch "your task"     in a repository of yours',
        "  core-agent doctor                   when something is not as it should be",
    ]


def version(as_json: Json = False) -> None:
    """The version of this program."""
    told = VersionReply(version=paths.VERSION, python=platform.python_version(), platform=platform.platform())
    answer(told, as_json, lambda t: [f"core-agent {paths.VERSION}"])


def completion(
    shell: Annotated[
        Literal["", "bash", "zsh", "fish"],
        typer.Argument(metavar="SHELL", help="bash, zsh or fish. [default: yours]"),
    ] = "",
    install: Annotated[bool, typer.Option("--install", help="Put it where the shell finds it.")] = False,
    as_json: Json = False,
) -> None:
    """Print the completion script of a shell, or install it.

    Completes commands, options, workspaces, agents and templates.
    """
    env = terminal().env
    chosen = shell or Path(env.get("SHELL", "")).name
    text = scripts.script(chosen)
    if not install:
        answer(CompletionReply(shell=chosen, script=text), as_json, lambda t: [text.rstrip("\n")])
        return
    session().own_process()
    from coreagent.cli.door import no_agent

    no_agent("write into the person's shell")
    path, more = _completion_place(chosen, env)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    answer(
        CompletionReply(shell=chosen, path=str(path), hint=more),
        as_json,
        lambda t: [f"{paint().green('✓')} {path}", *([f"  {more}"] if more else [])],
    )


def _completion_place(shell: str, env: Mapping[str, str]) -> tuple[Path, str]:
    """Where the script of a shell belongs, and what a person still has to do for it."""
    user = env.get("HOME", "")
    if not user:
        raise CoreAgentError(
            "no_home", "HOME is not set, so there is no place for it", hint="core-agent completion bash"
        )
    data = Path(env.get("XDG_DATA_HOME") or f"{user}/.local/share")
    if shell == "bash":
        return data / "bash-completion/completions/core-agent", "bash-completion loads it in new shells"
    if shell == "fish":
        config = Path(env.get("XDG_CONFIG_HOME") or f"{user}/.config")
        return config / "fish/completions/core-agent.fish", ""
    place = data / "zsh/site-functions"
    return place / "_core-agent", f"add to ~/.zshrc, before compinit: fpath=({place} $fpath)"


def mcp() -> None:
    """Speak MCP on standard input and output, for an MCP client: its command is `core-agent mcp`.

    Tools are the capabilities: agentic_dispatch, agentic_status, agentic_watch, agentic_resume and more.
    """
    say([to_json({"command": "core-agent", "args": ["mcp"]})])
