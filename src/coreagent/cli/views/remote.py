"""What a fetch brought and where a sync moved something, as text. Commands come in."""

from __future__ import annotations

from collections.abc import Sequence

from coreagent.cli.views.text import Paint, one_line, wrap
from coreagent.models.report import FetchRow, PushedReply, SyncReply
from coreagent.plural import plural

_SHOWN = 5


def fetch_lines(rows: Sequence[FetchRow], width: int, paint: Paint) -> list[str]:
    if not rows:
        return ["no repository is registered; `core-agent repo add` registers the one you are in"]
    lines = []
    for row in rows:
        name = one_line(row.repo)
        if row.error:
            lines += wrap(f"{paint.red('✗')} {name}: {one_line(row.error)}", width, "  ")
            lines += wrap(f"hint: {one_line(row.hint)}", width, "  ") if row.hint else []
        elif not row.remote:
            lines.append(f"{paint.dim('·')} {name} has no remote `origin`")
        else:
            lines.append(f"{paint.green('✓')} {name}: {_moved(row.moved)}")
    return lines


def _moved(names: Sequence[str]) -> str:
    if not names:
        return "nothing new"
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{plural(len(names), 'branch', 'branches')} moved: {', '.join(map(one_line, names[:_SHOWN]))}{more}"


def pushed_lines(reply: PushedReply, width: int, paint: Paint) -> list[str]:
    if reply.state != "failed":
        return sync_lines(reply, width, paint)
    lines = wrap(f"{paint.red('✗')} {one_line(reply.repo)}: {one_line(reply.error)}", width, "  ")
    return lines + (wrap(f"hint: {one_line(reply.hint)}", width, "  ") if reply.hint else [])


def sync_lines(reply: SyncReply | PushedReply, width: int, paint: Paint) -> list[str]:
    name, branch = paint.bold(one_line(reply.repo)), one_line(reply.branch)
    match reply.state:
        case "forwarded":
            said = f"{branch} went from {reply.before[:10]} to {reply.after[:10]}"
        case "reset":
            said = f"{branch} is at {reply.after[:10]}, as origin has it"
        case "current":
            said = f"{branch} has all that origin has"
        case _:
            said = _moved(reply.moved)
    return [f"{name}: {said}", *(wrap(one_line(reply.note), width, "  ") if reply.note else [])]
