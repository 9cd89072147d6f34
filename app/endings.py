"""How jobs end: encode → store → finish, in a thread, so that the model goes on with the next ones meanwhile."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from functools import partial
from typing import Self

from app.held import Held, by_signal

# What is ending when a worker must stop may still take so many seconds of those in which it hands its jobs back.
LAST_SECONDS = 2.0


class Endings:
    """The ends of one worker's jobs: those of one attempt at a time, so that no more than that waits to be stored.

    As a context, one turn at the worker: on leaving, all that is over within has ended.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "endings")
        self._due: Callable[[], None] | None = None
        self._last: Future[None] | None = None
        self._jobs: Sequence[Held] = ()

    def over(self, jobs: Sequence[Held], ends: Sequence[Callable[[], None]], hands: ExitStack) -> None:
        """These jobs are to be ended, once the ones before have; `hands` holds them until then."""
        self.wait()
        self._jobs = jobs
        self._due = partial(_end, hands.pop_all(), ends)

    def begin(self) -> None:
        """End them now: what comes next here leaves the processor to others."""
        if self._due:
            self._last, self._due = self._thread.submit(self._due), None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, *rest: object) -> None:
        if error is None:
            self.wait()
        else:
            self._leave(error)

    def wait(self) -> None:
        """Until all that is over has ended; who is told to stop meanwhile hands it back."""
        self.begin()
        try:
            if self._last:
                self._last.result()
        except SystemExit as stop:
            self._leave(stop)
            raise
        self._last = None

    def _leave(self, error: BaseException) -> None:
        """Hand back what does not end soon, when the worker was told to stop: its thread finds its claim gone."""
        self.begin()
        left = wait_for([self._last] if self._last else [], LAST_SECONDS).not_done
        self._last = None
        for held in self._jobs if left and by_signal(error) else ():
            held.__exit__(type(error), error, None)


def _end(hands: ExitStack, ends: Sequence[Callable[[], None]]) -> None:
    with hands:
        for end in ends:
            end()
