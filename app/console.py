"""What every command has in common: its result on standard output, all else on standard error, its exit status."""

import functools
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from app.errors import ApiError, DarkroomError

# Exit statuses; 2 is click's, for a wrong command line.
DONE, REFUSED, FAILED, CANCELED, INTERRUPTED = 0, 1, 3, 4, 130

# Lines are not folded where nobody sees them: they are read by programs.
_WIDE = 250


def plain(text: str) -> str:
    """Without what commands a terminal: a service's own words are a stranger's."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


class Output:
    """Where a command writes. With `as_json` standard output holds one JSON document and nothing else."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.progress = Console(stderr=True, highlight=False, markup=False)

    def result(self, document: Any, text: str = "") -> None:
        """The command's answer, for programs and for people."""
        click.echo(json.dumps(document, indent=2, ensure_ascii=False) if self.as_json else plain(text))

    def table(self, document: Any, columns: list[str], rows: list[list[str]]) -> None:
        """The same, where people want to see rows."""
        if self.as_json:
            self.result(document)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(plain, row))
        if not rows:
            self.note("There are none.")
        Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False, markup=False).print(table)

    def note(self, text: str) -> None:
        """A sentence beside the result."""
        click.echo(plain(text), err=True)

    def refusal(self, error: DarkroomError) -> None:
        """Why there is no result: one sentence, and for programs the service's problem document."""
        if self.as_json:
            problem = error.problem if isinstance(error, ApiError) else {}
            self.result(problem or {"title": "Refused", "detail": str(error)})
        self.note(f"darkroom: {error}{advice(error)}")


def advice(error: DarkroomError) -> str:
    """What to do about it, as a sentence to add; empty where nothing is known."""
    if not isinstance(error, ApiError):
        return ""
    if error.problem.get("code") == "no_worker":
        return " `darkroom models` shows what is served."
    if error.retry_after:
        return f" Try again in {error.retry_after:g} s."
    known = {0: " DARKROOM_URL says where to look.", 401: " DARKROOM_API_KEY must hold one of its keys."}
    return known.get(error.status, "")


def told(command: Callable[..., int]) -> Callable[..., None]:
    """A known error is one sentence on standard error and status 1, never a traceback; Ctrl-C is 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            sys.exit(command(*args, **kwargs))
        except DarkroomError as error:
            Output(as_json=bool(kwargs.get("as_json"))).refusal(error)
            sys.exit(REFUSED)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except ModuleNotFoundError as error:
            # `pip install .` brings what a client needs.
            missing = DarkroomError(
                f"This needs {error.name}: run it in a checkout, where script/bootstrap installs that."
            )
            Output(as_json=bool(kwargs.get("as_json"))).refusal(missing)
            sys.exit(REFUSED)

    return run


class Group(click.Group):
    """Imports a command when it is asked for (`elsewhere`: name to module:attribute): the packages of all of them take
    longer to import than what most of them do.
    """

    def __init__(self, *args: Any, elsewhere: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._elsewhere = elsewhere

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._elsewhere})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._elsewhere:
            module, _, attribute = self._elsewhere[cmd_name].partition(":")
            found: click.Command = getattr(importlib.import_module(module), attribute)
            return found
        return super().get_command(ctx, cmd_name)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document, progress on stderr.")


def answering(command: Callable[..., int]) -> Callable[..., None]:
    """A command that is called with an Output."""

    @told
    @functools.wraps(command)
    def run(*, as_json: bool, **kwargs: Any) -> int:
        return command(Output(as_json=as_json), **kwargs)

    return run


def answers(command: Callable[..., int]) -> Callable[..., None]:
    """The same, which takes `--json`."""
    return json_option(answering(command))
