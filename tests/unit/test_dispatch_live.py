"""Reading along: every line is parsed once, whoever reads at the same time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from coreagent.dispatch.live import OutputReader
from coreagent.runners import load


def test_two_reads_at_once_parse_every_line_once(tmp_path: Path) -> None:
    lines = 20_000
    line = json.dumps({"type": "text", "text": "x"}) + "\n"
    (tmp_path / "out").write_text(line * lines)
    parser = load("command").parser()
    reader = OutputReader(tmp_path / "out", parser)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: reader.read(final=True), range(8)))
    assert parser.outcome.events == lines
