"""`python -m app web|worker|courier|up`: one command a role."""

import os
import signal

if __name__ == "__main__":
    # A container's first process is not ended by a signal that it says nothing of: a stop while all is imported would
    # be lost, and the worker killed later with a job in hand. Whatever runs says itself how it stops.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    # Not at the top: a worker's child reads this file too, and needs none of the commands.
    try:
        from app.cli import main
    except KeyboardInterrupt:
        os._exit(130)

    main()
