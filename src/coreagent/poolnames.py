"""Which model an agent runs with, which pool that makes it one of, and names of pools that no agent here is in.

Intake, the queue, the list of agents and whoever makes a command line come in, so that what is counted is what runs.
It looks at settings and at names, and at no disk.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from coreagent.config import Settings

DEFAULT_MODELS: Final = {
    "codex": "gpt-5.4",
    # Without a model it first asks another one which to take, and waits a minute and a half for the answer.
    "gemini": "pro",
}
"""What we ask a CLI for when nobody names a model; of the others it is their own choice, and not known."""


def model_of(runner: str, model: str, settings: Settings, own: str = "") -> str:
    """The model that an agent runs with: the one it was asked for with, else that of the settings, else `own`.

    `own` is what the person's own configuration of the CLI names. "" when it is the CLI's choice. What follows
    `command:` and `acp:` begins with a name there, which stays: `NAME`, `NAME:MODEL`.
    """
    if runner == "command":
        return model
    if runner == "acp":
        name, _, asked = model.partition(":")
        asked = asked or _model_of_acp(name, settings)
        return f"{name}:{asked}" if asked else name
    known = settings.runners.get(runner)
    return model or (known.model if known else "") or own or DEFAULT_MODELS.get(runner, "")


def _model_of_acp(name: str, settings: Settings) -> str:
    if name in settings.acp:
        return settings.acp[name].model
    return model_of("gemini", "", settings) if name == "gemini" else ""


def pool_of(runner: str, model: str, settings: Settings) -> str:
    """The longest configured pool name that is the runner or is contained in `runner-model`; else the runner.

    `model` is that of `model_of`. Agents behind `acp` have providers of their own, so that each is a pool: `acp-NAME`.
    """
    whole = f"{runner}-{model}" if model else runner
    own = "-".join(["acp", *model.split(":")[:1]]) if runner == "acp" and model else runner
    fitting = [name for name in {*settings.concurrency, *settings.rates} if name and (name == runner or name in whole)]
    # By name where two are equally long, so that the answer does not hang on the order of a set.
    return max(fitting, key=lambda name: (len(name), name), default=own)


def limit_of(pool: str, settings: Settings) -> int:
    """How many of a pool may run at once; 0 is unlimited."""
    found = settings.concurrency.get(pool)
    return found.total if found else 0


def strays(settings: Settings, names: Collection[str], acp: Collection[str]) -> list[str]:
    """What is to be said of pools that no agent known here can be of: a typo takes a limit away without a word.

    `names` are runners and models that are known without settings, `acp` the known agents of that protocol.
    """
    begins = {*(name for name in names if name != "acp"), *(f"acp-{name}" for name in {*acp, *settings.acp})}
    told = {*begins, *(f"command-{name}" for name in settings.commands), *_models(settings)}
    said = []
    for section, pools in (("concurrency", settings.concurrency), ("rates", settings.rates)):
        for pool in pools:
            if pool == "acp" or any(pool in one for one in told) or pool.startswith(tuple(begins)):
                continue
            near = difflib.get_close_matches(pool, sorted(told), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            said.append(
                f"{section}.{pool}: no agent known here is in that pool: it begins with no runner, and holds only for "
                f"models with {pool} in their name{hint}"
            )
    return said


def _models(settings: Settings) -> list[str]:
    """`runner-model` of whatever the settings name."""
    named = [f"{runner}-{own.model}" for runner, own in settings.runners.items() if own.model]
    named += [f"{runner}-{model}" for runner, model in DEFAULT_MODELS.items()]
    named += [f"{one.runner.replace(':', '-', 1)}-{one.model}".strip("-") for one in settings.agents.values()]
    named += [one.strip().replace(":", "-", 1) for one in settings.dispatch.default_agent.split(",")]
    return named
