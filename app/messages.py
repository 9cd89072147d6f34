"""What a message says. A worker reads it before its child is bothered; what nobody can read goes to quarantine."""

import json
from typing import Any

from app.errors import DarkroomError
from app.record import Job
from app.tasks import GENERATE

# Of Celery's own headers those that it reads before it asks us; it fails at values that it does not expect.
_AS_SENT: dict[str, tuple[Any, ...]] = {
    "eta": (None,), "expires": (None,), "timelimit": (None, [None, None]), "retries": (None, 0),
    "stamped_headers": (None, []), "stamps": (None, {}),
}  # fmt: skip


class Unreadable(DarkroomError):
    """A message that asks for no job of ours; the text says why and repeats nothing of it."""


def read(headers: Any, content_type: str, body: Any) -> Job:
    """The job that this message asks for; raises Unreadable."""
    if not isinstance(headers, dict) or headers.get("task") != GENERATE:
        raise Unreadable("its headers name no task of ours")
    if any(headers.get(name) not in found for name, found in _AS_SENT.items()):
        raise Unreadable("its headers ask of Celery what no message of ours does")
    if content_type != "application/json":
        raise Unreadable("it is not in JSON")
    job = _job(body, headers.get("deadline_at"))
    if job.task_id != headers.get("id"):
        raise Unreadable("its header and its body name different tasks")
    return job


def _job(body: Any, deadline_at: float | None) -> Job:
    try:
        _, arguments, _ = json.loads(bytes(body) if isinstance(body, memoryview) else body)
        return _possible(Job.from_message(arguments["message"], deadline_at))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unreadable(f"its body holds no job ({type(error).__name__})") from None


def _possible(job: Job) -> Job:
    """Raises ValueError for what no request could have asked for, and nobody here could keep, make or show."""
    params = job.params
    if min(params.num_images, params.width, params.height, params.num_inference_steps) < 1:
        raise ValueError("less than one")
    # A lone surrogate is JSON, and yet no text.
    json.dumps(job.message(), ensure_ascii=False).encode()
    return job
