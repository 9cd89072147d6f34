"""A small client of the public HTTP API: submit, upload, watch, wait, download.

    client = Client("https://darkroom.example", key="dk_…")
    ticket = client.generate("a red star over the sea", num_images=2)
    task = client.wait(ticket["task_id"], seconds=60)
    client.save(task["task_id"], Path("star.png"))

Documents are dictionaries as /openapi.json describes them.
"""

import gc
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import requests
import urllib3

from app import __version__
from app.errors import ApiError
from app.loopback import is_loopback

T = TypeVar("T")

__all__ = ["ApiError", "Client", "Event", "write"]

# The longest wait of one request, in seconds: below the service's own limit and that of common proxies.
WAIT = 30
# The service says something at least every five seconds while it sends events.
SILENCE = 20
# A preview is an event of some kilobytes.
LONGEST_LINE = 10_000_000
PAUSE = 1.0
# Seconds without a word for which a service that restarts is waited for.
PATIENCE = 60


@dataclass(frozen=True)
class Event:
    """One of a task's events: `status` with the task document, `progress` with step and steps, or `preview`."""

    kind: str
    data: dict[str, Any]
    id: str = ""

    @property
    def is_last(self) -> bool:
        return self.kind == "status" and self.data["status"] != "PENDING"


class Client:
    """Speaks to one deployment. Every method raises ApiError. `timeout` is in seconds, for each answer.

    Raises ValueError for a key that fits into no header.
    """

    def __init__(self, url: str, timeout: float = 10, key: str = "") -> None:
        if not re.fullmatch("[!-~]*", key):
            raise ValueError("The key holds what no key holds, a space or a line's end perhaps.")
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._key = key
        self._session = requests.Session()
        # No proxy leads to this machine.
        self._session.trust_env = not is_loopback(urlsplit(url).hostname or "")
        self._session.headers["User-Agent"] = f"darkroom/{__version__}"

    def close(self) -> None:
        """Let go of the connection, for which a service that stops would wait."""
        self._session.close()
        # urllib3 ends a connection with the last reference to its pool, which a failure's traceback may hold.
        gc.collect()

    def generate(
        self, prompt: str, input_image: bytes | None = None, mask_image: bytes | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Submit a prompt, and bring its input picture and its mask if there are any; the task document."""
        if mask_image is not None:
            parameters["mask_image"] = True
        task = self.submit(prompt, input_image=input_image is not None, **parameters)
        return task if input_image is None and mask_image is None else self.bring(task, input_image, mask_image)

    def submit(self, prompt: str, idempotency_key: str = "", **parameters: Any) -> dict[str, Any]:
        """Submit a prompt; the task document, with `upload_url` when `input_image=True` is among the parameters.

        The same request with the same `idempotency_key` is one task, however often it is sent.
        """
        wishes = {"prompt": prompt, **parameters}
        return self._json("POST", "/generate", json=wishes, headers=_named(idempotency_key))

    def bring(
        self, ticket: dict[str, Any], input_image: bytes | None = None, mask_image: bytes | None = None
    ) -> dict[str, Any]:
        """Upload what a submitted task waits for, and start it; the task document.

        Where a picture cannot be brought the task is canceled.
        """
        try:
            for name, data in (("upload_url", input_image), ("mask_upload_url", mask_image)):
                if data is not None:
                    self.upload(ticket, data, name)
        except ApiError:
            # It would count as unfinished until its upload's time is over; then it goes by itself.
            with suppress(ApiError):
                self._patiently(lambda: self.cancel(ticket["task_id"]), time.monotonic() + SILENCE)
            raise
        return self._patiently(lambda: self.start(ticket["task_id"]))

    def upload(self, ticket: dict[str, Any], data: bytes, name: str = "upload_url") -> None:
        """PUT a picture to the signed URL that the ticket holds under this name."""
        if len(data) > (most := ticket["upload_max_bytes"]):
            raise ApiError(f"The picture has {len(data)} bytes; this deployment takes {most}.", status=413)
        # Not by _call: the signed URL says all, and the key is not for the bucket.
        self._send(ticket["upload_method"], ticket[name], data=data, headers=ticket["upload_headers"])

    def start(self, task_id: str) -> dict[str, Any]:
        """The uploads are done: queue the task."""
        return self._json("POST", f"/tasks/{_part(task_id)}/start")

    def task(self, task_id: str, wait: float = 0) -> dict[str, Any]:
        """The task document, as soon as the task is done or after `wait` seconds."""
        return self._json("GET", f"/tasks/{_part(task_id)}", params={"wait": wait}, timeout=self._timeout + wait)

    def cancel(self, task_id: str) -> dict[str, Any]:
        """End a queued task at once, a running one at its next step; the task document as it is then."""
        return self._json("POST", f"/tasks/{_part(task_id)}/cancel")

    def rerun(self, task_id: str, idempotency_key: str = "") -> dict[str, Any]:
        """The same parameters and seed once more; the new task's document. The key is as with `submit`."""
        return self._json("POST", f"/tasks/{_part(task_id)}/rerun", headers=_named(idempotency_key))

    def delete(self, task_id: str) -> None:
        """Remove a finished task and its pictures."""
        self._call("DELETE", f"/tasks/{_part(task_id)}")

    def page(self, cursor: str | None = None, **filters: Any) -> dict[str, Any]:
        """One page of the caller's tasks, newest first: `tasks` and `next_cursor`.

        The filters are `status` and `model_version`; `limit` says how many make a page.
        """
        wanted = {"cursor": cursor, **filters}
        return self._json(
            "GET", "/tasks", "tasks", params={name: value for name, value in wanted.items() if value is not None}
        )

    def tasks(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """All of the caller's tasks that fit, newest first, asked for a page at a time."""
        page = self.page(**filters)
        yield from page["tasks"]
        while page["next_cursor"]:
            page = self.page(page["next_cursor"], **filters)
            yield from page["tasks"]

    def events(self, task_id: str, patience: float = PATIENCE) -> Iterator[Event]:
        """What happens to the task, from how it is now to its end.

        A stream that breaks is opened again, for at most `patience` seconds without a word from the service.
        """
        last, until = "", time.monotonic() + patience

        def hear() -> None:
            nonlocal until
            until = time.monotonic() + patience

        while True:
            try:
                for event in self._stream(task_id, last, hear):
                    last = event.id
                    yield event
                    if event.is_last:
                        return
            except ApiError as error:
                self._pause(error, until)

    def follow(self, task_id: str, pause: float = 0.1) -> Iterator[dict[str, Any]]:
        """The task document again and again, `pause` seconds apart, until the task is done."""
        while True:
            task = self._task(task_id, 0, time.monotonic() + PATIENCE)
            yield task
            if task["status"] != "PENDING":
                return
            time.sleep(pause)

    def wait(self, task_id: str, seconds: float) -> dict[str, Any]:
        """The document of the finished task; raises ApiError when it is not done within `seconds`."""
        until = time.monotonic() + seconds
        while True:
            asked = time.monotonic()
            task = self._task(task_id, WAIT, until)
            if task["status"] != "PENDING":
                return task
            if time.monotonic() >= until:
                raise ApiError(f"Task {task_id} is not done after {seconds:g} s.")
            # A service where too many wait already answers at once.
            time.sleep(max(min(asked + PAUSE, until) - time.monotonic(), 0))

    def image(self, task_id: str, index: int = 0) -> bytes:
        """The picture, as PNG. What passes is waited for, for up to a minute: the picture is there already."""
        return self._patiently(lambda: self._call("GET", f"/tasks/{_part(task_id)}/images/{index}").content)

    def save(self, task_id: str, path: Path, index: int = 0, *, overwrite: bool = True) -> Path:
        """Write the picture to a file, whole or not at all; raises OSError, FileExistsError without `overwrite`."""
        write(path, self.image(task_id, index), overwrite=overwrite)
        return path

    def models(self) -> list[dict[str, Any]]:
        """Every model that the deployment offers, the default first."""
        models: list[dict[str, Any]] = self._json("GET", "/models", "models")["models"]
        return models

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """For an operator: what was given up on, newest first."""
        page: dict[str, Any] = {"next_cursor": ""}
        while page["next_cursor"] is not None:
            page = self._json("GET", "/admin/quarantine", "entries", params={"cursor": page["next_cursor"]})
            yield from page["entries"]

    def requeue(self, entry_id: str) -> dict[str, Any]:
        """For an operator: run what is in quarantine again; `task_id` is the new task's, None for a message."""
        return self._json("POST", f"/admin/quarantine/{_part(entry_id)}/requeue")

    def drop(self, entry_id: str) -> None:
        """For an operator: take it out of quarantine for good."""
        self._call("DELETE", f"/admin/quarantine/{_part(entry_id)}")

    def version(self) -> str:
        """The deployment's version; no key is needed."""
        return str(self._json("GET", "/version", "version")["version"])

    def ready(self) -> bool:
        """Whether the web tier reaches its status store and its broker."""
        try:
            self._json("GET", "/readyz", "status")
        except ApiError:
            return False
        return True

    def _task(self, task_id: str, wait: float, until: float) -> dict[str, Any]:
        """The task document; a service that is busy, or away for a while, is asked again until then."""
        return self._patiently(lambda: self.task(task_id, max(min(wait, until - time.monotonic()), 0)), until)

    def _patiently(self, ask: Callable[[], T], until: float | None = None) -> T:
        """Ask again while what keeps the service from answering may pass, for up to a minute."""
        until = until or time.monotonic() + PATIENCE
        while True:
            try:
                return ask()
            except ApiError as error:
                self._pause(error, until)

    def _stream(self, task_id: str, last: str, hear: Callable[[], None]) -> Iterator[Event]:
        """The events of one connection; always ends with an ApiError or its reader's going.

        `hear` is called at each piece: also one that is no event says that the service is there.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        silence = (self._timeout, SILENCE)
        response = self._call("GET", f"/tasks/{_part(task_id)}/events", headers=headers, timeout=silence, stream=True)
        with closing(response):
            try:
                yield from _events(_lines(response, hear))
            except (urllib3.exceptions.HTTPError, OSError, ValueError, RecursionError) as error:
                raise self._silent(error) from error
        raise ApiError(f"{self._url} ended the events of {task_id} before its end.")

    @staticmethod
    def _pause(error: ApiError, until: float) -> None:
        """Wait as long as the service asks; raises the error when it will not pass, or not in time."""
        seconds = error.retry_after or PAUSE
        if not error.is_passing or time.monotonic() + seconds > until:
            raise error
        time.sleep(seconds)

    def _json(self, method: str, path: str, holds: str = "task_id", **options: Any) -> dict[str, Any]:
        """A document of the service's, which has a field of this name whatever its version."""
        response = self._call(method, path, **options)
        document = _document(response)
        if document is None or holds not in document:
            raise ApiError(
                f"{self._url} is no Darkroom: {method} {path} gave another document.", status=response.status_code
            )
        return document

    def _call(self, method: str, path: str, **options: Any) -> requests.Response:
        """A request to the service itself, with the key; a redirect to another host goes without."""
        return self._send(method, self._url + path, auth=self._authorize, **options)

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            response = self._session.request(method, url, **{"timeout": self._timeout, **options})
        except requests.exceptions.InvalidJSONError as error:
            raise ApiError("A number is not finite: JSON has no such ones.", status=422) from error
        except (requests.RequestException, ValueError) as error:
            # ValueError: it sends us on to what is no address.
            raise self._silent(error) from error
        if response.ok:
            return response
        problem = _document(response) or {}
        # The host alone: of a signed URL the path and what follows it let others in.
        message = problem.get("detail") or f"{method} to {urlsplit(url).netloc}: {response.status_code}"
        seconds = response.headers.get("Retry-After", "")
        retry_after = float(seconds) if re.fullmatch("[0-9]{1,6}", seconds) else None
        raise ApiError(str(message), problem, status=response.status_code, retry_after=retry_after)

    def _silent(self, error: Exception) -> ApiError:
        return ApiError(f"{self._url} does not answer ({type(error).__name__}).")


def write(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a file, whole or not at all; raises OSError, FileExistsError without `overwrite`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if overwrite and path.exists() and not path.is_file():
        # A device or a pipe: nothing may take its place.
        path.write_bytes(data)
        return
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.write_bytes(data)
        if not overwrite:
            # Takes the name, so that nobody else's file is replaced.
            path.touch(exist_ok=False)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _document(response: requests.Response) -> dict[str, Any] | None:
    try:
        document = response.json() if "json" in response.headers.get("Content-Type", "") else None
    except (ValueError, RecursionError):
        # Nor is it ours when its numbers are too long for Python, or its brackets too deep.
        return None
    return document if isinstance(document, dict) else None


def _part(task_id: str) -> str:
    """An id as one part of a path, whatever someone typed; raises ApiError for none."""
    if not task_id:
        raise ApiError("An id is wanted, and this one is empty.", status=404)
    return quote(task_id, safe="")


def _lines(response: requests.Response, hear: Callable[[], None]) -> Iterator[str]:
    """The lines of a body as they come, however it is cut into pieces."""
    rest = b""
    while piece := response.raw.read1(1 << 16, decode_content=True):
        hear()
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise ValueError("a line that does not end")
        yield from (line.decode().removesuffix("\r") for line in lines)


def _named(idempotency_key: str) -> dict[str, str]:
    return {"Idempotency-Key": idempotency_key} if idempotency_key else {}


def _events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events; a line that begins with a colon only says that the service is alive."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif not line and "data" in fields:
            yield _event(fields)
            fields = {}


def _event(fields: dict[str, str]) -> Event:
    """Raises ValueError for what is none of ours."""
    kind, data = fields.get("event", "message"), json.loads(fields["data"])
    if not isinstance(data, dict) or (kind == "status" and "task_id" not in data):
        raise ValueError("another document")
    return Event(kind, data, fields.get("id", ""))
