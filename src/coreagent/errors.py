"""Every error a person or a program can meet, in one table.

Ranges of codes, by room:
  1xxx  usage and input        2xxx  repositories, git, workspaces    3xxx  dispatch and queue
  4xxx  runners and shims      5xxx  store                            6xxx  daemon and socket
  7xxx  settings               8xxx  roles and consent                9xxx  internal

An error's `kind` decides its exit code; the faces translate kinds, never single codes.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import Any, Final

# kind -> process exit code (docs/errors.md). `--wait` adds 10 failed, 11 blocked, 12 cancelled.
EXIT_CODES: Final[dict[str, int]] = {
    "usage": 2,
    "invalid": 2,
    "not_found": 1,
    "conflict": 1,
    "refused": 1,
    "unavailable": 69,
    "internal": 70,
    "timeout": 75,
}
EXIT_JOB_FAILED: Final = 10
EXIT_JOB_BLOCKED: Final = 11
EXIT_JOB_CANCELLED: Final = 12
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True)
class ErrorCode:
    """One row of the table: stable number, stable slug, kind."""

    code: str
    slug: str
    kind: str


def _table(*rows: tuple[str, str, str]) -> dict[str, ErrorCode]:
    table = {slug: ErrorCode(code, slug, kind) for code, slug, kind in rows}
    assert len(table) == len(rows) == len({row[0] for row in rows})
    return table


CODES: Final[dict[str, ErrorCode]] = _table(
    ("E1001", "usage", "usage"),
    ("E1002", "invalid_argument", "invalid"),
    ("E1003", "unknown_capability", "not_found"),
    ("E1004", "invalid_name", "invalid"),
    ("E1005", "no_terminal", "refused"),
    ("E1006", "conflicting_options", "invalid"),
    ("E2001", "not_a_repository", "invalid"),
    ("E2002", "bare_repository", "invalid"),
    ("E2003", "unborn_head", "invalid"),
    ("E2004", "no_such_ref", "not_found"),
    ("E2005", "git_failed", "internal"),
    ("E2006", "git_timeout", "timeout"),
    ("E2007", "no_space", "unavailable"),
    ("E2008", "workspace_not_found", "not_found"),
    ("E2009", "workspace_gone", "conflict"),
    ("E2010", "repo_not_found", "not_found"),
    ("E2011", "repo_exists", "conflict"),
    ("E2012", "merge_conflict", "conflict"),
    ("E2013", "branch_moved", "conflict"),
    ("E2014", "dirty_checkout", "conflict"),
    ("E2015", "nothing_to_accept", "conflict"),
    ("E2016", "rescue_not_found", "not_found"),
    ("E2017", "too_large", "refused"),
    ("E2018", "git_missing", "unavailable"),
    ("E2019", "setup_failed", "refused"),
    ("E2020", "ambiguous_workspace", "conflict"),
    ("E2021", "no_identity", "refused"),
    ("E2022", "branch_exists", "conflict"),
    ("E2024", "fetch_failed", "unavailable"),
    ("E2025", "not_managed", "refused"),
    ("E2026", "diverged", "conflict"),
    ("E3002", "illegal_move", "conflict"),
    ("E3003", "nothing_to_resume", "conflict"),
    ("E3004", "workspace_busy", "conflict"),
    ("E3005", "wait_timeout", "timeout"),
    ("E3006", "template_not_found", "not_found"),
    ("E3007", "missing_variable", "invalid"),
    ("E3008", "persona_not_found", "not_found"),
    ("E3009", "issue_unavailable", "refused"),
    ("E3010", "not_running", "conflict"),
    ("E3011", "pool_not_found", "not_found"),
    ("E3012", "predecessor_ended", "conflict"),
    ("E3013", "batch_not_found", "not_found"),
    ("E3014", "bad_task_file", "invalid"),
    ("E3015", "no_siblings", "conflict"),
    ("E3016", "workspace_attached", "conflict"),
    ("E4001", "unknown_agent", "not_found"),
    ("E4002", "runner_missing", "unavailable"),
    ("E4003", "runner_too_old", "unavailable"),
    ("E4004", "remote_identity", "refused"),
    ("E4005", "not_logged_in", "refused"),
    ("E4006", "bad_script", "invalid"),
    ("E4007", "cannot_attach", "refused"),
    ("E4008", "shim_failed", "internal"),
    ("E4009", "blocked_flag", "invalid"),
    ("E5001", "store_locked", "unavailable"),
    ("E5002", "store_newer", "refused"),
    ("E5003", "store_damaged", "refused"),
    ("E5004", "store_unopenable", "unavailable"),
    ("E5005", "store_write_failed", "internal"),
    ("E5006", "store_ephemeral", "refused"),
    ("E6001", "daemon_unreachable", "unavailable"),
    ("E6002", "daemon_start_failed", "unavailable"),
    ("E6003", "socket_path_too_long", "invalid"),
    ("E6004", "no_home", "invalid"),
    ("E6005", "bad_frame", "invalid"),
    ("E6006", "daemon_stopping", "unavailable"),
    ("E6007", "already_running", "conflict"),
    ("E6008", "daemon_newer", "refused"),
    ("E6009", "home_unsafe", "refused"),
    ("E6010", "daemon_silent", "timeout"),
    ("E6011", "no_service_manager", "unavailable"),
    ("E6012", "service_failed", "unavailable"),
    ("E6013", "not_ours_to_upgrade", "refused"),
    ("E6014", "upgrade_failed", "refused"),
    ("E6015", "nothing_to_roll_back", "conflict"),
    ("E7001", "settings_invalid", "invalid"),
    ("E7002", "settings_unreadable", "unavailable"),
    ("E7003", "nobody_to_notify", "refused"),
    ("E7004", "settings_changed", "conflict"),
    ("E8001", "role_forbidden", "refused"),
    ("E8002", "consent_needed", "refused"),
    ("E8004", "foreign_user", "refused"),
    ("E9001", "internal", "internal"),
)


_LOG = "core-agent daemon logs tells more"
_GIT = "look at that repository with git status and git fsck, then try again"

HINTS: Final[dict[str, str]] = {
    "bad_frame": "is everything installed from one release? core-agent daemon restart",
    "bad_script": "mend the script, then try again",
    "bad_task_file": "docs/batches.md shows a whole file",
    "batch_not_found": "core-agent status --all lists the workspaces",
    "branch_moved": "git log shows whose commits these are",
    "conflicting_options": "leave one of them out",
    "daemon_newer": "core-agent daemon restart with the newer program; running agents go on",
    "daemon_silent": "core-agent daemon logs; is the machine very busy, or the daemon stopped? kill -9 ends it",
    "daemon_unreachable": "core-agent daemon logs; core-agent daemon restart",
    "dirty_checkout": "commit or move it yourself, then try again",
    "fetch_failed": "core-agent repo list shows which remotes fail; try git fetch there yourself",
    "foreign_user": "use a home of your own: set CORE_HOME",
    "git_failed": _GIT,
    "home_unsafe": "move it away, or set CORE_HOME to another directory",
    "illegal_move": "core-agent status shows what it is now",
    "internal": _LOG,
    "invalid_argument": "--help shows what is taken",
    "no_home": "set HOME, or CORE_HOME, to the absolute path of a directory of yours",
    "no_space": "free some space (core-agent workspace clean) and try again",
    "not_a_repository": "go to your project's directory, or run: git init",
    "no_service_manager": "core-agent daemon install --print shows the file; commands start the daemon without it too",
    "nobody_to_notify": "name a channel under `notify` in agents.yaml; docs/living.md shows how",
    "not_running": "core-agent status shows what runs",
    "nothing_to_accept": "core-agent history shows what became of it",
    "rescue_not_found": "core-agent rescue list shows what there is",
    "runner_missing": "core-agent doctor shows what is found, and where",
    "service_failed": "core-agent daemon install --print shows the file",
    "settings_changed": "core-agent repo trust shows them as they are now",
    "setup_failed": "mend hooks.setup in agents.yaml, then core-agent resume",
    "shim_failed": _LOG,
    "store_ephemeral": "core-agent doctor tells why nothing is kept",
    "store_locked": "core-agent daemon status; end the other process that has it open",
    "store_write_failed": _LOG,
    "unknown_agent": "core-agent agents lists them",
    "unknown_capability": "docs/json.md lists them; is the daemon older? core-agent daemon restart",
    "upgrade_failed": "the old version is still in place and in force",
    "nothing_to_roll_back": "core-agent upgrade keeps the version before it; there was none",
    "not_ours_to_upgrade": "upgrade it with what installed it",
    "workspace_gone": "core-agent history shows what became of it",
}
"""What to do when who raised it knows nothing better."""


def told(error: BaseException) -> str:
    """What went wrong in words: of the system's errors without their number and our types' names."""
    if not isinstance(error, OSError) or not error.strerror:
        return f"{type(error).__name__}: {error}"
    where = error.filename
    return f"{error.strerror}: {os.fsdecode(where)}" if isinstance(where, (str, bytes, os.PathLike)) else error.strerror


class CoreAgentError(Exception):
    """An error with a code from the table, a message that names what was wrong, and a hint that says what to do.

    `slug` is the stable name in CODES; `cause` is the underlying error's one line; `data` is for programs.
    """

    def __init__(
        self,
        slug: str,
        message: str,
        *,
        hint: str = "",
        cause: str = "",
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.row = CODES[slug]
        self.message = message
        self.hint = hint or HINTS.get(slug, "")
        self.cause = cause
        self.data = data or {}

    @property
    def slug(self) -> str:
        return self.row.slug

    @property
    def kind(self) -> str:
        return self.row.kind

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.row.kind]

    def as_dict(self) -> dict[str, Any]:
        """The body every machine face sends: `{"error": {...}}`."""
        return {
            "error": {
                "code": self.row.code,
                "slug": self.row.slug,
                "kind": self.row.kind,
                "message": self.message,
                "cause": self.cause,
                "hint": self.hint,
                "data": self.data,
            }
        }

    def lines(self) -> list[str]:
        """The three lines for people: error, cause, hint."""
        lines = [f"error[{self.row.code}]: {self.message}"]
        if self.cause:
            lines.append(f"caused by: {self.cause}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return lines

    def sentence(self) -> str:
        """All of it for people in one line, where three do not fit."""
        cause = f" ({self.cause})" if self.cause else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.message}{cause}{hint}"

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> CoreAgentError:
        """Rebuild what `as_dict` sent; an unknown slug becomes `internal`."""
        error = body.get("error", {})
        slug = error.get("slug", "")
        return cls(
            slug if slug in CODES else "internal",
            str(error.get("message", "unknown error")),
            hint=str(error.get("hint", "")),
            cause=str(error.get("cause", "")),
            data=error.get("data") or {},
        )


def shell_word(path: str | os.PathLike[str]) -> str:
    """A path as one word of a shell, in one line that survives a terminal: control characters as `$'..'` has them."""
    text = os.fspath(path)
    if text.isprintable():
        return shlex.quote(text)
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else "".join(f"\\{b:03o}" for b in os.fsencode(c)) for c in plain) + "'"


def displaced(path: str) -> CoreAgentError:
    """Something else stands where a directory or a file of ours was: nothing is done through it."""
    hint = f"ls -l {shell_word(path)} shows what it is; put back what was there, or remove what stands there now"
    if path.endswith("/workspace"):
        hint += "; workspaces are kept elsewhere by workspace_root in agents.yaml"
    return CoreAgentError(
        "home_unsafe",
        f"{path} is not what core-agent made",
        cause="somebody put a link or something else in its place",
        hint=hint,
    )


def gone(cause: str, **data: Any) -> CoreAgentError:
    """The daemon went away after it was asked for something, and before it answered."""
    return CoreAgentError(
        "daemon_unreachable",
        "the daemon went away in the middle of this command",
        cause=cause,
        hint="it may or may not have been done: core-agent status shows what there is, core-agent daemon logs why it"
        " ended; running agents are not touched",
        data=data,
    )


def silent(pid: int) -> CoreAgentError:
    """The daemon is there and says nothing at all."""
    return CoreAgentError(
        "daemon_silent",
        f"the daemon (pid {pid}) does not answer",
        hint=f"core-agent daemon logs; kill -9 {pid} ends it: agents go on, and the next command starts another one",
    )
