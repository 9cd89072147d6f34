"""LitServe: one worker; `python -m bench.beside.rivals.with_litserve PORT MOST`, MOST jobs in a call."""

import sys
import uuid
from typing import Any

import litserve

from bench.beside.rivals import work


class Sleeping(litserve.LitAPI):
    """The job of 50 ms."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: dict[str, Any]) -> int:
        """How many steps."""
        return int(request["num_inference_steps"])

    def predict(self, steps: int) -> str:
        """Sleep and store."""
        return work.sleep(str(uuid.uuid4()), steps)

    def encode_response(self, output: str) -> dict[str, str]:
        """As Darkroom's route answers."""
        return {"task_id": output, "status": "SUCCEEDED"}


class Drawing(Sleeping):
    """Real pictures, several in a call."""

    def setup(self, device: str) -> None:  # noqa: ARG002, LitServe's contract
        """Load the model."""
        work.pipeline()

    def predict(self, steps: list[int]) -> list[str]:
        """As many pictures as requests."""
        return work.draw([str(uuid.uuid4()) for _ in steps])


if __name__ == "__main__":
    port, most = int(sys.argv[1]), int(sys.argv[2])
    api = (
        Drawing(max_batch_size=most, batch_timeout=0.05, api_path="/generate")
        if most > 1
        else Sleeping(api_path="/generate")
    )
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=port, generate_client_file=False)
