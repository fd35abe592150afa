"""How a notice gets to a person: the desktop, a program, a webhook. One try each; who wants more tries asks again.

`dispatch.notify` comes in. It knows no dispatch, no store and no time of day; a secret header's value is read from the
daemon's environment when it is sent, and stands in no error.
"""

from __future__ import annotations

import asyncio
import html
import importlib
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from coreagent import paths, umask
from coreagent.dispatch.notice import Notice
from coreagent.errors import told
from coreagent.sections import NotifySettings, WebhookSettings

Channel = Literal["desktop", "command", "webhook"]
CHANNELS: Final[tuple[Channel, ...]] = ("desktop", "command", "webhook")
PROGRAM_S = 30.0
DESKTOP_S = 10.0
_APPLE = ("on run argv", "display notification (item 2 of argv) with title (item 1 of argv)", "end run")


@dataclass(frozen=True)
class Sent:
    """How one try went."""

    problem: str = ""
    """Why it did not arrive."""
    passing: bool = True
    """Trying again may help."""


def wanted(settings: NotifySettings, channel: Channel) -> bool:
    """Whether anything is to be told this way."""
    ways = {"desktop": settings.desktop, "command": settings.command, "webhook": settings.webhook.url}
    return bool(settings.on and ways[channel])


async def send(channel: Channel, notice: Notice, settings: NotifySettings, env: Mapping[str, str], cwd: str) -> Sent:
    """Try once to tell of it. Never raises for what the other end does."""
    body = notice.model_dump_json().encode()
    if channel == "desktop":
        argv = desktop_argv(notice, env.get("PATH", ""))
        if not argv:
            return Sent("neither notify-send nor osascript is on the daemon's PATH", passing=False)
        return await _program(argv, b"", env, cwd, DESKTOP_S)
    if channel == "command":
        # A line, as a shell's `read` and every tool of lines want it.
        return await _program(settings.command, body + b"\n", env, cwd, PROGRAM_S)
    return await _post(settings.webhook, body, env)


def desktop_argv(notice: Notice, path: str) -> list[str]:
    """The program that shows a notice on this desktop; [] when there is none."""
    title, what = "core-agent", f"{notice.text}\n{notice.next}".strip()
    if program := shutil.which("notify-send", path=path):
        urgency = "critical" if notice.event in ("blocked", "failed") else "normal"
        # Its body is markup; what an agent wrote must not be.
        return [program, "--app-name=core-agent", f"--urgency={urgency}", "--", title, html.escape(what, quote=False)]
    if program := shutil.which("osascript", path=path):
        # As arguments of a fixed script: what an agent wrote must not be a script.
        return [program, *(word for line in _APPLE for word in ("-e", line)), title, what]
    return []


async def _program(argv: list[str], said: bytes, env: Mapping[str, str], cwd: str, limit_s: float) -> Sent:
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env=dict(env),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            umask=umask.usual(),
        )
    except (OSError, ValueError) as error:
        return Sent(f"{argv[0]} could not be started: {told(error)}", passing=False)
    try:
        async with asyncio.timeout(limit_s):
            _, stderr = await child.communicate(said)
    except TimeoutError:
        return Sent(f"{argv[0]} did not end within {limit_s:g} s")
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    if child.returncode:
        last = (stderr.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
        return Sent(f"{argv[0]} ended with exit code {child.returncode}" + (f": {last[:200]}" if last else ""))
    return Sent()


async def _post(webhook: WebhookSettings, body: bytes, env: Mapping[str, str]) -> Sent:
    headers = {"Content-Type": "application/json", "User-Agent": f"core-agent/{paths.VERSION}"}
    for header, name in webhook.headers.items():
        if name not in env:
            hint = f"export {name}=..., then core-agent daemon restart"
            return Sent(f"{name} is not set where the daemon was started ({hint})", passing=False)
        headers[header] = env[name]
    # Large, and most daemons never post anything: imported by the first notice, and not on the loop.
    httpx: Any = await asyncio.to_thread(importlib.import_module, "httpx")
    try:
        client = await asyncio.to_thread(httpx.AsyncClient, timeout=webhook.timeout_s)
        posting = client.stream("POST", webhook.url, content=body, headers=headers)
        async with asyncio.timeout(webhook.timeout_s), client, posting as reply:
            status = int(reply.status_code)  # what else it answers is of no interest, and could be long
    except TimeoutError:
        return Sent(f"{webhook.url} did not answer within {webhook.timeout_s:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, UnicodeError, OSError) as error:
        # The error of a bad header would show its value.
        bad = isinstance(error, httpx.LocalProtocolError | httpx.InvalidURL | ValueError)
        why = "the address or a header is not valid" if bad else (str(error) or type(error).__name__)
        return Sent(f"{webhook.url} could not be asked: {why}", passing=not bad)
    if 200 <= status < 300:
        return Sent()
    return Sent(f"{webhook.url} answered {status}", passing=status in (408, 425, 429) or status >= 500)
