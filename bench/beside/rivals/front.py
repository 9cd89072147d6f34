"""The route in front of a rival that has none: `gunicorn 'bench.beside.rivals.front:make("rq")'`.

Speaks of a task as Darkroom does: POST /generate answers 202 and its id, GET /tasks/{id}?wait=SECONDS its status.
"""

import importlib
import uuid
from typing import Any

from flask import Flask, request


def make(name: str) -> Flask:
    """The application that enqueues by this rival."""
    rival = importlib.import_module(f"bench.beside.rivals.with_{name}")
    app = Flask(name)

    @app.post("/generate")
    def generate() -> tuple[dict[str, str], int]:
        """Enqueue a job."""
        task_id = str(uuid.uuid4())
        rival.enqueue(task_id, int(request.get_json()["num_inference_steps"]))
        return {"task_id": task_id}, 202

    @app.get("/tasks/<task_id>")
    def task(task_id: str) -> dict[str, Any]:
        """Whether it has ended, within the time that is asked for."""
        ended = rival.ended(task_id, float(request.args.get("wait", 0)))
        return {"task_id": task_id, "status": "SUCCEEDED" if ended else "PENDING"}

    return app
