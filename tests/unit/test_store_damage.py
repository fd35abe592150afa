"""Damage, death and full disks: what was confirmed is there, or the store says that it is not; nothing is destroyed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coreagent.errors import CoreAgentError
from coreagent.models.dispatch import Dispatch, Repo
from coreagent.store.change import SaveDispatch, SaveRepo
from coreagent.store.repair import repair
from coreagent.store.store import Store

NOW = datetime(2026, 3, 4, tzinfo=UTC)


def dispatch(i: int) -> Dispatch:
    return Dispatch(
        id=f"01J{i:023d}", org="o", repo="r", name=f"t{i}", repo_path="/p", task=f"task {i} " * 20, agent="claude",
        runner="claude", pool="claude", created_at=NOW, queued_at=NOW, changed_at=NOW,
    )  # fmt: skip


def fill(path: str, count: int, first: int = 0, *, close: bool = True) -> Store:
    store = Store.open(path, copy_every_s=0)
    store.commit_now(*(SaveDispatch(dispatch(i)) for i in range(first, first + count)))
    if close:
        store.close()
    return store


def names(path: str) -> list[str]:
    store = Store.open(path, copy_every_s=0)
    try:
        return [d.name for d in store.load().dispatches]
    finally:
        store.close()


def digest(path: str) -> dict[str, str]:
    found = {}
    for file in sorted(Path(path).parent.glob(Path(path).name + "*")):
        found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


# Commits one dispatch after another and says so; dies when its parent kills it.
CHILD = """
import sys
sys.path.insert(0, {root!r})
from tests.unit.test_store_damage import dispatch
from coreagent.store.store import Store
from coreagent.store.change import SaveDispatch
store = Store.open(sys.argv[1], copy_every_s=0)
for i in range(int(sys.argv[2]), 10**6):
    store.commit_now(SaveDispatch(dispatch(i)))
    print(i, flush=True)
"""


def killed_writer(path: str, first: int, commits: int) -> int:
    """Let a child commit, kill -9 it after `commits`; return the last number that it was told is safe."""
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(root=root), path, str(first)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    last = -1
    for line in child.stdout:
        last = int(line)
        if last - first + 1 >= commits:
            break
    child.kill()
    rest = child.stdout.read().split()
    child.stdout.close()
    child.wait()
    return int(rest[-1]) if rest else last


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "db.duckdb")


def test_kill_in_the_middle_of_commits_loses_nothing_that_was_confirmed(path: str) -> None:
    first, confirmed = 0, set()
    for commits in (1, 7, 40):
        last = killed_writer(path, first, commits)
        confirmed |= {f"t{i}" for i in range(first, last + 1)}
        store = Store.open(path, copy_every_s=0)
        found = {d.name for d in store.load().dispatches}
        assert store.recovered
        store.close()
        assert confirmed <= found
        assert found - confirmed <= {f"t{last + 1}"}  # the one in flight may be there, nothing else
        first, confirmed = last + 2, found


def test_kill_before_the_first_commit_leaves_an_openable_store(path: str) -> None:
    Path(f"{path}.new-123-abc").write_bytes(b"half")
    assert names(path) == []


@pytest.mark.parametrize("how", ["zero", "garbage", "head", "cut100", "half", "tail_garbage", "gone", "text"])
def test_a_damaged_file_is_refused_untouched_and_repaired_from_the_copy(path: str, how: str) -> None:
    store = fill(path, 2000, close=False)
    store.backup()
    store.commit_now(SaveDispatch(dispatch(2000)))
    store.close()
    data = Path(path).read_bytes()
    rng = random.Random(1)
    damaged = {
        "zero": b"",
        "garbage": rng.randbytes(50_000),
        "head": rng.randbytes(8192) + data[8192:],
        "cut100": data[:100],
        "half": data[: len(data) // 2],
        "tail_garbage": data[: len(data) // 3] + rng.randbytes(len(data) - len(data) // 3),
        "text": b"hello\n" * 1000,
        "gone": None,
    }[how]
    if damaged is None:
        Path(path).unlink()
    else:
        Path(path).write_bytes(damaged)
    before = digest(path)
    with pytest.raises(CoreAgentError) as caught:
        Store.open(path)
    assert caught.value.slug == "store_damaged"
    assert "doctor --repair" in caught.value.hint
    assert digest(path) == before

    report = repair(path)
    assert not report.healthy and report.restored_from == path + ".bak"
    if damaged is not None:
        assert [Path(moved).read_bytes() for moved in report.moved] == [damaged]
    assert len(names(path)) in (2000, 2001)
    # What is lost is said; and the repaired store is an ordinary one.
    assert report.lost == (0 if len(names(path)) == 2001 else 1)
    assert repair(path).healthy


@pytest.mark.parametrize("seed", range(6))
def test_damage_anywhere_is_noticed_or_harmless(path: str, seed: int) -> None:
    fill(path, 3000)
    rng = random.Random(seed)
    data = bytearray(Path(path).read_bytes())
    at = rng.randrange(0, len(data) - 2048)
    data[at : at + 2048] = rng.randbytes(2048)
    Path(path).write_bytes(bytes(data))
    try:
        found = names(path)
    except CoreAgentError as error:
        assert error.slug in ("store_damaged", "store_newer")
    else:
        assert found == [f"t{i}" for i in range(3000)]


def unclean(path: str) -> int:
    """A store whose process was killed, with confirmed rows that are in the log only; the last number of them."""
    fill(path, 5)
    last = killed_writer(path, 5, 20)
    assert Path(path + ".wal").stat().st_size > 0
    return last


@pytest.mark.parametrize("how", ["missing", "garbage", "zero", "cut", "flipped"])
def test_a_damaged_log_is_refused_and_what_can_be_read_comes_back(path: str, how: str) -> None:
    last = unclean(path)
    log = Path(path + ".wal")
    data = log.read_bytes()
    if how == "missing":
        log.unlink()
    else:
        middle = len(data) // 2
        log.write_bytes(
            {
                "garbage": random.Random(2).randbytes(5000),
                "zero": b"",
                "cut": data[:middle],
                "flipped": data[:middle] + bytes(b ^ 255 for b in data[middle : middle + 64]) + data[middle + 64 :],
            }[how]
        )
    before = digest(path)
    with pytest.raises(CoreAgentError) as caught:
        Store.open(path)
    assert caught.value.slug == "store_damaged"
    assert digest(path) == before
    report = repair(path)
    found = names(path)
    assert found[:5] == [f"t{i}" for i in range(5)]
    assert report.lost > 0 and len(found) + report.lost >= last + 1
    assert all(Path(moved).exists() for moved in report.moved)
    # Numbers go on after the lost ones, so that the next kill is judged rightly.
    assert killed_writer(path, 900, 3) >= 902
    assert "t902" in names(path)


@pytest.mark.parametrize("what", [b"\0" * 400, bytes(range(256)), b"\xff" * 64], ids=["zeros", "rising", "ones"])
def test_what_stands_in_the_log_before_its_damage_comes_back(path: str, what: bytes) -> None:
    last = unclean(path)
    log = Path(path + ".wal")
    data = log.read_bytes()
    at = len(data) * 3 // 4
    log.write_bytes(data[:at] + what + data[at + len(what) :])
    report = repair(path)
    found = names(path)
    assert found == [f"t{i}" for i in range(len(found))]
    assert last // 2 < len(found) <= last
    assert report.unreadable == [] and 0 < report.lost < last // 2
    assert list(Path(path).parent.glob("*.salvage*")) == []


def test_a_torn_record_that_nobody_was_told_of_is_no_damage(path: str) -> None:
    last = unclean(path)
    with open(path + ".wal", "ab") as log:
        log.write(random.Random(3).randbytes(37))
    assert set(names(path)) >= {f"t{i}" for i in range(last + 1)}
    # And what is committed after it survives the next kill.
    last = killed_writer(path, 500, 3)
    assert {f"t{i}" for i in range(500, last + 1)} <= set(names(path))


def test_an_older_copy_put_in_place_is_noticed(path: str, tmp_path: Path) -> None:
    fill(path, 3)
    shutil.copy(path, tmp_path / "old")
    fill(path, 3, 3)
    shutil.copy(tmp_path / "old", path)
    with pytest.raises(CoreAgentError) as caught:
        Store.open(path)
    assert caught.value.slug == "store_damaged" and "older copy" in caught.value.cause


def test_repair_without_a_copy_keeps_what_can_be_read_or_starts_empty(path: str) -> None:
    fill(path, 10)
    Path(path).write_bytes(b"")
    report = repair(path)
    assert report.restored_from == "" and names(path) == []
    assert [Path(moved).name.startswith("db.duckdb.damaged-") for moved in report.moved] == [True]


def test_repair_leaves_a_living_store_alone(path: str) -> None:
    store = fill(path, 1, close=False)
    with pytest.raises(CoreAgentError) as caught:
        repair(path)
    assert caught.value.slug == "store_locked"
    store.close()


def test_places_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "db.duckdb").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "linked.duckdb").symlink_to(tmp_path / "away" / "db.duckdb")
    for bad in (tmp_path / "db.duckdb", tmp_path / "file" / "db.duckdb", tmp_path / "linked.duckdb"):
        with pytest.raises(CoreAgentError) as caught:
            Store.open(str(bad))
        assert caught.value.slug == "store_unopenable", bad


AS_NOBODY = """
import os, sys
from coreagent.errors import CoreAgentError
from coreagent.store.store import Store
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        Store.open(path)
        print("opened")
    except CoreAgentError as error:
        print(error.slug)
"""


def test_permissions_of_the_file_and_of_the_directory() -> None:
    # Not under tmp_path: another user could not even look into that.
    import tempfile

    root = Path(tempfile.mkdtemp(prefix="ca-store-"))
    try:
        root.chmod(0o755)
        secret, closed = root / "a" / "db.duckdb", root / "b" / "db.duckdb"
        for place in (secret, closed):
            fill(str(place), 1)
            place.parent.chmod(0o755)
        secret.chmod(0o000)
        closed.chmod(0o666)
        closed.parent.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(secret), str(closed)], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.split() == ["store_unopenable"] * 2, done.stderr
    finally:
        closed.parent.chmod(0o755)
        shutil.rmtree(root)


FULL_DISK = """
import resource, sys, asyncio
sys.path.insert(0, {root!r})
from tests.unit.test_store_damage import dispatch
from coreagent.errors import CoreAgentError
from coreagent.store.store import Store
from coreagent.store.change import SaveDispatch
store = Store.open(sys.argv[1], copy_every_s=0)
store.commit_now(SaveDispatch(dispatch(0)))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
saved, refused = 1, []
for i in range(1, 1000):
    try:
        store.commit_now(SaveDispatch(dispatch(i)))
        assert not refused
        saved += 1
    except CoreAgentError as error:
        refused.append(error.slug)
        if len(refused) == 3: break
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
store.commit_now(SaveDispatch(dispatch(5000)))
print(saved, *refused, len(store.load().dispatches))
store.close()
"""


def test_a_write_that_fails_is_told_and_the_store_goes_on_when_it_can(path: str) -> None:
    """A file size limit stands for the full disk: the same calls fail, and no mount is needed."""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK.format(root=root), path], capture_output=True, text=True, timeout=60
    )
    assert done.stdout, done.stderr
    saved, *refused, count = done.stdout.split()
    assert refused == ["store_write_failed"] * 3, (done.stdout, done.stderr)
    assert int(count) == int(saved) + 1
    assert len(names(path)) == int(count)


@pytest.mark.skipif(
    sys.platform != "linux"
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs user namespaces for a small tmpfs",
)
def test_a_full_disk(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    code = FULL_DISK.format(root=root)
    code = code.replace("resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))", FILL).replace(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))", "__import__('os').unlink(filler)"
    )
    script = 'mount -t tmpfs -o size=3m none "$1" && shift && exec "$@"'
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            script,
            "sh",
            str(tmp_path),
            sys.executable,
            "-c",
            code,
            f"{tmp_path}/db.duckdb",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout, done.stderr
    saved, *refused, count = done.stdout.split()
    assert refused == ["no_space"] * 3, (done.stdout, done.stderr)
    assert int(count) == int(saved) + 1


FILL = """
filler = sys.argv[1] + ".filler"
import os
fd = os.open(filler, os.O_CREAT | os.O_WRONLY)
left = os.statvfs(sys.argv[1]).f_bavail * 4096 - 200_000
os.write(fd, bytes(left))
os.close(fd)
"""


def test_commit_and_repair_do_not_touch_foreign_files(path: str) -> None:
    Path(path).parent.joinpath("notes.bak").write_text("mine")
    fill(path, 1)
    Path(path).write_bytes(b"")
    repair(path)
    assert Path(path).parent.joinpath("notes.bak").read_text() == "mine"


def test_salvage_takes_newer_rows_than_the_copy(path: str) -> None:
    store = fill(path, 3, close=False)
    store.backup()
    store.commit_now(SaveRepo(Repo(org="a", name="b", path="/p", added_at=NOW)), SaveDispatch(dispatch(3)))
    store.commit_now(SaveDispatch(dispatch(0).model_copy(update={"task": "changed"})))
    store.close()
    os.truncate(path + ".mark", 0)
    store_id = open_id(path)
    Path(path + ".mark").write_text(f"{store_id} {99:020d}\n")  # one log too few: confirmed rows are missing
    report = repair(path)
    assert report.salvaged["dispatches"] == 2 and report.salvaged["repos"] == 1 and report.unreadable == []
    store = Store.open(path, copy_every_s=0)
    assert asyncio.run(store.query("SELECT task FROM dispatches WHERE name = 't0'")) == [{"task": "changed"}]
    store.close()


def open_id(path: str) -> str:
    store = Store.open(path, copy_every_s=0)
    found = str(asyncio.run(store.query("SELECT id FROM store"))[0]["id"])
    store.close()
    return found
