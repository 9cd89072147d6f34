"""Ray Serve: one replica; `python -m bench.beside.rivals.with_ray PORT MOST`, MOST jobs in a call."""

import asyncio
import signal
import sys
import uuid

import ray
from ray import serve
from starlette.requests import Request

from bench.beside.rivals import work


@serve.deployment(num_replicas=1, max_ongoing_requests=1, ray_actor_options={"num_cpus": 1})
class Sleeping:
    """The job of 50 ms."""

    async def __call__(self, request: Request) -> dict[str, str]:
        """Sleep and store, in a thread: it would hold the replica's loop."""
        steps = int((await request.json())["num_inference_steps"])
        task_id = await asyncio.to_thread(work.sleep, str(uuid.uuid4()), steps)
        return {"task_id": task_id, "status": "SUCCEEDED"}


@serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Drawing:
    """Real pictures, several in a call."""

    def __init__(self, most: int) -> None:
        work.pipeline()
        self.draw.set_max_batch_size(most)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.05)
    async def draw(self, task_ids: list[str]) -> list[str]:
        """As many pictures as requests."""
        return await asyncio.to_thread(work.draw, task_ids)

    async def __call__(self, request: Request) -> dict[str, str]:  # noqa: ARG002, Ray's contract
        """One picture of a call."""
        return {"task_id": await self.draw(str(uuid.uuid4())), "status": "SUCCEEDED"}


if __name__ == "__main__":
    port, most = int(sys.argv[1]), int(sys.argv[2])
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Drawing.bind(most) if most > 1 else Sleeping.bind(), route_prefix="/generate")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
