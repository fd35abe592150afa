"""Where everything lives: home, socket, logs. Ground floor: only `os`, so the terminal client can import it."""

import os

VERSION = "0.1.0"

OWN = ("archive", "attempts", "index", "pending", "reports", "repos", "run", "trials", "warm", "workspace")
"""The daemon's directories in the home. No link stands for one: it removes and moves what is in them."""

# sun_path is 108 bytes on Linux and 104 on macOS, the closing NUL included; the smaller holds everywhere.
SOCKET_PATH_MAX = 103


def home(env: "os._Environ[str] | dict[str, str]" = os.environ) -> str:
    """Return the home directory, `CORE_HOME` or `~/.core`; "" when there is none, and `homeless` says why.

    A relative one is none: it would mean another home, with another daemon, in every directory. Nor is one whose name
    is no UTF-8: the store takes no such path.
    """
    chosen = env.get("CORE_HOME")
    if chosen:
        return os.path.abspath(chosen) if chosen[0] == "/" and _is_text(chosen) else ""
    user = env.get("HOME", "")
    return user.rstrip("/") + "/.core" if user[:1] == "/" and _is_text(user) else ""


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def homeless(env: "os._Environ[str] | dict[str, str]" = os.environ) -> str:
    """Why `home` is ""."""
    for name in ("CORE_HOME", "HOME"):
        if env.get(name) and not _is_text(env[name]):
            return f"{name} is {env[name]!a}, which is no UTF-8: the store can be kept in no such place"
        if env.get(name):
            return f"{name} is {env[name]!a}, which is no absolute path: it would be another place in each directory"
    return "neither CORE_HOME nor HOME is set, so there is no place to work in"


def daemon_socket(home: str) -> str:
    """The socket the daemon listens on, mode 0600 in a directory of mode 0700."""
    return home + "/run/daemon.sock"


def daemon_lock(home: str) -> str:
    """Held (flock) by the living daemon; its text is the pid."""
    return home + "/run/daemon.lock"


def start_lock(home: str) -> str:
    """Held (flock) by the one client that starts the daemon; its text is the last failure to start."""
    return home + "/run/start.lock"


def passed_names(home: str) -> str:
    """Names of environment variables that the settings add to what clients send; written by the daemon."""
    return home + "/run/env.allow"


def kept_names(home: str) -> str:
    """Names of variables that the daemon itself needs (secrets of notices); written by the daemon for the next one."""
    return home + "/run/env.daemon"


def held_back(home: str) -> str:
    """The releases that a person went back from, one a line: the daemon does not become them for a client's sake."""
    return home + "/run/held-back"


def daemon_log(home: str) -> str:
    return home + "/run/daemon.log"


def database(home: str) -> str:
    """The one file that is the truth (docs/architecture.md, idea 3)."""
    return home + "/db.duckdb"


def settings_file(home: str) -> str:
    return home + "/agents.yaml"


def repo_cache(home: str, org: str, repo: str) -> str:
    """The daemon's bare cache of one repository; never shares an inode with the user's objects."""
    return f"{home}/repos/{org}/{repo}.git"


def workspace_root(home: str) -> str:
    return home + "/workspace"


def attempt_dir(home: str, attempt_id: str) -> str:
    """Spool of one attempt: spec.json, started, out, err, records, exit (see coreagent.shim)."""
    return f"{home}/attempts/{attempt_id}"


def attempt_socket(home: str, attempt_id: str) -> str:
    """Control socket of one attempt's shim; the random half of the ULID keeps the path short."""
    return f"{home}/run/{attempt_id[-12:]}.sock"


def last_good_settings(home: str) -> str:
    """The text of the last agents.yaml that was right."""
    return home + "/run/agents.good.yaml"


def index_copy(home: str, dispatch_id: str) -> str:
    """The daemon's copy of a checkout's index; outside the workspace, so that no agent can forge it."""
    return f"{home}/index/{dispatch_id}"


def warm_dir(home: str) -> str:
    """What the daemon knows of checkouts that lie ready; the files themselves are below the workspace root."""
    return home + "/warm"


def archive_dir(home: str, dispatch_id: str) -> str:
    return f"{home}/archive/{dispatch_id}"


def reports_dir(home: str) -> str:
    """Where unexpected errors leave their report files."""
    return home + "/reports"
