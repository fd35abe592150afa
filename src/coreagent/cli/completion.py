"""Answer a shell that asks how a command line could go on, and write the script that makes it ask.

`run` comes in with the environment that the shells' scripts set. It reads that from the terminal, never from the
process, so the daemon can answer too (ten milliseconds instead of two hundred).
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from coreagent.cli.terminal import clean
from coreagent.errors import CoreAgentError

if TYPE_CHECKING:
    from coreagent.cli.terminal import Terminal

VARIABLE = "_CORE_AGENT_COMPLETE"

SCRIPTS = {
    "bash": """\
_core_agent_completion() {
    local IFS=$'\\n'
    local line="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=( $( env COMP_LINE="$line" COMP_WORDBREAKS="$COMP_WORDBREAKS" _CORE_AGENT_COMPLETE=bash "$1" ) )
    return 0
}
complete -o default -F _core_agent_completion core-agent
""",
    "zsh": """\
#compdef core-agent
_core_agent_completion() {
    local -a found described
    found=("${(@f)$(env COMP_WORDS="${(F)words}" COMP_CWORD=$((CURRENT-1)) _CORE_AGENT_COMPLETE=zsh core-agent)}")
    described=(${found:#})
    (( ${#described} )) && _describe core-agent described || _files
}
compdef _core_agent_completion core-agent
""",
    "fish": """\
function __core_agent_completion
    set -l words (commandline -opc) (commandline -ct)
    set -l count (math (count $words) - 1)
    env COMP_WORDS=(string join \\n -- $words | string collect) COMP_CWORD=$count _CORE_AGENT_COMPLETE=fish core-agent
end
complete -c core-agent -f -a '(__core_agent_completion)'
""",
}


def script(shell: str) -> str:
    """The completion script of a shell.

    Raises: invalid_argument.
    """
    if shell not in SCRIPTS:
        raise CoreAgentError(
            "invalid_argument", f"no completion for {shell!r}", hint=f"there is one for: {', '.join(SCRIPTS)}"
        )
    return SCRIPTS[shell]


def complete(command: Any, program: str, on: Terminal) -> int:
    """Print what the word under the cursor could become, one a line (and for some shells what it means)."""
    shell = on.env[VARIABLE]
    words, incomplete = _words(on.env)
    known = _known_to_bash(on.env, incomplete)
    # `--option=value` is one word to every shell but bash.
    option = (
        f"{incomplete.partition('=')[0]}=" if shell != "bash" and "=" in incomplete and incomplete[0] == "-" else ""
    )
    for value, meaning in candidates(command, program, words, incomplete):
        value = option + value.removeprefix(known)
        if shell == "zsh":
            value = value.replace(":", "\\:")
            on.out.write(f"{value}:{meaning}\n" if meaning else f"{value}\n")
        elif shell == "fish" and meaning:
            on.out.write(f"{value}\t{meaning}\n")
        else:
            on.out.write(f"{value}\n")
    return 0


def _known_to_bash(env: dict[str, str], incomplete: str) -> str:
    """What stands before the piece that bash replaces: it takes `command:NAME` for several words."""
    if env.get(VARIABLE) != "bash" or ":" not in env.get("COMP_WORDBREAKS", ""):
        return ""
    value = incomplete.partition("=")[2] if incomplete.startswith("--") else incomplete
    return value[: value.rfind(":") + 1]


def _words(env: dict[str, str]) -> tuple[list[str], str]:
    """The words before the cursor, without the program, and the one under it."""
    text = env.get("COMP_WORDS", "")
    if env.get(VARIABLE) == "bash" and "COMP_LINE" in env:
        return _words_of_line(env["COMP_LINE"])
    try:
        at = int(env.get("COMP_CWORD", "0"))
    except ValueError:
        at = 0
    if env.get(VARIABLE) == "bash":
        try:
            words = shlex.split(text)
        except ValueError:
            words = text.split()  # an open quote: the person is still typing
    else:
        words = text.split("\n")
    return words[1:at], words[at] if 0 < at < len(words) else ""


def _words_of_line(line: str) -> tuple[list[str], str]:
    """As `_words`, from a command line up to the cursor."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()  # an open quote: the person is still typing
    if not words or line[-1:].isspace():
        words.append("")
    return words[1:-1], words[-1]


def candidates(command: Any, program: str, words: list[str], incomplete: str) -> list[tuple[str, str]]:
    """What could stand there, with one line of meaning each."""
    context = command.make_context(program, list(words), resilient_parsing=True)
    while getattr(context.command, "commands", None):
        rest = [*context._protected_args, *context.args]
        if not rest:
            break
        name, child, rest = context.command.resolve_command(context, rest)
        if child is None:
            return []
        context = child.make_context(name, rest, parent=context, resilient_parsing=True)
    target, incomplete = _target(context, words, incomplete)
    found = target.shell_complete(context, incomplete)
    return [(item.value, clean(item.help or "").replace("\n", " ")) for item in found]


def _target(context: Any, words: list[str], incomplete: str) -> tuple[Any, str]:
    """The option or argument whose value is being typed, or the command itself."""
    if incomplete.startswith("--") and "=" in incomplete:
        name, _, incomplete = incomplete.partition("=")
        words = [*words, name]
    if "--" not in words and not incomplete.startswith("-") and words:
        for parameter in context.command.get_params(context):
            if words[-1] in parameter.opts and parameter.param_type_name == "option" and not parameter.is_flag:
                return parameter, incomplete
    if not incomplete.startswith("-"):
        for parameter in context.command.get_params(context):
            if parameter.param_type_name == "argument":
                value = context.params.get(parameter.name)
                if parameter.nargs == -1 or value in (None, (), [], ""):
                    return parameter, incomplete
    return context.command, incomplete
