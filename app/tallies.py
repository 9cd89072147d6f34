"""The folder in which the processes of one role keep their numbers for Prometheus.

It is given to the role when it starts and taken away by the next role to start here once nobody holds it any more:
a role that is killed cannot tidy up after itself.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "darkroom-metrics-"


def folder() -> str:
    """A new folder of this process and those it forks, held until the last of them is gone."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_unless_held(left)
    while True:
        made = tempfile.mkdtemp(prefix=_PREFIX)
        with suppress(OSError):
            _take(made)
            # Another role that starts just now may have found it unheld, and taken it away.
            if Path(made).exists():
                return made


def is_own(path: Path) -> bool:
    """Whether it is a folder of one role alone, made here."""
    return path.name.startswith(_PREFIX)


def _remove_unless_held(left: Path) -> None:
    try:
        held = _take(left)
    except OSError:
        # Somebody's: still held, another user's, or just taken away by another role.
        return
    shutil.rmtree(left, ignore_errors=True)
    os.close(held)


def _take(path: Path | str) -> int:
    """A descriptor that holds the folder; an OSError where another one does."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        raise
    return opened
