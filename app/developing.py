"""Watching a task from the command line, and the files that its pictures go to."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from app.client import Client
from app.console import Output
from app.errors import DarkroomError


def develop(client: Client, output: Output, task_id: str) -> dict[str, Any]:
    """Show how the task goes until it is done; its last document."""
    terminal = output.progress.is_terminal
    task: dict[str, Any] = {}
    with progress(output.progress, transient=True, disable=not terminal) as bars:
        bar = bars.add_task("Waiting", total=1.0)
        for event in client.events(task_id):
            if event.kind == "status":
                task = event.data
                bars.update(bar, description=describe(task))
                if not terminal:
                    output.note(f"{task_id} {task['phase']}")
            elif event.kind == "progress":
                bars.update(bar, completed=event.data["step"] / (event.data["steps"] or 1))
    return task


def progress(console: Console, **options: Any) -> Progress:
    """A bar: what is done, how far it is, for how long."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, **options)


def describe(task: dict[str, Any]) -> str:
    """How a task stands, in a few words."""
    word = str(task["phase"]).capitalize().replace("_", " ")
    return f"{word}, {task['queue_position']} before it" if task["queue_position"] else word


def words_of(prompt: str) -> str:
    """A prompt, or what a service calls a task, as a part of a file's name: without what leads elsewhere."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"


# What a name must not promise.
_OTHERS = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


class Targets:
    """The files for a task's pictures. Without a place they are named for the prompt and the task, and so are new."""

    def __init__(self, place: Path | None, prompt: str, *, force: bool) -> None:
        self._place = place
        self._words = words_of(prompt)
        self._force = force

    def check(self, count: int) -> None:
        """Before anything is asked for; raises DarkroomError when a file cannot be written, or is named as no PNG."""
        if self._place == Path("-"):
            raise DarkroomError("Pictures go to files: -o picture.png.")
        if self._place and self._place.suffix.lower() in _OTHERS:
            raise DarkroomError(f"{self._place}: pictures are PNG; end the name in .png.")
        for path in self.paths(count, "0" * 8):
            if path.exists() and not self._force:
                raise _taken(path)
            folder = next(folder for folder in path.absolute().parents if folder.exists())
            if not os.access(folder, os.W_OK):
                raise DarkroomError(f"{path} cannot be written: {folder} lets you write nothing.")

    def save(self, client: Client, task: dict[str, Any]) -> list[Path]:
        """Write every picture; raises ApiError, and DarkroomError for a file that cannot be written."""
        paths = self.paths(len(task["images"]), words_of(task["task_id"][:8]))
        for index, path in enumerate(paths):
            with _told(path, task["task_id"]):
                client.save(task["task_id"], path, index, overwrite=self._force)
        return paths

    def paths(self, count: int, mark: str) -> list[Path]:
        """Where each of `count` pictures goes."""
        place = self._place or Path(f"{self._words}-{mark}.png")
        if "{index}" in place.name:
            return [place.with_name(place.name.replace("{index}", str(index))) for index in range(count)]
        if count == 1:
            return [place]
        return [place.with_name(f"{place.stem}-{index}{place.suffix}") for index in range(count)]


@contextmanager
def _told(path: Path, task_id: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        again = f"`darkroom wait {task_id} -o FILE` saves it elsewhere"
        raise DarkroomError(f"{path} cannot be written: {error.strerror}. The picture is kept: {again}.") from error


def _taken(path: Path) -> DarkroomError:
    return DarkroomError(f"{path} is there already: --force writes over it.")
