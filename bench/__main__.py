"""`python -m bench [--quick] [--pairs N] [--only ROW] [--json FILE]`; also `task bench -- --quick`.

Prints a table and writes it as JSON. A time never fails it; only a row that could not be measured does.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bench import fixture, limits, standing, start, terminal, throughput
from bench.measure import PAIRS_MIN, Row, lines, write
from coreagent.paths import VERSION


def rows(pairs: int, *, quick: bool) -> dict[str, Callable[[], Row]]:
    """Every row by the name that --only takes."""
    return {
        "status": lambda: terminal.status(pairs),
        "mcp": lambda: terminal.mcp(pairs),
        "large": lambda: start.large(pairs),
        "warm": lambda: start.warm(pairs),
        "small": lambda: start.small(pairs),
        "lanes": lambda: throughput.lanes(pairs, quick=quick),
        "slot": lambda: start.slot(pairs),
        "queue": lambda: limits.queue(pairs),
        "claim": lambda: limits.decision(pairs),
        "sixteen": lambda: limits.sixteen(pairs),
        "restart": lambda: standing.restart(pairs),
        "idle": lambda: standing.idle(10 if quick else 60),
    }


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    pairs = options.pairs or (3 if options.quick else PAIRS_MIN)
    chosen = rows(pairs, quick=options.quick)
    unknown = sorted(set(options.only) - set(chosen))
    if unknown:
        print(f"there is no row {unknown[0]!r}; there are: {', '.join(chosen)}", file=sys.stderr)
        return 2
    measured, failed, began = [], [], time.monotonic()
    for name, run in chosen.items():
        if options.only and name not in options.only:
            continue
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            measured.append(run())
        except Exception:
            failed.append(name)
            traceback.print_exc()
    print("\n".join(lines(measured)))
    target = Path(options.json) if options.json else fixture.root() / "last.json"
    write(target, measured, {**about(), "quick": options.quick, "took_s": time.monotonic() - began, "failed": failed})
    print(f"\n{time.monotonic() - began:.0f} s; figures: {target}")
    return 1 if failed else 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure core-agent against its floors.")
    parser.add_argument("--quick", action="store_true", help="three pairs instead of nine; under two minutes")
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help="pairs per row")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="measure this row; may be repeated")
    parser.add_argument("--json", default="", metavar="FILE", help="where the figures go")
    return parser.parse_args(argv)


def about() -> dict[str, object]:
    """The machine, as far as it explains the figures."""
    said = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True)
    return {
        "version": VERSION,
        "python": platform.python_version(),
        "git": said.stdout.split()[-1],
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
