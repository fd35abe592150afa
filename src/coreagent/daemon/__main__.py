"""`python -m coreagent.daemon`: what `launch` and an older daemon execute."""

from coreagent.daemon.main import main

main()
