"""Tasks that come together: a file of them, siblings, what is told and what is refused before anything is queued."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine_room import Room, in_room
from tests.support.git_room import sh
from tests.unit.test_dispatch_after import SETTLED, WORK, frozen, thaw

from coreagent.dispatch import taskfile
from coreagent.errors import CoreAgentError
from coreagent.models.batch import TaskEntry
from coreagent.models.dispatch import State

FILE = """\
version: 1
batch: night
vars: {table: users}
defaults: {ephemeral: true, template: conventions, timeout: 1h, vars: {ticket: "42"}}
tasks:
  - name: api
    task: "Serve {{table}} for {{ticket}}"
    after: [schema]
    on_top: true
    priority: 2
  - name: schema
    task: "Make {{ table }}"
    agent: [command:work, scripted]
    vars: {ticket: "43"}
  - task: Write the change log
    after: api
"""


async def give(room: Room, file: str = FILE, **more: Any) -> Any:
    return await room.ask("batch.dispatch", file=file, path="t.yaml", **more)


def test_a_file_is_queued_in_an_order_in_which_it_can_run(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await frozen(room)
        reply = await give(room)
        assert (reply.batch, [r.key for r in reply.tasks]) == ("night", ["schema", "api", "write-change-log"])
        schema, api, last = (room.engine.board[r.dispatch_id] for r in reply.tasks)
        assert (schema.name, schema.task, schema.options.agents) == (
            "schema", "Make users", ["command:work", "scripted"],
        )  # fmt: skip
        assert schema.options.variables == {}
        assert (api.task, api.priority, api.options.timeout_s) == ("Serve users for 42", 2, 3600)
        assert (api.options.after, api.options.on_top) == ([schema.id], schema.id)
        assert (schema.waiting_for, api.waiting_for, last.waiting_for) == ("", "after", "after")
        assert {d.options.batch for d in (schema, api, last)} == {"night"}
        assert (reply.tasks[1].after, reply.tasks[1].on_top) == (["schema"], "schema")
        await thaw(room)
        assert (await room.until(last, *SETTLED)).state is State.COMPLETED
        assert sh(room.repo, "show", "agent/api:made.txt").splitlines() == ["Make users", "Serve users for 42"]
        shown = await room.ask("batch.show", batch="night")
        assert [row.workspace.split("/")[-1] for row in shown] == ["schema", "api", "write-change-log"]

    in_room(tmp_path, body, running=True, script=WORK)


def test_a_second_run_of_a_batch_queues_what_is_missing(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await frozen(room)
        first = await give(room)
        again = await give(room, FILE + "  - {name: more, task: More, after: schema}\n")
        assert [(r.key, r.reused) for r in again.tasks] == [
            ("schema", True), ("api", True), ("write-change-log", True), ("more", False),
        ]  # fmt: skip
        assert [r.dispatch_id for r in again.tasks[:3]] == [r.dispatch_id for r in first.tasks]
        assert room.engine.board[again.tasks[3].dispatch_id].options.after == [first.tasks[0].dispatch_id]
        changed = await give(room, FILE.replace("Make {{ table }}", "Make it"))
        assert "another one then" in changed.tasks[0].note
        with pytest.raises(CoreAgentError, match=r"t.yaml:10:5: tasks.1.name: there is a workspace .* already"):
            await give(room, FILE.replace("batch: night\n", ""))
        assert len(room.engine.board) == 4

    in_room(tmp_path, body, script=WORK)


def test_a_dry_run_shows_the_plan_and_leaves_nothing(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        reply = await give(room, dry_run=True)
        assert [(r.workspace, r.after) for r in reply.tasks] == [
            ("local/project/schema", []), ("local/project/api", ["schema"]),
            ("local/project/write-change-log", ["api"]),
        ]  # fmt: skip
        assert reply.dry_run
        assert not room.engine.board
        assert not room.engine.reserved
        assert not room.engine._applied

    in_room(tmp_path, body, script=WORK)


WRONG = {
    "an unknown key": ("on_top: true", "on_tpo: true", "bad_task_file", r"t.yaml:9:5: tasks.0.on_tpo", "`on_top`"),
    "an unknown task": ("[schema]", "[shcema]", "bad_task_file", r"t.yaml:8:13: tasks.0.after.0", "schema"),
    "a cycle": ("agent: [command:work, scripted]", "after: api", "bad_task_file",
                r"tasks wait for each other: api after schema after api", "take one"),
    "itself": ("after: [schema]", "after: [api]", "bad_task_file", "cannot come after itself", ""),
    "two of a name": ("name: schema", "name: api", "bad_task_file", r"t.yaml:11:5: tasks.1.name: 'api' stands", "6"),
    "no value": ("{{ table }}", "{{ tabel }}", "bad_task_file", r"t.yaml:12:5: tasks.1.task: .* 'tabel'", "--var"),
    "a bad time": ("timeout: 1h", "timeout: soon", "bad_task_file", r"t.yaml:4:\d+: defaults.timeout: must be", ""),
    "an unknown agent": ("command:work, scripted", "command:wrok", "unknown_agent",
                         r"t.yaml:13:5: tasks.1.agent: there is no agent 'command:wrok'", "command:work"),
    "an unknown template": ("conventions", "conventoins", "template_not_found",
                            r"t.yaml:4:29: defaults.template: ", "conventions"),
    "on top of nothing": ("    after: [schema]\n", "", "bad_task_file", "on_top: it must come after one", "`after`"),
    "a bad name": ("name: schema", "name: ../up", "bad_task_file", r"t.yaml:11:5: tasks.1.name", "a-z"),
    "no file at all": (FILE, "- a\n", "bad_task_file", "t.yaml:1:1: the file must be a mapping", ""),
    "an empty one": (FILE, "", "bad_task_file", "tasks: this key is needed", ""),
    "a syntax error": ("tasks:", "tasks: [", "bad_task_file", r"t.yaml:\d+:\d+", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_place_and_nothing_is_queued(tmp_path: Path, case: str) -> None:
    old, new, slug, message, hint = WRONG[case]

    async def body(room: Room) -> None:
        with pytest.raises(CoreAgentError, match=message) as told:
            await give(room, FILE.replace(old, new, 1))
        assert told.value.slug == slug
        assert hint in told.value.hint
        assert told.value.data["line"]
        assert not room.engine.board
        assert not room.engine.reserved

    in_room(tmp_path, body, script=WORK)


def test_values_from_the_command_go_before_those_of_the_file() -> None:
    tasks = taskfile.read(FILE, "t.yaml", {"table": "rows", "ticket": "1"})
    assert [task.entry.task for task in tasks.tasks][:2] == ["Make rows", "Serve rows for 1"]


def test_all_or_none_when_the_disk_is_full(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        commit = room.core.store.commit

        async def full(*changes: Any) -> Any:
            raise CoreAgentError("no_space", "the disk is full")

        room.core.store.commit = full  # type: ignore[method-assign]
        with pytest.raises(CoreAgentError, match="full"):
            await give(room)
        room.core.store.commit = commit  # type: ignore[method-assign]
        assert not room.engine.board
        assert not room.engine.repos
        assert not list((room.home / "pending").iterdir())
        assert len((await give(room)).tasks) == 3

    in_room(tmp_path, body, script=WORK)


def test_a_hundred_tasks_and_a_diamond(tmp_path: Path) -> None:
    lines = ["defaults: {ephemeral: true}", "tasks:", "  - {name: t0, task: first}"]
    lines += [f"  - {{name: t{n}, task: do, after: [t0, t{n // 2}]}}" for n in range(99, 0, -1)]

    async def body(room: Room) -> None:
        await frozen(room)
        reply = await give(room, "\n".join(lines))
        place = {r.key: at for at, r in enumerate(reply.tasks)}
        assert all(place[before] < place[r.key] for r in reply.tasks for before in r.after)
        assert len(room.engine.board.queued) == 100

    in_room(tmp_path, body, script=WORK)


async def siblings(room: Room, task: str = "a", **more: Any) -> Any:
    entry = {"task": task, "ephemeral": True, **more.pop("entry", {})}
    return await room.ask("batch.siblings", task=entry, **more)


def test_siblings_by_number_and_by_agent(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await frozen(room)
        three = await siblings(room, "fix the login", count=3)
        assert [r.workspace for r in three.tasks] == [f"local/project/fix-login-{n}" for n in (1, 2, 3)]
        assert three.batch == "fix-login"
        again = await siblings(room, "fix the login", count=2)
        assert (again.batch, again.tasks[0].workspace) == ("fix-login-2", "local/project/fix-login-2-1")
        by_agent = await siblings(room, entry={"name": "w"}, agents=["command:work", "command:other", "command:work"])
        names = [r.workspace.split("/")[-1] for r in by_agent.tasks]
        assert names == ["w-work", "w-other", "w-work-2"]
        assert [r.agent for r in by_agent.tasks] == ["command:work", "command:other", "command:work"]
        last = await siblings(room, "later", count=2, after=["w-work"], on_top=True)
        assert {r.waiting_for for r in last.tasks} == {"after"}
        for how in ({"count": 1}, {"count": 2, "agents": ["a", "b"]}, {"count": 99}, {"agents": ["claude"]}):
            with pytest.raises(CoreAgentError):
                await siblings(room, **how)
        with pytest.raises(CoreAgentError, match="there is no agent"):
            await siblings(room, agents=["command:work", "nobody"])
        with pytest.raises(CoreAgentError, match="already"):
            await siblings(room, entry={"name": "w"}, agents=["command:work", "command:other"])

    in_room(tmp_path, body, script=WORK)


DIFFER = 'echo "$CORE_AGENT_WORKSPACE" | sed "s/.*-//; s/3/2/" > made.txt; test "$0" != other || sleep 60'


def test_compare_and_pick(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await siblings(room, "do", count=3, entry={"name": "w"})
        for row in made.tasks:
            await room.until(room.engine.board[row.dispatch_id], *SETTLED)
        for named in (["w"], ["w-2"], ["w-1", "w-2", "w-3"]):
            report = await room.ask("compare", siblings=named)
            assert [r.workspace.split("/")[-1] for r in report.rows] == ["w-1", "w-2", "w-3"]
        assert [r.same_as for r in report.rows] == ["", "", "local/project/w-2"]
        assert {r.tests.verdict for r in report.rows} == {"unknown"}
        assert [(r.files, r.insertions) for r in report.rows] == [(1, 1)] * 3
        secret = {"ANTHROPIC_API_KEY": "sk-secret"}
        caller = room.person.__class__(cwd=str(room.repo), env={**room.env, **secret})
        command = "env >&2; grep -q 1 made.txt || { echo it is not one; exit 3; }"
        report = await room.ask("compare", caller, siblings=["w"], test=command)
        assert [(r.tests.verdict, r.tests.exit_code) for r in report.rows] == [
            ("passed", 0),
            ("failed", 3),
            ("failed", 3),
        ]
        assert report.rows[1].tests.tail[-1] == "it is not one"
        assert not any("secret" in line for r in report.rows for line in r.tests.tail)
        assert any("what agents wrote" in note for note in report.notes)
        assert not list((room.home / "trials").iterdir())
        late = await room.ask("compare", siblings=["w-1", "w-2"], test="sleep 60 & sleep 60", timeout_s=0.2)
        assert {r.tests.verdict for r in late.rows} == {"timeout"}
        none = await room.ask("compare", siblings=["w-1", "w-2"], test="no-such-program")
        assert {r.tests.verdict for r in none.rows} == {"error"}
        between = await room.ask("compare", siblings=["w"], diff=["w-1", "w-2"])
        assert "-1\n+2" in between.diff
        with pytest.raises(CoreAgentError, match="no batch and no workspace"):
            await room.ask("compare", siblings=["nobody"])
        picked = await room.ask("pick", workspace="w-2", strategy="squash")
        assert (picked.accepted.onto, picked.accepted.strategy) == ("main", "squash")
        assert [one.workspace for one in picked.rejected] == ["local/project/w-1", "local/project/w-3"]
        assert (room.repo / "made.txt").read_text() == "2\n"
        kept = {row.workspace for row in await room.ask("rescue.list")}
        assert kept == {"local/project/w-1", "local/project/w-3"}
        assert not room.engine.board
        assert sh(room.repo, "branch", "--format=%(refname:short)").split() == ["main"]
        again = await room.ask("pick", workspace="w-2")
        assert (again.accepted, again.rejected, again.undo) == (None, [], picked.undo)
        with pytest.raises(CoreAgentError, match="was picked already"):
            await room.ask("pick", workspace="w-1")
        assert [str(r.fate) for r in (await room.ask("compare", siblings=["w"])).rows] == [
            "rejected", "accepted", "rejected",
        ]  # fmt: skip

    in_room(tmp_path, body, running=True, script=DIFFER)


def test_pick_does_not_stop_who_still_works_unless_told(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        made = await siblings(room, "do", agents=["command:work", "command:other"], entry={"name": "w"})
        done, slow = (room.engine.board[row.dispatch_id] for row in made.tasks)
        await room.until(done, State.COMPLETED)
        await room.until(slow, State.RUNNING)
        with pytest.raises(CoreAgentError, match="1 sibling is not done: w-other") as refused:
            await room.ask("pick", workspace="w-work")
        assert refused.value.slug == "workspace_busy"
        assert room.now(slow).state is State.RUNNING
        await room.ask("pick", workspace="w-work", cancel_others=True)
        assert not room.engine.board
        assert (room.repo / "made.txt").exists()
        with pytest.raises(CoreAgentError, match="has no siblings"):
            await room.ask("pick", workspace=(await room.prepare("alone")).name)

    in_room(tmp_path, body, running=True, script=DIFFER)


def test_two_that_run_the_same_batch_at_once(tmp_path: Path) -> None:
    async def body(room: Room) -> None:
        await frozen(room)
        replies = await asyncio.gather(*(siblings(room, "fix it", count=2) for _ in range(3)))
        names = [r.workspace for reply in replies for r in reply.tasks]
        assert len(names) == len(set(names)) == 6

    in_room(tmp_path, body, script=WORK)


def test_the_file_in_the_documentation_is_one() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "batches.md").read_text("utf-8")
    text = page.partition("```yaml\n")[2].partition("```")[0]
    tasks = taskfile.read(text, "tasks.yaml", {})
    assert [task.key for task in tasks.tasks] == ["schema", "api", "docs", "survey"]
    assert tasks.tasks[3].entry.task.startswith("Who else reads accounts?")
    told = set(TaskEntry.model_fields) - {key for key in TaskEntry.model_fields if f"`{key}`" in page}
    assert not told, "keys that the page does not name"
