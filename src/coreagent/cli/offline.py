"""`doctor --offline`: prove an installation from end to end with no key and no network.

A temporary home with its own daemon, a repository for each agent, and a model server of ours on loopback that every
installed CLI is led to. Each edits a file, goes on in its session, has its work accepted, and ends an error in seconds.
Where no CLI is installed the built-in agent proves the rest. Everything made here is removed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from coreagent import runners
from coreagent.cli import rehearsal
from coreagent.cli.rehearsal import TEXT, Actor
from coreagent.config import Settings
from coreagent.modelserver import ModelServer

LIMIT_S = 180.0
ERROR_LIMIT_S = 60.0
"""An agent that needs longer to admit that its key is refused would hold a queue up."""
AT_ONCE = 4


class Proof(BaseModel):
    """What became of one agent's proof."""

    agent: str
    state: Literal["proved", "failed", "not_installed", "too_old", "unknown_way"]
    """`unknown_way`: nothing is known of how it could be led to a model without a login."""
    path: str = ""
    version: str = ""
    tokens: int = 0
    requests: int = 0
    """How many requests of it the model here answered."""
    error_s: float | None = None
    """How long it took to end after its key was refused."""
    message: str
    hint: str = ""


class _Failed(Exception):
    """One act did not go as it should; the text says how."""


def prove(env: Mapping[str, str], settings: Settings, asked: str = "") -> Iterator[Proof]:
    """Prove one agent, or every one that is found ("" or "all"). Raises: unknown_agent."""
    actors = rehearsal.cast(env, settings, asked)
    able = []
    for actor in actors:
        if actor.missing:
            state: Literal["too_old", "not_installed"] = "too_old" if actor.version else "not_installed"
            yield _proof(actor, state, actor.missing, actor.hint)
        elif actor.part is None:
            said = f"{actor.name} is there, and not proved: no way is known to lead it to another model without a login"
            yield _proof(actor, "unknown_way", said)
        else:
            able.append(actor)
    if not able and asked in ("", "all"):
        able = [Actor("scripted")]
    if not able:
        return
    # Short, because a socket lies in it; under /tmp even where TMPDIR is deep.
    place = Path(tempfile.mkdtemp(prefix="core-agent-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
    try:
        with ModelServer([script for actor in able for script in actor.scripts()]) as server:
            yield from _House(place, env, server).prove(able)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _proof(actor: Actor, state: Any, message: str, hint: str = "", **more: Any) -> Proof:
    return Proof(
        agent=actor.name, state=state, path=actor.path, version=actor.version, message=message, hint=hint, **more
    )


class _House:
    """One temporary installation, and the commands that are run in it."""

    def __init__(self, place: Path, env: Mapping[str, str], server: ModelServer) -> None:
        self.place, self.server = place, server
        self.env = {
            **{name: value for name, value in env.items() if not rehearsal.foreign(name)},
            "HOME": str(place / "user"),
            "CORE_HOME": str(place / "home"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def prove(self, actors: list[Actor]) -> Iterator[Proof]:
        """All of them side by side; each is told of when it is done."""
        (self.place / "user").mkdir()
        home = self.place / "home"
        home.mkdir(mode=0o700)
        # Of another home's usual places nothing is known there.
        found = {actor.name: {"path": actor.path} for actor in actors if actor.name in runners.REAL}
        # A pool for each: the keys that are refused in a shared one would have it parked.
        pools = {actor.slug: 0 for actor in actors}
        (home / "agents.yaml").write_text(json.dumps({"version": 1, "runners": found, "concurrency": pools}))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            try:
                code, reply = self.core_agent(self.place, "daemon", "start")
                if code:
                    why = f"the proof's own daemon does not start: {_why(code, reply)}"
                    yield from (_proof(actor, "failed", why) for actor in actors)
                    return
                waiting = [threads.submit(_Proving(self, actor).run) for actor in actors]
                for done in as_completed(waiting):
                    yield done.result()
            finally:
                # What is still at work ends with it, and so does the wait for its thread.
                threads.shutdown(wait=False, cancel_futures=True)
                self.core_agent(self.place, "daemon", "stop", "--now")

    def repository(self, name: str) -> Path:
        repo = self.place / name
        repo.mkdir()
        (repo / "README.md").write_text("# proof\n")
        who = ["-c", "user.name=core-agent", "-c", "user.email=proof@core-agent.invalid"]
        for words in (["init", "-q", "-b", "main"], ["add", "-A"], [*who, "commit", "-q", "-m", "first"]):
            subprocess.run(["git", *words], cwd=repo, env=self.env, check=True, capture_output=True, timeout=60)
        return repo

    def core_agent(self, cwd: Path, *words: str, env: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """Run this very program and return its exit code and the last JSON document that it printed."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "coreagent", *words, "--json"],
            cwd=cwd,
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S + 60,
            check=False,
        )
        try:
            last = json.loads(done.stdout)
        except ValueError:
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            last = json.loads(lines[-1]) if lines else {}
        return done.returncode, last if isinstance(last, dict) else {}


class _Proving:
    """One agent on its way through the acts."""

    def __init__(self, house: _House, actor: Actor) -> None:
        self.house, self.actor = house, actor
        self.env = actor.part.leads(house.server.url) if actor.part is not None else {}
        self.repo = Path()
        self.tokens = 0
        self.error_s: float | None = None

    def run(self) -> Proof:
        """Go through all of them. Never raises for what the agent does."""
        name = f"{self.actor.name} {self.actor.version}".strip()
        try:
            self.repo = self.house.repository(self.actor.slug)
            self._edit()
            if self.actor.part is not None:
                self._go_on()
            self._accept()
            if self.actor.part is not None:
                self._refused()
        except (_Failed, OSError, subprocess.SubprocessError) as error:
            return self._told("failed", f"{name} {error}")
        if self.actor.part is None:
            return self._told("proved", "the built-in agent edited a file; harvested, checked and accepted")
        said = f"{name} edited a file and went on in its session; harvested, checked and accepted; "
        return self._told("proved", f"{said}a refused key ended in {self.error_s:.1f} s")

    def _told(self, state: Literal["proved", "failed"], message: str) -> Proof:
        count = sum(request.step >= 0 and self._of_us(request.key) for request in self.house.server.requests)
        return _proof(self.actor, state, message, tokens=self.tokens, requests=count, error_s=self.error_s)

    def _of_us(self, key: str) -> bool:
        return key in {self.actor.key(act) for act in (1, 2, 3)}

    # ---- the acts ----

    def _edit(self) -> None:
        words = ["dispatch", "--agent", self.actor.asked, "--name", "proof", self.actor.task(1)]
        if self.actor.part is None:
            script = self.house.place / "script.yaml"
            steps = [{"write": {"path": self.actor.file(1), "content": TEXT}}, {"say": "done"}]
            script.write_text(json.dumps({"steps": steps}))
            words += ["--script", str(script)]
        self._turn("did not complete its first task", *words)

    def _go_on(self) -> None:
        self._turn("did not go on", "resume", self._workspace("proof"), self.actor.task(2))
        asked = [request for request in self.house.server.requests if request.key == self.actor.key(2)]
        if not any(self.actor.key(1).encode() in request.body for request in asked):
            raise _Failed("went on, but in a session that knew nothing of the first task")

    def _accept(self) -> None:
        code, reply = self._run("accept", self._workspace("proof"))
        acts = (1, 2) if self.actor.part is not None else (1,)
        landed = [self.repo / self.actor.file(act) for act in acts]
        if code or not all(file.is_file() and file.read_text() == TEXT for file in landed):
            why = reply.get("error", {}).get("message") or f"exit code {code}"
            raise _Failed(f"worked, but its changes did not land: {why}")

    def _refused(self) -> None:
        began = time.monotonic()
        words = ["dispatch", "--agent", self.actor.asked, "--name", "refused", self.actor.task(3)]
        code, last = self._run(*words, "--wait", "--wait-timeout", f"{ERROR_LIMIT_S:.0f}s")
        self.error_s = time.monotonic() - began
        if last.get("state") != "failed":
            raise _Failed(f"did not end in {ERROR_LIMIT_S:.0f} s after its key was refused: {_why(code, last)}")
        if last.get("reason") != "auth":
            raise _Failed(f"ended when its key was refused, but not for that: {_why(code, last)}")

    def _turn(self, wrong: str, *words: str) -> None:
        code, last = self._run(*words, "--wait", "--wait-timeout", f"{LIMIT_S:.0f}s")
        if code or not last.get("files"):
            raise _Failed(f"{wrong}: {_why(code, last)}")
        self.tokens = last.get("tokens", 0)

    def _workspace(self, name: str) -> str:
        return f"{self.repo.name}/{name}"

    def _run(self, *words: str) -> tuple[int, dict[str, Any]]:
        return self.house.core_agent(self.repo, *words, env=self.env)


def _why(code: int, last: Mapping[str, Any]) -> str:
    """What a command's last document says of an ending that was not wanted."""
    error = last.get("error", {})
    said = [last.get("reason") or error.get("slug"), last.get("detail") or error.get("message"), error.get("cause")]
    return ": ".join(str(part) for part in said if part) or f"{last.get('state', 'no answer')}, exit code {code}"
