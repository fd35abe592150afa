"""What the shim asks of the kernel, in every way that a Python may have to ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coreagent import shim_agent

SOURCE = str(Path(shim_agent.__file__).parents[1])
ASK = f"""
import sys
sys.path.insert(0, {SOURCE!r})
LACKING
from coreagent.shim_agent import PR_SET_CHILD_SUBREAPER, PR_SET_NAME, PR_SET_PDEATHSIG, prctl
asked = (prctl(PR_SET_CHILD_SUBREAPER, 1), prctl(PR_SET_NAME, b"core-shim"), prctl(PR_SET_PDEATHSIG, 9), prctl(9999, 0))
loaded = "ctypes" in sys.modules
import ctypes
reaper, signal = ctypes.c_int(), ctypes.c_int()
ctypes.CDLL(None).prctl(37, ctypes.byref(reaper), 0, 0, 0)
ctypes.CDLL(None).prctl(2, ctypes.byref(signal), 0, 0, 0)
print(*asked, loaded, reaper.value, signal.value, open("/proc/self/comm").read().strip())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no prctl")
@pytest.mark.parametrize(
    ("lacking", "loaded"),
    [
        ("", False),
        ("import _ctypes; del _ctypes.call_function", True),
        ("import _ctypes; del _ctypes.dlsym", True),
        ("import _ctypes; _ctypes.call_function = lambda address: 0", True),
    ],
)
def test_each_way_sets_the_same(lacking: str, loaded: bool) -> None:
    code = ASK.replace("LACKING", lacking)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True", "False", str(loaded), "1", "9", "core-shim"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no prctl")
def test_a_python_without_any_way_goes_on() -> None:
    code = (
        f"import sys; sys.path.insert(0, {SOURCE!r}); sys.modules.update(_ctypes=None, ctypes=None)\n"
        "from coreagent import shim_loop; print(shim_loop.prctl(36, 1))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_elsewhere_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for way in ("_prctl_quickly", "_prctl_by_ctypes"):
        monkeypatch.setattr(shim_agent, way, lambda *_: pytest.fail("asked"))
    assert shim_agent.prctl(36, 1) is False
