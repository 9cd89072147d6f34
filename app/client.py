"""A small client of the public HTTP API: submit, upload, wait, download."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from app.errors import DarkroomError

WAIT = 30


class ApiError(DarkroomError):
    """The service said no, or nothing. `problem` is its problem document, empty when there was none."""

    def __init__(self, message: str, problem: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.problem = problem or {}


class Client:
    """Speaks to one deployment. Every method raises ApiError."""

    def __init__(self, url: str, timeout: float = 10) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()

    def generate(
        self, prompt: str, input_image: bytes | None = None, mask_image: bytes | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Submit a prompt, and bring its input picture and its mask if there are any; the task document."""
        body = {"prompt": prompt, "input_image": input_image is not None, **parameters}
        if mask_image is not None:
            body["mask_image"] = True
        task = self._json("POST", "/generate", json=body)
        uploads = {"upload_url": input_image, "mask_upload_url": mask_image}
        if input_image is None and mask_image is None:
            return task
        for name, data in uploads.items():
            if data is not None:
                self._send(task["upload_method"], task[name], data=data, headers=task["upload_headers"])
        return self._json("POST", f"/tasks/{task['task_id']}/start")

    def task(self, task_id: str, wait: float = 0) -> dict[str, Any]:
        """The task document, as soon as the task is done or after `wait` seconds."""
        return self._json("GET", f"/tasks/{task_id}", params={"wait": wait}, timeout=self._timeout + wait)

    def follow(self, task_id: str, pause: float = 0.1) -> Iterator[dict[str, Any]]:
        """The task document again and again, until the task is done."""
        while True:
            task = self.task(task_id)
            yield task
            if task["status"] != "PENDING":
                return
            time.sleep(pause)

    def wait(self, task_id: str, seconds: float) -> dict[str, Any]:
        """The document of the finished task; raises ApiError when it is not done within `seconds`."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            task = self.task(task_id, min(left, WAIT))
            if task["status"] != "PENDING":
                return task
        raise ApiError(f"Task {task_id} is not done after {seconds:g} s.")

    def image(self, task_id: str, index: int = 0) -> bytes:
        """The picture, as PNG."""
        return self._send("GET", f"{self._url}/tasks/{task_id}/images/{index}").content

    def save(self, task_id: str, path: Path, index: int = 0) -> Path:
        """Write the picture to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.image(task_id, index))
        return path

    def models(self) -> list[dict[str, Any]]:
        """Every model that the deployment offers, the default first."""
        models: list[dict[str, Any]] = self._json("GET", "/models")["models"]
        return models

    def ready(self) -> bool:
        """Whether the web tier reaches its status store and its broker."""
        try:
            self._json("GET", "/readyz")
        except ApiError:
            return False
        return True

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        document: dict[str, Any] = self._send(method, self._url + path, **options).json()
        return document

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            response = self._session.request(method, url, **{"timeout": self._timeout, **options})
        except requests.RequestException as error:
            raise ApiError(f"{self._url} does not answer ({type(error).__name__}).") from error
        if response.ok:
            return response
        problem = response.json() if "json" in response.headers.get("Content-Type", "") else {}
        raise ApiError(problem.get("detail") or f"{method} {url}: {response.status_code}", problem)
