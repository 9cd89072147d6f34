"""A small model, and one job run with it."""

from PIL import Image

from tests.things import runner


class Painter:
    """A model that paints one colour; `before` is called with the parameters before the first step."""

    def __init__(self, before=lambda params: None):
        self.provenance = {"scheduler": "none", "weights_sha256": "0"}
        self.before = before
        self.sources = []

    def generate(self, params, source, on_step):
        self.sources.append(source)
        self.before(params)
        for _ in range(params.num_images):
            for step in range(params.num_inference_steps):
                on_step(step + 1, params.num_inference_steps)
            yield Image.new("RGB", (params.width, params.height), "red")


def run(services, queued_job, model=None, name="worker-1"):
    return runner(services, {"tiny-scenes-1": model or Painter()}, name).run(queued_job)


def raising(error):
    def fail(_):
        raise error

    return Painter(fail)
