"""What an agent says reaches who waits for it, also while its output moves from the spool to its workspace."""

from __future__ import annotations

from tests.support.home import Home
from tests.support.world import World

RUNS = 10
SAYS = "for i in 1 2 3 4 5; do echo said line $i; sleep 0.1; done; printf 'said the end'"


def test_a_piped_wait_shows_every_line(home: Home) -> None:
    world = World(home, settings=f'  five: {{argv: [/bin/sh, -c, "{SAYS}"]}}\n')
    for _ in range(RUNS):
        done = home.run("dispatch", "say it", "--agent", "command:five", "--wait", cwd=world.repo)
        lines = done.out.splitlines()
        verdict = next(i for i, line in enumerate(lines) if " completed" in line)  # what follows quotes the last line
        told = [line.strip() for line in lines[:verdict] if "said" in line]
        assert told == [*(f"said line {i}" for i in range(1, 6)), "said the end"], done.out


def test_what_is_piped_is_never_wrapped(home: Home) -> None:
    said = " ".join(f"word{n}" for n in range(100))
    world = World(home, settings=f'  long_line: {{argv: [/bin/sh, -c, "echo {said}"]}}\n')
    waited = home.run("dispatch", "say it", "--name", "x", "--agent", "command:long_line", "--wait", cwd=world.repo)
    for out in (waited.out, home.run("logs", "x").out, home.run("logs", "-f", "x").out):
        assert said in out.splitlines()
