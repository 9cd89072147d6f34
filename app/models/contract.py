"""What the worker expects of a model, whoever made it. Imports no torch."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from PIL import Image

from app.params import Params
from app.previews import Look


class OnStep(Protocol):
    """What a model calls after each step of all that its call takes, which may be several pictures.

    `look` gives the picture so far, for whoever wants to see it.
    """

    def __call__(self, step: int, steps: int, look: Look | None = None) -> None: ...


class Model(Protocol):
    """A loaded model. `provenance` is written into each picture.

    One that has a safety checker, as its entry in the catalogue says, raises SafetyBlocked for pictures that it flags.
    One that has `together(jobs, on_steps)` makes one picture for each of several jobs at once, or SafetyBlocked in its
    place.
    """

    @property
    def provenance(self) -> Mapping[str, str]: ...

    def generate(
        self, params: Params, source: Image.Image | None, on_step: OnStep, *mask: Image.Image
    ) -> Iterator[Image.Image]:
        """`params.num_images` pictures, from seed, seed + 1, …; calls `on_step` after each step.

        They are stored as they come: of another size or mode than was asked for, that is what the task says.
        A mask comes only to models that can inpaint: grey, white where the source is painted anew.
        """
