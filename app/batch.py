"""Several jobs as one call of their pipeline: an accelerator makes four pictures in little more than the time of one.

Nobody waits for a batch: it is what is queued already. And nobody depends on the others in it: who cancels or loses its
claim is left out, and when the call itself fails each job is done alone, so that one of them cannot fail them all.
"""

from collections.abc import Sequence
from typing import Any

import structlog
from PIL import Image

from app import tracing
from app.errors import Canceled, ClaimLost, DarkroomError, DeviceLost
from app.held import Held, by_signal
from app.models.contract import OnStep
from app.previews import Look
from app.record import Phase

log = structlog.get_logger("darkroom.generate")

Made = Image.Image | DarkroomError


def make_together(model: Any, jobs: Sequence[Held]) -> dict[str, Made]:
    """By task id each job's picture, or why it has none; who is missing has to be made alone. Raises DeviceLost."""
    batch = _Batch(jobs)
    try:
        with tracing.span("job.inference", batch_size=len(jobs)):
            made = model.together([held.job.params for held in jobs], [batch.told(held) for held in jobs])
    except (Exception, SystemExit) as error:
        if isinstance(error, DeviceLost) or by_signal(error):
            raise
        # Each job meets it again by itself, if it is its own.
        log.warning("batch.failed", size=len(jobs), error_type=type(error).__name__)
        made = None
    for held in jobs:
        held.lap("inference_ms")
    for mate in jobs[1:]:
        mate.trace_batch(len(jobs))
    pictures = dict(zip((held.job.task_id for held in jobs), made or (), strict=False))
    return pictures | batch.left


class _Batch:
    """Jobs that are under way together, and those that have left: `left`, by task id."""

    def __init__(self, jobs: Sequence[Held]) -> None:
        self.left: dict[str, DarkroomError] = {}
        self._size = len(jobs)
        for held in jobs:
            held.lap("load_ms")
            self._tell(held, lambda held=held: held.enter(Phase.RUNNING))

    def told(self, held: Held) -> OnStep:
        """What the model calls after each step of this job; raises only when there is nobody left."""

        def on_step(step: int, steps: int, look: Look | None = None) -> None:
            self._tell(held, lambda: held.on_step(step, steps, look))
            if len(self.left) == self._size:
                raise self.left[held.job.task_id]

        return on_step

    def _tell(self, held: Held, say: Any) -> None:
        if held.job.task_id in self.left:
            return
        try:
            say()
        except (ClaimLost, Canceled) as error:
            self.left[held.job.task_id] = error
