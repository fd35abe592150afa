"""The set-up script: readable by an old Python, and careful about what it downloads."""

from __future__ import annotations

import ast
import functools
import http.server
import importlib.machinery
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("setup_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("setup_script", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An index on loopback that offers whatever lies in the returned folder."""
    folder = tmp_path / "simple" / "pip"
    folder.mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple/")
    monkeypatch.delenv("PIP_CERT", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_old_python_can_read_it_and_be_told() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def test_the_pinned_wheel_is_taken_and_another_one_refused(
    setup: ModuleType, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (index / setup.PIP_WHEEL).write_bytes(b"not pip")
    with pytest.raises(ValueError, match="pinned"):
        setup.fetch_pip(str(tmp_path))
    monkeypatch.setattr(setup, "PIP_SHA256", setup.hashlib.sha256(b"not pip").hexdigest())
    assert Path(setup.fetch_pip(str(tmp_path))).read_bytes() == b"not pip"


def test_an_index_without_it_is_named(setup: ModuleType, index: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not offer"):
        setup.fetch_pip(str(tmp_path))


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("nonsense", 2)])
def test_usage(argument: str, code: int) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), argument], capture_output=True, text=True)
    assert done.returncode == code
    assert "scripts/setup [demo|test|dev]" in done.stdout
