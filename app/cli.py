"""The command line: one command a role, `up`, which runs all of them on this machine, and the client's commands."""

import os
import sys

import click

from app import __version__, tallies
from app import settings as settings_module
from app.console import DONE, Group, Output, answers, told

_EPILOG = """\b
Exit status: 0 done, 1 refused or not reachable, 2 wrong usage, 3 the task FAILED, 4 it was canceled, 130 Ctrl-C.
DARKROOM_URL (default http://127.0.0.1:8000) and DARKROOM_API_KEY say which deployment the client commands ask."""

_ELSEWHERE = {
    **{name: f"app.commands:{name}" for name in ("generate", "status", "wait", "cancel", "rerun", "models")},
    "list": "app.commands:list_tasks",
    "doctor": "app.doctor:doctor",
    "keys": "app.keys:keys",
    "quarantine": "app.operating:quarantine",
}


@click.group(cls=Group, elsewhere=_ELSEWHERE, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(__version__, prog_name="darkroom")
def main() -> None:
    """Darkroom: push-and-forget image generation. Settings come from the environment: see config/README.md."""


@main.command()
@told
def web() -> int:
    """Serve the HTTP API on WEB_BIND."""
    _observe()
    # Deferred: a client's command needs none of them.
    from gunicorn.app.wsgiapp import WSGIApplication

    from app import callers, telemetry
    from app.models import load_catalogue

    loaded = settings_module.load()
    callers.check_door(loaded)
    # What is wrong in it is told here, and not by gunicorn's processes one after the other.
    load_catalogue(loaded.models_file, loaded.default_model_version)
    telemetry.logs(loaded, "web")
    callers.greet(loaded)
    # In this process, so that signals reach it without us between, and its children find imported what is by now.
    sys.argv = ["gunicorn", "-c", str(settings_module.CONFIG / "gunicorn.conf.py")]
    WSGIApplication(prog="gunicorn").run()
    return DONE


@main.command()
@told
def worker() -> int:
    """Run jobs of one queue, one at a time, on one device."""
    # The child's threads wait asleep: spinning, two of them take twenty times as long on cores that are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # It advises while it is imported, past all logging.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _observe()
    from app import worker as role

    return role.main(settings_module.load())


@main.command()
@told
def courier() -> int:
    """Move lost jobs on and deliver webhooks."""
    _observe()
    from app import courier as role

    return role.main(settings_module.load())


def _observe() -> None:
    """What prometheus_client and OpenTelemetry read when they are imported: so before anything that counts is."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tallies.folder()
    # Attributes by the conventions that are stable now, not by the libraries' older default.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")


@main.command()
@answers
def settings(output: Output) -> int:
    """Print the table of settings."""
    output.result({"settings": settings_module.rows()}, settings_module.table())
    return DONE


@main.command()
@click.option("--prompt", default="a yellow star on a green background", show_default=True, help="The first picture.")
@click.option("--once", is_flag=True, help="Stop after the first picture.")
@told
def up(prompt: str, once: bool) -> int:
    """Run everything on this machine. Makes one picture, and goes on serving until Ctrl-C."""
    from app import up as stack

    return stack.main(prompt, once=once)
