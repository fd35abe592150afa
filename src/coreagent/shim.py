"""The process that owns one attempt of an agent, and outlives the daemon that started it: its entry.

Run as `python -I -S shim.py <attempt dir>`, or as `shim.py --nursery <home>` to be the process that shims are forked
from. The rest is in shim_loop.py and its ground-floor neighbours, because a script is compiled at every start and a
module is not. Standard library only, and all of it imported before the agent starts, so that an upgrade of the package
under a living shim changes nothing in it.
"""

import sys

if __name__ == "__main__":
    # -I -S leave the standard library alone on the path; ours goes behind it, so that it can shadow nothing.
    sys.path.append(__file__.rpartition("/coreagent/")[0])
    import os

    from coreagent.shim_loop import main

    place = sys.argv[1]
    if place == "--nursery":
        from coreagent.shim_nursery import nurse

        place = nurse(0)
    # Nothing is left to be flushed, and taking an interpreter apart would cost a millisecond.
    os._exit(main(place) if place else 0)
