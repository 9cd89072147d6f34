"""Previews: what a running job's picture looks like so far, for those who look at it at this moment.

Who follows a task's events says so under a key that ends by itself; without it a worker spends nothing on previews.
They go past on the channel of all events and are stored nowhere.
"""

import base64
import io
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from redis import Redis

from app.errors import StoreUnavailable
from app.jobs import EVENTS, ask

# The web tier hands previews on and has no pillow.
if TYPE_CHECKING:
    from PIL import Image

log = structlog.get_logger("darkroom.previews")

Look = Callable[[], "Image.Image"]

PAUSE = 0.5
# Where a look takes long, the pause is so many times longer: looking never takes more than a twentieth of the time.
SHARE = 20
LONGEST_SIDE = 256
ASKED_SECONDS = 15


class Previews:
    """Who asks for previews, and the way that these take. Raises StoreUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def ask_for(self, task_id: str) -> None:
        """Somebody looks at this task, and will for some seconds; who cannot be told of does without."""
        with suppress(StoreUnavailable):
            ask(lambda: self._redis.set(_key(task_id), 1, ex=ASKED_SECONDS))

    def wanted(self, task_id: str) -> bool:
        """Whether somebody looks."""
        return bool(ask(lambda: self._redis.exists(_key(task_id))))

    def publish(self, task_id: str, image: "Image.Image") -> None:
        """Send a small JPEG to whoever follows the task."""
        event = {"task_id": task_id, "preview": base64.b64encode(_jpeg(image)).decode()}
        ask(lambda: self._redis.publish(EVENTS, json.dumps(event)))


class Window:
    """The previews of one running job, with pauses between them."""

    def __init__(self, previews: Previews, task_id: str) -> None:
        self._previews = previews
        self._task_id = task_id
        # Short jobs have none: their picture comes as soon.
        self._next = time.monotonic() + PAUSE

    def offer(self, look: Look) -> None:
        """Show what is to be seen, if it is time and somebody looks. No failure here is the job's."""
        started = time.monotonic()
        if started < self._next:
            return
        try:
            if self._previews.wanted(self._task_id):
                self._previews.publish(self._task_id, look())
        except Exception as error:  # noqa: BLE001, the picture itself may be made all the same
            log.warning("preview.failed", task_id=self._task_id, error_type=type(error).__name__, reason=str(error))
            self._next = math.inf
        else:
            self._next = started + max(PAUSE, SHARE * (time.monotonic() - started))


def _key(task_id: str) -> str:
    return f"preview:{task_id}"


def _jpeg(image: "Image.Image") -> bytes:
    image = image.convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()
