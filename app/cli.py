"""The command line: one command a role, and `up`, which runs all of them on this machine."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import click

from app import __version__
from app import settings as settings_module
from app.errors import DarkroomError
from app.models.commands import models

CONFIG = Path(__file__).parents[1] / "config"


def _told(command: Callable[..., int]) -> Callable[..., None]:
    """An error that we know is one sentence on standard error and status 1, never a traceback."""

    @wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            sys.exit(command(*args, **kwargs))
        except DarkroomError as error:
            click.echo(f"darkroom: {error}", err=True)
            sys.exit(1)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="darkroom")
def main() -> None:
    """Darkroom: push-and-forget image generation. Settings come from the environment: see config/README.md."""


main.add_command(models)


@main.command()
@_told
def web() -> int:
    """Serve the HTTP API on WEB_BIND."""
    # Deferred: a client command needs neither.
    from app import callers, telemetry

    loaded = settings_module.load()
    callers.check_door(loaded)
    telemetry.setup(loaded, "web")
    callers.greet(loaded)
    # gunicorn takes this process over, so that signals reach it without us between.
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", str(CONFIG / "gunicorn.conf.py")])


@main.command()
@_told
def worker() -> int:
    """Run jobs of one queue, one at a time, on one device."""
    # Before Celery is imported: SIGTERM gives the running job its grace, then hands it back.
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    from app import worker as role

    return role.main(settings_module.load())


@main.command()
@_told
def courier() -> int:
    """Sweep: find jobs that nobody looks after and move them on."""
    from app import courier as role

    return role.main(settings_module.load())


@main.command()
def settings() -> None:
    """Print the table of settings."""
    click.echo(settings_module.table(), nl=False)


@main.command()
@click.option("--prompt", default="a red circle on a blue background", show_default=True, help="The first picture.")
@click.option("--once", is_flag=True, help="Stop after the first picture.")
@_told
def up(prompt: str, once: bool) -> int:
    """Run everything on this machine, make one picture, and go on serving until Ctrl-C."""
    from app import up as stack

    return stack.main(prompt, once=once)
