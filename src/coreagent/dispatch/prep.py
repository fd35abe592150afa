"""Make a workspace ready for its first attempt: cache, checkout, context files, prompt, setup hook.

Safe to be cut off anywhere: a workspace without its `prepared` mark never had an agent in it and is made anew.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreagent import paths, runners
from coreagent.dispatch import bring, cleanup, hook, ports, prompt, stack
from coreagent.dispatch.workspace import AUTHOR, SIDECARS, Layout, layout
from coreagent.errors import CoreAgentError, displaced, told
from coreagent.git import cache as git_cache
from coreagent.git import checkout as git_checkout
from coreagent.git import record
from coreagent.git.inspect import Base, inspect
from coreagent.git.run import environment as environment_of_git
from coreagent.git.run import git
from coreagent.git.untouched import handed_over
from coreagent.models.dispatch import Attempt, Dispatch
from coreagent.plainfile import read_plain, write_plain

if TYPE_CHECKING:
    from coreagent.core import Core
    from coreagent.dispatch.engine import Engine

log = logging.getLogger(__name__)

CONTEXT_FILES = ("CODEX.md", "CLAUDE.md", "GEMINI.md", "AGENTS.md")
GIT_LOG_SHOWN = 10
SKIPPED_SHOWN = 10
"""How many of the files that were not carried are told by name."""


def not_carried(dispatch: Dispatch) -> str:
    """What of the user's files was to come along and did not, for people; empty when all did."""
    if not dispatch.skipped_count:
        return ""
    more = dispatch.skipped_count - len(dispatch.skipped)
    names = "; ".join(dispatch.skipped) + (f"; and {more} more" if more else "")
    return f"not carried into the workspace: {names}"


async def prepare(engine: Engine, dispatch: Dispatch, attempt: Attempt | None) -> Dispatch:
    """Return the dispatch with its workspace ready; one that is ready already is left as it is.

    Raises: setup_failed, home_unsafe, no_space, git errors, template errors. What was made is removed by the next try,
    once what a person did in it meanwhile is kept.
    """
    core = engine.core
    place = layout(core.home, core.settings, dispatch)
    if laid := place.led_away():
        raise displaced(laid)
    template = dispatch.options.template or engine.settings_of(dispatch).settings.dispatch.default_template
    hooked = hook.wanted(engine, dispatch)
    base = engine.bases.pop(dispatch.id, None)
    if base is not None and base.sha != dispatch.base_sha:
        base = None  # it starts from the result of another task, which came after intake had looked
    if block := ports.block_for(engine, dispatch):
        dispatch = await engine.update(dispatch, **block)  # a claim has done so already
    if place.root.exists() and await asyncio.to_thread(_is_half_made, core.home, place, dispatch):
        kept = await cleanup.preserve(engine, dispatch)  # a person may have looked into it, and worked there
        if kept is not None and kept.rows:
            dispatch = await engine.update(dispatch, extra=kept.rows)
    new = await asyncio.to_thread(_make, core, dispatch, place, base, template, hooked)
    if new is None:
        if dispatch.options.with_changes and not dispatch.start_sha and not dispatch.runs:
            # The daemon died between the mark and the row, and no agent was here yet.
            start = json.loads(await asyncio.to_thread(read_plain, place.prepared))["start"]
            return await engine.update(dispatch, start_sha=start)
        if dispatch.tried:
            await asyncio.to_thread(_add_context, place, runners.load(dispatch.runner).context_file)
        return dispatch
    made, base = new
    engine.upkeep.warm.used(dispatch, base)
    note = ""
    skipped = ["".join(c if c.isprintable() else "?" for c in line)[:300] for line in made.skipped]
    if hooked:
        note = await hook.run_setup(engine, dispatch, attempt, place, base)
        await asyncio.to_thread(_mark_prepared, core, place, dispatch, made)
    found: dict[str, Any] = {
        "start_sha": made.start,
        "setup_note": note,
        "skipped": skipped[:SKIPPED_SHOWN],
        "skipped_count": len(skipped),
        "settings_note": engine.settings_of(dispatch).skipped,  # a person may have trusted them meanwhile
    }
    if base.counting is None:  # else whoever queued it tells the number
        found["left_out"] = made.left_out
    known = dispatch.model_copy(update={"start_sha": dispatch.start_sha or dispatch.base_sha})
    if all(getattr(known, name) == value for name, value in found.items()):
        return engine.board[dispatch.id]  # the row says so already: no need to wait for the disk
    return await engine.update(dispatch, **found)


def _make(
    core: Core, dispatch: Dispatch, place: Layout, base: Base | None, template: str, hooked: bool
) -> tuple[git_checkout.Checkout, Base] | None:
    """Make the workspace, all of it unless it is to be `hooked` first; None when it is ready already.

    One function, because each change of thread costs as much as many of these steps. Blocking.
    """
    if is_ready(place, dispatch):
        check_checkout(core.home, place, dispatch)
        return None
    base = base or rebuild_base(dispatch)
    made = _check_out(core, dispatch, place, base)
    if dispatch.options.adopted:
        made = replace(made, start=dispatch.base_sha)  # what was there already is the work, not what it began from
    core.crash_point("checked-out")
    text = _prompt(core, dispatch, template, recent_commits(base.git_dir, base.sha))
    core.mark("rendered")
    _write_files(place, text, runners.load(dispatch.runner).context_file)
    if not hooked:
        _mark_prepared(core, place, dispatch, made)
    return made, base


def is_ready(place: Layout, dispatch: Dispatch) -> bool:
    """Whether preparation was here and came to its end. Blocking."""
    # Two of three, since an agent can delete either of the two that are files.
    return sum((_prepared_for(place) == dispatch.id, dispatch.runs > 0, place.repo.exists())) >= 2


def _is_half_made(home: str, place: Layout, dispatch: Dispatch) -> bool:
    """Whether there is a checkout that preparation is about to remove."""
    return bring.stands(home, place, dispatch) and not is_ready(place, dispatch)


def _prepared_for(place: Layout) -> str:
    """The id of the dispatch that a workspace was prepared for; "" when none ever was."""
    try:
        return str(json.loads(read_plain(place.prepared))["dispatch"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, TypeError, KeyError):
        return "?"


def check_checkout(home: str, place: Layout, dispatch: Dispatch) -> None:
    """Make sure that the checkout is the one that was made: an agent can put a link to another place where it was.

    Raises: workspace_gone.
    """
    try:
        top = record.load(Path(paths.index_copy(home, dispatch.id))).top
    except (OSError, ValueError, TypeError):
        top = ""
    if place.repo.is_symlink() or not place.repo.is_dir() or str(place.repo.resolve()) != top:
        raise CoreAgentError(
            "workspace_gone",
            f"the checkout of {dispatch.workspace} was removed or replaced",
            cause=f"{place.repo} is not the directory that was made",
            hint=f"what was kept: core-agent rescue list; let it go: core-agent reject {dispatch.name}",
        )


def rebuild_base(dispatch: Dispatch) -> Base:
    """The base as it was recorded; the user's repository may have moved on, or away, since."""
    if dispatch.options.adopted:
        return replace(inspect(Path(dispatch.options.adopted)), ref=dispatch.base_ref, kind="branch")
    top = Path(dispatch.repo_path)
    try:
        return replace(inspect(top), sha=dispatch.base_sha, ref=dispatch.base_ref)
    except CoreAgentError:
        return Base(
            top=top,
            git_dir=top / ".git",
            ref=dispatch.base_ref,
            kind="branch",
            sha=dispatch.base_sha,
            dirty=0,
            shallow=False,
            default_branch="",
        )


def _check_out(core: Core, dispatch: Dispatch, place: Layout, base: Base) -> git_checkout.Checkout:
    record.forget(Path(paths.index_copy(core.home, dispatch.id)))
    if _prepared_for(place) in ("", dispatch.id):
        cleanup.remove_tree(place.root)
    else:  # of a dispatch that this store does not know, or knows no more
        cleanup.set_orphan_aside(core.home, place.root, f"{dispatch.org}-{dispatch.repo}")
    cache = Path(paths.repo_cache(core.home, dispatch.org, dispatch.repo))
    if dispatch.options.on_top:
        git_cache.hold(cache, base.sha)
    git_cache.ensure_cache(cache, base)
    core.mark("cached")
    for directory in (place.root, place.meta, place.specs, place.tmp):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    index = Path(paths.index_copy(core.home, dispatch.id))
    make = functools.partial(
        git_checkout.checkout,
        cache,
        base,
        place.repo,
        dispatch.branch,
        index,
        AUTHOR,
        dispatch.options.with_changes,
        exclude=SIDECARS,
    )
    warm = core.engine.upkeep.warm.take(dispatch.org, dispatch.repo, base.sha, place.root)
    if warm is not None:
        try:
            return make(warm=warm)
        except (CoreAgentError, OSError) as error:
            log.warning("the checkout that lay ready for %s was of no use: %s", dispatch.workspace, error)
            cleanup.remove_tree(warm.tree)
    return make()


def _write_files(place: Layout, text: str, context_file: str) -> None:
    place.prompt.write_text(text)
    note = f"{text}\n"
    for name in dict.fromkeys(("CODEX.md", context_file)):
        if name:
            (place.root / name).write_text(note)


def _add_context(place: Layout, context_file: str) -> None:
    """Another agent than the one it was made for goes on here, and looks for a file of its own."""
    target = place.root / context_file
    if context_file and not target.exists():
        target.write_text((place.root / "CODEX.md").read_text())


def _mark_prepared(core: Core, place: Layout, dispatch: Dispatch, made: git_checkout.Checkout) -> None:
    body = {"dispatch": dispatch.id, "start": made.start, "skipped": list(made.skipped)}
    write_plain(place.prepared, json.dumps(body).encode())
    handed_over(Path(paths.index_copy(core.home, dispatch.id)), os.lstat(place.prepared).st_mtime_ns)


def recent_commits(git_dir: Path, sha: str) -> tuple[str, ...]:
    """The subjects of the newest commits, for the prompt; () when they cannot be read."""
    try:
        return _log(git_dir, sha)
    except (CoreAgentError, OSError):
        return ()


@lru_cache(maxsize=64)  # what a commit's hash stands for never changes, and many tasks start from the same one
def _log(git_dir: Path, sha: str) -> tuple[str, ...]:
    args = ("log", f"--max-count={GIT_LOG_SHOWN}", "--format=%h %s", "--end-of-options", sha)
    return tuple(git(*args, cwd=git_dir, env=environment_of_git(git_dir=git_dir)).text.splitlines())


async def render_prompt(engine: Engine, dispatch: Dispatch, git_log: tuple[str, ...] = ()) -> str:
    """Assemble the first prompt from what is known of the dispatch and its checkout."""
    template = dispatch.options.template or engine.settings_of(dispatch).settings.dispatch.default_template
    return await asyncio.to_thread(_prompt, engine.core, dispatch, template, git_log)


def _prompt(core: Core, dispatch: Dispatch, template: str, git_log: tuple[str, ...]) -> str:
    options = dispatch.options
    place = layout(core.home, core.settings, dispatch)
    looked_at = place.repo if place.repo.is_dir() else Path(dispatch.repo_path)
    found = stack.detect(stack.look(looked_at))
    facts = prompt.PromptFacts(
        task=dispatch.task,
        org=dispatch.org,
        repo=dispatch.repo,
        branch=dispatch.branch,
        base_ref=dispatch.base_ref,
        stack=found,
        template=template,
        persona=options.persona,
        plan_template=options.plan_template,
        variables=options.variables,
        expect_changes=options.expect == "changes",
        immutable=options.tag is not None,
        carried=options.with_changes,
        git_log=git_log,
        home=core.home,
    )
    return prompt.render(facts)


def write_answer(place: Layout, question: str, answer: str) -> str:
    """Put the answer where the agent looks for it, and the question away; neither is ever committed.

    Returns what was set aside for it, for people: a directory that the agent left there is none of ours to delete.

    Raises: workspace_gone; dirty_checkout when something there does not let itself be replaced.
    """
    if place.repo.is_symlink() or not place.repo.is_dir():
        raise CoreAgentError("workspace_gone", "the checkout is not there any more", cause=str(place.repo))
    moved = []
    text = f"# Question\n\n{question.strip()}\n\n# Answer\n\n{answer.strip()}\n"
    try:
        for name in ("BLOCKED.md", "ANSWER.md"):
            note = place.repo / name
            if note.is_dir() and not note.is_symlink():
                moved.append(f"{name} was a directory and was moved to {_set_aside(place, note)}")
            else:
                note.unlink(missing_ok=True)
        descriptor = os.open(place.repo / "ANSWER.md", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError as error:
        raise CoreAgentError(
            "dirty_checkout",
            f"the answer cannot be written into {place.repo}",
            cause=told(error),
            hint="make that directory writable, move away the BLOCKED.md and ANSWER.md in it, and answer again",
        ) from error
    return "; ".join(moved)


def _set_aside(place: Layout, directory: Path) -> Path:
    """Move a directory out of the checkout, to what is archived with the workspace."""
    place.meta.mkdir(mode=0o700, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix="aside-", dir=place.meta)) / directory.name
    os.rename(directory, target)
    return target
