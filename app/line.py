"""Whose turn it is when a message comes: who is first in line, as a rule the job that the message names.

A message is one turn at a worker, no more. That of a job whose worker was lost may come after those of all who wait
behind it, and one of low priority before those who go first. Where models share a worker that cannot hold them all,
jobs of a model that is in memory go first, so that not every job pays for the loading of its model. Who is passed over
keeps its place: the message of the job that went before it comes later, finds its own job done, and serves who waits
longest. So there are never fewer turns than jobs.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from app.jobs import Claim, JobStore, Waiting
from app.record import Job

# How far down the line mates are looked for, in multiples of those that are wanted.
LOOK = 4
# How far down it a job of a loaded model is looked for.
FAR = 100


class Models(Protocol):
    """The models of one worker: `loaded` are those in memory now."""

    @property
    def loaded(self) -> Collection[str]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, model_version: object) -> bool: ...


@dataclass
class Line:
    """The order of jobs at one worker. `patience`: seconds for which the first in line may be passed over."""

    jobs: JobStore
    models: Models
    patience: float
    clock: Callable[[], float] = time.monotonic
    _passing_over_since: float | None = None

    def turns(self, own: Job) -> Iterator[str]:
        """Ids to claim on the message of `own`, one after the other until one is had."""
        # One that is not in the line may have lost its record, which only its own message can make again.
        position = self.jobs.standing(own).position
        if position or (position == 0 and self._may_choose):
            yield from self._next(own.queue)
        # A model that this worker does not serve yet, or no more, others of its queue do.
        if own.params.model_version in self.models:
            yield own.task_id
        yield from self._next(own.queue)

    def claim(self, queue: str, token: str, owner: str) -> Claim:
        """Claim who is next, whichever job that is; `empty` when nobody waits whom this worker could serve."""
        if not self._may_choose:
            return self.jobs.claim_next(queue, LOOK, list(self.models), token, owner)
        for task_id in self._next(queue):
            return self.jobs.claim(task_id, token, owner)
        return Claim("empty")

    @property
    def _may_choose(self) -> bool:
        """Whether it matters whose turn it is: some model would have to be loaded."""
        return len(self.models.loaded) < len(self.models)

    def mates(self, job: Job, most: int) -> list[str]:
        """Ids of at most so many jobs that wait now and can be run as one with this one, first come first."""
        if most < 1 or not job.params.goes_with(job.params):
            return []
        line = self.jobs.line(job.queue, LOOK * most)
        return [waiting.task_id for waiting in line if job.params.goes_with(waiting.params)][:most]

    def _next(self, queue: str) -> Iterator[str]:
        """Who is next: the first in line, or within its patience the first whose model is in memory."""
        # Where all models are in memory there is hardly a choice.
        far = FAR if self._may_choose else LOOK
        line = [waiting for waiting in self.jobs.line(queue, far) if waiting.params.model_version in self.models]
        for first in line[:1]:
            chosen = next((waiting for waiting in line if self._is_at_hand(waiting, first.params.priority)), first)
            yield (chosen if self._may_pass_over(first, chosen) else first).task_id

    def _is_at_hand(self, waiting: Waiting, priority: str) -> bool:
        return waiting.params.model_version in self.models.loaded and waiting.params.priority == priority

    def _may_pass_over(self, first: Waiting, chosen: Waiting) -> bool:
        now = self.clock()
        since = now if self._passing_over_since is None else self._passing_over_since
        allowed = chosen != first and now - since < self.patience
        self._passing_over_since = since if allowed else None
        return allowed
