"""A file of tasks: read, checked whole, put in an order, its placeholders replaced.

Batches come in with the text. Every mistake names line, column and key. It knows nothing of engines or repositories.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from coreagent import checked
from coreagent.content import library
from coreagent.dispatch import names
from coreagent.errors import CoreAgentError
from coreagent.models.batch import TaskDefaults, TaskEntry, TaskFile
from coreagent.yamlmarks import Mark, Node, decode, parse


@dataclass(frozen=True)
class Task:
    """One task of a file, with what the file says for all of them."""

    key: str
    """How the others of its batch name it."""
    entry: TaskEntry
    mark: Mark
    at: int
    """Which one of the file it is, from 0."""


@dataclass(frozen=True)
class Tasks:
    """A file that holds no mistake that can be told without looking at anything else."""

    path: str
    batch: str
    tasks: tuple[Task, ...]
    """Each after those that it comes after, else as they stand in the file."""
    node: Node

    def wrong(self, task: Task, error: CoreAgentError) -> CoreAgentError:
        """What somebody else found wrong with a task, with the place in the file that it is about."""
        about = {
            "unknown_agent": "agent", "runner_missing": "agent", "not_logged_in": "agent", "runner_too_old": "agent",
            "template_not_found": "template", "persona_not_found": "persona", "invalid_name": "name",
            "workspace_busy": "name", "branch_exists": "name", "repo_not_found": "repo", "no_such_ref": "branch",
        }.get(error.slug, "")  # fmt: skip
        mark, keys = self.node.find(("tasks", task.at, about))
        if about and keys[-1:] != [about]:
            mark, found = self.node.find(("defaults", about))
            keys = found if found[-1:] == [about] else keys
            mark = mark if found[-1:] == [about] else task.mark
        where = f"{self.path}:{mark.line}:{mark.column}: {'.'.join(keys)}"
        place = {"path": self.path, "line": mark.line, "column": mark.column, "key": ".".join(keys), "task": task.key}
        return CoreAgentError(
            error.slug, f"{where}: {error.message}", cause=error.cause, hint=error.hint, data={**place, **error.data}
        )


def read(text: str, path: str, given: Mapping[str, str]) -> Tasks:
    """Read a file of tasks; `given` are values that go before its own.

    Raises: bad_task_file.
    """
    raw = text.encode("utf-8", "surrogatepass")
    try:
        file = checked.check(TaskFile, raw, path)
    except CoreAgentError as error:
        hint = "" if error.hint.startswith("agents.yaml.example") else error.hint
        raise CoreAgentError("bad_task_file", error.message, cause=error.cause, hint=hint, data=error.data) from None
    node = parse(decode(raw))
    if file.batch and not names.valid(file.batch):
        raise _wrong(path, node, ("batch",), f"{file.batch!r} is no name", "use a-z, 0-9, '.', '_' and '-'")
    tasks = [_task(path, node, file, at, given) for at in range(len(file.tasks))]
    known: dict[str, Task] = {}
    for task in tasks:
        if (first := known.setdefault(task.key, task)) is not task:
            where = ("tasks", task.at, "name")
            raise _wrong(path, node, where, f"{task.key!r} stands twice", f"the first one is in line {first.mark.line}")
    for task in tasks:
        _check_after(path, node, task, known)
    return Tasks(path, file.batch, tuple(_ordered(path, node, tasks)), node)


def _task(path: str, node: Node, file: TaskFile, at: int, given: Mapping[str, str]) -> Task:
    own = file.tasks[at]
    said = {name: getattr(file.defaults, name) for name in TaskDefaults.model_fields} | {
        name: getattr(own, name) for name in own.model_fields_set
    }
    said["vars"] = {**file.vars, **file.defaults.vars, **own.vars, **given}
    for name in ("task", "name", "branch"):
        if isinstance(said.get(name), str):
            said[name], missing = library.replaced(said[name], said["vars"])
            if missing:
                hint = f"give it under `vars`, or with --var {missing[0]}=..."
                raise _wrong(path, node, ("tasks", at, name), f"there is no value for {missing[0]!r}", hint)
    entry = TaskEntry.model_construct(**{**{n: f.get_default(call_default_factory=True)
                                            for n, f in TaskEntry.model_fields.items()}, **said})  # fmt: skip
    if not entry.task.strip():
        raise _wrong(path, node, ("tasks", at, "task"), "the task is empty", "say what is to be done")
    if entry.name and not names.valid(entry.name):
        raise _wrong(path, node, ("tasks", at, "name"), f"{entry.name!r} is no name", names.HOW)
    return Task(entry.name or names.slug(entry.task), entry, node.find(("tasks", at))[0], at)


def _check_after(path: str, node: Node, task: Task, known: Mapping[str, Task]) -> None:
    for n, other in enumerate(task.entry.after):
        where = ("tasks", task.at, "after", n)
        if other == task.key:
            raise _wrong(path, node, where, f"{other} cannot come after itself", "leave it out")
        if other not in known:
            near = difflib.get_close_matches(other, known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(known)}"
            raise _wrong(path, node, where, f"there is no task {other!r} in this file", hint)
    if task.entry.on_top and len(set(task.entry.after)) != 1:
        hint = "name one task under `after`; of several, say which with `branch: agent/NAME`"
        raise _wrong(path, node, ("tasks", task.at, "on_top"), "it must come after one other task", hint)


def _ordered(path: str, node: Node, tasks: list[Task]) -> list[Task]:
    """The tasks with each after those before it. Raises: bad_task_file that names a cycle."""
    by_key = {task.key: task for task in tasks}
    open_ones = {task.key: set(task.entry.after) for task in tasks}
    ready = [task.at for task in tasks if not open_ones[task.key]]
    heapq.heapify(ready)
    ordered = []
    while ready:
        done = tasks[heapq.heappop(ready)]
        ordered.append(done)
        del open_ones[done.key]
        for key, before in open_ones.items():
            if done.key in before:
                before.discard(done.key)
                if not before:
                    heapq.heappush(ready, by_key[key].at)
    if open_ones:
        way = [min(open_ones, key=lambda key: by_key[key].at)]
        while way[-1] not in way[:-1]:
            way.append(min(open_ones[way[-1]]))
        circle = way[way.index(way[-1]) :]
        where = ("tasks", by_key[circle[0]].at, "after")
        hint = "take one of them out of `after`"
        raise _wrong(path, node, where, f"tasks wait for each other: {' after '.join(circle)}", hint)
    return ordered


def _wrong(path: str, node: Node, where: tuple[str | int, ...], message: str, hint: str) -> CoreAgentError:
    mark, keys = node.find(where)
    told = checked.mistake(path, mark, keys, message, hint)
    return CoreAgentError("bad_task_file", told.message, hint=told.hint, data=told.data)
