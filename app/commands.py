"""The client's commands: what a person or a script asks of a deployment, here or far away."""

import functools
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import click

from app import settings
from app.client import PAUSE, Client
from app.console import CANCELED, DONE, FAILED, Group, Output, answering, answers, json_option
from app.developing import Targets, develop
from app.errors import ApiError, DarkroomError

CANCEL_SECONDS = 20

Task = dict[str, Any]


def client_of_environment() -> Client:
    """A client of DARKROOM_URL; raises SettingsError."""
    known = settings.load_client()
    return Client(known.url, key=known.api_key.get_secret_value())


def asks(command: Callable[..., int]) -> Callable[..., int]:
    """A command that is called with a client too."""

    @functools.wraps(command)
    def run(output: Output, **kwargs: Any) -> int:
        client = client_of_environment()
        if settings.load_client().key_is_overheard:
            output.note("Whoever listens on the way sees your key: DARKROOM_URL begins with http://, not https://.")
        return command(client, output, **kwargs)

    return run


def _words(prompt: str) -> str:
    """The prompt itself, or with `-` what comes in on standard input; raises click's BadParameter."""
    try:
        words = sys.stdin.buffer.read().decode().strip() if prompt == "-" else prompt
    except UnicodeDecodeError:
        raise click.BadParameter("standard input is no text in UTF-8.", param_hint="PROMPT") from None
    if not words.strip():
        raise click.BadParameter("it is empty.", param_hint="PROMPT")
    return words


_picture = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_place = click.Path(dir_okay=False, path_type=Path)
_output = click.option("-o", "--output", "place", type=_place, help="Where the picture goes, a PNG.")
_force = click.option("--force", is_flag=True, help="Write over files that are there already.")


@click.command()
@click.argument("prompt")
@click.option("-i", "--input", "source", type=_picture, help="A picture to start from.")
@click.option("--mask", type=_picture, help="Where it is white the picture is painted anew.")
@_output
@_force
@click.option("-n", "--num-images", type=click.IntRange(1, 100), default=1, help="How many pictures.")
@click.option("--seed", type=int, help="The same seed gives the same picture again.")
@click.option("--model", "model_version", help="One of `darkroom models`.")
@click.option("--width", type=int, help="Pixels.")
@click.option("--height", type=int, help="Pixels.")
@click.option("--steps", "num_inference_steps", type=int, help="Denoising steps.")
@click.option("--guidance", "guidance_scale", type=float, help="How closely to follow the prompt.")
@click.option("--negative", "negative_prompt", help="What the picture must not show.")
@click.option("--strength", type=float, help="How far to leave the input picture, above 0 to 1.")
@click.option("--scheduler", help="One of those that `darkroom models` names.")
@click.option("--deadline", "deadline_seconds", type=int, help="Seconds after which nobody needs it any more.")
@click.option("--low", "priority", flag_value="low", help="Let every task go first that is not low.")
@answers
@asks
def generate(
    client: Client, output: Output, prompt: str, source: Path | None, mask: Path | None, place: Path | None,
    *, force: bool, **wishes: Any,
) -> int:  # fmt: skip
    """Make a picture and save it.

    PROMPT says what it shows; `-` reads that from standard input.
    Several pictures go to out-0.png, out-1.png and so on, or where {index} stands in the name. Ctrl-C cancels the
    task; a second one leaves at once.
    """
    if (mask or wishes["strength"] is not None) and not source:
        raise click.UsageError("--mask and --strength need --input, the picture that they are for.")
    prompt = _words(prompt)
    targets = Targets(place, prompt, force=force)
    targets.check(wishes["num_images"])
    pictures = {"input_image": _read(source), "mask_image": _read(mask)}
    asked: dict[str, Any] = {name: True for name, data in pictures.items() if data is not None}
    order = _Order(client, prompt, **asked, **{name: value for name, value in wishes.items() if value is not None})
    with _canceling(output, order):
        ticket = order.submit()
        if ticket.get("notice"):
            output.note(ticket["notice"])
        if asked:
            client.bring(ticket, **pictures)
        task = develop(client, output, ticket["task_id"])
    return _conclude(client, output, task, targets)


@click.command()
@click.argument("task_id")
@answers
@asks
def status(client: Client, output: Output, task_id: str) -> int:
    """Tell how a task is. The exit status is 0 whatever that is."""
    task = client.task(task_id)
    output.result(task, _sentence(task))
    return DONE


@click.command()
@click.argument("task_id")
@_output
@_force
@answers
@asks
def wait(client: Client, output: Output, task_id: str, place: Path | None, *, force: bool) -> int:
    """Wait for a task. With -o its pictures are saved; Ctrl-C leaves the task alone."""
    targets = Targets(place, "", force=force) if place else None
    if targets:
        targets.check(client.task(task_id)["params"]["num_images"])
    task = develop(client, output, task_id)
    return _conclude(client, output, task, targets)


@click.command()
@click.argument("task_id")
@answers
@asks
def cancel(client: Client, output: Output, task_id: str) -> int:
    """End a task. A queued one ends at once, a running one at its next step; a finished one stays as it is."""
    task = client.cancel(task_id)
    output.result(task, f"{task_id}: ends at its next step" if task["status"] == "PENDING" else _sentence(task))
    if task["status"] == "SUCCEEDED":
        output.note("It had ended before, and stays as it is.")
    return DONE


@click.command()
@click.argument("task_id")
@answers
@asks
def rerun(client: Client, output: Output, task_id: str) -> int:
    """Run a task again with the same seed. Prints the new task's id."""
    task = client.rerun(task_id)
    output.result(task, task["task_id"])
    return DONE


@click.command("list")
@click.option(
    "--status",
    type=click.Choice(["PENDING", "SUCCEEDED", "FAILED"]),
    help="PENDING wait or run, FAILED holds CANCELED.",
)
@click.option("--model", "model_version", help="Only this model's.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many at most.")
@answers
@asks
def list_tasks(client: Client, output: Output, limit: int, **filters: str | None) -> int:
    """List your tasks, newest first."""
    found = client.tasks(limit=min(limit, 100), **filters)
    tasks = list(islice(found, limit))
    rows = [[t["task_id"], t["created_at"], _word(t), t["model_version"], str(t["seed"])] for t in tasks]
    output.table({"tasks": tasks}, ["task", "made", "stands", "model", "seed"], rows)
    return DONE


_ON_THIS_MACHINE = {"list": "app.models.commands:list_models", "prefetch": "app.models.commands:prefetch"}


@click.group("models", cls=Group, elsewhere=_ON_THIS_MACHINE, invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, *, as_json: bool) -> None:
    """List the deployment's models. `list` and `prefetch` look at this machine's."""
    if context.invoked_subcommand is None:
        _list_models(as_json=as_json)


@answering
@asks
def _list_models(client: Client, output: Output) -> int:
    found = client.models()
    columns = ["model", "status", "workers", "does", "size", "queued", "takes"]
    output.table({"models": found}, columns, [_row(model) for model in found])
    return DONE


def _row(model: dict[str, Any]) -> list[str]:
    able, workers = ", ".join(model["capabilities"]), str(len(model["on_workers"]))
    waiting = str(model["queue_depth"])
    return [model["model_version"], model["status"], workers, able, _size(model), waiting, _typical(model)]


def _typical(model: dict[str, Any]) -> str:
    seconds = model["typical_seconds"]
    return "" if seconds is None else f"{seconds:g} s"


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise DarkroomError(f"{path} cannot be read: {error.strerror}.") from error


class _Order:
    """One request under a key of its own: however often it is sent, it is one task."""

    def __init__(self, client: Client, prompt: str, **wishes: Any) -> None:
        self._client = client
        self._wishes = {"prompt": prompt, "idempotency_key": uuid.uuid4().hex, **wishes}
        self.task_id = ""

    def submit(self) -> Task:
        """Send it; the task document."""
        ticket = self._client.submit(**self._wishes)
        self.task_id = ticket["task_id"]
        return ticket

    def cancel(self, seconds: float) -> Task:
        """End its task and wait for that; the document. An answer that never came is asked for once more."""
        until = time.monotonic() + seconds
        while not self.task_id:
            self._submit_again(until)
        self._client.cancel(self.task_id)
        return self._client.wait(self.task_id, until - time.monotonic())

    def _submit_again(self, until: float) -> None:
        try:
            self.submit()
        except ApiError as error:
            # The first one may still be on its way.
            seconds = error.retry_after or PAUSE
            if not (error.is_passing or error.status == 409) or time.monotonic() + seconds > until:
                raise
            time.sleep(seconds)


@contextmanager
def _canceling(output: Output, order: _Order) -> Iterator[None]:
    """Ctrl-C cancels the task and waits for that; another one does not wait."""
    try:
        yield
    except KeyboardInterrupt:
        output.note(f"Canceling {order.task_id or 'it'}; Ctrl-C again leaves at once.")
        try:
            task = order.cancel(CANCEL_SECONDS)
        except ApiError as error:
            output.note(f"darkroom: {error} Nothing says that it was canceled; `darkroom list` shows what goes on.")
            raise KeyboardInterrupt from error
        output.note(_sentence(task))
        if output.as_json:
            output.result(task)
        raise


def _conclude(client: Client, output: Output, task: Task, targets: Targets | None) -> int:
    """Save the pictures, tell the end, and give its exit status."""
    if task["status"] != "SUCCEEDED":
        output.note(f"darkroom: {_sentence(task)}")
        if output.as_json:
            output.result(task)
        return CANCELED if task["error"]["code"] == "canceled" else FAILED
    files = [str(path) for path in targets.save(client, task)] if targets else []
    output.note(_sentence(task))
    output.result({**task, "files": files}, "\n".join(files) or task["task_id"])
    return DONE


def _sentence(task: Task) -> str:
    about = f"{task['task_id']}: {_word(task)}"
    if task["error"]:
        return f"{about}: {task['error']['message']} ({task['error']['code']})"
    done = task["status"] == "SUCCEEDED"
    return f"{about}, seed {task['seed']}, {task['model_version']}" if done else f"{about}{_outlook(task)}"


def _outlook(task: Task) -> str:
    ahead = f", {task['queue_position']} before it" if task["queue_position"] is not None else ""
    return f"{ahead}, about {task['eta_seconds']:g} s to go" if task["eta_seconds"] else ahead


def _word(task: Task) -> str:
    if task["status"] == "PENDING":
        return str(task["phase"])
    return "CANCELED" if (task["error"] or {}).get("code") == "canceled" else str(task["status"])


def _size(model: Task) -> str:
    return f"{model['defaults']['width']}x{model['defaults']['height']}"
