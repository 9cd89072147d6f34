"""BentoML: one worker, one request at a time, or several in a call where BESIDE_MOST says so."""

import os
import uuid

import bentoml

from bench.beside.rivals import work

MOST = max(2, int(os.environ.get("BESIDE_MOST", "1")))
# Requests that wait are not refused: `max_latency_ms` is what it refuses above.
PATIENCE_MS = 600_000


@bentoml.service(workers=1, threads=1, traffic={"timeout": 600})
class Sleeping:
    """The job of 50 ms."""

    @bentoml.api(route="/generate")
    def generate(self, num_inference_steps: int) -> dict[str, str]:
        """Sleep and store."""
        return {"task_id": work.sleep(str(uuid.uuid4()), num_inference_steps), "status": "SUCCEEDED"}


@bentoml.service(workers=1, threads=1, traffic={"timeout": 600})
class Drawing:
    """Real pictures, several in a call."""

    def __init__(self) -> None:
        work.pipeline()

    @bentoml.api(route="/generate", batchable=True, max_batch_size=MOST, max_latency_ms=PATIENCE_MS)
    def generate(self, num_inference_steps: list[int]) -> list[str]:
        """As many pictures as requests."""
        return work.draw([str(uuid.uuid4()) for _ in num_inference_steps])
