"""A sign of life for whoever restarts us: a file that is touched while the work goes on (`ALIVE_FILE`).

Only of this process, never of Redis or the broker: an outage there must not have every worker restarted.
"""

from contextlib import suppress
from pathlib import Path

from app.settings import Settings


def beat(settings: Settings) -> None:
    """The work goes on. A file that cannot be touched says the opposite, and so stops nothing here."""
    if settings.alive_file:
        with suppress(OSError):
            Path(settings.alive_file).touch()
